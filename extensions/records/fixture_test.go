package records

import (
	"fmt"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// start runs an application with the extension and the collections of a small tracker:
//
//	teams(name, members*)  posts(…, owner, team)  comments(text, post, plain)  plain(title)  digest (a view of posts)
func start(t testing.TB) *apptest.App {
	t.Helper()
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), New(settings.Defaults[Config](), nil))
	users := collection(t, app, "users")

	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(
		&core.TextField{Name: "name"},
		&core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 99},
	)
	teams.ListRule, teams.ViewRule = new("members.id ?= @request.auth.id"), new("members.id ?= @request.auth.id")
	save(t, app, teams)

	posts := core.NewBaseCollection("posts")
	posts.Fields.Add(
		&core.TextField{Name: "title"},
		&core.TextField{Name: "label"},
		&core.EditorField{Name: "body"},
		&core.NumberField{Name: "n"},
		&core.NumberField{Name: "rank"},
		&core.BoolField{Name: "done"},
		&core.DateField{Name: "due"},
		&core.SelectField{Name: "kind", Values: []string{"a", "b", "c"}, MaxSelect: 1},
		&core.SelectField{Name: "tags", Values: []string{"x", "y", "z"}, MaxSelect: 3},
		&core.FileField{Name: "doc", MaxSelect: 1},
		&core.JSONField{Name: "meta"},
		&core.GeoPointField{Name: "place"},
		&core.EmailField{Name: "mail"},
		&core.URLField{Name: "link"},
		&core.TextField{Name: "secret", Hidden: true},
		&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1},
		&core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1},
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	posts.Indexes = []string{
		"CREATE INDEX idx_posts_title ON posts (title, id)",
		"CREATE INDEX idx_posts_label ON posts (label COLLATE NOCASE, id)",
		"CREATE INDEX idx_posts_n ON posts (n)",
		"CREATE INDEX idx_posts_kind ON posts (kind, n DESC, id)",
		"CREATE INDEX idx_posts_due ON posts (due DESC, title)",
		"CREATE INDEX idx_posts_created ON posts (created, id)",
		"CREATE INDEX idx_posts_owner ON posts (owner, updated, id)",
		"CREATE INDEX idx_posts_rank ON posts (rank, id) WHERE rank > 0",
		"CREATE INDEX idx_posts_done ON posts (done, id)",
		"CREATE INDEX idx_posts_secret ON posts (secret, id)",
		"CREATE INDEX idx_posts_tags ON posts (tags, id)",
		"CREATE INDEX idx_posts_lower ON posts (lower(mail), id)",
	}
	visible := "owner = @request.auth.id || team.members.id ?= @request.auth.id"
	posts.ListRule, posts.ViewRule = new(visible), new(visible)
	posts.CreateRule = new("@request.auth.id != '' && (@request.body.invite:isset = false || @request.body.invite = 'yes')")
	posts.UpdateRule = new("owner = @request.auth.id")
	save(t, app, posts)

	plain := core.NewBaseCollection("plain")
	plain.Fields.Add(&core.TextField{Name: "title"})
	save(t, app, plain)

	comments := core.NewBaseCollection("comments")
	comments.Fields.Add(
		&core.TextField{Name: "text"},
		&core.RelationField{Name: "post", CollectionId: posts.Id, MaxSelect: 1},
		&core.RelationField{Name: "plain", CollectionId: plain.Id, MaxSelect: 1},
	)
	comments.ListRule, comments.ViewRule = new(""), new("")
	save(t, app, comments)

	digest := core.NewViewCollection("digest")
	digest.ViewQuery = "SELECT id, title FROM posts"
	digest.ListRule, digest.ViewRule = new(""), new("")
	save(t, app, digest)
	return app
}

func collection(t testing.TB, app core.App, name string) *core.Collection {
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
		t.Fatalf("save: %v", err)
	}
}

func create(t testing.TB, app core.App, name string, data map[string]any) *core.Record {
	t.Helper()
	r := core.NewRecord(collection(t, app, name))
	r.Load(data)
	save(t, app, r)
	return r
}

// people are two users and a team of both; posts are shared so that each sees some by ownership, some by team, and some
// not at all.
type people struct {
	ann, bob           *core.Record
	annToken, bobToken string
	rootToken          string
	team               *core.Record
}

func populate(t testing.TB, app *apptest.App, posts int) people {
	t.Helper()
	var p people
	p.ann, p.annToken = app.User(t, "ann@example.test")
	p.bob, p.bobToken = app.User(t, "bob@example.test")
	_, p.rootToken = app.Superuser(t)
	p.team = create(t, app, "teams", map[string]any{"name": "both", "members": []string{p.ann.Id, p.bob.Id}})
	alone := create(t, app, "teams", map[string]any{"name": "alone", "members": []string{p.bob.Id}})
	err := app.RunInTransaction(func(tx core.App) error {
		for i := range posts {
			r := core.NewRecord(collection(t, tx, "posts"))
			r.Load(map[string]any{
				"title": fmt.Sprintf("Title %d", i%7), "label": []string{"alpha", "Alpha", "beta", "BETA", ""}[i%5],
				"n": float64(i%11) / 4, "done": i%2 == 0, "kind": []string{"a", "b", "c", ""}[i%4],
				"tags": []string{"x", "y", "z"}[:i%4], "secret": fmt.Sprint("s", i), "body": "<b>a & b</b>",
				"meta": map[string]any{"i": i}, "owner": []string{p.ann.Id, p.bob.Id, ""}[i%3],
				"team": []string{p.team.Id, alone.Id, "", ""}[i%4], "mail": fmt.Sprintf("m%d@example.test", i),
			})
			if i%3 == 0 {
				r.Set("due", fmt.Sprintf("2030-01-%02d 00:00:00.000Z", 1+i%5))
			}
			if err := tx.Save(r); err != nil {
				return err
			}
			for range i % 3 {
				c := core.NewRecord(collection(t, tx, "comments"))
				c.Load(map[string]any{"text": "c", "post": r.Id})
				if err := tx.Save(c); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// event is a request as a handler sees it, for tests below HTTP.
func event(t testing.TB, app core.App, auth *core.Record, path string) *core.RequestEvent {
	t.Helper()
	e := &core.RequestEvent{App: app, Auth: auth}
	e.Request = httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
	return e
}

func queryOf(pairs ...string) string {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	return values.Encode()
}
