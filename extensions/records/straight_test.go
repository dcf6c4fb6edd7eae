package records

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/rows"
)

// Records are made only where somebody has a say in them.
func TestStraight(t *testing.T) {
	app := start(t)
	p := populate(t, app, 1)
	managed := core.NewAuthCollection("managed")
	managed.ManageRule = new("@request.auth.id != ''")
	save(t, app, managed)
	cached := func(name string) *core.Collection { return cachedCollection(app, name) }
	for _, name := range []string{"posts", "users", "digest", "managed"} {
		r := &reader{ownHooks: rows.StockHooks}
		ask := func(app core.App, auth *core.Record, q query) bool {
			return r.straight(event(t, app, auth, "/"), cached(name), q, app.OnRecordsListRequest().Length()) != nil
		}
		root, err := app.FindAuthRecordByToken(p.rootToken)
		if err != nil {
			t.Fatal(err)
		}
		if !ask(app, root, query{}) || ask(app, p.ann, query{}) != (name != "managed") || ask(app, nil, query{}) != (name != "managed") {
			t.Errorf("%s: not straight", name)
		}
		without, err := rows.ParseFields("id,name")
		if err != nil {
			t.Fatal(err)
		}
		if !ask(app, p.ann, query{fields: without}) {
			t.Errorf("%s without e-mail addresses: not straight", name)
		}
		if ask(app, root, query{expand: []string{"owner"}}) {
			t.Error("straight with an expand")
		}
		err = app.RunInTransaction(func(tx core.App) error {
			if ask(tx, root, query{}) {
				t.Error("straight in a transaction, whose writes others do not see")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r := &reader{ownHooks: rows.StockHooks}
	id := app.OnRecordEnrich("teams").BindFunc(func(e *core.RecordEnrichEvent) error { return e.Next() })
	if r.straight(event(t, app, p.ann, "/"), cached("posts"), query{}, 1) != nil {
		t.Error("straight past OnRecordEnrich")
	}
	app.OnRecordEnrich().Unbind(id)
	if r.straight(event(t, app, p.ann, "/"), cached("posts"), query{}, 2) != nil {
		t.Error("straight past a hook of the request")
	}
}

// What is kept from earlier requests never outlives the schema it was made for.
func TestStraightFollowsTheSchema(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	post := create(t, app, "posts", map[string]any{"title": "one", "label": "visible", "owner": p.ann.Id, "team": p.team.Id})
	change := func(fn func(c *core.Collection)) {
		t.Helper()
		c := collection(t, app, "posts")
		fn(c)
		save(t, app, c)
	}
	ask := func(token string) string {
		t.Helper()
		one := app.Do(t, apptest.Request{Path: postsPath + "/" + post.Id, Token: token})
		all := app.Do(t, apptest.Request{Path: postsPath + "?total=true", Token: token})
		if (one.Status == http.StatusOK) != strings.Contains(string(all.Body), post.Id) || (one.Status == http.StatusOK) != strings.Contains(string(all.Body), `"total":1`) {
			t.Fatalf("list and view disagree: %s %s", one.Body, all.Body)
		}
		return string(one.Body)
	}
	for range 3 {
		if body := ask(p.bobToken); !strings.Contains(body, `"label":"visible"`) {
			t.Fatal(body)
		}
	}
	change(func(c *core.Collection) { c.Fields.GetByName("label").SetHidden(true) })
	if body := ask(p.bobToken); strings.Contains(body, "visible") || !strings.Contains(body, "one") {
		t.Errorf("hidden: %s", body)
	}
	change(func(c *core.Collection) {
		c.Fields.GetByName("title").SetName("heading")
		c.RemoveIndex("idx_posts_title")
		c.RemoveIndex("idx_posts_due")
	})
	if body := ask(p.bobToken); !strings.Contains(body, `"heading":"one"`) {
		t.Errorf("renamed: %s", body)
	}
	change(func(c *core.Collection) {
		c.ListRule, c.ViewRule = new("owner = @request.auth.id"), new("owner = @request.auth.id")
	})
	if body := ask(p.bobToken); strings.Contains(body, "one") {
		t.Errorf("another rule: %s", body)
	}
	if body := ask(p.annToken); !strings.Contains(body, "one") {
		t.Errorf("another rule: %s", body)
	}
	teams := collection(t, app, "teams")
	change(func(c *core.Collection) {
		c.ListRule, c.ViewRule = new("team.members.id ?= @request.auth.id"), new("team.members.id ?= @request.auth.id")
	})
	if body := ask(p.bobToken); !strings.Contains(body, "one") {
		t.Errorf("through a relation: %s", body)
	}
	// A change of another collection that the SQL names.
	teams.Fields.GetByName("members").SetName("people")
	teams.ListRule, teams.ViewRule = nil, nil
	change(func(c *core.Collection) { c.ListRule, c.ViewRule = new(""), new("") })
	save(t, app, teams)
	change(func(c *core.Collection) {
		c.ListRule, c.ViewRule = new("team.people.id ?= @request.auth.id"), new("team.people.id ?= @request.auth.id")
	})
	if body := ask(p.bobToken); !strings.Contains(body, "one") {
		t.Errorf("after the relation was renamed: %s", body)
	}
	// Membership is data and not schema.
	if _, err := app.DB().Update("teams", dbx.Params{"people": "[]"}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	if body := ask(p.bobToken); strings.Contains(body, "one") {
		t.Errorf("after the team was left: %s", body)
	}
}

// Viewers share what is kept; nobody gets what belongs to another.
func TestViewersDoNotMix(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	posts := collection(t, app, "posts")
	posts.ListRule, posts.ViewRule = new("owner = @request.auth.id"), new("owner = @request.auth.id")
	save(t, app, posts)
	ids := map[string]string{}
	for name, owner := range map[string]*core.Record{"ann": p.ann, "bob": p.bob} {
		for range 5 {
			ids[name] = create(t, app, "posts", map[string]any{"title": name, "owner": owner.Id}).Id
		}
	}
	var group sync.WaitGroup
	for who, other := range map[string]string{"ann": "bob", "bob": "ann"} {
		token := map[string]string{"ann": p.annToken, "bob": p.bobToken}[who]
		for range 4 {
			group.Go(func() {
				for range 15 {
					a := list(t, app, token, postsPath+"?limit=3&sort=title&total=true")
					b := list(t, app, token, postsPath+"?limit=3&sort=title&cursor="+*a.Pagination.NextCursor)
					if len(a.Data) != 3 || len(b.Data) != 2 || *a.Pagination.Total != 5 {
						t.Errorf("%s: %d and %d records of %d", who, len(a.Data), len(b.Data), *a.Pagination.Total)
					}
					for _, raw := range append(a.Data, b.Data...) {
						if !strings.Contains(string(raw), `"title":"`+who+`"`) {
							t.Errorf("%s sees %s", who, raw)
						}
					}
					if r := app.Do(t, apptest.Request{Path: postsPath + "/" + ids[who], Token: token}); r.Status != http.StatusOK {
						t.Errorf("%s: own record: %d", who, r.Status)
					}
					if r := app.Do(t, apptest.Request{Path: postsPath + "/" + ids[other], Token: token}); r.Status != http.StatusNotFound {
						t.Errorf("%s: record of %s: %d", who, other, r.Status)
					}
				}
			})
		}
	}
	group.Wait()
}

// A modifier that does not suit the value makes the stock API answer with the whole record; so does this one.
func TestUnsuitableModifier(t *testing.T) {
	app := start(t)
	p := populate(t, app, 3)
	for _, expand := range []string{"", "owner"} {
		query := []string{"sort", "id", "fields", "id,n:excerpt(3)", "expand", expand}
		want := stock(t, app, p.rootToken, "posts", query...)
		got := list(t, app, p.rootToken, postsPath+"?"+queryOf(query...)).Data
		for i := range want {
			if normal(t, got[i]) != normal(t, want[i]) {
				t.Errorf("expand %q:\n got %s\nwant %s", expand, got[i], want[i])
			}
		}
	}
}
