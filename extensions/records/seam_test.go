package records

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// These tests hold what the package takes for granted about PocketBase's inside.

// A keyset has no place for NULL: every column that may be in one must refuse it.
func TestSeamKeyColumnsAreNotNull(t *testing.T) {
	app := start(t)
	checked := 0
	for _, f := range collection(t, app, "posts").Fields {
		if !keyColumn(f) {
			continue
		}
		checked++
		if !strings.Contains(f.ColumnType(app), "NOT NULL") {
			t.Errorf("column of %s (%s): %s", f.GetName(), f.Type(), f.ColumnType(app))
		}
	}
	if checked < 10 {
		t.Errorf("only %d fields were checked", checked)
	}
}

// The resolver names the table after the collection, joins only for relations, and then asks for DISTINCT.
func TestSeamResolver(t *testing.T) {
	app := start(t)
	p := populate(t, app, 1)
	posts := collection(t, app, "posts")
	for filter, joined := range map[string]bool{
		"title = 'x'":                        false,
		"owner = @request.auth.id":           false,
		"tags:length > 1":                    false,
		"tags:each ?= 'x'":                   true,
		"owner.name = 'x'":                   true,
		"team.members.id ?= 'x'":             true,
		"comments_via_post.text ?= 'x'":      true,
		"@collection.comments.text ?= title": true,
	} {
		info := &core.RequestInfo{Auth: p.ann}
		resolver := core.NewRecordFieldResolver(app, posts, info, true)
		expr, err := search.FilterData(filter).BuildExpr(resolver)
		if err != nil {
			t.Fatal(err)
		}
		q := app.RecordQuery(posts).AndWhere(expr)
		if err := resolver.UpdateQuery(q); err != nil {
			t.Fatal(err)
		}
		if got := q.Info(); (len(got.Join) > 0) != joined || got.Distinct != joined {
			t.Errorf("%s: %d joins, distinct %v", filter, len(got.Join), got.Distinct)
		}
		if sql := q.Build().SQL(); !strings.Contains(sql, "posts.") {
			t.Errorf("%s does not name the table: %s", filter, sql)
		}
	}
}

// What bindings takes for an equality is one in PocketBase's SQL: a plain comparison, or one with the empty string.
func TestSeamEqualities(t *testing.T) {
	app := start(t)
	p := populate(t, app, 1)
	posts := collection(t, app, "posts")
	cases := []struct {
		condition string
		auth      *core.Record
		want      map[string]any
		sql       string
	}{
		{"owner = @request.auth.id", p.ann, map[string]any{"owner": p.ann.Id}, "[[posts.owner]] = {:"},
		{"owner = @request.auth.id", nil, map[string]any{"owner": ""}, "([[posts.owner]] = '' OR [[posts.owner]] IS NULL)"},
		{"'x' = title", nil, map[string]any{"title": "x"}, "= [[posts.title]]"},
		{"title ?= 'x'", nil, map[string]any{"title": "x"}, "[[posts.title]] = {:"},
		{"n = 2.5 && (done = true && kind = '')", nil, map[string]any{"n": 2.5, "done": 1, "kind": ""}, "[[posts.done]] = 1"},
		{"n = 1 && (title = 'a' || done = true)", nil, map[string]any{"n": 1.0}, " OR "},
		{"n = 1 || title = 'a'", nil, map[string]any{}, " OR "},
		{"n = 1 && title = 'a' || done = true", nil, map[string]any{}, " OR "},
		{"title != 'a'", nil, map[string]any{}, "IS NOT"},
		{"title = label", nil, map[string]any{}, "COALESCE"},
		{"tags = 'x'", nil, map[string]any{}, "[[posts.tags]] = "},
		{"meta = 1", nil, map[string]any{}, "JSON_EXTRACT"},
		{"title = @now", nil, map[string]any{}, "[[posts.title]] = {:"},
		{"label = @request.auth.name", p.ann, map[string]any{}, "__auth_users"},
		{"title = @request.query.q", nil, map[string]any{"title": ""}, "IS NULL"},
	}
	for _, c := range cases {
		info := &core.RequestInfo{Auth: c.auth}
		b := &bindings{collection: posts, conditions: []string{c.condition}, resolver: core.NewRecordFieldResolver(app, posts, info, true)}
		if got := b.load(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %#v, want %#v", c.condition, got, c.want)
		}
		expr, err := search.FilterData(c.condition).BuildExpr(core.NewRecordFieldResolver(app, posts, info, true))
		if err != nil {
			t.Fatal(err)
		}
		if sql := app.RecordQuery(posts).AndWhere(expr).Build().SQL(); !strings.Contains(sql, c.sql) {
			t.Errorf("%s: no %q in %s", c.condition, c.sql, sql)
		}
	}
}

