package rows

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// start runs an application with teams(name, members*, boss) and posts(owner, team, title, tags*, meta, place, n).
func start(t testing.TB, list ...extensions.Extension) *apptest.App {
	t.Helper()
	app := apptest.New(t, list...)
	users := find(t, app, "users")
	users.Fields.Add(&core.NumberField{Name: "level"}, &core.RelationField{Name: "friends", CollectionId: users.Id, MaxSelect: 9})
	save(t, app, users)
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.TextField{Name: "name"}, &core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 9})
	teams.ListRule = new("@request.headers.x_team != '' && members.id ?= @request.auth.id")
	save(t, app, teams)
	posts := core.NewBaseCollection("posts")
	posts.Fields.Add(
		&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1}, &core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1},
		&core.TextField{Name: "title"}, &core.SelectField{Name: "tags", Values: []string{"a", "b"}, MaxSelect: 2}, &core.JSONField{Name: "meta"},
		&core.GeoPointField{Name: "place"}, &core.NumberField{Name: "n"}, &core.TextField{Name: "hidden", Hidden: true},
	)
	posts.ListRule, posts.ViewRule = new(""), new("")
	save(t, app, posts)
	return app
}

func find(t testing.TB, app core.App, name string) *core.Collection {
	t.Helper()
	c, err := app.FindCollectionByNameOrId(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func save(t testing.TB, app core.App, m core.Model) {
	t.Helper()
	if err := app.Save(m); err != nil {
		t.Fatal(err)
	}
}

func event(t testing.TB, app core.App, auth *core.Record) *core.RequestEvent {
	t.Helper()
	e := &core.RequestEvent{App: app, Auth: auth}
	e.Request = httptest.NewRequestWithContext(t.Context(), "GET", "/?q=x", nil)
	e.Request.Header.Set("X-Team", "x")
	return e
}

// randomName is what PocketBase calls the sub-selects of conditions on many values.
var randomName = regexp.MustCompile(`__(ml|mr|sm)\w{8}`)

// compiled is the text and the arguments of a condition, without random names and with the viewer's id replaced.
func compiled(t testing.TB, app core.App, info *core.RequestInfo, rule, filter, id string) (string, []any) {
	t.Helper()
	posts, err := app.FindCachedCollectionByNameOrId("posts")
	if err != nil {
		t.Fatal(err)
	}
	db, ok := app.ConcurrentDB().(*dbx.DB)
	if !ok {
		t.Fatal("not a database")
	}
	q := app.RecordQuery(posts)
	if err := Where(q, app, posts, info, &rule, filter); err != nil {
		t.Fatalf("%s, %s: %v", rule, filter, err)
	}
	c, err := Compile(db, q, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, arg := range c.args {
		if arg == id {
			c.args[i] = "the viewer"
		}
	}
	return randomName.ReplaceAllString(c.text, "__$1"), c.args
}

func lastingRules() []string {
	return []string{
		"owner = @request.auth.id", "@request.auth.id = owner", "owner != @request.auth.id", "@request.auth.id != ''", "@request.auth.id:isset = true", "@request.auth.id:lower = owner",
		"owner ?= @request.auth.id", "owner > @request.auth.id", "@request.auth.collectionId = 'x'", "@request.auth.collectionName = 'users'", "@request.auth.verified = true",
		"@request.auth.emailVisibility = true", "@request.auth.email:lower = title", "@request.auth.name = title", "@request.auth.level >= n", "@request.auth.friends.id ?= owner", "@request.auth.friends = owner",
		"@request.auth.friends:length > 1", "@request.auth.nothing = ''", "@request.auth.posts_via_owner.title = 'x'", "team.members = @request.auth.id", "team.members ?= @request.auth.id",
		"team.members.friends.level > 1", "@collection.teams.members ?= @request.auth.id", "@collection.teams:x.name = title", "tags:each = 'a'", "tags:length = n", "meta.a.b = 1",
		"place.lon > 1.5", "title:lower ~ 'x%'", "hidden = 'x' || (n = null && owner = '') // comment", "true = true",
	}
}

// For equal viewers a lasting condition is one text, and its arguments differ in the id alone.
func TestLastingConditionsDependOnTheViewerOnly(t *testing.T) {
	app := start(t)
	ann, _ := app.User(t, "ann@example.test")
	bob, _ := app.User(t, "bob@example.test")
	ann.Load(map[string]any{"name": "Ann", "level": 3, "friends": []string{bob.Id}})
	save(t, app, ann)
	posts, err := app.FindCachedCollectionByNameOrId("posts")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []**core.Record{&ann, &bob} { // as they come with a request
		if *r, err = app.FindRecordById("users", (*r).Id); err != nil {
			t.Fatal(err)
		}
	}
	viewer, ok := ViewerOf(ann)
	if other, ok2 := ViewerOf(bob); !ok || !ok2 || viewer != other {
		t.Fatalf("%+v, %+v", viewer, other)
	}
	guest, _ := ViewerOf(nil)
	for _, rule := range lastingRules() {
		for _, auth := range []*core.Record{ann, nil} {
			v := viewer
			if auth == nil {
				v = guest
			}
			if !Lasting(posts, v, &rule, "") {
				t.Errorf("%s does not last", rule)
			}
			real, err := event(t, app, auth).RequestInfo()
			if err != nil {
				t.Fatal(err)
			}
			id := ""
			if auth != nil {
				id = auth.Id
			}
			text, args := compiled(t, app, real, rule, "", id)
			mark := NewMark()
			markedText, markedArgs := compiled(t, app, markedInfo(event(t, app, auth), mark), rule, "", mark)
			if text != markedText || !reflect.DeepEqual(args, markedArgs) {
				t.Errorf("%s:\n%s %v\n%s %v", rule, text, args, markedText, markedArgs)
			}
			if auth == nil {
				continue
			}
			other, err := event(t, app, bob).RequestInfo()
			if err != nil {
				t.Fatal(err)
			}
			if otherText, otherArgs := compiled(t, app, other, rule, "", bob.Id); otherText != text || !reflect.DeepEqual(otherArgs, args) {
				t.Errorf("%s of another viewer: %s %v", rule, otherText, otherArgs)
			}
		}
	}
}

// A record that was saved by this process keeps its id twice; neither may stay in a query that serves other viewers.
func TestMarkOfSavedRecord(t *testing.T) {
	app := start(t)
	ann, _ := app.User(t, "ann@example.test")
	save(t, app, ann)
	mark := NewMark()
	rule := "owner = @request.auth.id"
	_, args := compiled(t, app, markedInfo(event(t, app, ann), mark), rule, "", mark)
	found := fmt.Sprint(args)
	if strings.Contains(found, ann.Id) {
		t.Errorf("the arguments %s hold the id of the viewer", found)
	}
	clone := markedInfo(event(t, app, ann), mark).Auth.Clone()
	if clone.Id != mark || clone.GetString("id") != mark {
		t.Errorf("a copy has the ids %q and %q", clone.Id, clone.GetString("id"))
	}
}

func TestLasting(t *testing.T) {
	app := start(t)
	posts := find(t, app, "posts")
	user, root := Viewer{collection: posts}, Viewer{collection: posts, Superuser: true}
	for condition, want := range map[string][3]bool{ // as a rule, as a filter, as a superuser's filter
		"title = 'x'": {true, true, true}, "meta.a = 1": {true, true, true}, "place.lat = 1": {true, true, true}, "tags:each ?= 'a'": {true, true, true},
		"team.name = 'x'": {true, false, true}, "owner.id = 'x'": {true, false, true}, "(title = 'x' && (n = 1 || team.name = 'x'))": {true, false, true},
		"posts_via_owner.title = 'x'": {true, false, true}, "@collection.teams.name = 'x'": {true, false, true}, "owner = @request.auth.id": {true, false, true},
		"created > @now": {}, "n = 1 || created > @monthStart": {}, "@request.headers.x = 'x'": {}, "@request.query.q = 'x'": {}, "@request.body.q:isset = true": {}, "@request.method = 'GET'": {},
		"@request.context = 'x'": {}, "@request.auth.email = title": {}, "@request.auth.email:lower = title": {true, false, true}, "@request.auth.emailVisibility = true": {true, false, true},
		"geoDistance(place.lon, place.lat, 1, 2) < 3": {}, "strftime('%Y', created) = '2024'": {}, "title =": {}, "": {true, true, true},
	} {
		got := [3]bool{Lasting(posts, user, &condition, ""), Lasting(posts, user, nil, condition), Lasting(posts, root, nil, condition)}
		if got != want {
			t.Errorf("%q: %v, want %v", condition, got, want)
		}
		if broken := "@now = ''"; !Lasting(posts, root, &broken, "") {
			t.Error("a rule does not bind superusers")
		}
	}
}

func TestViewers(t *testing.T) {
	app := start(t)
	ann, _ := app.User(t, "ann@example.test")
	root, _ := app.Superuser(t)
	base, ok := ViewerOf(ann)
	if !ok || base.Superuser {
		t.Errorf("%+v %v", base, ok)
	}
	if v, ok := ViewerOf(root); !ok || !v.Superuser {
		t.Errorf("%+v %v", v, ok)
	}
	for name, change := range map[string]func(*core.Record){
		"verified": func(r *core.Record) { r.SetVerified(false) }, "visibility": func(r *core.Record) { r.SetEmailVisibility(true) },
	} {
		other := ann.Fresh()
		change(other)
		if v, ok := ViewerOf(other); !ok || v == base {
			t.Errorf("%s makes no difference", name)
		}
	}
	for name, change := range map[string]func(*core.Record){
		"no id": func(r *core.Record) { r.Id = "" }, "odd flag": func(r *core.Record) { r.SetRaw("verified", "yes") },
	} {
		other := ann.Fresh()
		change(other)
		if _, ok := ViewerOf(other); ok {
			t.Errorf("%s: taken for a plain account", name)
		}
	}
}

func TestCompile(t *testing.T) {
	app := start(t)
	db, ok := app.ConcurrentDB().(*dbx.DB)
	if !ok {
		t.Fatal("not a database")
	}
	mark, key := NewMark(), NewMark()
	q := app.DB().Select("id", "name").From("users").AndWhere(dbx.HashExp{"id": mark}).AndWhere(dbx.NewExp("name > {:k} OR id = {:v}", dbx.Params{"k": key, "v": mark}))
	c, err := Compile(db, q.Limit(5), []string{mark, key})
	if err != nil {
		t.Fatal(err)
	}
	want := "SELECT `id`, `name` FROM `users` WHERE (`id`=?) AND (name > ? OR id = ?) LIMIT 5"
	if c.text != want || !reflect.DeepEqual(c.slots, []slot{{0, 0}, {1, 1}, {2, 0}}) {
		t.Errorf("%s %v", c.text, c.slots)
	}
	ann, _ := app.User(t, "ann@example.test")
	for range 2 {
		var got []string
		err := c.Each(t.Context(), db, []any{ann.Id, ""}, func(row []any) error { got = append(got, fmt.Sprint(row)); return nil })
		if err != nil || len(got) != 1 || got[0] != "["+ann.Id+" ]" {
			t.Errorf("%v %v", got, err)
		}
	}
	stop := errors.New("stop")
	if err := c.Each(t.Context(), db, []any{ann.Id, ""}, func([]any) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	for name, lost := range map[string]*dbx.SelectQuery{
		"in a longer value": app.DB().Select("id").From("users").AndWhere(dbx.Like("id", mark)),
		"in the text":       app.DB().Select("id").From("users").AndWhere(dbx.NewExp("id = '" + mark + "'")),
	} {
		if _, err := Compile(db, lost, []string{mark}); !errors.Is(err, errMarkLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Compile(db, app.DB().Select("id").From("users").AndWhere(dbx.NewExp("id = {:missing}")), nil); err == nil || errors.Is(err, errMarkLost) {
		t.Errorf("without a value: %v", err)
	}
}

func TestCompiledIsKeptOrNot(t *testing.T) {
	app := start(t)
	ann, _ := app.User(t, "ann@example.test")
	cache := &Cache[string, *string]{}
	var seen []string
	ask := func(key string, lasts bool, fail error) string {
		out, err := Compiled(cache, key, event(t, app, ann), func() bool { return lasts }, func(info *core.RequestInfo, mark string) (*string, error) {
			kind := "real"
			if info.Auth.Id == mark {
				kind = "marked"
			} else if info.Auth.Id != ann.Id || info.Headers["x_team"] != "x" {
				t.Errorf("%+v", info)
			}
			seen = append(seen, kind)
			if fail != nil && kind == "marked" {
				return nil, fail
			}
			return &kind, nil
		})
		if err != nil {
			return err.Error()
		}
		return *out
	}
	for i, c := range []struct {
		key   string
		lasts bool
		fail  error
		want  string
		seen  string
	}{
		{"a", true, nil, "marked", "marked"},
		{"a", true, nil, "marked", ""},
		{"b", false, nil, "real", "real"},
		{"b", true, nil, "real", "real"},
		{"c", true, errMarkLost, "real", "marked real"},
		{"c", true, errMarkLost, "real", "real"},
		{"d", true, errors.New("bad"), "bad", "marked"},
		{"d", true, nil, "marked", "marked"},
	} {
		seen = nil
		if got := ask(c.key, c.lasts, c.fail); got != c.want || strings.Join(seen, " ") != c.seen {
			t.Errorf("%d: %s, seen %v, want %s, %s", i, got, seen, c.want, c.seen)
		}
	}
	if ann.Id == "" {
		t.Error("the account itself was marked")
	}
	for i := range 3 * cacheSize {
		cache.Put(fmt.Sprint(i), nil)
	}
	if len(cache.entries) != cacheSize {
		t.Errorf("%d entries", len(cache.entries))
	}
}

// Caches rely on it: a change of any collection replaces all of PocketBase's cached ones.
func TestSeamCachedCollectionsAreReplaced(t *testing.T) {
	app := start(t)
	cached := func(name string) *core.Collection {
		c, err := app.FindCachedCollectionByNameOrId(name)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	change := map[string]func(){
		"update": func() { c := find(t, app, "teams"); c.ListRule = nil; save(t, app, c) },
		"create": func() { save(t, app, core.NewBaseCollection("other")) },
		"delete": func() {
			if err := app.Delete(find(t, app, "other")); err != nil {
				t.Fatal(err)
			}
		},
		"in a transaction": func() {
			err := app.RunInTransaction(func(tx core.App) error { c := find(t, tx, "teams"); c.ViewRule = new(""); return tx.Save(c) })
			if err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, name := range []string{"update", "create", "delete", "in a transaction"} {
		if before := cached("posts"); true {
			if cached("posts") != before {
				t.Fatal("the cache hands out copies")
			}
			change[name]()
			if cached("posts") == before {
				t.Errorf("%s: an unchanged collection stayed", name)
			}
		}
	}
}
