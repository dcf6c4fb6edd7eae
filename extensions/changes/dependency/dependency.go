// Package dependency finds out what the answer of a rule depends on, by asking SQLite for the program that it compiles the
// rule's query to. It has no tables, routes or settings; what it cannot tell counts as volatile.
package dependency

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

// Set is what the answer of a rule depends on, besides the definition of its collection.
type Set struct {
	Collections []string // ids of the collections whose records are read, sorted; a view stands for what it reads
	Self        bool     // other records of its own collection than the one that is judged
	Tables      []string // other tables, whose changes are not recorded: their rules are as good as volatile
	Auth        bool     // values of the caller's own record other than its id, which no table shows
	Volatile    bool     // time, headers, query or body: another answer without any change
	Scans       []string // tables and views of them that are read from end to end
}

var (
	literal    = regexp.MustCompile(`'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"`)
	identifier = regexp.MustCompile(`@[\w.]+`)
	function   = regexp.MustCompile(`(\w+)\s*\(`)
)

// Of finds out what a rule of the collection reads for a caller, nil being a guest. It asks SQLite for the
// program that it compiles the rule's query to, so joins, back-relations and views are all in it.
func Of(app core.App, collection *core.Collection, rule string, auth *core.Record) (Set, error) {
	d := read(rule)
	query, err := ruleQuery(app, collection, rule, auth)
	if err != nil {
		return d, fmt.Errorf("build rule of %s: %w", collection.Name, err)
	}
	tables, scans, err := opened(app.ConcurrentDB(), query)
	if err != nil {
		return d, fmt.Errorf("explain rule of %s: %w", collection.Name, err)
	}
	if !collection.IsView() {
		tables[collection.Name] = true
	}
	ids := map[string]bool{}
	for table := range tables {
		c, err := app.FindCachedCollectionByNameOrId(table)
		if err != nil || !capture.Capturable(c) {
			d.Tables = append(d.Tables, table)
			continue
		}
		ids[c.Id] = true
	}
	if d.Self, err = readsOthers(app, collection, quoted(query)); err != nil {
		return d, err
	}
	slices.Sort(d.Tables)
	d.Collections = slices.Sorted(maps.Keys(ids))
	d.Scans = slices.Sorted(maps.Keys(scans))
	return d, nil
}

// read finds what can be told from the text of the rule alone. In doubt it is volatile.
func read(rule string) Set {
	var d Set
	text := literal.ReplaceAllString(rule, " ")
	for _, name := range identifier.FindAllString(text, -1) {
		field, own := strings.CutPrefix(name, "@request.auth.")
		switch {
		case strings.HasPrefix(name, "@collection."):
		case !own:
			d.Volatile = true
		case field == "id" || field == "collectionId" || field == "collectionName":
		default:
			first, _, _ := strings.Cut(field, ".")
			d.Auth = d.Auth || !strings.Contains(first, "_via_")
		}
	}
	for _, call := range function.FindAllStringSubmatch(text, -1) {
		if call[1] != "geoDistance" { // strftime may mean the present
			d.Volatile = true
		}
	}
	return d
}

func ruleQuery(app core.App, collection *core.Collection, rule string, auth *core.Record) (*dbx.Query, error) {
	q := app.ConcurrentDB().Select(collection.Name + ".id").From(collection.Name)
	if strings.TrimSpace(rule) != "" {
		info := &core.RequestInfo{Context: core.RequestInfoContextDefault, Method: "GET", Auth: auth}
		resolver := core.NewRecordFieldResolver(app, collection, info, true)
		expr, err := search.FilterData(rule).BuildExpr(resolver)
		if err != nil {
			return nil, err
		}
		q.AndWhere(expr)
		if err := resolver.UpdateQuery(q); err != nil {
			return nil, err
		}
	}
	return q.Build(), nil
}

var marked = regexp.MustCompile(`\[\[([\w.]+)\]\]|\{\{([\w.]+)\}\}`)

// quoted is the text of a query with the names in it quoted as SQLite gets them.
func quoted(query *dbx.Query) string {
	return marked.ReplaceAllStringFunc(query.SQL(), func(name string) string {
		return "`" + strings.ReplaceAll(name[2:len(name)-2], ".", "`.`") + "`"
	})
}

var tableName = regexp.MustCompile("`([^`]+)`(?:\\s+`([^`]+)`)?")

// readsOthers reports whether the query reads other rows of the collection than the one that it judges, by a relation or
// as @collection: the table then stands in it a second time, or a view that reads it does. PocketBase's test that all
// values of a multiple relation match goes from the row to itself, under a name that tells.
func readsOthers(app core.App, collection *core.Collection, query string) (bool, error) {
	uses, looked := 0, map[string]bool{}
	for _, at := range tableName.FindAllStringSubmatchIndex(query, -1) {
		name, alias := query[at[2]:at[3]], ""
		if at[4] >= 0 {
			alias = query[at[4]:at[5]]
		}
		if at[1] < len(query) && query[at[1]] == '.' || alias == "" && at[0] > 0 && query[at[0]-1] == '.' {
			continue // a column, and the table before it
		}
		if name == collection.Name {
			if alias != "__mm_"+collection.Name {
				uses++
			}
			continue
		}
		if looked[name] {
			continue
		}
		looked[name] = true
		view, err := app.FindCachedCollectionByNameOrId(name)
		if err != nil || view.Name != name || !view.IsView() {
			continue
		}
		tables, _, err := opened(app.ConcurrentDB(), app.ConcurrentDB().NewQuery("SELECT * FROM "+capture.Quote(name)))
		if err != nil {
			return false, fmt.Errorf("explain view %s: %w", name, err)
		}
		if tables[collection.Name] {
			return true, nil
		}
	}
	return uses > 1, nil
}

// opened lists the tables whose b-trees, or those of their indexes, the query opens, and those that it goes through from
// one end.
func opened(db dbx.Builder, query *dbx.Query) (tables, scans map[string]bool, err error) {
	var trees []struct {
		Page  string `db:"rootpage"`
		Table string `db:"tbl_name"`
	}
	if err := db.NewQuery("SELECT rootpage, tbl_name FROM sqlite_schema WHERE rootpage > 0").All(&trees); err != nil {
		return nil, nil, fmt.Errorf("read schema: %w", err)
	}
	byPage := map[string]string{}
	for _, t := range trees {
		byPage[t.Page] = t.Table
	}
	var program []struct {
		Opcode string `db:"opcode"`
		P1     int    `db:"p1"`
		P2     int    `db:"p2"`
		P3     int    `db:"p3"`
	}
	if err := db.NewQuery("EXPLAIN " + query.SQL()).Bind(query.Params()).All(&program); err != nil {
		return nil, nil, err
	}
	tables, scans = map[string]bool{}, map[string]bool{}
	cursors := map[int]string{}
	for _, op := range program {
		if (op.Opcode == "OpenRead" || op.Opcode == "ReopenIdx") && op.P3 == 0 {
			table, ok := byPage[strconv.Itoa(op.P2)]
			if !ok {
				continue // the schema itself
			}
			tables[table], cursors[op.P1] = true, table
		}
	}
	for _, op := range program {
		if table := cursors[op.P1]; table != "" && (op.Opcode == "Rewind" || op.Opcode == "Last") {
			scans[table] = true
		}
	}
	return tables, scans, nil
}
