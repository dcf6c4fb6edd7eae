package migrations_test

import (
	"bytes"
	"image"
	"image/png"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // PocketBase's own collections
	"github.com/pocketbase/pocketbase/tools/filesystem"

	_ "github.com/satchelbase/satchel/migrations" // the app's collections
)

func newApp(t *testing.T) core.App {
	t.Helper()
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.ClearBootstrap() })
	return app
}

func newUser(t *testing.T, app core.App) *core.Record {
	t.Helper()
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	user := core.NewRecord(users)
	user.SetEmail("ada@example.com")
	user.SetRandomPassword()
	if err := app.Save(user); err != nil {
		t.Fatal(err)
	}
	return user
}

func newNote(t *testing.T, app core.App, data map[string]any) (*core.Record, error) {
	t.Helper()
	notes, err := app.FindCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	note := core.NewRecord(notes)
	note.Load(data)
	return note, app.Save(note)
}

// collectionNames lists the app's collections, PocketBase's own left out.
func collectionNames(t *testing.T, app core.App) []string {
	t.Helper()
	all, err := app.FindAllCollections()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		if !c.System {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

func TestUpAndDown(t *testing.T) {
	app := newApp(t)
	before := collectionNames(t, app)
	user := newUser(t, app)
	for round := range 2 {
		if err := app.RunAppMigrations(); err != nil {
			t.Fatal(err)
		}
		if names := collectionNames(t, app); !slices.Equal(names, []string{"notes", "users"}) {
			t.Fatalf("round %d: collections after up: %v", round, names)
		}
		if _, err := newNote(t, app, map[string]any{"owner": user.Id, "title": "Milk"}); err != nil {
			t.Fatal(err)
		}
		if _, err := core.NewMigrationsRunner(app, core.AppMigrations).Down(len(core.AppMigrations.Items())); err != nil {
			t.Fatal(err)
		}
		if names := collectionNames(t, app); !slices.Equal(names, before) {
			t.Fatalf("round %d: collections after down: %v, want %v", round, names, before)
		}
	}
}

func TestFileNames(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range core.AppMigrations.Items() {
		unix, rest, _ := strings.Cut(m.File, "_")
		if len(unix) != 10 || strings.Trim(unix, "0123456789") != "" || !strings.HasPrefix(rest, "app_") || !strings.HasSuffix(rest, ".go") {
			t.Errorf("%s is not <unix time>_app_<what>.go", m.File)
		}
		if seen[m.File] {
			t.Errorf("%s is used twice: the second would never run", m.File)
		}
		seen[m.File] = true
		if m.Down == nil {
			t.Errorf("%s has no way back", m.File)
		}
	}
	if !seen["1795219200_app_notes.go"] {
		t.Error("the migration of notes has another name than the one that databases remember")
	}
}

func TestNoteFields(t *testing.T) {
	app := newApp(t)
	if err := app.RunAppMigrations(); err != nil {
		t.Fatal(err)
	}
	user := newUser(t, app)
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewRGBA(image.Rect(0, 0, 2, 2))); err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) *filesystem.File {
		f, err := filesystem.NewFileFromBytes(content, name)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	cases := []struct {
		name    string
		data    map[string]any
		refused string // the field that the error names; empty = accepted
	}{
		{"smallest", map[string]any{"owner": user.Id, "title": "x"}, ""},
		{"largest", map[string]any{"owner": user.Id, "title": strings.Repeat("ä", 200), "body": strings.Repeat("b", 20_000), "done": true}, ""},
		{"photo", map[string]any{"owner": user.Id, "title": "x", "photo": file("a.png", picture.Bytes())}, ""},
		{"no owner", map[string]any{"title": "x"}, "owner"},
		{"unknown owner", map[string]any{"owner": "nobody000000000", "title": "x"}, "owner"},
		{"no title", map[string]any{"owner": user.Id}, "title"},
		{"long title", map[string]any{"owner": user.Id, "title": strings.Repeat("a", 201)}, "title"},
		{"long body", map[string]any{"owner": user.Id, "title": "x", "body": strings.Repeat("b", 20_001)}, "body"},
		{"photo is text", map[string]any{"owner": user.Id, "title": "x", "photo": file("a.png", []byte("not a picture"))}, "photo"},
		{"photo is SVG", map[string]any{"owner": user.Id, "title": "x", "photo": file("a.svg", []byte(`<svg xmlns="http://www.w3.org/2000/svg"/>`))}, "photo"},
		{"photo is large", map[string]any{"owner": user.Id, "title": "x", "photo": file("a.png", append(picture.Bytes(), make([]byte, 5<<20)...))}, "photo"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := newNote(t, app, c.data)
			if c.refused == "" && err != nil {
				t.Fatal(err)
			}
			if c.refused != "" && (err == nil || !strings.HasPrefix(err.Error(), c.refused+":")) {
				t.Fatalf("got %v, want a refusal of %s", err, c.refused)
			}
		})
	}
	if err := app.Delete(user); err != nil {
		t.Fatal(err)
	}
	if total, err := app.CountRecords("notes"); err != nil || total != 0 {
		t.Fatalf("%d notes are left without their owner (%v)", total, err)
	}
}

// A list sorted by its last change must come from an index alone, or a cursor over it would sort the whole table.
func TestNoteIndexes(t *testing.T) {
	app := newApp(t)
	if err := app.RunAppMigrations(); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{
		"SELECT * FROM notes WHERE owner = 'x' ORDER BY updated DESC, id DESC":                                  "idx_notes_owner_updated",
		"SELECT * FROM notes WHERE owner = 'x' AND (updated, id) > ('2026-01-01', 'x') ORDER BY updated, id":    "idx_notes_owner_updated",
		"SELECT * FROM notes ORDER BY updated, id LIMIT 25":                                                     "idx_notes_updated",
		"SELECT * FROM notes WHERE (updated, id) < ('2026-01-01', 'x') ORDER BY updated DESC, id DESC LIMIT 25": "idx_notes_updated",
	}
	for query, index := range cases {
		var steps []struct {
			Detail string `db:"detail"`
		}
		if err := app.DB().NewQuery("EXPLAIN QUERY PLAN " + query).All(&steps); err != nil {
			t.Fatal(err)
		}
		var plan []string
		for _, s := range steps {
			plan = append(plan, s.Detail)
		}
		text := strings.Join(plan, "; ")
		if !strings.Contains(text, "INDEX "+index) || strings.Contains(text, "TEMP B-TREE") {
			t.Errorf("%s\nplan: %s, want index %s and no sort", query, text, index)
		}
	}
}
