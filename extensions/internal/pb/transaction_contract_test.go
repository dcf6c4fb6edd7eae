package pb_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// openNotes has a collection of notes that everybody may write, and batches.
func openNotes(t *testing.T) *core.BaseApp {
	t.Helper()
	app := open(t, core.BaseAppConfig{})
	if err := app.RunAllMigrations(); err != nil {
		t.Fatal(err)
	}
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(&core.TextField{Name: "title"}, &core.FileField{Name: "file", MaxSelect: 1})
	notes.CreateRule, notes.UpdateRule, notes.DeleteRule, notes.ViewRule = new(""), new(""), new(""), new("")
	if err := app.Save(notes); err != nil {
		t.Fatal(err)
	}
	app.Settings().Batch.Enabled = true
	return app
}

func newNote(t *testing.T, app core.App, title string) *core.Record {
	t.Helper()
	notes, err := app.FindCachedCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	note := core.NewRecord(notes)
	note.Set("title", title)
	return note
}

// wrapWrites runs every write of the server in a transaction with the app that enclose makes of it, and returns what the
// handler had answered when it was done, before the commit.
func wrapWrites(app core.App, enclose func(tx core.App) core.App) *string {
	answered := new(string)
	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		se.Router.BindFunc(func(e *core.RequestEvent) error {
			if e.Request.Method == http.MethodGet {
				return e.Next()
			}
			outer, out := e.App, e.Response
			buffer := pb.NewBuffer(out.Header(), 1<<20)
			err := e.App.RunInTransaction(func(tx core.App) error {
				e.App, e.Response = enclose(tx), buffer
				defer func() { e.App, e.Response = outer, out }()
				err := e.Next()
				*answered = string(buffer.Body())
				return err
			})
			if err != nil || !buffer.Written() {
				return err
			}
			e.Response.WriteHeader(buffer.Status())
			_, err = e.Response.Write(buffer.Body())
			return err
		})
		return se.Next()
	})
	return answered
}

func postJSON(t *testing.T, h http.Handler, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	h.ServeHTTP(w, r)
	return w
}

const (
	notesPath = "/api/collections/notes/records"
	batchBody = `{"requests":[{"method":"POST","url":"/api/collections/notes/records","body":{"title":"b"}}]}`
)

// PocketBase's handlers leave their answer for after the commit when the app of the request shows its transaction, and
// answer at once when it does not. Hooks after success wait for the commit in both cases, and get the app outside of it.
func TestEncloseAnswersInside(t *testing.T) {
	app := openNotes(t)
	var after []bool
	app.OnRecordAfterCreateSuccess("notes").BindFunc(func(e *core.RecordEvent) error {
		after = append(after, e.App.IsTransactional())
		return e.Next()
	})
	answered := wrapWrites(app, func(tx core.App) core.App {
		inner, _ := pb.Enclose(tx)
		return inner
	})
	h := serve(t, app)
	for path, body := range map[string]string{notesPath: `{"title":"a"}`, "/api/batch": batchBody} {
		*answered = ""
		if w := postJSON(t, h, path, body); w.Code != http.StatusOK || *answered == "" || w.Body.String() != *answered {
			t.Errorf("%s: %d %s, inside %s", path, w.Code, w.Body, *answered)
		}
	}
	if !slices.Equal(after, []bool{false, false}) {
		t.Errorf("after success: %v", after)
	}

	app = openNotes(t)
	answered = wrapWrites(app, func(tx core.App) core.App { return tx })
	h = serve(t, app)
	if postJSON(t, h, notesPath, `{"title":"a"}`); *answered != "" {
		t.Error("PocketBase answers before the commit by itself: Enclose is not needed any more")
	}
}

func TestEnclose(t *testing.T) {
	app := openNotes(t)
	var order []string
	err := app.RunInTransaction(func(tx core.App) error {
		inner, failed := pb.Enclose(tx)
		if inner.TxInfo() != nil || !inner.IsTransactional() {
			t.Error("the transaction is shown, or denied")
		}
		pb.AfterCommit(inner, func() { order = append(order, "enclosed") })
		pb.AfterCommit(tx, func() { order = append(order, "open") })
		pb.AfterRollback(inner, func() { t.Error("it runs after a commit") })
		err := inner.RunInTransaction(func(nested core.App) error {
			if nested.TxInfo() != nil {
				t.Error("the nested transaction is shown")
			}
			pb.AfterCommit(nested, func() { order = append(order, "nested") })
			return nested.Save(newNote(t, nested, "n"))
		})
		if err != nil || failed() {
			t.Errorf("%v, failed %v", err, failed())
		}
		order = append(order, "end")
		return nil
	})
	if err != nil || strings.Join(order, " ") != "end enclosed open nested" {
		t.Fatalf("%v %v", order, err)
	}
	pb.AfterCommit(app, func() { order = nil })
	if order != nil {
		t.Error("without a transaction it does not run at once")
	}
	pb.AfterRollback(app, func() { t.Error("without a transaction it runs") })
	undone := false
	cause := errors.New("no")
	err = app.RunInTransaction(func(tx core.App) error {
		inner, failed := pb.Enclose(tx)
		pb.AfterCommit(inner, func() { t.Error("it runs after a rollback") })
		pb.AfterRollback(inner, func() { undone = true })
		if err := inner.RunInTransaction(func(core.App) error { return cause }); !errors.Is(err, cause) || !failed() {
			t.Errorf("%v, failed %v", err, failed())
		}
		return cause
	})
	if !errors.Is(err, cause) || !undone {
		t.Fatalf("%v, told of the rollback: %t", err, undone)
	}
}

