package authcache

import (
	"slices"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"
)

// mutable is a value of a record that somebody who holds it could change in place. Nobody else holds this copy of it.
type mutable struct {
	field string
	value any
}

// copied returns a private copy of the value.
func (m mutable) copied() any {
	switch v := m.value.(type) {
	case *core.PasswordFieldValue:
		own := *v
		return &own
	case []string:
		return slices.Clone(v)
	case []any: // names of files
		return slices.Clone(v)
	case types.JSONRaw:
		return slices.Clone(v)
	}
	return m.value
}

// mutableValues copies the values that copies of the record would share. It reports false for a record with a value that
// it does not know, of a field type that the app has added: such a record is not remembered.
func mutableValues(record *core.Record) ([]mutable, bool) {
	var out []mutable
	for _, field := range record.Collection().Fields {
		name := field.GetName()
		switch v := record.GetRaw(name).(type) {
		case nil, string, bool, float64, types.DateTime, types.GeoPoint:
		case *core.PasswordFieldValue, []string, types.JSONRaw:
			out = append(out, mutable{name, mutable{name, v}.copied()})
		case []any:
			if slices.ContainsFunc(v, func(item any) bool { _, ok := item.(string); return !ok }) {
				return nil, false
			}
			out = append(out, mutable{name, mutable{name, v}.copied()})
		default:
			return nil, false
		}
	}
	return out, true
}

// clone is the record as it came from the database, free of flags, expansions and custom data. Original is the cheapest
// of PocketBase's ways to copy a record; it shares the values, so those that can change in place are copied on top.
func (x *entry) clone() *core.Record {
	record := x.record.Original()
	for _, m := range x.mutable {
		record.SetRaw(m.field, m.copied())
	}
	return record
}
