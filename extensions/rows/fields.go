package rows

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/picker"
	"github.com/pocketbase/pocketbase/tools/tokenizer"
)

// Fields is the client's choice of fields, in the syntax of PocketBase's parameter. The zero value chooses all.
type Fields struct {
	raw   string
	names []string // the top-level names in it; nil when more than these must be read
	plain bool     // the names are all there is to it
}

// ParseFields reads the parameter.
func ParseFields(raw string) (Fields, error) {
	if raw == "" {
		return Fields{}, nil
	}
	// With nothing to pick from, only a list that cannot be parsed is an error.
	if _, err := picker.Pick(nil, raw); err != nil {
		return Fields{}, err
	}
	tokens, err := tokenizer.NewFromString(raw).ScanAll()
	if err != nil {
		return Fields{}, err
	}
	f := Fields{raw: raw, plain: true}
	for _, token := range tokens {
		path, _, modified := strings.Cut(strings.TrimSpace(token), ":")
		name, _, nested := strings.Cut(path, ".")
		if name == "*" || modified {
			return Fields{raw: raw}, nil // a modifier that does not suit the value makes PocketBase answer with everything
		}
		f.names, f.plain = append(f.names, name), f.plain && !nested
	}
	return f, nil
}

// String is the parameter.
func (f Fields) String() string { return f.raw }

// has reports whether a top-level name must be in what [Fields.Encode] picks from.
func (f Fields) has(name string) bool { return f.names == nil || slices.Contains(f.names, name) }

// Columns are the columns that a record must be read with; nil means all. id is always among them, and so are those
// that decide what may be shown and those that the expands start from.
func (f Fields) Columns(collection *core.Collection, expand []string) []string {
	if f.names == nil {
		return nil
	}
	wanted := map[string]bool{core.FieldNameId: true}
	if collection.IsAuth() {
		wanted[core.FieldNameEmailVisibility] = true
	}
	for _, name := range f.names {
		wanted[name] = true
	}
	for _, path := range expand {
		root, _, _ := strings.Cut(path, ".")
		wanted[root] = true
	}
	var columns []string
	for _, field := range collection.Fields {
		if wanted[field.GetName()] {
			columns = append(columns, field.GetName())
		}
	}
	return columns
}

// Encode writes what is chosen of a record, a list of records, or what a hook has put in their place.
func (f Fields) Encode(dst []byte, data any) ([]byte, error) {
	if list, ok := data.(*[]*core.Record); ok && list != nil {
		data = *list
	}
	start := len(dst)
	dst, err := appendAny(dst, data)
	if err != nil {
		return dst, fmt.Errorf("encode records: %w", err)
	}
	if f.raw == "" {
		return dst, nil
	}
	return f.pick(dst, start)
}

// pick replaces the JSON from start on by what is chosen of it.
func (f Fields) pick(dst []byte, start int) ([]byte, error) {
	picked, err := picker.Pick(json.RawMessage(dst[start:]), f.raw)
	if errors.Is(err, picker.ErrInvalidModifierData) {
		return dst, nil // the stock API then answers with everything
	}
	if err != nil {
		return dst, fmt.Errorf("pick fields: %w", err)
	}
	raw, err := jsonv2.Marshal(picked, recordOptions())
	if err != nil {
		return dst, fmt.Errorf("encode picked fields: %w", err)
	}
	return append(dst[:start], raw...), nil
}

// rawItems marks JSON that is written already for PocketBase's own writer.
func rawItems(buf []byte) jsontext.Value { return jsontext.Value(buf) }
