package records

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/rows"
)

// outerAlias names the listed table where the rows that a viewer may see are found by a sub-select. PocketBase's own
// aliases never look like this, and collections cannot have a name that begins so.
const outerAlias = "__list"

// selection is the set of rows that a viewer may list: those of the collection that the rule and the filter let pass.
type selection struct {
	app        core.App
	collection *core.Collection
	inner      *dbx.SelectQuery // the rows under PocketBase's name for the table
	joined     bool             // the conditions join other tables, so that inner has rows more than once
	bindings   *bindings
}

// newSelection lets PocketBase turn the rule and the filter into SQL.
func newSelection(e *core.RequestEvent, collection *core.Collection, filter string) (*selection, error) {
	info, err := e.RequestInfo()
	if err != nil {
		return nil, api.Fail(api.ErrBodyMalformed, "").Because(err)
	}
	s, err := newSelectionFor(e.App, info, collection, filter)
	if err == nil {
		s.inner.WithContext(e.Request.Context())
	}
	return s, err
}

func newSelectionFor(app core.App, info *core.RequestInfo, collection *core.Collection, filter string) (*selection, error) {
	s := &selection{app: app, collection: collection, inner: app.RecordQuery(collection)}
	s.bindings = &bindings{collection: collection, resolver: core.NewRecordFieldResolver(app, collection, info, true)}
	if err := rows.Where(s.inner, app, collection, info, collection.ListRule, filter); err != nil {
		return nil, filterProblem(err)
	}
	if rule := collection.ListRule; rule != nil && *rule != "" && !info.HasSuperuserAuth() {
		s.bindings.conditions = append(s.bindings.conditions, *rule)
	}
	if filter != "" {
		s.bindings.conditions = append(s.bindings.conditions, filter)
	}
	if collection.IsView() {
		s.inner.AndWhere(dbx.NewExp("[[" + collection.Name + ".id]] != ''")) // neither empty nor NULL
	}
	s.joined = len(s.inner.Info().Join) > 0
	return s, nil
}

// filterProblem says which part of the filter is wrong. What follows the dash in PocketBase's message tells unknown
// fields from hidden ones, so it is for the log only.
func filterProblem(err error) error {
	wrong, ok := errors.AsType[*rows.FilterError](err)
	if !ok {
		return err
	}
	if wrong.Relation {
		return api.Fail(ErrFilter, "the filter follows a relation that cannot be searched").Because(err)
	}
	detail, _, _ := strings.Cut(err.Error(), " - ")
	return api.Fail(ErrFilter, detail).Because(err)
}

// query is a select over the rows, each once, and the name of the table in it. Rows that joins would repeat are found by
// a correlated sub-select: so no DISTINCT over whole records is needed and the index of the order still drives the list.
// bound repeats the equalities that the index begins with, which SQLite does not see inside the sub-select, nor in the
// alternative of the empty string and NULL that PocketBase writes for an empty value.
func (s *selection) query(bound []string) (*dbx.SelectQuery, string) {
	q, table := *s.inner, s.collection.Name
	if s.joined {
		inner := q
		inner.Select("(1)").Distinct(false).AndWhere(dbx.NewExp("[[" + table + ".id]] = [[" + outerAlias + ".id]]"))
		built := inner.Build()
		q = *s.app.RecordQuery(s.collection).WithContext(s.inner.Context()).From(table + " " + outerAlias)
		q.AndWhere(dbx.NewExp("EXISTS ("+built.SQL()+")", built.Params()))
		table = outerAlias
	}
	for _, column := range bound {
		q.AndWhere(dbx.HashExp{table + "." + column: s.bindings.load()[column]})
	}
	return &q, table
}

// count is the number of rows.
func (s *selection) count() (int, error) {
	q, _ := s.query(nil)
	var n int
	if err := q.Select("COUNT(*)").Row(&n); err != nil {
		return 0, fmt.Errorf("count %s: %w", s.collection.Name, err)
	}
	return n, nil
}

// page is the query for at most limit rows after key (nil: from the start), with the columns of the records (nil: all)
// and those of the key.
func (s *selection) page(o order, key []any, columns []string, limit int) *dbx.SelectQuery {
	q, table := s.ordered(o, key)
	selects := []string{"[[" + table + "]].*"}
	if columns != nil {
		selects = selects[:0]
		for _, c := range columns {
			selects = append(selects, table+"."+c)
		}
	}
	for i, t := range o.terms {
		selects = append(selects, t.value(table)+" AS "+keyAlias(i), "typeof("+t.column(table)+") AS "+typeAlias(i))
	}
	return q.Select(selects...).Limit(int64(limit))
}

// straightPage is the same for a plan, and says where in a row the values of the key are: among the columns of the plan
// or behind them.
func (s *selection) straightPage(o order, key []any, plan *rows.Plan, limit int) (*dbx.SelectQuery, []int) {
	q, table := s.ordered(o, key)
	selects := plan.Select(table)
	places := make([]int, len(o.terms))
	for i, t := range o.terms {
		place, ok := plan.Place(t.Column)
		if !ok {
			place = len(selects)
			selects = append(selects, t.value(table)+" AS "+keyAlias(i))
		}
		places[i] = place
	}
	return q.Select(selects...).Limit(int64(limit)), places
}

