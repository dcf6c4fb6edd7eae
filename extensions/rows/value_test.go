package rows

import (
	"bytes"
	jsonv2 "encoding/json/v2"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"
)

func allFields() []core.Field {
	return []core.Field{
		&core.TextField{Name: "text"}, &core.EditorField{Name: "editor"}, &core.EmailField{Name: "email"}, &core.URLField{Name: "url"},
		&core.NumberField{Name: "number"}, &core.BoolField{Name: "bool"}, &core.DateField{Name: "date"}, &core.AutodateField{Name: "autodate"},
		&core.SelectField{Name: "select"}, &core.SelectField{Name: "selects", MaxSelect: 2}, &core.RelationField{Name: "relation"},
		&core.RelationField{Name: "relations", MaxSelect: 2}, &core.FileField{Name: "file"}, &core.FileField{Name: "files", MaxSelect: 2},
		&core.JSONField{Name: "json"}, &core.GeoPointField{Name: "point"},
	}
}

// prepared is what PocketBase writes for a column.
func prepared(f core.Field, raw any) ([]byte, error) {
	if raw != nil {
		raw = textOf(raw)
	}
	value, err := f.PrepareValue(core.NewRecord(core.NewBaseCollection("c")), raw)
	if err != nil {
		return nil, err
	}
	return jsonv2.Marshal(value, recordOptions())
}

func check(t *testing.T, raw any) {
	t.Helper()
	for _, f := range allFields() {
		want, wantErr := prepared(f, raw)
		got, err := appendValue([]byte("before"), kindOf(f), f, raw)
		if (err != nil) != (wantErr != nil) {
			t.Errorf("%s %#v: error %v, want %v", f.GetName(), raw, err, wantErr)
			continue
		}
		if rest, ok := bytes.CutPrefix(got, []byte("before")); err == nil && (!ok || !bytes.Equal(rest, want)) {
			t.Errorf("%s %#v: %s, want %s", f.GetName(), raw, got, want)
		}
	}
}

func texts() []string {
	return []string{
		"", "a", "A b", `"`, `\`, "\x00\x1f\x7f", "\u2028", "é", "😀", "\xff", "a\xed\xa0\x80", "</script>&", "[", "]", "[]", "[ ]", `[""]`, `["a"]`, `["a","b"]`,
		`["a","a"]`, `["a", "b"]`, `["a",]`, `["a"`, `["a"]]`, `["a""b"]`, `["a,b"]`, `["a","b","a"]`, `["ab","a"]`, `["a\u0062"]`, `["é"]`, `[1]`, `[null]`, `[["a"]]`, `["a"]x`,
		"null", "true", "false", "TRUE", "0", "1", "-1", "2", "1.50", "1e3", "1e999", "-0", "01", ".5", "+1", "0x10", "1_0", "Inf", "nan", "12345678901234567890",
		"{}", `{"b":1,"a":2}`, `{"a":1,"a":2}`, ` {"a":1}`, `{"a": [1, 2 ]}`, `{"a":"\u0041\/"}`, `{"a":"` + "\xff" + `"}`, `{"a"}`, `"text"`, `"`, `"a" `, "\n1", "tru", "nul",
		`{"lon":0,"lat":0}`, `{"lon":1.5,"lat":-2}`, `{"lon":1.0,"lat":2}`, `{"lat":1,"lon":2}`, `{"lon":1e2,"lat":1e21}`, `{"lon":1}`, `{"lon":"1","lat":2}`, `{"lon":1,"lat":2,"x":3}`, `{"lon":NaN,"lat":2}`, `{"lon":01,"lat":2}`, `{"lon":1,"lat":2}}`, `{"lon":,"lat":}`,
		"2024-01-02 03:04:05.678Z", "2024-02-29 00:00:00.000Z", "2023-02-29 00:00:00.000Z", "1900-02-29 00:00:00.000Z", "2000-02-29 00:00:00.000Z", "2024-04-31 00:00:00.000Z",
		"0001-01-01 00:00:00.000Z", "0000-01-01 00:00:00.000Z", "9999-12-31 23:59:59.999Z", "2024-13-01 00:00:00.000Z", "2024-00-01 00:00:00.000Z", "2024-01-00 00:00:00.000Z",
		"2024-01-01 24:00:00.000Z", "2024-01-01 23:60:00.000Z", "2024-01-01 23:59:60.000Z", "2024-01-02 03:04:05,678Z", "2024-01-02T03:04:05.678Z", "2024-01-02", "2024-01-02 03:04:05", "1700000000",
		strings.Repeat("long ", 1000), strings.Repeat("[", 100),
	}
}

