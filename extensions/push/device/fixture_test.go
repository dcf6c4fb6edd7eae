package device_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const (
	current     = "/api/v1/push/devices/current"
	devices     = "/api/v1/push/devices"
	preferences = "/api/v1/push/preferences"
)

// fixture is an application with sessions, devices and two users.
type fixture struct {
	*apptest.App
	registry *device.Registry
	sessions *sessions.Sessions
	version  func(table string) uint64
	ada, bob *core.Record
}

// pushConfig is what tests change.
type pushConfig = push.Config

func start(t testing.TB, change func(*pushConfig), more ...extensions.Extension) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: device.Tables()})
	if err != nil {
		t.Fatal(err)
	}
	vault := secret.Fixed([]byte("root key of the tests"))
	log := audit.NewLog(vault)
	sess := sessions.New(settings.Defaults[sessions.Config](), sessions.Deps{Vault: vault, Audit: log.Append, Version: db.TableVersion})
	cfg := settings.Defaults[push.Config]()
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	queue := jobs.New(settings.Defaults[jobs.Config]())
	p := push.New(cfg, push.Deps{
		Vault: vault, Ended: login.HasEnded, Over: login.Over, Endings: login.Ended, Jobs: queue,
		Acting: func(e *core.RequestEvent) bool { c := sessions.Current(e); return c != nil && c.Actor != nil },
	})
	cache := settings.Defaults[authcache.Config]()
	f := &fixture{registry: p.Devices(), sessions: sess, version: db.TableVersion}
	f.App = apptest.Open(t, db.Connect, append(more, api.New(settings.Defaults[api.Config]()), store.New(db), audit.New(audit.Config{}, log, nil),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, sess.Verify)), sess.Extension(),
		queue.Extension(jobs.Deps{Vault: vault}), p.Extension())...)
	f.ada, _ = f.User(t, "ada@example.test")
	f.bob, _ = f.User(t, "bob@example.test")
	return f
}

// phone is an app that is signed in.
type phone struct {
	*fixture
	user                    *core.Record
	token, refresh, session string
}

func (f *fixture) signIn(t testing.TB, user *core.Record) *phone {
	t.Helper()
	r := f.Do(t, apptest.Request{
		Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-password",
		Body: map[string]string{"identity": user.Email(), "password": apptest.Password},
	})
	var body struct {
		Meta struct {
			Session struct{ AccessToken, RefreshToken, SessionID string }
		}
	}
	if err := json.Unmarshal(r.Body, &body); err != nil || body.Meta.Session.AccessToken == "" {
		t.Fatalf("sign in: %d %s", r.Status, r.Body)
	}
	s := body.Meta.Session
	return &phone{f, user, s.AccessToken, s.RefreshToken, s.SessionID}
}

func (p *phone) do(t testing.TB, method, path string, body any) apptest.Response {
	t.Helper()
	return p.Do(t, apptest.Request{Method: method, Path: path, Token: p.token, Body: body})
}

// want is do, with the status that must come of it.
func (p *phone) want(t testing.TB, status int, method, path string, body any) apptest.Response {
	t.Helper()
	r := p.do(t, method, path, body)
	if r.Status != status {
		t.Fatalf("%s %s: %d, want %d: %s", method, path, r.Status, status, r.Body)
	}
	return r
}

// register registers a token and returns the id of the device.
func (p *phone) register(t testing.TB, token string, more ...map[string]any) string {
	t.Helper()
	body := map[string]any{"platform": "fcm", "token": token}
	for _, m := range more {
		maps.Copy(body, m)
	}
	return p.want(t, http.StatusOK, http.MethodPut, current, body).JSON(t)["data"].(map[string]any)["id"].(string)
}

// reach lists the ids of the devices that would be sent to.
func (f *fixture) reach(t testing.TB, a device.Audience) []string {
	t.Helper()
	list, err := f.registry.List(t.Context(), f.App, a, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(list))
	for i, d := range list {
		ids[i] = d.ID
	}
	return ids
}

func only(users ...*core.Record) device.Audience {
	var a device.Audience
	for _, u := range users {
		a.Accounts = append(a.Accounts, device.AccountOf(u))
	}
	return a
}

func (f *fixture) count(t testing.TB, from string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM " + from).Row(&n); err != nil {
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

// seen sets when a device has registered for the last time.
func (f *fixture) seen(t testing.TB, id string, ago time.Duration) {
	t.Helper()
	f.exec(t, "UPDATE push_devices SET seen_at = {:at} WHERE id = {:id}", dbx.Params{"id": id, "at": time.Now().Add(-ago).UnixMilli()})
}

// rename changes the name of a user, which rules of the tests look at.
func (f *fixture) rename(t testing.TB, user *core.Record, name string) {
	t.Helper()
	record, err := f.FindRecordById("users", user.Id)
	if err != nil {
		t.Fatal(err)
	}
	record.Set("name", name)
	if err := f.Save(record); err != nil {
		t.Fatal(err)
	}
}
