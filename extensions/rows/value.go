package rows

import (
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"
)

// kind is how a column becomes JSON.
type kind uint8

const (
	kindForeign kind = iota // a type that is not PocketBase's own
	kindText
	kindNumber
	kindBool
	kindDate
	kindOne  // a select, relation or file with one value
	kindMany // with several
	kindJSON
	kindPoint
	kindSecret // a password, of which PocketBase shows the empty plain text
)

// kindOf goes by the Go type, because a registered field may use any name.
func kindOf(field core.Field) kind {
	switch f := field.(type) {
	case *core.TextField, *core.EditorField, *core.EmailField, *core.URLField:
		return kindText
	case *core.NumberField:
		return kindNumber
	case *core.BoolField:
		return kindBool
	case *core.DateField, *core.AutodateField:
		return kindDate
	case *core.SelectField:
		return kindOfValues(f.IsMultiple())
	case *core.RelationField:
		return kindOfValues(f.IsMultiple())
	case *core.FileField:
		return kindOfValues(f.IsMultiple())
	case *core.JSONField:
		return kindJSON
	case *core.GeoPointField:
		return kindPoint
	case *core.PasswordField:
		return kindSecret
	}
	return kindForeign
}

func kindOfValues(multiple bool) kind {
	if multiple {
		return kindMany
	}
	return kindOne
}

// exactInt is the least integer above which not every integer is a float64.
const exactInt = 1 << 53

// appendValue writes a value as SQLite's driver hands it out. The common forms are written at once; whatever else may be
// in a column, such as text in a number, goes through PocketBase's field.
func appendValue(dst []byte, k kind, field core.Field, raw any) ([]byte, error) {
	switch v := raw.(type) {
	case string:
		if out, ok := appendText(dst, k, v); ok {
			return out, nil
		}
	case int64:
		switch {
		case k == kindNumber && -exactInt < v && v < exactInt:
			return strconv.AppendInt(dst, v, 10), nil
		case k == kindJSON:
			return strconv.AppendInt(dst, v, 10), nil
		case k == kindBool && (v == 0 || v == 1):
			return strconv.AppendBool(dst, v == 1), nil
		}
	case float64:
		if k == kindNumber && v != 0 && !math.IsInf(v, 0) && !math.IsNaN(v) {
			return jsontext.AppendFloat(dst, v, 64), nil
		}
	case bool:
		if k == kindBool {
			return strconv.AppendBool(dst, v), nil
		}
	case nil:
		if k == kindJSON {
			return append(dst, "null"...), nil
		}
	}
	return appendPrepared(dst, field, raw)
}

// appendText writes text in its common form, or reports that it has another.
func appendText(dst []byte, k kind, v string) ([]byte, bool) {
	switch k {
	case kindText:
		return appendString(dst, v), true
	case kindOne:
		if strings.IndexByte(v, '[') < 0 {
			return appendString(dst, v), true
		}
	case kindDate:
		if v == "" || isDate(v) {
			return append(append(append(dst, '"'), v...), '"'), true
		}
	case kindMany:
		if isList(v) {
			return append(dst, v...), true
		}
	case kindPoint:
		return appendPoint(dst, v)
	case kindJSON:
		return appendJSON(dst, v)
	default:
	}
	return dst, false
}

// appendString replaces what is not UTF-8, as PocketBase does.
func appendString(dst []byte, v string) []byte {
	dst, _ = jsontext.AppendQuote(dst, v)
	return dst
}

// appendPrepared writes a value as PocketBase does: as the text that database/sql makes of it, read by the field,
// encoded.
func appendPrepared(dst []byte, field core.Field, raw any) ([]byte, error) {
	if raw != nil {
		raw = textOf(raw)
	}
	value, err := field.PrepareValue(nil, raw)
	if err != nil {
		return dst, fmt.Errorf("read field %s: %w", field.GetName(), err)
	}
	if dst, err = appendAny(dst, value); err != nil {
		return dst, fmt.Errorf("encode field %s: %w", field.GetName(), err)
	}
	return dst, nil
}

// textOf is database/sql's conversion of a driver's value to a string.
func textOf(raw any) string {
	switch v := raw.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	case time.Time:
		return v.Format(time.RFC3339Nano)
	}
	return fmt.Sprint(raw)
}

