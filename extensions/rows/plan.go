package rows

import (
	"bytes"
	"slices"

	"github.com/pocketbase/pocketbase/core"
)

// Plan is how the rows of a collection become JSON for a kind of viewer. It is immutable and safe for concurrent use.
type Plan struct {
	fields  Fields
	members []member
	columns []string
	table   string
	typed   bool // the columns keep their declared types
	id      int  // column
	open    int  // column of the visibility of e-mail addresses, -1 if nothing depends on it
	openAs  core.Field
	managed bool
}

// Plans keeps plans. The zero value is ready; it is safe for concurrent use.
type Plans struct{ kept Cache[planKey, *Plan] }

type planKey struct {
	collection *core.Collection
	superuser  bool
	fields     string
}

// For is [NewPlan], and nil where that reports false.
func (c *Plans) For(collection *core.Collection, superuser bool, fields Fields) *Plan {
	key := planKey{collection, superuser, fields.raw}
	p, known := c.kept.Get(key)
	if !known {
		p, _ = NewPlan(collection, superuser, fields)
		c.kept.Put(key, p)
	}
	return p
}

// member is one name of the object.
type member struct {
	prefix   []byte // the name, quoted, with its colon
	constant []byte // the value, if no column has it
	column   int
	kind     kind
	field    core.Field
	email    bool // shown to everybody only if its owner wants so
}

// NewPlan compiles the plan. It reports false for a collection with a field whose type is not PocketBase's own: how its
// values are read and shown is known to nobody else.
func NewPlan(collection *core.Collection, superuser bool, fields Fields) (*Plan, bool) {
	p := &Plan{fields: fields, table: collection.Name, typed: collection.IsView(), open: -1}
	hidden := collection.IsAuth() && !superuser
	p.id = p.column(core.FieldNameId)
	for _, f := range collection.Fields {
		k, name := kindOf(f), f.GetName()
		if k == kindForeign {
			return nil, false
		}
		if (f.GetHidden() && !superuser) || !fields.has(name) {
			continue
		}
		if collection.IsAuth() && (name == core.FieldNamePassword || name == core.FieldNameTokenKey) {
			continue
		}
		m := member{kind: k, field: f, email: hidden && name == core.FieldNameEmail}
		if k == kindSecret {
			m.constant = []byte(`""`)
		} else {
			m.column = p.column(name)
		}
		p.add(name, m)
	}
	for name, value := range map[string]string{core.FieldNameCollectionId: collection.Id, core.FieldNameCollectionName: collection.Name} {
		if fields.has(name) {
			p.add(name, member{constant: appendString(nil, value)})
		}
	}
	if slices.ContainsFunc(p.members, func(m member) bool { return m.email }) {
		p.openAs = collection.Fields.GetByName(core.FieldNameEmailVisibility)
		p.open = p.column(core.FieldNameEmailVisibility)
		p.managed = collection.ManageRule != nil && *collection.ManageRule != ""
	}
	slices.SortFunc(p.members, func(a, b member) int { return bytes.Compare(a.prefix, b.prefix) })
	return p, true
}

func (p *Plan) add(name string, m member) {
	m.prefix = append(appendString(nil, name), ':')
	p.members = append(p.members, m)
}

// column is the place of a column in a row, which it takes if it has none yet.
func (p *Plan) column(name string) int {
	if i := slices.Index(p.columns, name); i >= 0 {
		return i
	}
	p.columns = append(p.columns, name)
	return len(p.columns) - 1
}

// Managed reports that the collection's manage rule decides about e-mail addresses, which a plan does not ask for.
func (p *Plan) Managed() bool { return p.managed }

// Select are the columns to read, of the collection's table under the given name. The order is that of a row. Columns
// of a table are read as expressions: these have no declared type for the driver to look up. Those of a view may come
// from anywhere, and a driver converts some declared types.
func (p *Plan) Select(table string) []string {
	out := make([]string, len(p.columns))
	for i, c := range p.columns {
		out[i] = "+[[" + table + "." + c + "]]"
		if p.typed {
			out[i] = out[i][1:]
		}
	}
	return out
}

// Place finds a column in a row, as an expression; it reports false if the row lacks it.
func (p *Plan) Place(column string) (int, bool) {
	i := slices.Index(p.columns, column)
	return i, i >= 0 && !p.typed
}

// Append writes a row, which begins with the plan's columns, for the viewer with this id.
func (p *Plan) Append(dst []byte, row []any, viewer string) ([]byte, error) {
	dst = append(dst, '{')
	comma := false
	for i := range p.members {
		m := &p.members[i]
		if m.email && !p.showsEmail(row, viewer) {
			continue
		}
		if comma {
			dst = append(dst, ',')
		}
		comma = true
		dst = append(dst, m.prefix...)
		if m.constant != nil {
			dst = append(dst, m.constant...)
			continue
		}
		var err error
		if dst, err = appendValue(dst, m.kind, m.field, row[m.column]); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// showsEmail: the owner's id is enough, whichever collection the viewer is in, as in PocketBase.
func (p *Plan) showsEmail(row []any, viewer string) bool {
	if viewer != "" && row[p.id] != nil && textOf(row[p.id]) == viewer {
		return true
	}
	var room [8]byte
	shown, err := appendValue(room[:0], kindBool, p.openAs, row[p.open])
	return err == nil && string(shown) == "true"
}

// Finish applies the part of the choice of fields that is more than leaving names out. from is where the object or the
// list of objects begins.
func (p *Plan) Finish(dst []byte, from int) ([]byte, error) {
	if p.fields.raw == "" || p.fields.plain {
		return dst, nil
	}
	return p.fields.pick(dst, from)
}