// Whatever a column holds is written as PocketBase writes it.
func TestValuesEqualPocketBase(t *testing.T) {
	for _, text := range texts() {
		check(t, text)
		check(t, []byte(text))
	}
	for _, n := range []int64{0, 1, -1, 2, 1<<53 - 1, 1 << 53, 1<<53 + 1, -(1<<53 + 1), math.MaxInt64, math.MinInt64} {
		check(t, n)
	}
	for _, n := range []float64{0, math.Copysign(0, -1), 1, -1.5, 0.1, 1e-6, 1e-7, 1e20, 1e21, 5e-324, math.MaxFloat64, math.Inf(1), math.Inf(-1), math.NaN()} {
		check(t, n)
	}
	for _, other := range []any{nil, true, false, time.Date(2024, 1, 2, 3, 4, 5, 6, time.UTC)} {
		check(t, other)
	}
}

func FuzzValue(f *testing.F) {
	for i, text := range texts() {
		f.Add(text, float64(i)/3, int64(i))
	}
	f.Fuzz(func(t *testing.T, text string, real float64, integer int64) {
		check(t, text)
		check(t, []byte(text))
		check(t, real)
		check(t, integer)
	})
}

// A fast path that is never taken would go unnoticed.
func TestCommonValuesAreNotPrepared(t *testing.T) {
	for name, raw := range map[string]any{
		"text": "x", "number": int64(3), "bool": int64(1), "date": "2024-01-02 03:04:05.678Z", "select": "a", "selects": `["a","b"]`, "relations": "[]",
		"json": `{"a":1}`, "point": `{"lon":1.5,"lat":2}`,
	} {
		for _, field := range allFields() {
			if field.GetName() != name {
				continue
			}
			// Without a field there is no other way.
			if _, err := appendValue(nil, kindOf(field), nil, raw); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// foreign is a field of somebody else's making.
type foreign struct{ core.TextField }

func TestForeignFieldsHaveNoPlan(t *testing.T) {
	c := core.NewBaseCollection("c")
	if _, ok := NewPlan(c, false, Fields{}); !ok {
		t.Error("PocketBase's own fields")
	}
	c.Fields.Add(&foreign{core.TextField{Name: "x"}})
	if _, ok := NewPlan(c, false, Fields{}); ok {
		t.Error("a field of a foreign type")
	}
}

// AppendRecord is MarshalJSON, to the byte, whatever was done to the record.
func TestAppendRecord(t *testing.T) {
	c := core.NewAuthCollection("people")
	c.Fields.Add(allFields()[0], allFields()[4], allFields()[6], allFields()[9], allFields()[14], allFields()[15], &core.TextField{Name: "hidden", Hidden: true}, &core.PasswordField{Name: "pin"})
	record := func(change func(*core.Record)) *core.Record {
		r := core.NewRecord(c)
		r.Load(map[string]any{
			"id": "a", "text": "<\u2028\x01>", "number": 1e21, "date": "2024-01-02", "selects": []string{"b", "a"}, "json": `{"z":[1, 2],"a":"\u0041"}`,
			"point": types.GeoPoint{Lon: 1, Lat: 1e-7}, "email": "a@example.test", "hidden": "h", "custom": map[string]any{"b": 1, "a": []any{nil, true}},
		})
		change(r)
		return r
	}
	for i, r := range []*core.Record{
		record(func(*core.Record) {}),
		record(func(r *core.Record) { r.WithCustomData(true).IgnoreEmailVisibility(true) }),
		record(func(r *core.Record) { r.WithCustomData(true).Set("struct", struct{ B, A int }{1, 2}) }),
		record(func(r *core.Record) { r.Unhide("hidden").Hide("text", core.FieldNameCollectionId) }),
		record(func(r *core.Record) { r.SetExpand(map[string]any{}) }),
		record(func(r *core.Record) {
			one := record(func(*core.Record) {})
			r.SetExpand(map[string]any{"one": one, "many": []*core.Record{one, one}, "none": []*core.Record(nil), "nil": (*core.Record)(nil), "other": 1})
		}),
		record(func(r *core.Record) { r.SetRaw("json", types.JSONRaw(nil)); r.SetRaw("selects", []string(nil)) }),
		record(func(r *core.Record) { r.SetRaw("text", time.Unix(0, 0).UTC()); r.SetRaw("number", int32(3)) }),
	} {
		want, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		got, err := AppendRecord(nil, r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: %v\n got %s\nwant %s", i, err, got, want)
		}
	}
	bad := record(func(r *core.Record) { r.SetRaw("number", math.Inf(1)) })
	if _, err := AppendRecord(nil, bad); err == nil {
		t.Error("infinity was written")
	}
}

func TestFields(t *testing.T) {
	for raw, want := range map[string]string{
		"": "[] false", "a": "[a] true", "a,b": "[a b] true", "a.b": "[a] false", "a:excerpt(3)": "[] false", "*": "[] false", "a,*": "[] false", "a,b.c": "[a b] false",
	} {
		f, err := ParseFields(raw)
		if got := fmt.Sprint(f.names, f.plain); err != nil || got != want || f.String() != raw {
			t.Errorf("%q: %s, %v", raw, got, err)
		}
	}
	for _, raw := range []string{"a:nope", "a:excerpt()", "(((", "a:"} {
		if _, err := ParseFields(raw); err == nil {
			t.Errorf("%q was accepted", raw)
		}
	}
}
