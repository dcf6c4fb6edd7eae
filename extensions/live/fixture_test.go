package live_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // PocketBase's own tables
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const (
	password = "correct-horse-battery"

	// patience is for a loaded machine: what is awaited usually takes milliseconds.
	patience = 20 * time.Second
)

// server is a running application in a folder of its own, which can be stopped and started again.
type server struct {
	core.App
	t    testing.TB
	dir  string
	addr string
	hub  *live.Hub
	http *httptest.Server

	limit time.Duration // of a request; none for zero

	verified atomic.Pointer[func()] // called when the server has looked at a credential, before it acts on that
}

// configure changes settings before the start.
type configure func(*live.Config, *live.Deps)

func start(t testing.TB, changed ...configure) *server {
	t.Helper()
	return startLimited(t, 0, changed...)
}

// startLimited gives the HTTP server a time limit for requests.
func startLimited(t testing.TB, limit time.Duration, changed ...configure) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), limit: limit}
	s.up(changed...)
	t.Cleanup(s.down)
	for _, name := range []string{"users", core.CollectionNameSuperusers} {
		c, err := s.FindCollectionByNameOrId(name)
		if err != nil {
			t.Fatal(err)
		}
		if field, ok := c.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField); ok {
			field.Cost = 4
		}
		if name == "users" {
			c.Fields.Add(&core.TextField{Name: "role"})
		}
		s.save(c)
	}
	s.collections()
	return s
}

func (s *server) up(changed ...configure) {
	s.t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: changes.Tables()})
	if err != nil {
		s.t.Fatal(err)
	}
	scfg := settings.Defaults[sessions.Config]()
	scfg.StockTokens = sessions.StockOn
	vault := secret.Fixed([]byte("root key of the tests"))
	record := audit.NewLog(vault)
	sess := sessions.New(scfg, sessions.Deps{Vault: vault, Audit: record.Append, Version: db.TableVersion})
	clog := changes.New(settings.Defaults[changes.Config](), db)
	cfg := settings.Defaults[live.Config]()
	cfg.Frames = 1000
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: s.dir, DBConnect: db.Connect})
	deps := live.Deps{Sessions: login.Endings{DB: app.ConcurrentDB, Table: db.TableVersion}}
	deps.ReadOnly = func(e *core.RequestEvent) bool { c := sessions.Current(e); return c != nil && c.ReadOnly }
	for _, change := range changed {
		change(&cfg, &deps)
	}
	s.App, s.hub = app, live.New(cfg, clog, deps)
	cache := settings.Defaults[authcache.Config]()
	list := []extensions.Extension{
		api.New(settings.Defaults[api.Config]()), store.New(db), clog.Extension(), audit.New(audit.Config{}, record, nil),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, sess.Verify)), sess.Extension(), s.hub.Extension(),
	}
	log := slog.New(slog.NewTextHandler(testWriter{s.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := extensions.Install(&extensions.Host{App: app, Version: "test", Logger: log}, list); err != nil {
		s.t.Fatal(err)
	}
	if err := app.Bootstrap(); err != nil {
		s.t.Fatal(err)
	}
	if err := app.RunAllMigrations(); err != nil {
		s.t.Fatal(err)
	}
	router, err := apis.NewRouter(app)
	if err != nil {
		s.t.Fatal(err)
	}
	router.BindFunc(func(e *core.RequestEvent) error {
		err := e.Next()
		if then := s.verified.Load(); then != nil && e.Request.URL.Path == "/api/v1/live" && e.Request.Header.Get("Upgrade") == "" {
			(*then)()
		}
		return err
	})
	s.http = httptest.NewUnstartedServer(nil)
	s.http.Config.ReadTimeout, s.http.Config.WriteTimeout = s.limit, s.limit
	err = app.OnServe().Trigger(&core.ServeEvent{App: app, Router: router, Server: s.http.Config}, func(e *core.ServeEvent) error {
		mux, err := e.Router.BuildMux()
		e.Server.Handler = mux
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.http.Start()
	s.addr = s.http.URL
}

// testWriter keeps warnings in the log of the test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// down stops the server as SIGTERM does.
func (s *server) down() {
	if s.http == nil {
		return
	}
	err := s.OnTerminate().Trigger(&core.TerminateEvent{App: s.App}, func(*core.TerminateEvent) error {
		return s.App.(*core.BaseApp).ClearBootstrap()
	})
	if err != nil {
		s.t.Errorf("terminate: %v", err)
	}
	s.http.CloseClientConnections()
	s.http.Close()
	s.http = nil
}

func (s *server) save(m core.Model) {
	s.t.Helper()
	if err := s.Save(m); err != nil {
		s.t.Fatalf("save %s: %v", m.TableName(), err)
	}
}

// collections are notes of owners, cards of teams, and posts of everybody.
func (s *server) collections() {
	s.t.Helper()
	users, err := s.FindCollectionByNameOrId("users")
	if err != nil {
		s.t.Fatal(err)
	}
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.TextField{Name: "name"}, &core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 999})
	teams.ListRule, teams.ViewRule = new(""), new("")
	s.save(teams)
	make := func(name, rule string, fields ...core.Field) {
		c := core.NewBaseCollection(name)
		c.Fields.Add(&core.TextField{Name: "title"}, &core.NumberField{Name: "n"}, &core.TextField{Name: "hush", Hidden: true})
		c.Fields.Add(fields...)
		c.ListRule, c.ViewRule, c.CreateRule, c.UpdateRule, c.DeleteRule = &rule, &rule, new(""), new(""), new("")
		s.save(c)
	}
	owner := func() core.Field { return &core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1} }
	make("marks", "")
	make("posts", "", owner())
	make("notes", "owner = @request.auth.id", owner())
	make("cards", "team.members.id ?= @request.auth.id", &core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1, CascadeDelete: true})
	make("secrets", "@request.auth.role = 'chief'")
}

