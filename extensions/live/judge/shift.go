package judge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Shift is records of one collection that have changed, each as it was before, nil if it was not there.
type Shift struct {
	Collection *core.Collection
	Was        map[string]*core.Record
}

// Turn is what that has changed for one viewer: whether it sees records that it did not see, and which it sees no more,
// or that these are too many to be named.
type Turn struct {
	Gained bool
	Lost   []string
	Many   bool
}

// maxLost bounds the pairs of a viewer and a record that are named as lost.
const maxLost = 5000

// ErrUntold says that it cannot be told from the records what they change.
var ErrUntold = errors.New("what other records change cannot be told")

// Turned compares what viewers see through records as they are with what they saw through them as they were. In doubt, as
// when there are two ways to the same record, it says that something has changed. blind says that of some records it is not
// known how they were.
//
// Wherever the conditions join a collection, the rows that have changed take the place of the whole table, once as they
// are, and once as they were, so the cost is that of the pairs which those rows lead to.
func (q *Question) Turned(ctx context.Context, viewers []string, shifts []Shift, blind bool) ([]Turn, error) {
	if blind && !q.positive {
		return nil, ErrUntold
	}
	raw, err := json.Marshal(viewers)
	if err != nil {
		return nil, fmt.Errorf("encode viewers: %w", err)
	}
	params := dbx.Params{pairs: string(raw)}
	maps.Copy(params, q.params)
	was := make([]past, len(shifts))
	for i, s := range shifts {
		if was[i], err = q.past(s, i, params); err != nil {
			return nil, err
		}
	}
	out := make([]Turn, len(viewers))
	for i, s := range shifts {
		places := q.places(s.Collection)
		if len(places) == 0 {
			return nil, ErrUntold // below a view, or inside of a comparison with many values
		}
		for _, place := range places {
			if err := q.turned(ctx, place, was, i, params, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Reads reports whether the conditions join a collection, also the question's own.
func (q *Question) Reads(c *core.Collection) bool { return len(q.places(c)) > 0 }

// past is the SQL of a collection in which some rows have changed.
type past struct {
	table  string
	now    string // the rows as they are
	before string // as they were
	whole  string // all rows, those as they were
	own    string // a condition: the record is none of them; empty for other collections than the question's
}

func (q *Question) past(s Shift, i int, params dbx.Params) (past, error) {
	var records []*core.Record
	for _, id := range slices.Sorted(maps.Keys(s.Was)) {
		if r := s.Was[id]; r != nil {
			records = append(records, r)
		}
	}
	table, err := q.pretend(s.Collection, records)
	if err != nil {
		return past{}, err
	}
	ids, err := json.Marshal(slices.Sorted(maps.Keys(s.Was)))
	if err != nil {
		return past{}, fmt.Errorf("encode ids: %w", err)
	}
	changed, old := fmt.Sprintf("live_ids%d", i), fmt.Sprintf("live_was%d", i)
	params[changed], params[old] = string(ids), table.rows
	columns := make([]string, 0, len(s.Collection.Fields))
	for _, f := range s.Collection.Fields {
		columns = append(columns, "[["+f.GetName()+"]]")
	}
	among := "IN (SELECT value FROM json_each({:" + changed + "}))"
	p := past{table: s.Collection.Name}
	from := "SELECT " + strings.Join(columns, ", ") + " FROM main.{{" + s.Collection.Name + "}} WHERE [[id]] "
	p.now, p.before = from+among, "SELECT "+table.columns+" FROM json_each({:"+old+"})"
	p.whole = from + "NOT " + among + " UNION ALL " + p.before
	if s.Collection.Id == q.collection.Id {
		p.own = " AND [[" + q.collection.Name + ".id]] NOT " + among
	}
	return p, nil
}

// place is where the conditions join a collection, under a name.
type place struct{ join, name string }

// places leaves out the tables of comparisons with many values, which PocketBase repeats there under other names.
func (q *Question) places(c *core.Collection) []place {
	var out []place
	pattern := regexp.MustCompile("JOIN `" + regexp.QuoteMeta(c.Name) + "` `([^`]+)`")
	for _, found := range pattern.FindAllStringSubmatch(q.text, -1) {
		if !strings.HasPrefix(found[1], "__mm") {
			out = append(out, place{found[0], found[1]})
		}
	}
	return out
}

// turned compares at one place and adds what it finds.
func (q *Question) turned(ctx context.Context, at place, was []past, this int, params dbx.Params, out []Turn) error {
	condition := "1"
	if q.positive {
		condition = "[[" + at.name + ".id]] IS NOT NULL"
	}
	for _, p := range was {
		condition += p.own
	}
	record := "[[" + q.collection.Name + ".id]]"
	text := strings.NewReplacer(
		"`"+pairs+"`.`k`", pairColumn+" AS k, "+record+" AS r",
		"[["+q.collection.Name+amongRecords, condition,
		" ON "+recordOfPair+q.collection.Name+".id]]", "",
	).Replace(q.text)
	now := strings.Replace(text, at.join, "JOIN live_now `"+at.name+"`", 1)
	then := strings.Replace(text, at.join, "JOIN live_then `"+at.name+"`", 1)
	var shadows []string
	for i, p := range was {
		if n := strings.Count(q.text, "`"+p.table+"`"); n > 1 || i != this && n > 0 {
			shadows = append(shadows, "{{"+p.table+"}} AS ("+p.whole+")")
		}
	}
	if len(shadows) > 0 {
		then = "SELECT k, r FROM (WITH " + strings.Join(shadows, ", ") + " " + then + ")"
	}
	query := "WITH " + pairs + "(k, v) AS MATERIALIZED (SELECT key, CAST(value AS TEXT) FROM json_each({:" + pairs + "})), " +
		"live_now AS MATERIALIZED (" + was[this].now + "), live_then AS MATERIALIZED (" + was[this].before + "), " +
		"live_a AS MATERIALIZED (" + now + "), live_b AS MATERIALIZED (" + then + ") " +
		"SELECT DISTINCT k, '' AS r FROM (SELECT k, r FROM live_a EXCEPT SELECT k, r FROM live_b) UNION ALL " +
		fmt.Sprintf("SELECT k, r FROM (SELECT k, r FROM live_b EXCEPT SELECT k, r FROM live_a LIMIT %d)", maxLost)
	var found []struct {
		K int
		R string
	}
	if err := q.app.ConcurrentDB().NewQuery(query).Bind(params).WithContext(ctx).All(&found); err != nil {
		return fmt.Errorf("compare what viewers of %s see: %w", q.collection.Name, err)
	}
	for _, f := range found {
		if f.R == "" {
			out[f.K].Gained = true
		} else {
			out[f.K].Lost = append(out[f.K].Lost, f.R)
		}
	}
	if len(found) >= maxLost {
		for i := range out {
			out[i].Many = true
		}
	}
	return nil
}

// positive reports whether a record passes only by what the condition joins, so that rows which are not there let nothing
// pass. In doubt it is not; a guest's id equals what is not there.
func positive(condition *string, auth *core.Record) bool {
	if condition == nil || *condition == "" {
		return true
	}
	if auth == nil && strings.Contains(*condition, "@request.auth.") {
		return false
	}
	groups, err := fexpr.Parse(*condition)
	return err == nil && positiveGroups(groups)
}

func positiveGroups(groups []fexpr.ExprGroup) bool {
	for _, g := range groups {
		ok := false
		switch item := g.Item.(type) {
		case fexpr.Expr:
			ok = !joins(item.Left) && !joins(item.Right) || passesOnlyByWhatIsThere(item)
		case fexpr.ExprGroup:
			ok = positiveGroups([]fexpr.ExprGroup{item})
		case []fexpr.ExprGroup:
			ok = positiveGroups(item)
		}
		if !ok {
			return false
		}
	}
	return true
}

// passesOnlyByWhatIsThere holds for a comparison of a joined value with another one: two that are both not there are equal
// for PocketBase, unless a whole collection is joined, which then has to be empty.
func passesOnlyByWhatIsThere(e fexpr.Expr) bool {
	if strings.Contains(string(e.Op), "!") || empty(e.Left) || empty(e.Right) {
		return false
	}
	for _, side := range []fexpr.Token{e.Left, e.Right} {
		if fixed(side) || strings.HasPrefix(side.Literal, "@collection.") {
			return true
		}
	}
	return false
}

// joins reports whether an operand may read another table.
func joins(t fexpr.Token) bool {
	return !fixed(t) && (t.Type != fexpr.TokenIdentifier || strings.ContainsAny(t.Literal, ".:"))
}

// fixed reports whether an operand is the same for all records, and there.
func fixed(t fexpr.Token) bool {
	if t.Type == fexpr.TokenText || t.Type == fexpr.TokenNumber {
		return true
	}
	switch t.Literal {
	case "@request.auth.id", "@request.auth.collectionId", "@request.auth.collectionName", "@request.auth.verified", mailOperand, "true":
		return t.Type == fexpr.TokenIdentifier
	}
	return false
}

// empty reports whether an operand may equal what is not there.
func empty(t fexpr.Token) bool {
	switch strings.ToLower(t.Literal) {
	case "", "null", "false", "0":
		return true
	}
	return false
}