// isDate reports whether v is a date and time as PocketBase stores and shows them, so that parsing and formatting it
// would change nothing.
func isDate(v string) bool {
	const form = "0000-00-00 00:00:00.000Z"
	if len(v) != len(form) || v == "0001-01-01 00:00:00.000Z" { // the zero time, shown as the empty string
		return false
	}
	for i := range len(form) {
		if form[i] == '0' {
			if v[i] < '0' || v[i] > '9' {
				return false
			}
		} else if v[i] != form[i] {
			return false
		}
	}
	two := func(i int) int { return int(v[i]-'0')*10 + int(v[i+1]-'0') }
	month, day := two(5), two(8)
	if month < 1 || month > 12 || day < 1 || two(11) > 23 || two(14) > 59 || two(17) > 59 {
		return false
	}
	return day <= 28 || day <= time.Date(two(0)*100+two(2), time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

// isList reports whether v is a JSON list as PocketBase stores it: strings without anything to escape, none of them
// empty, none twice.
func isList(v string) bool {
	if v == "[]" {
		return true
	}
	if len(v) < len(`["a"]`) || v[0] != '[' || v[len(v)-1] != ']' {
		return false
	}
	rest := v[1 : len(v)-1]
	for {
		if len(rest) < 3 || rest[0] != '"' {
			return false
		}
		end := plainEnd(rest[1:])
		if end < 1 {
			return false
		}
		item := rest[:end+2] // with its quotes, which occur nowhere inside an item
		rest = rest[end+2:]
		if strings.Contains(rest, item) {
			return false
		}
		if rest == "" {
			return true
		}
		if rest[0] != ',' {
			return false
		}
		rest = rest[1:]
	}
}

// plainEnd finds the quote behind printable ASCII, -1 if anything else comes before it.
func plainEnd(v string) int {
	for i := range len(v) {
		switch c := v[i]; {
		case c == '"':
			return i
		case c < ' ' || c > '~' || c == '\\':
			return -1
		}
	}
	return -1
}

// appendPoint writes a geo point that is stored as PocketBase writes it.
func appendPoint(dst []byte, v string) ([]byte, bool) {
	rest, ok := strings.CutPrefix(v, `{"lon":`)
	if !ok {
		return dst, false
	}
	lon, rest, _ := strings.Cut(rest, `,"lat":`)
	lat, ok := strings.CutSuffix(rest, "}")
	if !ok || !isFloat(lon) || !isFloat(lat) {
		return dst, false
	}
	return append(dst, v...), true
}

// isFloat reports whether v is a number in the form in which it would be written again.
func isFloat(v string) bool {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return false
	}
	var buf [32]byte
	return string(jsontext.AppendFloat(buf[:0], f, 64)) == v
}

// appendJSON writes stored JSON; text that is none is left to the field, which quotes it.
func appendJSON(dst []byte, v string) ([]byte, bool) {
	if v == "" {
		return dst, false
	}
	if c := v[0]; c != '{' && c != '[' && c != '"' && c != '-' && (c < '0' || c > '9') && v != "null" && v != "true" && v != "false" {
		return dst, false
	}
	before := len(dst)
	out, err := appendFormat(dst, v)
	if err != nil {
		return out[:before], false
	}
	return out, true
}

func appendFormat[B ~[]byte | ~string](dst []byte, v B) ([]byte, error) {
	return jsontext.AppendFormat(dst, v, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// appendAny writes a value of a record with the options that PocketBase's records have.
func appendAny(dst []byte, value any) ([]byte, error) {
	switch v := value.(type) {
	case nil:
		return append(dst, "null"...), nil
	case string:
		return appendString(dst, v), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	case float64:
		if !math.IsInf(v, 0) && !math.IsNaN(v) {
			return jsontext.AppendFloat(dst, v, 64), nil
		}
	case types.DateTime:
		return append(append(append(dst, '"'), v.String()...), '"'), nil
	case types.JSONRaw:
		if len(v) == 0 {
			return append(dst, "null"...), nil
		}
		return appendFormat(dst, v)
	case []string:
		return appendList(dst, v, func(dst []byte, s string) ([]byte, error) { return appendString(dst, s), nil })
	case *core.Record:
		if v == nil {
			return append(dst, "null"...), nil
		}
		return AppendRecord(dst, v)
	case []*core.Record:
		return AppendRecords(dst, v)
	case map[string]any:
		return appendObject(dst, v)
	}
	raw, err := jsonv2.Marshal(value, recordOptions())
	return append(dst, raw...), err
}

func appendList[T any](dst []byte, items []T, one func([]byte, T) ([]byte, error)) ([]byte, error) {
	dst = append(dst, '[')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = one(dst, item); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

// recordOptions are those of [core.Record.MarshalJSON].
func recordOptions() jsonv2.Options {
	return jsonv2.JoinOptions(jsonv2.Deterministic(true), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}
