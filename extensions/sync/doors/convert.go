package doors

import (
	"bytes"
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/sync/push"
)

// members reads a row of the server, in the order in which it was written.
func members(row []byte, fn func(name string, value jsontext.Value) error) error {
	dec := jsontext.NewDecoder(bytes.NewReader(row), jsontext.AllowDuplicateNames(true))
	if _, err := dec.ReadToken(); err != nil {
		return fmt.Errorf("read row: %w", err)
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return fmt.Errorf("read row: %w", err)
		}
		text := name.String() // valid until the next read
		value, err := dec.ReadValue()
		if err != nil {
			return fmt.Errorf("read row: %w", err)
		}
		if err := fn(text, value); err != nil {
			return err
		}
	}
	return nil
}

// about reports members that tell of the collection, or that are the clients' own.
func about(name string) bool {
	return name == core.FieldNameCollectionId || name == core.FieldNameCollectionName || name == core.FieldNameExpand || strings.HasPrefix(name, "_")
}

// document is a row as a client keeps it: without what is the same in all rows, and with values as convert makes them.
func document(row []byte, tail string, convert func(name string, value jsontext.Value) (jsontext.Value, error)) (json.RawMessage, error) {
	out := append(make([]byte, 0, len(row)+len(tail)), '{')
	err := members(row, func(name string, value jsontext.Value) error {
		if about(name) {
			return nil
		}
		value, err := convert(name, value)
		if err != nil {
			return err
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		if out, err = jsontext.AppendQuote(out, name); err != nil {
			return fmt.Errorf("write row: %w", err)
		}
		out = append(append(out, ':'), value...)
		return nil
	})
	return append(append(out, tail...), '}'), err
}

// isJSON reports fields whose values are neither text nor a number nor a boolean.
func isJSON(f core.Field) bool {
	switch f.Type() {
	case core.FieldTypeJSON, core.FieldTypeGeoPoint:
		return true
	}
	multi, ok := f.(core.MultiValuer)
	return ok && multi.IsMultiple()
}

func isDate(f core.Field) bool {
	return f.Type() == core.FieldTypeDate || f.Type() == core.FieldTypeAutodate
}

// toColumn is a value of the server as WatermelonDB can keep it: dates are milliseconds, what is not a plain value is JSON
// text. Anything else would silently become an empty value there.
func toColumn(c *core.Collection, name string, value jsontext.Value) (jsontext.Value, error) {
	f := c.Fields.GetByName(name)
	switch {
	case f == nil || value.Kind() == 'n':
		return value, nil
	case isJSON(f):
		out, err := jsontext.AppendQuote(nil, string(value))
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
		return out, nil
	case isDate(f):
		var text string
		if err := jsonv2.Unmarshal(value, &text); err != nil {
			return nil, fmt.Errorf("read date %s: %w", name, err)
		}
		date, err := types.ParseDateTime(text)
		if err != nil || date.IsZero() {
			return jsontext.Value("null"), nil //nolint:nilerr // an empty date
		}
		return strconv.AppendInt(nil, date.Time().UnixMilli(), 10), nil
	}
	return value, nil
}

// fromColumn is toColumn's way back. ok is false for what the server decides itself.
func fromColumn(c *core.Collection, name string, value jsontext.Value) (out jsontext.Value, ok bool) {
	f := c.Fields.GetByName(name)
	switch {
	case f == nil || !settable(f):
		return nil, false
	case value.Kind() == 'n':
		return empty(f), true
	case isDate(f) && value.Kind() == '0':
		ms, err := strconv.ParseFloat(string(value), 64)
		if err != nil || ms == 0 { // a column that is not optional has no other way to say that there is none
			return jsontext.Value(`""`), true
		}
		out, err := json.Marshal(time.UnixMilli(int64(ms)).UTC().Format(types.DefaultDateLayout))
		return out, err == nil
	case isJSON(f) && value.Kind() == '"':
		var text string
		if jsonv2.Unmarshal(value, &text) != nil {
			return value, true // the validation says what is wrong
		}
		if text == "" {
			return empty(f), true
		}
		if inner := jsontext.Value(text); inner.IsValid() {
			return inner, true
		}
	}
	return value, true
}

// settable reports fields that a client may give a value.
func settable(f core.Field) bool {
	return f.GetName() != core.FieldNameId && f.Type() != core.FieldTypeAutodate && !f.GetHidden()
}

// empty is the value of a field that has none.
func empty(f core.Field) jsontext.Value {
	switch {
	case f.Type() == core.FieldTypeNumber:
		return jsontext.Value("0")
	case f.Type() == core.FieldTypeBool:
		return jsontext.Value("false")
	case f.Type() == core.FieldTypeJSON, f.Type() == core.FieldTypeGeoPoint:
		return jsontext.Value("null")
	case isJSON(f):
		return jsontext.Value("[]")
	}
	return jsontext.Value(`""`)
}

// has reports whether the record has the value, as it is stored or as it was shown.
func has(record *core.Record, shown map[string]jsontext.Value, name string, value jsontext.Value) (bool, error) {
	if visible, ok := shown[name]; ok && equal(visible, value) {
		return true, nil
	}
	return push.Holds(record, name, value)
}

// equal compares JSON values.
func equal(a, b jsontext.Value) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return jsonv2.Unmarshal(a, &x) == nil && jsonv2.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// related are the ids that a field of a row refers to.
func related(f core.Field, value jsontext.Value) []string {
	if f.Type() != core.FieldTypeRelation {
		return nil
	}
	var list []string
	if jsonv2.Unmarshal(value, &list) == nil {
		return list
	}
	var one string
	if jsonv2.Unmarshal(value, &one) == nil && one != "" {
		return []string{one}
	}
	return nil
}

// relations are the fields of a collection that refer to records.
func relations(c *core.Collection) []*core.RelationField {
	var out []*core.RelationField
	for _, f := range c.Fields {
		if r, ok := f.(*core.RelationField); ok {
			out = append(out, r)
		}
	}
	return slices.Clip(out)
}
