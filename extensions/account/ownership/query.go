package ownership

import (
	"fmt"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/dbutils"
	"github.com/pocketbase/pocketbase/tools/search"
)

// IDs returns the next ids of the set after one, in their order. Reading by ids instead of in one go holds no transaction
// open: a long one would keep the write-ahead log from being cut.
func (s *Set) IDs(app core.App, account, after string, limit int) ([]string, error) {
	table := s.Collection.Name
	column := table + ".id"
	q := app.ConcurrentDB().Select(column).From(table)
	if s.field != nil {
		q.AndWhere(refersTo(table, s.field, []string{account}))
	} else {
		resolver := core.NewRecordFieldResolver(app, s.Collection, nil, true)
		expr, err := search.FilterData(s.condition()).BuildExpr(resolver, dbx.Params{"account": account})
		if err != nil {
			return nil, fmt.Errorf("select records of %s by %q: %w", table, s.condition(), err)
		}
		q.AndWhere(expr)
		if err := resolver.UpdateQuery(q); err != nil {
			return nil, fmt.Errorf("select records of %s by %q: %w", table, s.condition(), err)
		}
	}
	return column1(q, column, after, limit)
}

// IDs returns the next ids of records that refer to one of the targets.
func (r Reference) IDs(app core.App, targets []string, after string, limit int) ([]string, error) {
	table := r.Collection.Name
	column := table + ".id"
	return column1(app.ConcurrentDB().Select(column).From(table).AndWhere(refersTo(table, r.Field, targets)), column, after, limit)
}

func column1(q *dbx.SelectQuery, column, after string, limit int) ([]string, error) {
	var ids []string
	err := q.AndWhere(dbx.NewExp("[["+column+"]] > {:after}", dbx.Params{"after": after})).OrderBy(column).Limit(int64(limit)).Column(&ids)
	if err != nil {
		return nil, fmt.Errorf("select %s: %w", column, err)
	}
	return ids, nil
}

// refersTo is the condition that a relation holds one of the targets.
func refersTo(table string, f *core.RelationField, targets []string) dbx.Expression {
	column := table + "." + f.Name
	names, params := make([]string, len(targets)), dbx.Params{}
	for i, id := range targets {
		name := fmt.Sprintf("target%d", i)
		names[i], params[name] = "{:"+name+"}", id
	}
	list := strings.Join(names, ", ")
	if !f.IsMultiple() {
		return dbx.NewExp("[["+column+"]] IN ("+list+")", params)
	}
	return dbx.NewExp("EXISTS (SELECT 1 FROM "+dbutils.JSONEach(column)+" {{accountEach}} WHERE [[accountEach.value]] IN ("+list+"))", params)
}
