package changes

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// Whatever way a record is written, the log has it.
func TestWaysOfWriting(t *testing.T) {
	f := start(t, defaults())
	_, root := f.Superuser(t)
	f.Settings().Batch.Enabled, f.Settings().Batch.MaxRequests, f.Settings().Batch.Timeout = true, 50, 30
	f.must(f.Save(f.Settings()))
	children := core.NewBaseCollection("children")
	children.Fields.Add(&core.RelationField{Name: "note", CollectionId: f.notes.Id, MaxSelect: 1, CascadeDelete: true})
	f.save(children)
	f.OnRecordCreate("notes").BindFunc(func(e *core.RecordEvent) error {
		if e.Record.GetString("title") != "twice" {
			return e.Next()
		}
		if err := e.Next(); err != nil {
			return err
		}
		r := core.NewRecord(e.Record.Collection())
		r.Id = "00000000000hook"
		return e.App.Save(r)
	})
	const id = "0000000000000id"
	do := func(method, path string, body any) func() {
		return func() {
			t.Helper()
			if got := f.Do(t, apptest.Request{Method: method, Path: path, Token: root, Body: body}); got.Status >= 300 {
				t.Fatalf("%s %s: %d %s", method, path, got.Status, got.Body)
			}
		}
	}
	const records = "/api/collections/notes/records"
	for _, c := range []struct {
		name string
		do   func()
		want []string
	}{
		{"create", do(http.MethodPost, records, map[string]any{"id": id, "title": "a"}), []string{"create " + id}},
		{"update", do(http.MethodPatch, records+"/"+id, map[string]any{"title": "b"}), []string{"update " + id}},
		{"delete", do(http.MethodDelete, records+"/"+id, nil), []string{"delete " + id}},
		{"refused", func() {
			f.Do(t, apptest.Request{Method: http.MethodPost, Path: records, Body: map[string]any{"id": "no"}})
		}, nil},
		{"batch", do(http.MethodPost, "/api/batch", map[string]any{"requests": []any{
			map[string]any{"method": "POST", "url": records, "body": map[string]any{"id": id}},
			map[string]any{"method": "PATCH", "url": records + "/" + id, "body": map[string]any{"title": "c"}},
		}}), []string{"create " + id, "update " + id}},
		{"a hook", do(http.MethodPost, records, map[string]any{"id": "0000000000twice", "title": "twice"}), nil},
		{
			"the SQL console", do(http.MethodPost, "/api/sql", map[string]any{"query": "UPDATE notes SET title = 'sql' WHERE id = '" + id + "'; DELETE FROM notes WHERE id = '00000000000hook'"}),
			[]string{"update " + id, "delete 00000000000hook"},
		},
		{"a cascade", func() {
			child := core.NewRecord(children)
			child.Id = "0000000000child"
			child.Set("note", id)
			f.save(child)
			do(http.MethodDelete, records+"/"+id, nil)()
		}, []string{"create 0000000000child", "delete " + id, "delete 0000000000child"}},
		{"raw SQL", func() { f.exec("INSERT INTO notes (id, title) VALUES ('" + id + "', 'raw')") }, []string{"create " + id}},
		{"raw SQL through the read pool", func() {
			if _, err := f.ConcurrentDB().NewQuery("UPDATE notes SET title = 'odd' WHERE id = '" + id + "'").Execute(); err != nil {
				t.Fatal(err)
			}
			f.db.Version()
		}, []string{"update " + id}},
		{"truncate", do(http.MethodDelete, "/api/collections/notes/truncate", nil), nil},
	} {
		got := f.during(c.do)
		switch c.name {
		case "a hook":
			if len(got) != 2 {
				t.Errorf("%s: %v", c.name, got)
			}
		case "truncate":
			if len(got) != 2 || !strings.HasPrefix(got[0], "delete ") {
				t.Errorf("%s: %v", c.name, got)
			}
		case "a cascade": // in the order that PocketBase chooses
			if len(got) != 3 || got[0] != c.want[0] {
				t.Errorf("%s: %v", c.name, got)
			}
		default:
			equal(t, c.name, got, c.want...)
		}
		f.sound("notes")
		f.sound("children")
	}
}

// Imports make, change and delete collections in one transaction.
func TestImport(t *testing.T) {
	f := start(t, defaults())
	f.note("a", "")
	from := f.at()
	f.must(f.ImportCollections([]map[string]any{{"name": "imported", "type": "base", "fields": []map[string]any{{"name": "x", "type": "text"}}}}, true))
	if _, err := f.Collection(t.Context(), "notes"); err == nil {
		t.Error("notes is still captured")
	}
	list, _, err := f.Since(t.Context(), from, 0)
	f.must(err)
	found := map[string]bool{}
	for _, c := range list {
		found[c.Action.String()+" "+c.Collection] = true
	}
	imported, err := f.FindCollectionByNameOrId("imported")
	f.must(err)
	if !found["gone "+f.notes.Id] || !found["reset "+imported.Id] {
		t.Errorf("%v", found)
	}
	equal(t, "a write", f.during(func() { f.exec("INSERT INTO imported (id) VALUES ('000000000000001')") }), "create 000000000000001")
}

// System collections, views and excluded collections are left out.
func TestWhatIsCaptured(t *testing.T) {
	cfg := defaults()
	cfg.Exclude = []string{"Notes"}
	f := start(t, cfg)
	view := core.NewViewCollection("titles")
	view.ViewQuery = "SELECT id, title FROM notes"
	f.save(view)
	f.collection("others")
	for name, want := range map[string]bool{"users": true, "others": true, "notes": false, "titles": false, "_superusers": false, "_otps": false, "nothing": false} {
		if _, err := f.Collection(t.Context(), name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	equal(t, "an excluded collection", f.during(func() { f.note("a", "") }))
	if got := f.during(func() { f.User(t, "a@example.test") }); len(got) == 0 || !strings.HasPrefix(got[0], "create ") {
		t.Errorf("a user: %v", got)
	}
	if result := f.check(t.Context(), f.Host); result.Level != 0 {
		t.Errorf("%+v", result)
	}
}

const otherVariable = "CHANGES_TEST_FOLDER"

// TestOtherProcess writes from a second process while this one waits.
func TestOtherProcess(t *testing.T) {
	if dir := os.Getenv(otherVariable); dir != "" {
		writeAsOther(t, dir)
		return
	}
	f := start(t, defaults())
	from := f.at()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOtherProcess$")
	cmd.Env = append(os.Environ(), otherVariable+"="+f.DataDir())
	out := make(chan error, 1)
	go func() {
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%s", text)
		}
		out <- err
	}()
	f.must(f.Wait(within(t, 30*time.Second), from.Seq))
	f.must(<-out)
	equal(t, "the other process", f.since(from), "create 0000000000other", "update 0000000000other", "reset", "create 000000000000one")
	f.sound("notes")
}

func writeAsOther(t *testing.T, dir string) {
	if filepath.Base(dir) == "" {
		t.Fatal("no folder")
	}
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: Tables()})
	if err != nil {
		t.Fatal(err)
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect})
	l := New(defaults(), db)
	f := &fixture{App: &apptest.App{App: app}, Log: l, t: t}
	f.must(l.Extension().Bind(hostOf(app)))
	f.must(app.Bootstrap())
	f.notes, err = app.FindCollectionByNameOrId("notes")
	f.must(err)
	r := core.NewRecord(f.notes)
	r.Id = "0000000000other"
	f.save(r)
	r.Set("title", "x")
	f.save(r)
	f.collection("made")
	f.exec("INSERT INTO made (id) VALUES ('000000000000one')")
	f.must(app.ClearBootstrap())
}
