package records

import (
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
)

// explain is SQLite's plan for the first or, with a key, a later page of a list of posts.
func explain(t *testing.T, app core.App, auth *core.Record, filter, sort string, later bool) string {
	t.Helper()
	e := event(t, app, auth, "/?"+queryOf("filter", filter, "sort", sort))
	posts := collection(t, app, "posts")
	rows, err := newSelection(e, posts, filter)
	if err != nil {
		t.Fatal(err)
	}
	o, err := planner{collection: posts, superuser: e.HasSuperuserAuth(), bindings: rows.bindings}.plan(search.ParseSortFromString(sort))
	if err != nil {
		t.Fatal(err)
	}
	var key []any
	if later {
		for range o.terms {
			key = append(key, "m")
		}
	}
	q := rows.page(o, key, nil, 26).Build()
	var plan []dbx.NullStringMap
	if err := app.ConcurrentDB().NewQuery("EXPLAIN QUERY PLAN " + q.SQL()).Bind(q.Params()).All(&plan); err != nil {
		t.Fatalf("%v\n%s", err, q.SQL())
	}
	var lines []string
	for _, step := range plan {
		lines = append(lines, step["detail"].String)
	}
	return strings.Join(lines, "\n")
}

func TestIndexDrivesTheList(t *testing.T) {
	app := start(t)
	p := populate(t, app, 60)
	root, err := app.FindAuthRecordByToken(p.rootToken)
	if err != nil {
		t.Fatal(err)
	}
	const lastTerm = "LAST TERM OF ORDER BY" // only the ties are sorted
	cases := []struct {
		name         string
		auth         *core.Record
		filter, sort string
		seek         string // the later page must seek like this
		partial      bool
	}{
		{name: "id", auth: root, sort: "id", seek: "SEARCH posts USING INDEX sqlite_autoindex_posts_1 (id>?)"},
		{name: "id descending", auth: root, sort: "-id", seek: "SEARCH posts USING INDEX sqlite_autoindex_posts_1 (id<?)"},
		{name: "text", auth: root, sort: "title", seek: "SEARCH posts USING INDEX idx_posts_title ((title,id)>(?,?))"},
		{name: "descending", auth: root, sort: "-created", seek: "SEARCH posts USING INDEX idx_posts_created ((created,id)<(?,?))"},
		{name: "ignoring case", auth: root, sort: "label", seek: "SEARCH posts USING INDEX idx_posts_label (label>?)"},
		{name: "without id in the index", auth: root, sort: "n", seek: "SEARCH posts USING INDEX idx_posts_n (n>?)", partial: true},
		{name: "mixed directions", auth: root, sort: "kind,-n", seek: "SEARCH posts USING INDEX idx_posts_kind (kind>?)"},
		{name: "mixed directions, backwards", auth: root, sort: "-kind,n", seek: "SEARCH posts USING INDEX idx_posts_kind (kind<?)"},
		{
			name: "after an equality of the filter", auth: root, filter: "owner = 'x' && done = true", sort: "-updated",
			seek: "SEARCH posts USING INDEX idx_posts_owner (owner=? AND (updated,id)<(?,?))",
		},
		{
			name: "under a rule with joins", auth: p.ann, sort: "-created",
			seek: "SEARCH __list USING INDEX idx_posts_created ((created,id)<(?,?))",
		},
		{
			name: "under a rule with joins, ignoring case", auth: p.ann, sort: "-label",
			seek: "SEARCH __list USING INDEX idx_posts_label (label<?)",
		},
		{
			name: "under a rule with joins, after an equality", auth: p.ann, filter: "owner = 'x'", sort: "updated",
			seek: "SEARCH __list USING INDEX idx_posts_owner (owner=? AND (updated,id)>(?,?))",
		},
		{
			name: "with a back-relation", auth: root, filter: "comments_via_post.text ?= 'c'", sort: "title",
			seek: "SEARCH __list USING INDEX idx_posts_title ((title,id)>(?,?))",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, later := range []bool{false, true} {
				plan := explain(t, app, c.auth, c.filter, c.sort, later)
				sorted := strings.Contains(plan, "USE TEMP B-TREE FOR ORDER BY")
				ties := strings.Contains(plan, lastTerm)
				if sorted || ties != c.partial || strings.Contains(plan, "DISTINCT") {
					t.Errorf("later=%v: the list is sorted:\n%s", later, plan)
				}
				if later && !strings.Contains(plan, c.seek) {
					t.Errorf("no %q in\n%s", c.seek, plan)
				}
			}
		})
	}
}

// A guest's id is missing, which PocketBase writes as an alternative of the empty string and NULL.
func TestIndexDrivesTheListOfAGuest(t *testing.T) {
	app := start(t)
	posts := collection(t, app, "posts")
	posts.ListRule = new("owner = @request.auth.id")
	save(t, app, posts)
	plan := explain(t, app, nil, "", "-updated", true)
	if strings.Contains(plan, "B-TREE") || !strings.Contains(plan, "idx_posts_owner (owner=? AND (updated,id)<(?,?))") {
		t.Error(plan)
	}
}
