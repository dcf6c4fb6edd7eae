// Package apptest starts a test application: PocketBase on real SQLite files, with the given extensions, behind a real
// HTTP server on loopback. The files are cloned from a template that was migrated once per process and list of
// extensions, which takes about ten milliseconds instead of a hundred.
package apptest

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // PocketBase's own tables

	"github.com/satchelbase/satchel/extensions"
)

// Password is the password of every user that [App.User] creates.
const Password = "correct-horse-battery"

// bcryptCost is the least that bcrypt takes, so that tests do not spend their time hashing.
const bcryptCost = 4

// App is a running application. It ends with the test.
type App struct {
	core.App
	Host *extensions.Host
	URL  string
}

// New starts an application with the extensions, in this order.
func New(t testing.TB, list ...extensions.Extension) *App {
	t.Helper()
	return Open(t, nil, list...)
}

// Open is New with another way of opening the databases; nil is PocketBase's own.
func Open(t testing.TB, connect core.DBConnectFunc, list ...extensions.Extension) *App {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, template(t, list)); err != nil {
		t.Fatalf("copy template: %v", err)
	}
	app := open(t, dir, connect, list)
	t.Cleanup(func() {
		e := &core.TerminateEvent{App: app.App}
		if err := app.OnTerminate().Trigger(e, func(*core.TerminateEvent) error { return app.ClearBootstrap() }); err != nil {
			t.Errorf("terminate: %v", err)
		}
	})
	app.serve(t)
	return app
}

func open(t testing.TB, dir string, connect core.DBConnectFunc, list []extensions.Extension) *App {
	t.Helper()
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: connect})
	h := &extensions.Host{App: app, Version: "test", Logger: slog.New(slog.DiscardHandler)}
	if err := extensions.Install(h, list); err != nil {
		t.Fatal(err)
	}
	if err := app.Bootstrap(); err != nil {
		t.Fatalf("open application: %v", err)
	}
	if err := app.RunAllMigrations(); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	return &App{App: app, Host: h}
}

// serve builds the router as apis.Serve does and listens on a free port.
func (a *App) serve(t testing.TB) {
	t.Helper()
	a.URL = Serve(t, a.App)
}

// Serve is what New does with an application that a test has opened itself. It returns the address.
func Serve(t testing.TB, app core.App) string {
	t.Helper()
	router, err := apis.NewRouter(app)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(nil)
	e := &core.ServeEvent{App: app, Router: router, Server: server.Config}
	err = app.OnServe().Trigger(e, func(e *core.ServeEvent) error {
		mux, err := e.Router.BuildMux()
		e.Server.Handler = mux
		return err
	})
	if err != nil {
		t.Fatalf("serve: %v", err)
	}
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

var templates = struct { //nolint:gochecknoglobals // one template per process is the point of this package
	sync.Mutex
	byNames map[string]*snapshot
}{byNames: map[string]*snapshot{}}

// snapshot is a migrated data folder, held in memory.
type snapshot struct {
	once  sync.Once
	files fstest.MapFS
	err   error
}

// template migrates a data folder for the list once per process.
func template(t testing.TB, list []extensions.Extension) fs.FS {
	t.Helper()
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.Name
	}
	key := strings.Join(names, ",")
	templates.Lock()
	s := templates.byNames[key]
	if s == nil {
		s = &snapshot{}
		templates.byNames[key] = s
	}
	templates.Unlock()
	s.once.Do(func() { s.files, s.err = migrated(t, list) })
	if s.err != nil {
		t.Fatalf("make template: %v", s.err)
	}
	return s.files
}

func migrated(t testing.TB, list []extensions.Extension) (fstest.MapFS, error) {
	dir := t.TempDir()
	app := open(t, dir, nil, list)
	for _, name := range []string{"users", core.CollectionNameSuperusers} {
		collection, err := app.FindCollectionByNameOrId(name)
		if err != nil {
			return nil, err
		}
		if field, ok := collection.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField); ok {
			field.Cost = bcryptCost
		}
		if err := app.Save(collection); err != nil {
			return nil, err
		}
	}
	if err := app.ClearBootstrap(); err != nil {
		return nil, err
	}
	return readFiles(dir)
}