// An error of a hook after the commit is that of the transaction, so the error alone does not tell a rollback.
func TestFailureAfterCommit(t *testing.T) {
	app := openNotes(t)
	app.OnRecordAfterCreateSuccess("notes").BindFunc(func(*core.RecordEvent) error { return errors.New("late") })
	committed := false
	err := app.RunInTransaction(func(tx core.App) error {
		pb.AfterCommit(tx, func() { committed = true })
		return tx.Save(newNote(t, tx, "late"))
	})
	if err == nil || !committed {
		t.Errorf("%v, committed %v", err, committed)
	}
	if n, err := app.CountRecords("notes"); err != nil || n != 1 {
		t.Errorf("%d notes (%v)", n, err)
	}
}

// Hooks run on the goroutine of their request, those of a batch on one that the request's waits for.
func TestBatchOf(t *testing.T) {
	app := openNotes(t)
	var request, hook string
	own := func() string {
		buffer := make([]byte, 256<<10)
		return string(buffer[:runtime.Stack(buffer, false)])
	}
	id := func(stack string) string { return strings.Fields(stack)[1] }
	app.OnServe().BindFunc(func(se *core.ServeEvent) error {
		se.Router.BindFunc(func(e *core.RequestEvent) error {
			request = id(own())
			return e.Next()
		})
		return se.Next()
	})
	app.OnRecordCreateExecute("notes").BindFunc(func(e *core.RecordEvent) error {
		hook = own()
		return e.Next()
	})
	h := serve(t, app)
	postJSON(t, h, notesPath, `{"title":"a"}`)
	if _, batch := pb.BatchOf(hook); batch || id(hook) != request {
		t.Errorf("a record: goroutine %s of %s, batch %v", id(hook), request, batch)
	}
	postJSON(t, h, "/api/batch", batchBody)
	if waiting, batch := pb.BatchOf(hook); !batch || waiting != request || id(hook) == request {
		t.Errorf("a batch: goroutine %s of %s, batch %v, waiting %s", id(hook), request, batch, waiting)
	}
}

// The functions of PocketBase that call hooks have the names that EventOf knows.
func TestEventOf(t *testing.T) {
	app := openNotes(t)
	seen := map[string]string{}
	note := func(event string) {
		pcs := make([]uintptr, 256)
		frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
		for {
			frame, more := frames.Next()
			if name := pb.EventOf(frame.Function); name != "" || !more {
				seen[event] = name
				return
			}
		}
	}
	record := func(event string) func(e *core.RecordEvent) error {
		return func(e *core.RecordEvent) error { note(event); return e.Next() }
	}
	requested := func(event string) func(e *core.RecordRequestEvent) error {
		return func(e *core.RecordRequestEvent) error { note(event); return e.Next() }
	}
	app.OnRecordValidate("notes").BindFunc(record("onRecordValidate"))
	app.OnRecordCreate("notes").BindFunc(record("onRecordCreate"))
	app.OnRecordCreateExecute("notes").BindFunc(record("onRecordCreateExecute"))
	app.OnRecordUpdate("notes").BindFunc(record("onRecordUpdate"))
	app.OnRecordUpdateExecute("notes").BindFunc(record("onRecordUpdateExecute"))
	app.OnRecordDelete("notes").BindFunc(record("onRecordDelete"))
	app.OnRecordDeleteExecute("notes").BindFunc(record("onRecordDeleteExecute"))
	app.OnRecordCreateRequest("notes").BindFunc(requested("onRecordCreateRequest"))
	app.OnRecordUpdateRequest("notes").BindFunc(requested("onRecordUpdateRequest"))
	app.OnRecordDeleteRequest("notes").BindFunc(requested("onRecordDeleteRequest"))
	app.OnRecordEnrich("notes").BindFunc(func(e *core.RecordEnrichEvent) error { note("onRecordEnrich"); return e.Next() })
	app.OnBatchRequest().BindFunc(func(e *core.BatchRequestEvent) error { note("onBatchRequest"); return e.Next() })
	h := serve(t, app)
	postJSON(t, h, "/api/batch", `{"requests":[
		{"method":"POST","url":"/api/collections/notes/records","body":{"id":"aaaaaaaaaaaaaaa","title":"b"}},
		{"method":"PATCH","url":"/api/collections/notes/records/aaaaaaaaaaaaaaa","body":{"title":"c"}},
		{"method":"DELETE","url":"/api/collections/notes/records/aaaaaaaaaaaaaaa"}]}`)
	if len(seen) != 12 {
		t.Errorf("%d events: %v", len(seen), seen)
	}
	for event, got := range seen {
		if got != event {
			t.Errorf("%s is taken for %q", event, got)
		}
	}
}

func TestBuffer(t *testing.T) {
	header := http.Header{}
	b := pb.NewBuffer(header, 4)
	b.WriteHeader(http.StatusEarlyHints)
	if b.Written() {
		t.Error("an informational status counts")
	}
	b.WriteHeader(http.StatusCreated)
	b.WriteHeader(http.StatusOK)
	if _, err := b.Write([]byte("1234")); err != nil || b.Status() != http.StatusCreated || string(b.Body()) != "1234" {
		t.Errorf("%v %d %q", err, b.Status(), b.Body())
	}
	if _, err := b.Write([]byte("5")); !errors.Is(err, pb.ErrAnswerTooLarge) {
		t.Errorf("%v", err)
	}
	if err := http.NewResponseController(b).Flush(); err == nil {
		t.Error("it can be flushed")
	}
}