// ordered is the query for the rows after key, in order, and the name of the table in it.
func (s *selection) ordered(o order, key []any) (*dbx.SelectQuery, string) {
	q, table := s.query(o.bound)
	for _, t := range o.terms {
		q.AndOrderBy(t.expression(table) + " " + t.direction())
	}
	if key != nil {
		q.AndWhere(after(o.terms, key, table))
	}
	return q, table
}

// The aliases have a dash, which no field can have.
func keyAlias(i int) string  { return "key-" + strconv.Itoa(i) }
func typeAlias(i int) string { return "type-" + strconv.Itoa(i) }

func (t term) column(table string) string { return "[[" + table + "." + t.Column + "]]" }

// value is the column as an expression: that has no declared type, so that no driver converts it.
func (t term) value(table string) string { return "+" + t.column(table) }

func (t term) expression(table string) string {
	column := t.column(table)
	if t.Collate != "" {
		column += " COLLATE " + t.Collate
	}
	return column
}

func (t term) direction() string {
	if t.Desc {
		return search.SortDesc
	}
	return search.SortAsc
}

// after is the condition for the rows behind key. When all directions are equal it is one comparison of row values,
// which SQLite answers with one seek; otherwise, and under a collation, which hides the index from row values, it is
// spelled out behind a bound on the first column, by which SQLite then seeks. No column of a key is ever NULL.
func after(terms []term, key []any, table string) dbx.Expression {
	params := dbx.Params{}
	columns, places := make([]string, len(terms)), make([]string, len(terms))
	uniform := true
	for i, t := range terms {
		name := "key" + strconv.Itoa(i)
		params[name] = key[i]
		columns[i], places[i] = t.expression(table), "{:"+name+"}"
		uniform = uniform && t.Desc == terms[0].Desc && t.Collate == ""
	}
	if uniform {
		return dbx.NewExp(
			"("+strings.Join(columns, ", ")+") "+terms[0].beyond()+" ("+strings.Join(places, ", ")+")", params,
		)
	}
	alternatives := make([]string, len(terms))
	var equal string
	for i, t := range terms {
		alternatives[i] = "(" + equal + columns[i] + " " + t.beyond() + " " + places[i] + ")"
		equal += columns[i] + " = " + places[i] + " AND "
	}
	return dbx.NewExp(
		columns[0]+" "+terms[0].beyond()+"= "+places[0]+" AND ("+strings.Join(alternatives, " OR ")+")", params,
	)
}

func (t term) beyond() string {
	if t.Desc {
		return "<"
	}
	return ">"
}

// keyOf reads the sort values of a row, in their storage class.
func keyOf(row dbx.NullStringMap, terms []term) ([]any, error) {
	key := make([]any, len(terms))
	for i := range terms {
		raw := row[keyAlias(i)].String
		var err error
		switch class := row[typeAlias(i)].String; class {
		case "integer":
			key[i], err = strconv.ParseInt(raw, 10, 64)
		case "real":
			key[i], err = strconv.ParseFloat(raw, 64)
		case "text":
			key[i] = raw
		case "blob":
			key[i] = []byte(raw)
		default:
			err = fmt.Errorf("storage class %q", class)
		}
		if err != nil {
			return nil, fmt.Errorf("read sort value %q: %w", terms[i].Column, err)
		}
	}
	return key, nil
}

// newRecords makes records of rows as PocketBase's own queries do; columns that were not read have their zero value.
func newRecords(collection *core.Collection, found []dbx.NullStringMap) ([]*core.Record, error) {
	records := make([]*core.Record, len(found))
	for i, row := range found {
		record := core.NewRecord(collection)
		for _, field := range collection.Fields {
			var raw any
			if v := row[field.GetName()]; v.Valid {
				raw = v.String
			}
			value, err := field.PrepareValue(record, raw)
			if err != nil {
				return nil, fmt.Errorf("read field %s of %s: %w", field.GetName(), collection.Name, err)
			}
			record.SetRaw(field.GetName(), value)
		}
		if err := record.PostScan(); err != nil {
			return nil, fmt.Errorf("read record of %s: %w", collection.Name, err)
		}
		records[i] = record
	}
	return records, nil
}

// sqliteError is SQLITE_ERROR, the class of all errors in a statement itself.
const sqliteError = 1

// readProblem says whose fault a failed query is: the end of the request, the filter of the client, or ours.
func readProblem(ctx context.Context, filter string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return errors.Join(cause, err)
	}
	var code interface{ Code() int }
	if filter != "" && errors.As(err, &code) && code.Code()&0xff == sqliteError {
		return api.Fail(ErrFilter, "the database cannot evaluate the filter").Because(err)
	}
	return err
}
