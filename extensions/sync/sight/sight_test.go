package sight

import (
	"context"
	"net/http"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// What a rule depends on decides which pulls look at changed rows only: too little is a row that is never told of.
func TestDependencies(t *testing.T) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: changes.Tables()})
	if err != nil {
		t.Fatal(err)
	}
	log := changes.New(settings.Defaults[changes.Config](), db)
	app := apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), log.Extension())
	user, _ := app.User(t, "ann@example.test")
	users := user.Collection()
	save := func(m core.Model) {
		t.Helper()
		if err := app.Save(m); err != nil {
			t.Fatal(err)
		}
	}
	members := core.NewBaseCollection("members")
	save(members)
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(
		&core.TextField{Name: "title"}, &core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1},
		&core.RelationField{Name: "watchers", CollectionId: users.Id, MaxSelect: 9},
	)
	save(notes)
	notes.Fields.Add(&core.RelationField{Name: "parent", CollectionId: notes.Id, MaxSelect: 1})
	save(notes)
	members.Fields.Add(&core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1}, &core.RelationField{Name: "note", CollectionId: notes.Id, MaxSelect: 1})
	save(members)

	tests := []struct {
		rule                              string
		self, members, users, auth, never bool
	}{
		{rule: ``},
		{rule: `owner = @request.auth.id`},
		{rule: `title = "notes" && owner = @request.auth.id`},
		{rule: `watchers ?= @request.auth.id`},
		{rule: `watchers = @request.auth.id`},
		{rule: `members_via_note.user ?= @request.auth.id`, members: true},
		{rule: `@collection.members.user ?= @request.auth.id`, members: true},
		{rule: `owner.name = "x"`, users: true},
		{rule: `parent.owner = @request.auth.id`, self: true},
		{rule: `notes_via_parent.owner ?= @request.auth.id`, self: true},
		{rule: `@collection.notes.owner ?= @request.auth.id`, self: true},
		{rule: `owner.name = @request.auth.name`, users: true, auth: true},
		{rule: `@request.auth.name = title`, users: true, auth: true},
		{rule: `@now > "2020-01-01"`, never: true},
		{rule: `@request.headers.x_a = "b"`, never: true},
	}
	for _, test := range tests {
		notes.ListRule = new(test.rule)
		save(notes)
		collection, err := app.FindCachedCollectionByNameOrId("notes")
		if err != nil {
			t.Fatal(err)
		}
		s := &Sight{Sights: New(log), app: app, auth: user, info: &core.RequestInfo{Context: core.RequestInfoContextDefault, Method: http.MethodGet, Auth: user}}
		d, err := s.dependencies(collection)
		if err != nil {
			t.Errorf("%s: %v", test.rule, err)
			continue
		}
		has := func(id string) bool { return slices.Contains(d.others, id) }
		if has(notes.Id) != test.self || has(members.Id) != test.members || has(users.Id) != test.users || d.auth != test.auth || d.never != test.never {
			t.Errorf("%s depends on %+v", test.rule, d)
		}
		now, err := s.Now(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		vc, err := s.Collection(context.Background(), "notes")
		if err != nil {
			t.Fatal(err)
		}
		if exact, err := s.Exact(context.Background(), vc, now.Seq); err != nil || exact == test.never {
			t.Errorf("%s: exact %v, %v", test.rule, exact, err)
		}
		if exact, err := s.Exact(context.Background(), vc, now.Seq-1); err != nil || exact {
			t.Errorf("%s: exact although the rule has just changed, %v", test.rule, err)
		}
	}
}
