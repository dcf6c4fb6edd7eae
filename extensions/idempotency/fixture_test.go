package idempotency

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const notesPath = "/api/v1/collections/notes/records"

// fixture is an application with a collection of notes, which belong to their owners, and two users.
type fixture struct {
	*apptest.App
	keeper *keeper
	ada    string
	ben    string

	created atomic.Int64 // after-create hooks of notes that ran
}

// setup is what a test changes.
type setup struct {
	cfg    func(c *Config)
	deps   Deps
	routes func(g *router.RouterGroup[*core.RequestEvent]) // below /api/v1/lab
	bind   func(app core.App)
}

func start(t testing.TB, s setup) *fixture {
	t.Helper()
	cfg := settings.Defaults[Config]()
	if s.cfg != nil {
		s.cfg(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: []string{Table}})
	if err != nil {
		t.Fatal(err)
	}
	s.deps.SuspectWaits, s.deps.Healthy, s.deps.Unavailable = db.SuspectWaits, db.Healthy, store.IsUnavailable
	f := &fixture{keeper: newKeeper(cfg, s.deps)}
	lab := extensions.Extension{Name: "lab", Routes: s.routes, Bind: func(h *extensions.Host) error {
		h.App.OnRecordAfterCreateSuccess("notes").BindFunc(func(e *core.RecordEvent) error {
			f.created.Add(1)
			if e.App.IsTransactional() {
				t.Error("an after-success hook runs inside the transaction")
			}
			return e.Next()
		})
		if s.bind != nil {
			s.bind(h.App)
		}
		return nil
	}}
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), f.keeper.extension(), lab)
	_, f.ada = f.User(t, "ada@example.test")
	_, f.ben = f.User(t, "ben@example.test")
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(
		&core.TextField{Name: "title", Required: true, Max: 1 << 20}, &core.TextField{Name: "owner"},
		&core.FileField{Name: "file", MaxSize: 20 << 20, MaxSelect: 1}, &core.AutodateField{Name: "created", OnCreate: true},
	)
	signedIn, own := "@request.auth.id != ''", "@request.auth.id != '' && (owner = '' || owner = @request.auth.id)"
	notes.ListRule, notes.CreateRule = &signedIn, &signedIn
	notes.ViewRule, notes.UpdateRule, notes.DeleteRule = &own, &own, &own
	if err := f.Save(notes); err != nil {
		t.Fatal(err)
	}
	return f
}

var keys atomic.Int64

// newKey is a key that no other request has.
func newKey() string { return fmt.Sprintf("key-of-the-test-%d-%d", keys.Add(1), time.Now().UnixNano()) }

// send is a request of ada with a key.
func (f *fixture) send(t testing.TB, method, path, key string, body any) apptest.Response {
	t.Helper()
	return f.sendAs(t, f.ada, method, path, key, body)
}

func (f *fixture) sendAs(t testing.TB, token, method, path, key string, body any) apptest.Response {
	t.Helper()
	r := apptest.Request{Method: method, Path: path, Token: token, Body: body}
	if key != "" {
		r.Header = map[string]string{Header: `"` + key + `"`}
	}
	return f.Do(t, r)
}

func (f *fixture) count(t testing.TB, title string) int {
	t.Helper()
	n, err := f.CountRecords("notes", dbx.HashExp{"title": title})
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func (f *fixture) rows(t testing.TB) int {
	t.Helper()
	var n int
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM idempotency_keys").Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// kept asserts that got is the repeated answer.
func kept(t testing.TB, first, got apptest.Response) {
	t.Helper()
	if first.Header.Get(Replayed) != "" {
		t.Errorf("the first answer is called a repeated one")
	}
	if got.Status != first.Status || got.Header.Get(Replayed) != "true" || !bytes.Equal(got.Body, first.Body) {
		t.Errorf("repeated %d %q %s\nfirst %d %s", got.Status, got.Header.Get(Replayed), got.Body, first.Status, first.Body)
	}
	for _, name := range keptHeaders() {
		if got.Header.Get(name) != first.Header.Get(name) {
			t.Errorf("%s: %q, first %q", name, got.Header.Get(name), first.Header.Get(name))
		}
	}
	if a, b := got.Header.Get("X-Request-Id"), first.Header.Get("X-Request-Id"); a == "" || a == b {
		t.Errorf("request ids %q and %q", a, b)
	}
}

func status(t testing.TB, got apptest.Response, want int) {
	t.Helper()
	if got.Status != want {
		t.Fatalf("status %d, want %d: %s", got.Status, want, got.Body)
	}
}

func code(t testing.TB, got apptest.Response, want *extensions.Code) {
	t.Helper()
	if got.Status != want.Status || got.Code() != want.Name {
		t.Fatalf("%d %s, want %s: %s", got.Status, got.Code(), want.Name, got.Body)
	}
}

// form is a multipart body with a boundary of its own.
func form(t testing.TB, fields map[string]string, file string) (contentType string, body []byte) {
	t.Helper()
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for name, value := range fields {
		if err := w.WriteField(name, value); err != nil {
			t.Fatal(err)
		}
	}
	if file != "" {
		part, err := w.CreateFormFile("file", "a.txt")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write([]byte(file)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), buf.Bytes()
}

func (f *fixture) upload(t testing.TB, key string, fields map[string]string, file string) apptest.Response {
	t.Helper()
	contentType, body := form(t, fields, file)
	return f.Do(t, apptest.Request{
		Method: http.MethodPost, Path: notesPath, Token: f.ada, Body: body, Header: map[string]string{Header: key, "Content-Type": contentType},
	})
}

func batchOf(titles ...string) map[string]any {
	var list []map[string]any
	for _, title := range titles {
		list = append(list, map[string]any{"method": "POST", "url": "/api/collections/notes/records", "body": map[string]any{"title": title}})
	}
	return map[string]any{"requests": list}
}

func long(n int) string { return strings.Repeat("long ", n/5) }

func newLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
