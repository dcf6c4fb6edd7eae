package dependency

import (
	"fmt"
	"regexp"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

// Index names a column of a table that the rule's query reads from end to end, whose index would end that; empty when no
// single column does. It tries them in an empty copy of the schema, so that the database does not notice.
func Index(app core.App, collection *core.Collection, rule string, auth *core.Record, table string) (string, error) {
	query, err := ruleQuery(app, collection, rule, auth)
	if err != nil {
		return "", fmt.Errorf("build rule of %s: %w", collection.Name, err)
	}
	lab, err := empty(app.ConcurrentDB())
	if err != nil {
		return "", fmt.Errorf("copy schema: %w", err)
	}
	defer func() { _ = lab.Close() }() // it is in memory
	var columns []string
	if err := lab.NewQuery("SELECT name FROM pragma_table_info({:table})").Bind(dbx.Params{"table": table}).Column(&columns); err != nil {
		return "", fmt.Errorf("list columns of %s: %w", table, err)
	}
	mentioned := map[string]bool{}
	for _, m := range columnName.FindAllStringSubmatch(quoted(query), -1) {
		mentioned[m[1]] = true
	}
	for _, column := range columns {
		if !mentioned[column] {
			continue
		}
		if err := capture.Exec(lab, "CREATE INDEX satchel_try ON "+capture.Quote(table)+" ("+capture.Quote(column)+")", nil); err != nil {
			return "", err
		}
		_, scans, err := opened(lab, lab.NewQuery(query.SQL()).Bind(query.Params()))
		if err != nil {
			return "", fmt.Errorf("explain rule of %s: %w", collection.Name, err)
		}
		if !scans[table] {
			return column, nil
		}
		if err := capture.Exec(lab, "DROP INDEX satchel_try", nil); err != nil {
			return "", err
		}
	}
	return "", nil
}

var columnName = regexp.MustCompile("\\.`([^`]+)`")

// empty makes a database in memory with the tables, indexes, and views of another one, and no rows.
func empty(from dbx.Builder) (lab *dbx.DB, err error) {
	var stored []struct{ Type, Name, SQL string }
	err = from.NewQuery(`SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('table', 'index', 'view') AND name NOT LIKE 'sqlite\_%' ESCAPE '\'`).All(&stored)
	if err != nil {
		return nil, err
	}
	if lab, err = dbx.Open("sqlite", ":memory:"); err != nil {
		return nil, err
	}
	lab.DB().SetMaxOpenConns(1) // another connection would have another database
	defer func() {
		if err != nil {
			_ = lab.Close()
		}
	}()
	for _, kind := range []string{"table", "index", "view"} {
		for _, s := range stored {
			if s.Type != kind {
				continue
			}
			if err := capture.Exec(lab, s.SQL, nil); err != nil {
				return nil, fmt.Errorf("%s %s: %w", kind, s.Name, err)
			}
		}
	}
	return lab, nil
}
