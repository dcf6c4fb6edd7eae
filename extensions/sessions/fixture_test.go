package sessions_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/impersonation"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/oauth"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const (
	email  = "ada@example.test"
	list   = "/api/v1/collections/users/records"
	signIn = "/api/v1/collections/users/auth-with-password"
	notes  = "/api/collections/notes/records"
)

// fixture is an application with sessions, and a collection of notes that belong to their owners.
type fixture struct {
	*apptest.App
	sessions *sessions.Sessions
	vault    *secret.Vault
	version  func(table string) uint64
}

func start(t testing.TB) *fixture { return with(t, settings.Defaults[sessions.Config]()) }

func with(t testing.TB, cfg sessions.Config) *fixture {
	t.Helper()
	return build(t, cfg, settings.Defaults[authcache.Config]())
}

// build is with, with a cache and further extensions.
func build(t testing.TB, cfg sessions.Config, cache authcache.Config, more ...extensions.Extension) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vault := secret.Fixed([]byte("root key of the tests"))
	log := audit.NewLog(vault)
	f := &fixture{vault: vault, version: db.TableVersion, sessions: sessions.New(cfg, sessions.Deps{
		Vault: vault, Audit: log.Append, Version: db.TableVersion,
	})}
	sensitive := extensions.Extension{Name: "sensitive", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("", func(e *core.RequestEvent) error { return e.NoContent(http.StatusNoContent) }).Bind(f.sessions.RequireRecent())
		g.POST("/signin", func(e *core.RequestEvent) error {
			record, err := e.App.FindAuthRecordByEmail("users", email)
			if err != nil {
				return err
			}
			session, recordJSON, err := f.sessions.SignIn(e, record, "exchange")
			if err != nil {
				return err
			}
			return api.Write(e, http.StatusOK, map[string]any{"session": session, "record": recordJSON})
		})
	}}
	f.App = apptest.Open(t, db.Connect, append(more, api.New(settings.Defaults[api.Config]()), store.New(db), audit.New(audit.Config{}, log, nil),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, f.sessions.Verify)), f.sessions.Extension(),
		oauth.New(f.sessions, callers), impersonation.New(f.sessions, impersonation.Deps{
			May: superusersOnly, Privileged: func(account *core.Record) bool { return account.IsSuperuser() },
		}), sensitive)...)
	c := core.NewBaseCollection("notes")
	c.Fields.Add(&core.TextField{Name: "title"}, &core.TextField{Name: "owner"}, &core.FileField{Name: "file", Protected: true, MaxSelect: 1})
	rule := "@request.auth.id != '' && owner = @request.auth.id"
	c.ListRule, c.ViewRule, c.CreateRule, c.UpdateRule = &rule, &rule, new("@request.auth.id != ''"), &rule
	if err := f.Save(c); err != nil {
		t.Fatal(err)
	}
	return f
}

// superusersOnly gives superusers every role, and others none.
func superusersOnly(e *core.RequestEvent, _ string) error {
	if !e.HasSuperuserAuth() {
		return api.ErrForbidden
	}
	return nil
}

// callers admits the resource server of the tests.
func callers(e *core.RequestEvent) error {
	if _, password, ok := e.Request.BasicAuth(); !ok || password != "resource-server" {
		return api.ErrUnauthorized
	}
	return nil
}

// grant is a session's tokens as an app gets them.
type grant struct {
	AccessToken, RefreshToken, TokenType, SessionID string
	ExpiresIn                                       int
	Stock                                           string `json:"-"`
}

// signIn signs the user in, from a device that the headers describe.
func (f *fixture) signIn(t testing.TB, header map[string]string) grant {
	t.Helper()
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: signIn, Header: header, Body: map[string]string{"identity": email, "password": apptest.Password}})
	if r.Status != http.StatusOK {
		t.Fatalf("sign in: %d %s", r.Status, r.Body)
	}
	return grantOf(t, r)
}

func grantOf(t testing.TB, r apptest.Response) grant {
	t.Helper()
	var body struct {
		Token string
		Meta  struct{ Session grant }
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	body.Meta.Session.Stock = body.Token
	if body.Meta.Session.AccessToken == "" {
		t.Fatalf("no session in %s", r.Body)
	}
	return body.Meta.Session
}

func (f *fixture) refresh(t testing.TB, token string) (grant, apptest.Response) {
	t.Helper()
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/refresh", Body: map[string]string{"refreshToken": token}})
	var body struct{ Data grant }
	if err := json.Unmarshal(r.Body, &body); err != nil && r.Status == http.StatusOK {
		t.Fatal(err)
	}
	return body.Data, r
}

// status asks for the notes with a token.
func (f *fixture) status(t testing.TB, token string) int {
	t.Helper()
	return f.Do(t, apptest.Request{Path: "/api/v1/collections/notes/records", Token: token}).Status
}

// works expects that a token is good or refused, by one code.
func (f *fixture) works(t testing.TB, what, token, code string) {
	t.Helper()
	want := http.StatusOK
	if code != "" {
		want = http.StatusUnauthorized
	}
	r := f.Do(t, apptest.Request{Path: "/api/v1/collections/notes/records", Token: token})
	if r.Status != want || r.Code() != code {
		t.Errorf("%s: %d %s, want %d %s", what, r.Status, r.Body, want, code)
	}
}

func (f *fixture) count(t testing.TB, query string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery(query).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *fixture) exec(t testing.TB, query string, params dbx.Params) {
	t.Helper()
	if _, err := f.NonconcurrentDB().NewQuery(query).Bind(params).Execute(); err != nil {
		t.Fatal(err)
	}
}

// audited counts the entries of an action.
func (f *fixture) audited(t testing.TB, action string) int {
	t.Helper()
	return f.count(t, "SELECT count(*) FROM audit_entries WHERE action = '"+action+"'")
}

// sealedUser is a user with a stock token as this server makes them, without a session.
func (f *fixture) sealedUser(t testing.TB) (*core.Record, string) {
	t.Helper()
	user, token := f.User(t, email)
	return user, f.sealed(t, user, token)
}

func (f *fixture) sealed(t testing.TB, record *core.Record, token string) string {
	t.Helper()
	out, err := f.sessions.Harden(record, token)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *fixture) superuser(t testing.TB) (*core.Record, string) {
	t.Helper()
	admin, token := f.Superuser(t)
	return admin, f.sealed(t, admin, token)
}

func eventually(t testing.TB, what string, within time.Duration, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
