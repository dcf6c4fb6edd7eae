package idempotency

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/plugins/jsvm"
)

// stumbles starts an application whose hooks may write through the outer app, and records what is logged.
func stumbles(t *testing.T, bind func(app core.App)) (*fixture, *bytes.Buffer) {
	t.Helper()
	f := start(t, setup{bind: bind})
	var log bytes.Buffer
	f.keeper.logger = slog.New(slog.NewTextHandler(&log, nil))
	f.Settings().Batch.Timeout = 30
	return f, &log
}

// refused asserts that the request ends soon, with the code, and that the log names the hook.
func (f *fixture) refused(t *testing.T, log *bytes.Buffer, path string, body any, names ...string) {
	t.Helper()
	log.Reset()
	begin := time.Now()
	code(t, f.send(t, http.MethodPost, path, newKey(), body), ErrHookOuterApp)
	if took := time.Since(begin); took > 5*time.Second { // a fifth of a second on an idle machine; the database gives up after ten
		t.Errorf("it took %v", took)
	}
	for _, name := range append(names, "e.app", "requestId=", "route=", "path=") {
		if !strings.Contains(log.String(), name) {
			t.Errorf("the log lacks %s: %s", name, log)
		}
	}
	if f.count(t, "outer") != 0 || f.count(t, "inner") != 0 {
		t.Error("something was written")
	}
	// The writer is free.
	status(t, f.send(t, http.MethodPost, notesPath, newKey(), map[string]any{"title": "calm"}), http.StatusOK)
}

func saveNote(app core.App, title string) error {
	notes, err := app.FindCachedCollectionByNameOrId("notes")
	if err != nil {
		return err
	}
	note := core.NewRecord(notes)
	note.Set("title", title)
	return app.Save(note)
}

func TestOuterAppInGo(t *testing.T) {
	for name, hook := range map[string]func(outer core.App) func(e *core.RecordEvent) error{
		"a save": func(outer core.App) func(e *core.RecordEvent) error {
			return func(e *core.RecordEvent) error {
				if e.Record.GetString("title") == "inner" {
					if err := saveNote(outer, "outer"); err != nil {
						return err
					}
				}
				return e.Next()
			}
		},
		"a transaction whose error is swallowed": func(outer core.App) func(e *core.RecordEvent) error {
			return func(e *core.RecordEvent) error {
				if e.Record.GetString("title") == "inner" {
					_ = outer.RunInTransaction(func(core.App) error { return errors.New("unreachable") })
				}
				return e.Next()
			}
		},
		"a statement, after a read that is fine": func(outer core.App) func(e *core.RecordEvent) error {
			return func(e *core.RecordEvent) error {
				if e.Record.GetString("title") == "inner" {
					if _, err := outer.FindRecordsByFilter("notes", "title != ''", "", 5, 0); err != nil {
						return err
					}
					if _, err := outer.DB().NewQuery("UPDATE notes SET title = 'outer'").Execute(); err != nil {
						return err
					}
				}
				return e.Next()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, log := stumbles(t, func(app core.App) { app.OnRecordCreate("notes").BindFunc(hook(app)) })
			f.refused(t, log, notesPath, map[string]any{"title": "inner"}, "TestOuterAppInGo", "outer_test.go:", notesTarget)
			f.refused(t, log, "/api/v1/batch", batchOf("inner", "other"), "TestOuterAppInGo", "outer_test.go:", "/api/batch")
		})
	}
}

const notesTarget = "/api/collections/notes/records"

// Without a key no transaction is open, so the same hook works.
func TestOuterAppWithoutKey(t *testing.T) {
	f, _ := stumbles(t, func(app core.App) {
		app.OnRecordCreate("notes").BindFunc(func(e *core.RecordEvent) error {
			if e.Record.GetString("title") == "inner" {
				if err := saveNote(app, "outer"); err != nil {
					return err
				}
			}
			return e.Next()
		})
	})
	status(t, f.send(t, http.MethodPost, notesPath, "", map[string]any{"title": "inner"}), http.StatusOK)
	if f.count(t, "outer") != 1 {
		t.Error("the hook's note is not there")
	}
}

// What waits for a transaction without being it must go on waiting: a goroutine that a hook starts and leaves behind, and
// another request.
func TestOthersWait(t *testing.T) {
	saved := make(chan error, 2)
	f, _ := stumbles(t, func(app core.App) {
		app.OnRecordCreate("notes").BindFunc(func(e *core.RecordEvent) error {
			if e.Record.GetString("title") == "slow" {
				for range 2 {
					go func() { saved <- saveNote(app, "aside") }()
				}
				if err := e.Next(); err != nil {
					return err
				}
				time.Sleep(600 * time.Millisecond) // longer than a wait is without suspicion
				return nil
			}
			return e.Next()
		})
		app.OnRecordAfterCreateSuccess("notes").BindFunc(func(e *core.RecordEvent) error {
			if e.Record.GetString("title") == "slow" {
				return saveNote(app, "after") // through the outer app, which is right after the commit
			}
			return e.Next()
		})
	})
	status(t, f.send(t, http.MethodPost, notesPath, newKey(), map[string]any{"title": "slow"}), http.StatusOK)
	for range 2 {
		if err := <-saved; err != nil {
			t.Error(err)
		}
	}
	if f.count(t, "aside") != 2 || f.count(t, "after") != 1 {
		t.Errorf("%d and %d notes", f.count(t, "aside"), f.count(t, "after"))
	}
}