func readFiles(dir string) (fstest.MapFS, error) {
	files := fstest.MapFS{}
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, path)
		files[path] = &fstest.MapFile{Data: data, Mode: 0o600}
		return err
	})
	return files, err
}

// User creates a user of the collection "users" and returns it with a token.
func (a *App) User(t testing.TB, email string) (*core.Record, string) {
	t.Helper()
	return a.account(t, "users", email)
}

// Superuser creates an admin and returns it with a token.
func (a *App) Superuser(t testing.TB) (*core.Record, string) {
	t.Helper()
	return a.account(t, core.CollectionNameSuperusers, "root@example.test")
}

func (a *App) account(t testing.TB, collection, email string) (*core.Record, string) {
	t.Helper()
	c, err := a.FindCollectionByNameOrId(collection)
	if err != nil {
		t.Fatal(err)
	}
	record := core.NewRecord(c)
	record.SetEmail(email)
	record.SetPassword(Password)
	record.SetVerified(true)
	if err := a.Save(record); err != nil {
		t.Fatalf("create account: %v", err)
	}
	token, err := record.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	return record, token
}

// Request is one HTTP request. A string, []byte or io.Reader body is sent as it is, anything else as JSON; all with the
// JSON content type unless Header says otherwise.
type Request struct {
	Method string
	Path   string
	Token  string
	Header map[string]string
	Body   any
}

// Response is an answer that was read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends the request. Redirects are not followed and nothing is decompressed.
func (a *App) Do(t testing.TB, r Request) Response {
	t.Helper()
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	var body io.Reader
	switch b := r.Body.(type) {
	case nil:
	case string:
		body = strings.NewReader(b)
	case []byte:
		body = bytes.NewReader(b)
	case io.Reader:
		body = b
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), r.Method, a.URL+r.Path, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.Token != "" {
		req.Header.Set("Authorization", r.Token)
	}
	for name, value := range r.Header {
		req.Header.Set(name, value)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return Response{Status: resp.StatusCode, Header: resp.Header, Body: raw}
}

// JSON decodes the body as an object.
func (r Response) JSON(t testing.TB) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(r.Body, &out); err != nil {
		t.Fatalf("decode %q: %v", r.Body, err)
	}
	return out
}

// Code is the problem's code, empty when there is none.
func (r Response) Code() string {
	var p struct {
		Code string `json:"code"`
	}
	_ = json.Unmarshal(r.Body, &p)
	return p.Code
}

// Scenario is one request and what must come of it. Before may change the request (to fill in a token or an id).
type Scenario struct {
	Name        string
	Request     Request
	Status      int
	Code        string
	Contains    []string
	NotContains []string
	Before      func(t testing.TB, app *App, r *Request)
	After       func(t testing.TB, app *App, r Response)
}

// Run runs each scenario against an application of its own.
func Run(t *testing.T, start func(t testing.TB) *App, scenarios []Scenario) {
	t.Helper()
	for _, s := range scenarios {
		t.Run(s.Name, func(t *testing.T) {
			app := start(t)
			request := s.Request
			if s.Before != nil {
				s.Before(t, app, &request)
			}
			got := app.Do(t, request)
			if got.Status != s.Status {
				t.Fatalf("status %d, want %d: %s", got.Status, s.Status, got.Body)
			}
			if s.Code != "" && got.Code() != s.Code {
				t.Errorf("code %q, want %q", got.Code(), s.Code)
			}
			for _, want := range s.Contains {
				if !strings.Contains(string(got.Body), want) {
					t.Errorf("answer lacks %q: %s", want, got.Body)
				}
			}
			for _, bad := range s.NotContains {
				if strings.Contains(string(got.Body), bad) {
					t.Errorf("answer has %q: %s", bad, got.Body)
				}
			}
			if s.After != nil {
				s.After(t, app, got)
			}
		})
	}
}