// The records made here are those of PocketBase's own queries.
func TestSeamRecordsOfRows(t *testing.T) {
	app := start(t)
	p := populate(t, app, 20)
	for _, name := range []string{"posts", "users", "teams", "digest"} {
		c := collection(t, app, name)
		var want []*core.Record
		if err := app.RecordQuery(c).OrderBy("id").All(&want); err != nil {
			t.Fatal(err)
		}
		var rows []dbx.NullStringMap
		if err := app.RecordQuery(c).OrderBy("id").All(&rows); err != nil {
			t.Fatal(err)
		}
		got, err := newRecords(c, rows)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %d records, want %d, %v", name, len(got), len(want), err)
		}
		for i := range want {
			if marshal(t, got[i]) != marshal(t, want[i]) || marshal(t, got[i].Original()) != marshal(t, want[i].Original()) {
				t.Errorf("%s: %s, want %s", name, marshal(t, got[i]), marshal(t, want[i]))
			}
			if got[i].IsNew() || got[i].LastSavedPK() != want[i].LastSavedPK() || len(got[i].CustomData()) > 0 {
				t.Errorf("%s: the record is not one from the database", name)
			}
		}
	}
	// A hook may save such a record.
	c := collection(t, app, "posts")
	var rows []dbx.NullStringMap
	if err := app.RecordQuery(c).Limit(1).All(&rows); err != nil {
		t.Fatal(err)
	}
	made, err := newRecords(c, rows)
	if err != nil {
		t.Fatal(err)
	}
	made[0].Set("title", "saved")
	save(t, app, made[0])
	_ = p
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// The stock list refuses these fields to everybody but superusers, in filter and in sort, wherever they stand.
func TestSeamRuleFields(t *testing.T) {
	app := start(t)
	p := populate(t, app, 1)
	for _, query := range []string{
		queryOf("filter", "title = '@request.x'"), queryOf("filter", "@collection.posts.id = id"), queryOf("sort", "@request.auth.id"),
		queryOf("sort", "id,@collection.posts.id"), queryOf("filter", "@now > created"), queryOf("filter", "title = '@requests'"),
	} {
		for token, who := range map[string]string{"": "guest", p.annToken: "ann", p.rootToken: "root"} {
			stock := app.Do(t, apptest.Request{Path: "/api/collections/posts/records?" + query, Token: token})
			own := app.Do(t, apptest.Request{Path: postsPath + "?" + query, Token: token})
			if (stock.Status == 403) != (own.Status == 403) {
				t.Errorf("%s as %s: stock %d, own %d", query, who, stock.Status, own.Status)
			}
		}
	}
}

// The patterns of the generated routes, which the body check goes by, and the map of fields' setters.
func TestSeamRoutes(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	for method, path := range map[string]string{"POST": writePath, "PATCH": writePath + "/x"} {
		if r := app.Do(t, apptest.Request{Method: method, Path: path, Token: p.annToken, Body: `{"nope":1}`}); r.Code() != "api.validation_failed" {
			t.Errorf("%s %s: %d %s", method, path, r.Status, r.Body)
		}
	}
	r := app.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/batch", Token: p.annToken, Body: `{"requests":[{"method":"POST","url":"/api/collections/posts/records","body":{"nope":1}}]}`})
	if r.Code() != "api.validation_failed" {
		t.Errorf("batch: %d %s", r.Status, r.Body)
	}
}