func (s *server) record(collection string, values map[string]any) *core.Record {
	s.t.Helper()
	c, err := s.FindCachedCollectionByNameOrId(collection)
	if err != nil {
		s.t.Fatal(err)
	}
	r := core.NewRecord(c)
	r.Load(values)
	s.save(r)
	return r
}

func (s *server) set(r *core.Record, values map[string]any) {
	s.t.Helper()
	fresh, err := s.FindRecordById(r.Collection().Id, r.Id)
	if err != nil {
		s.t.Fatal(err)
	}
	fresh.Load(values)
	s.save(fresh)
}

func (s *server) remove(r *core.Record) {
	s.t.Helper()
	fresh, err := s.FindRecordById(r.Collection().Id, r.Id)
	if err == nil {
		err = s.Delete(fresh)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) exec(query string) {
	s.t.Helper()
	if _, err := s.NonconcurrentDB().NewQuery(query).Execute(); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

// user creates an account and returns it with a token of PocketBase's.
func (s *server) user(name string) (*core.Record, string) {
	s.t.Helper()
	c, err := s.FindCachedCollectionByNameOrId("users")
	if err != nil {
		s.t.Fatal(err)
	}
	r := core.NewRecord(c)
	r.SetEmail(name + "@example.test")
	r.SetPassword(password)
	r.SetVerified(true)
	s.save(r)
	return r, s.token(r)
}

func (s *server) token(r *core.Record) string {
	s.t.Helper()
	token, err := r.NewAuthToken()
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// signIn makes a session.
func (s *server) signIn(name string) (access, stock, id string) {
	s.t.Helper()
	status, raw := s.post("/api/v1/collections/users/auth-with-password", "", map[string]string{"identity": name + "@example.test", "password": password})
	var body struct {
		Token string
		Meta  struct {
			Session struct{ AccessToken, SessionID string }
		}
	}
	if err := json.Unmarshal(raw, &body); err != nil || status != http.StatusOK {
		s.t.Fatalf("sign in: %d %s", status, raw)
	}
	return body.Meta.Session.AccessToken, body.Token, body.Meta.Session.SessionID
}

func (s *server) post(path, token string, body any) (int, []byte) {
	s.t.Helper()
	return s.do(http.MethodPost, path, token, body)
}

func (s *server) do(method, path, token string, body any) (int, []byte) {
	s.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.addr+path, bytes.NewReader(raw))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, out
}

// schemas compiles the schema of each type of frame.
var schemas = sync.OnceValue(func() map[string]*jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(frame.Schema))
	if err != nil {
		panic(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("frames.json", doc); err != nil {
		panic(err)
	}
	out := map[string]*jsonschema.Schema{}
	for _, kind := range kinds() {
		out[kind] = c.MustCompile("frames.json#/$defs/" + kind)
	}
	return out
})

func kinds() []string {
	return []string{"auth", "ready", "sub", "subbed", "unsub", "event", "leave", "cursor", "reset", "publish", "message", "presence", "error", "ping", "pong"}
}

// got is any frame of the server.
type got struct {
	Type, ID, Sub, Connection, Collection, Action, Cursor, Reason, Code, Message, ExpiresAt string

	User    *frame.User
	Version int64
	Record  map[string]any
	Data    json.RawMessage
	From    *frame.Member
	Members []frame.Member
	Joined  []frame.Member
	Left    []frame.Member
}

// phone is a client of the protocol. It validates every frame.
type phone struct {
	t      testing.TB
	ws     *websocket.Conn
	frames chan got
	closed chan struct{}
	err    error  // why the connection has ended, once closed is
	cursor string // the last one
	mu     sync.Mutex
}

func (s *server) dial() *phone {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, s.addr+"/api/v1/live", &websocket.DialOptions{
		Subprotocols: []string{frame.Subprotocol}, CompressionMode: websocket.CompressionNoContextTakeover,
	})
	if err != nil {
		s.t.Fatalf("dial: %v %v", err, resp)
	}
	ws.SetReadLimit(8 << 20)
	p := &phone{t: s.t, ws: ws, frames: make(chan got, 100_000), closed: make(chan struct{})}
	s.t.Cleanup(func() { _ = ws.CloseNow() })
	go p.read()
	return p
}

// connect is dial and auth.
func (s *server) connect(token string) *phone {
	s.t.Helper()
	p := s.dial()
	p.send(map[string]any{"type": "auth", "id": "a", "token": token})
	if ready := p.next("ready"); ready.ID != "a" || ready.Connection == "" || ready.Cursor == "" {
		s.t.Fatalf("%+v", ready)
	}
	return p
}

func (p *phone) read() {
	defer close(p.closed)
	for {
		_, raw, err := p.ws.Read(context.Background())
		if err != nil {
			p.err = err
			return
		}
		var g got
		if err := json.Unmarshal(raw, &g); err != nil {
			p.t.Errorf("%s: %v", raw, err)
		}
		valid(p.t, g.Type, raw)
		if g.Type == "cursor" || g.Type == "reset" {
			p.mu.Lock()
			p.cursor = g.Cursor
			p.mu.Unlock()
		}
		p.frames <- g
	}
}

func valid(t testing.TB, kind string, raw []byte) {
	schema := schemas()[kind]
	if schema == nil {
		t.Errorf("there is no schema of %s", raw)
		return
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err == nil {
		err = schema.Validate(doc)
	}
	if err != nil {
		t.Errorf("frame %s: %v", raw, err)
	}
}

func (p *phone) send(f map[string]any) {
	p.t.Helper()
	raw, err := json.Marshal(f)
	if err != nil {
		p.t.Fatal(err)
	}
	if kind, ok := f["type"].(string); ok {
		valid(p.t, kind, raw)
	}
	p.raw(string(raw))
}

func (p *phone) raw(text string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.ws.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		p.t.Fatalf("send %s: %v", text, err)
	}
}

// next is the next frame, cursors aside, which must be of a type.
func (p *phone) next(kind string) got {
	p.t.Helper()
	for {
		select {
		case g := <-p.frames:
			if g.Type == "cursor" && kind != "cursor" {
				continue
			}
			if g.Type != kind {
				p.t.Fatalf("got %+v, want %s", g, kind)
			}
			return g
		case <-time.After(patience):
			p.t.Fatalf("no %s", kind)
		case <-p.closed:
			if len(p.frames) > 0 {
				continue
			}
			p.t.Fatalf("closed (%v) instead of %s", p.err, kind)
		}
	}
}

// both are the next two frames, which come in any order.
func (p *phone) both(one, other string) [2]got {
	p.t.Helper()
	var out [2]got
	for out[0].Type == "" || out[1].Type == "" {
		select {
		case g := <-p.frames:
			switch {
			case g.Type == "cursor":
			case g.Type == one && out[0].Type == "":
				out[0] = g
			case g.Type == other && out[1].Type == "":
				out[1] = g
			default:
				p.t.Fatalf("got %+v, want %s and %s", g, one, other)
			}
		case <-time.After(patience):
			p.t.Fatalf("no %s and %s: %+v", one, other, out)
		}
	}
	return out
}

// sub subscribes and waits for the answer.
func (p *phone) sub(name string, more map[string]any) got {
	p.t.Helper()
	f := map[string]any{"type": "sub", "id": "s", "sub": name}
	maps.Copy(f, more)
	p.send(f)
	return p.next("subbed")
}

// quiet makes sure that nothing else comes: the answer to a ping is sent behind what was queued for the client before, and
// the mark is an event behind what happened before.
func (p *phone) quiet(s *server) {
	p.t.Helper()
	name := fmt.Sprint("mark", time.Now().UnixNano())
	p.sub(name, map[string]any{"collection": "marks", "filter": "title = '" + name + "'"})
	mark := s.record("marks", map[string]any{"title": name})
	if g := p.next("event"); g.ID != mark.Id {
		p.t.Fatalf("not quiet: %+v", g)
	}
	p.send(map[string]any{"type": "unsub", "sub": name})
	p.next("unsub")
}

// ends waits for the close code.
func (p *phone) ends(code int) {
	p.t.Helper()
	select {
	case <-p.closed:
		if got := int(websocket.CloseStatus(p.err)); got != code {
			p.t.Errorf("closed with %d (%v), want %d", got, p.err, code)
		}
	case <-time.After(patience):
		p.t.Errorf("the connection is still open, want %d", code)
	}
}

// stream is a client of the stock contract.
type stream struct {
	id     string
	events chan [2]string // name and data
	closed chan struct{}
	cancel context.CancelFunc
}

func (s *server) stream(path string) *stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.addr+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("connect: %s", resp.Status)
	}
	st := &stream{events: make(chan [2]string, 10_000), closed: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(st.closed)
		defer resp.Body.Close()
		name := ""
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			key, value, _ := strings.Cut(lines.Text(), ":")
			switch key {
			case "event":
				name = value
			case "data":
				st.events <- [2]string{name, value}
			}
		}
	}()
	hello := st.next(s.t)
	var data struct{ ClientID string }
	if err := json.Unmarshal([]byte(hello[1]), &data); err != nil || hello[0] != "PB_CONNECT" || data.ClientID == "" {
		s.t.Fatalf("%v", hello)
	}
	st.id = data.ClientID
	return st
}

func (st *stream) next(t testing.TB) [2]string {
	t.Helper()
	select {
	case e := <-st.events:
		return e
	case <-st.closed:
		t.Fatal("the stream has ended")
	case <-time.After(patience):
		t.Fatal("no event")
	}
	return [2]string{}
}

func (s *server) subscribe(st *stream, token string, topics ...string) {
	s.t.Helper()
	if status, body := s.post("/api/realtime", token, map[string]any{"clientId": st.id, "subscriptions": topics}); status != http.StatusNoContent {
		s.t.Fatalf("subscribe: %d %s", status, body)
	}
}
