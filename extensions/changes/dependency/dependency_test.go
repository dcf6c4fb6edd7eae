package dependency_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/dependency"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// world is an application with users, teams, memberships and notes, and a view of the notes.
func world(t *testing.T) (*apptest.App, *core.Record) {
	t.Helper()
	app := apptest.New(t)
	user, _ := app.User(t, "ann@example.test")
	relation := func(name, to string) core.Field {
		c, err := app.FindCollectionByNameOrId(to)
		if err != nil {
			t.Fatal(err)
		}
		return &core.RelationField{Name: name, CollectionId: c.Id, MaxSelect: 1}
	}
	add := func(c *core.Collection) {
		if err := app.Save(c); err != nil {
			t.Fatal(err)
		}
	}
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.TextField{Name: "name"})
	add(teams)
	memberships := core.NewBaseCollection("memberships")
	memberships.Fields.Add(relation("user", "users"), relation("team", "teams"))
	memberships.AddIndex("idx_memberships", false, "team, user", "")
	add(memberships)
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(relation("owner", "users"), relation("team", "teams"), &core.TextField{Name: "title"}, &core.AutodateField{Name: "created", OnCreate: true})
	notes.AddIndex("idx_notes_owner", false, "owner", "")
	add(notes)
	notes.Fields.Add(relation("parent", "notes"), &core.RelationField{Name: "watchers", CollectionId: user.Collection().Id, MaxSelect: 9})
	add(notes)
	view := core.NewViewCollection("titles")
	view.ViewQuery = "SELECT notes.id, notes.title, teams.name FROM notes LEFT JOIN teams ON teams.id = notes.team"
	add(view)
	return app, user
}

func TestOf(t *testing.T) {
	app, user := world(t)
	for _, c := range []struct {
		collection, rule string
		guest            bool
		reads            string // names, sorted
		auth, volatile   bool
		self             bool // reads other notes
		tables           string
	}{
		{collection: "notes", rule: "", reads: "notes"},
		{collection: "notes", rule: "owner = @request.auth.id", reads: "notes"},
		{collection: "notes", rule: "owner = @request.auth.id", guest: true, reads: "notes"},
		{collection: "notes", rule: "owner.name = @request.auth.name", reads: "notes users", auth: true},
		{collection: "notes", rule: "team.name = 'a'", reads: "notes teams"},
		{collection: "notes", rule: "team.memberships_via_team.user ?= @request.auth.id", reads: "memberships notes teams"},
		{collection: "notes", rule: "team.memberships_via_team.user = @request.auth.id", reads: "memberships notes teams"},
		{collection: "notes", rule: "@collection.memberships.team ?= team && @collection.memberships.user ?= @request.auth.id", reads: "memberships notes"},
		{collection: "notes", rule: "@request.auth.memberships_via_user.team ?= team", reads: "memberships notes users"},
		{collection: "notes", rule: "@request.auth.id != '' && created < @now", reads: "notes", volatile: true},
		{collection: "notes", rule: "@request.headers.x_a = 'b'", reads: "notes", volatile: true},
		{collection: "notes", rule: "@request.query.a = title", reads: "notes", volatile: true},
		{collection: "notes", rule: "strftime('%Y', created) = '2026'", reads: "notes", volatile: true},
		{collection: "notes", rule: "title = 'me@now.example' || title = \"@request.body.x\"", reads: "notes"},
		{collection: "notes", rule: "watchers = @request.auth.id", reads: "notes"},
		{collection: "notes", rule: "title = '`notes`' || title = 'notes notes'", reads: "notes"},
		{collection: "notes", rule: "parent.owner = @request.auth.id", reads: "notes", self: true},
		{collection: "notes", rule: "parent.parent.title = 'a'", reads: "notes", self: true},
		{collection: "notes", rule: "notes_via_parent.owner ?= @request.auth.id", reads: "notes", self: true},
		{collection: "notes", rule: "notes_via_parent.owner = @request.auth.id", reads: "notes", self: true},
		{collection: "notes", rule: "team.notes_via_team.title ?= 'open'", reads: "notes teams", self: true},
		{collection: "notes", rule: "@collection.notes.owner ?= @request.auth.id", reads: "notes", self: true},
		{collection: "notes", rule: "@collection.notes:other.title ?= title", reads: "notes", self: true},
		{collection: "notes", rule: "@request.auth.notes_via_owner.title ?= title", reads: "notes users", self: true},
		{collection: "notes", rule: "@collection.titles.title ?= title", reads: "notes", self: true},
		{collection: "titles", rule: "name != ''", reads: "notes teams"},
		{collection: "teams", rule: "@collection.titles.name ?= name", reads: "notes teams", self: true},
		{collection: "teams", rule: "@collection.memberships.team ?= id", reads: "memberships teams"},
		{collection: "notes", rule: "@collection._externalAuths.recordRef ?= owner", reads: "notes", tables: "_externalAuths"},
	} {
		collection, err := app.FindCollectionByNameOrId(c.collection)
		if err != nil {
			t.Fatal(err)
		}
		auth := user
		if c.guest {
			auth = nil
		}
		d, err := dependency.Of(app, collection, c.rule, auth)
		if err != nil {
			t.Errorf("%s: %v", c.rule, err)
			continue
		}
		var names []string
		for _, id := range d.Collections {
			read, err := app.FindCollectionByNameOrId(id)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, read.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != c.reads || d.Auth != c.auth || d.Volatile != c.volatile || d.Self != c.self || strings.Join(d.Tables, " ") != c.tables {
			t.Errorf("%s: reads %q, %+v", c.rule, got, d)
		}
	}
	notes, err := app.FindCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dependency.Of(app, notes, "nothing = 1", user); err == nil {
		t.Error("a rule that cannot be built has dependencies")
	}
}

func TestScans(t *testing.T) {
	app, user := world(t)
	notes, err := app.FindCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	for rule, want := range map[string]string{
		"owner = @request.auth.id": "", "title = 'x'": "notes", "id = 'x'": "",
	} {
		d, err := dependency.Of(app, notes, rule, user)
		if err != nil || strings.Join(d.Scans, " ") != want {
			t.Errorf("%s: %v %v, want %q", rule, d.Scans, err, want)
		}
	}
}

// The column whose index ends a scan is found without touching the database.
func TestIndex(t *testing.T) {
	app, user := world(t)
	for _, c := range []struct{ collection, rule, table, want string }{
		{"notes", "title = 'x'", "notes", "title"},
		{"notes", "team = 'x' && title = 'y'", "notes", "team"}, // the first one that helps
		{"notes", "title != 'x'", "notes", ""},
		{"notes", "team.memberships_via_team.user ?= @request.auth.id", "notes", ""},
		{"memberships", "user = @request.auth.id", "memberships", "user"},
	} {
		collection, err := app.FindCollectionByNameOrId(c.collection)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := dependency.Index(app, collection, c.rule, user, c.table); err != nil || got != c.want {
			t.Errorf("%s: %q %v, want %q", c.rule, got, err, c.want)
		}
	}
	var left int
	if err := app.NonconcurrentDB().NewQuery("SELECT count(*) FROM sqlite_schema WHERE name = 'satchel_try'").Row(&left); err != nil || left != 0 {
		t.Errorf("%d indexes are left, %v", left, err)
	}
}
