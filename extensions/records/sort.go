package records

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/dbutils"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
)

// term is one column of an order.
type term struct {
	Column  string `json:"column"`
	Desc    bool   `json:"desc"`
	Collate string `json:"collate"` // empty for SQLite's default, BINARY
	Field   string `json:"field"`   // id and type of the field: a cursor does not outlive a change of them
}

// order is a total order of the rows, ending in id, that an index serves. bound are the columns before those of the
// order in the index; the rule or the filter fixes them to one value.
type order struct {
	terms []term
	bound []string
}

// fingerprint describes the list that a cursor belongs to.
func (o order) fingerprint(collection *core.Collection, filter string) ([]byte, error) {
	return json.Marshal(struct {
		Collection string `json:"collection"`
		Filter     string `json:"filter"`
		Terms      []term `json:"terms"`
	}{collection.Id, filter, o.terms})
}

// planner finds an order for a sort.
type planner struct {
	collection *core.Collection
	superuser  bool
	bindings   *bindings
}

// plan turns what the client asked for into an order, or refuses it with the reason.
func (p planner) plan(fields []search.SortField) (order, error) {
	if len(fields) == 0 {
		return p.byDefault(), nil
	}
	var terms []term
	named := map[string]bool{}
	for _, f := range fields {
		if named[f.Name] {
			continue
		}
		named[f.Name] = true
		field, err := p.sortable(f.Name)
		if err != nil {
			return order{}, err
		}
		terms = append(terms, newTerm(field, f.Direction == search.SortDesc))
		if f.Name == core.FieldNameId {
			break // nothing after a unique column matters
		}
	}
	if o, ok := p.served(terms); ok {
		return o, nil
	}
	return order{}, api.Fail(ErrSort, p.advice(terms))
}

// byDefault is newest first where that is cheap.
func (p planner) byDefault() order {
	if created, ok := p.collection.Fields.GetByName("created").(*core.AutodateField); ok && !created.Hidden {
		if o, ok := p.served([]term{newTerm(created, true)}); ok {
			return o
		}
	}
	return order{terms: []term{newTerm(p.collection.Fields.GetByName(core.FieldNameId), false)}}
}

func newTerm(field core.Field, desc bool) term {
	return term{Column: field.GetName(), Desc: desc, Field: field.GetId() + ":" + field.Type()}
}

// sortable returns the field if its column can hold a place in a keyset: one value per record, never NULL.
func (p planner) sortable(name string) (core.Field, error) {
	field := p.collection.Fields.GetByName(name)
	if field == nil || (field.GetHidden() && !p.superuser) {
		return nil, api.Fail(ErrSort, fmt.Sprintf("%q is not a field of %s; paths, functions and @random cannot be paged", name, p.collection.Name))
	}
	if p.collection.IsView() && name != core.FieldNameId {
		return nil, api.Fail(ErrSort, p.collection.Name+" is a view and can be sorted by id only, because a view has no index")
	}
	if !keyColumn(field) {
		return nil, api.Fail(ErrSort, fmt.Sprintf("field %q of type %s has no order that can be paged", name, field.Type()))
	}
	return field, nil
}

// keyColumn reports whether the field's column holds one plain value, compared as PocketBase compares it.
func keyColumn(field core.Field) bool {
	if multi, ok := field.(core.MultiValuer); ok && multi.IsMultiple() {
		return false
	}
	switch field.Type() {
	case core.FieldTypeText, core.FieldTypeEmail, core.FieldTypeURL, core.FieldTypeNumber, core.FieldTypeBool,
		core.FieldTypeDate, core.FieldTypeAutodate, core.FieldTypeSelect, core.FieldTypeRelation, core.FieldTypeFile:
		return true
	}
	return false
}

// served looks for an index, first among those in SQLite's default collation, which sort as the stock API does.
func (p planner) served(terms []term) (order, bool) {
	if terms[0].Column == core.FieldNameId {
		return order{terms: terms}, true
	}
	indexes := make([]dbutils.Index, 0, len(p.collection.Indexes))
	for _, raw := range p.collection.Indexes {
		// A partial index serves nothing unless the filter implies its condition; that is not tried.
		if index := dbutils.ParseIndex(raw); index.IsValid() && index.Where == "" {
			indexes = append(indexes, index)
		}
	}
	for _, anyCollation := range []bool{false, true} {
		for _, index := range indexes {
			if o, ok := p.match(index, terms, anyCollation); ok {
				return o, true
			}
		}
	}
	return order{}, false
}

// match compares the columns of the index with the terms, after the columns that are bound to one value. All terms must
// run with the index or all against it.
func (p planner) match(index dbutils.Index, terms []term, anyCollation bool) (order, bool) {
	var o order
	columns := index.Columns
	for len(columns) > 0 && !strings.EqualFold(columns[0].Name, terms[0].Column) {
		name, ok := p.bindings.column(columns[0])
		if !ok {
			return o, false
		}
		o.bound, columns = append(o.bound, name), columns[1:]
	}
	if len(columns) == 0 {
		return o, false
	}
	against := descending(columns[0]) != terms[0].Desc // the index is read backwards
	for _, t := range terms {
		if t.Column == core.FieldNameId {
			o.terms = append(o.terms, t)
			return o, true
		}
		if len(columns) == 0 || !strings.EqualFold(columns[0].Name, t.Column) || against != (descending(columns[0]) != t.Desc) {
			return o, false
		}
		var known bool
		if t.Collate, known = collation(columns[0].Collate); !known || (t.Collate != "" && !anyCollation) {
			return o, false
		}
		o.terms, columns = append(o.terms, t), columns[1:]
	}
	// The tie-break runs as the index does if that goes on with id, else as the last term: so SQLite has to sort nothing,
	// or only the ties.
	desc := terms[len(terms)-1].Desc
	if len(columns) > 0 && strings.EqualFold(columns[0].Name, core.FieldNameId) {
		desc = descending(columns[0]) != against
	}
	o.terms = append(o.terms, newTerm(p.collection.Fields.GetByName(core.FieldNameId), desc))
	return o, true
}

func descending(column dbutils.IndexColumn) bool {
	return strings.EqualFold(column.Sort, search.SortDesc)
}

// collation normalises the collation of an index; only SQLite's own are known to every driver.
func collation(name string) (string, bool) {
	switch name = strings.ToUpper(name); name {
	case "", "BINARY":
		return "", true
	case "NOCASE", "RTRIM":
		return name, true
	}
	return "", false
}

// advice names the index that would serve the terms.
func (p planner) advice(terms []term) string {
	var columns, names []string
	for _, t := range terms {
		column := t.Column
		if t.Desc != terms[0].Desc {
			column += " DESC"
		}
		columns, names = append(columns, column), append(names, t.Column)
	}
	if names[len(names)-1] != core.FieldNameId {
		columns = append(columns, core.FieldNameId)
	}
	return fmt.Sprintf(
		"no index serves this order; create one: CREATE INDEX idx_%s_%s ON %s (%s)",
		p.collection.Name, strings.Join(names, "_"), p.collection.Name, strings.Join(columns, ", "),
	)
}