// A hook within hooks within a long chain of middlewares is found, too.
func TestOuterAppDeepDown(t *testing.T) {
	f, log := stumbles(t, func(app core.App) {
		app.OnRecordCreate("notes").BindFunc(func(e *core.RecordEvent) error {
			title := e.Record.GetString("title")
			if depth, ok := strings.CutPrefix(title, "inner"); ok && len(depth) < 12 {
				return errors.Join(saveNote(e.App, title+"+"), e.Next())
			}
			if strings.HasPrefix(title, "inner") {
				return saveNote(app, "outer")
			}
			return e.Next()
		})
	})
	f.refused(t, log, notesPath, map[string]any{"title": "inner"}, "TestOuterAppDeepDown")
	f.refused(t, log, "/api/v1/batch", batchOf("1", "2", "3", "4", "5", "6", "7", "8", "9", "inner"), "TestOuterAppDeepDown")
}

// In JavaScript $app is the event's app, so it takes some effort to write through another one.
func TestOuterAppInJavaScript(t *testing.T) {
	dir := t.TempDir()
	const script = `
		onBootstrap((e) => { e.next(); e.app.store().set("outer", e.app) })
		onRecordCreate((e) => {
			if (e.record.get("title") == "inner") {
				const app = e.app.store().get("outer")
				const note = new Record(app.findCollectionByNameOrId("notes"))
				note.set("title", "outer")
				app.save(note)
			}
			e.next()
		}, "notes")
		onRecordCreateRequest((e) => {
			if (e.record.get("title") == "caught") {
				const app = e.app.store().get("outer")
				try { app.db().newQuery("UPDATE notes SET title = 'outer'").execute() } catch (_) {}
			}
			e.next()
		}, "notes")
		onRecordCreate((e) => {
			if (e.record.get("title") == "right") {
				const note = new Record($app.findCollectionByNameOrId("notes"))
				note.set("title", "by the hook")
				$app.save(note)
				e.app.runInTransaction((tx) => { tx.db().newQuery("UPDATE notes SET owner = '' WHERE title = 'x'").execute() })
			}
			e.next()
		}, "notes")
		routerAdd("POST", "/script", (e) => {
			if (e.request.url.query().has("outer")) {
				e.app.store().get("outer").db().newQuery("UPDATE notes SET title = 'outer'").execute()
			}
			const note = new Record(e.app.findCollectionByNameOrId("notes"))
			note.set("title", "of the route")
			e.app.save(note)
			return e.json(201, { id: note.id })
		})`
	if err := os.WriteFile(filepath.Join(dir, "main.pb.js"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	f, log := stumbles(t, func(app core.App) {
		if err := jsvm.Register(app, jsvm.Config{HooksDir: dir, HooksPoolSize: 2}); err != nil {
			t.Fatal(err)
		}
	})
	f.refused(t, log, notesPath, map[string]any{"title": "inner"}, "JavaScript, onRecordCreate\"", notesTarget)
	f.refused(t, log, notesPath, map[string]any{"title": "caught"}, "JavaScript, onRecordCreateRequest\"", notesTarget)
	f.refused(t, log, "/api/v1/batch", batchOf("first", "inner"), "JavaScript, onRecordCreate\"", "/api/batch")
	log.Reset()
	status(t, f.send(t, http.MethodPost, "/script?outer", newKey(), nil), ErrHookOuterApp.Status)
	if want := "JavaScript, a route or middleware"; !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %s: %s", want, log)
	}

	key := newKey()
	first := f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "right"})
	status(t, first, http.StatusOK)
	kept(t, first, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "right"}))
	key = newKey()
	first = f.send(t, http.MethodPost, "/script", key, nil)
	status(t, first, http.StatusCreated)
	kept(t, first, f.send(t, http.MethodPost, "/script", key, nil))
	if f.count(t, "by the hook") != 1 || f.count(t, "of the route") != 1 {
		t.Errorf("%d and %d notes", f.count(t, "by the hook"), f.count(t, "of the route"))
	}
}

func TestCulprit(t *testing.T) {
	for name, want := range map[string]bool{
		"main.bindNotes.func1": false, "github.com/satchelbase/satchel/hooks.bindNotes.func1": false, "example.com/app/hooks.x": false,
		"runtime.goexit": true, "database/sql.(*DB).exec": true, "net/http.HandlerFunc.ServeHTTP": true,
		"github.com/pocketbase/dbx.(*Query).Execute": true, "github.com/pocketbase/pocketbase/core.(*BaseApp).create": true,
		"github.com/satchelbase/satchel/extensions/store.(*session).begin": true, "modernc.org/sqlite.(*conn).exec": true,
	} {
		if foreign(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
