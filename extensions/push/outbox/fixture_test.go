package outbox_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/stubs/apns"
	"github.com/satchelbase/satchel/extensions/internal/stubs/expo"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/console"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push"
	sut "github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	expoSender "github.com/satchelbase/satchel/extensions/push/expo"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

type fixture struct {
	*apptest.App

	jobs   *jobs.Jobs
	push   *push.Push
	vault  *secret.Vault
	apns   *apns.Server
	expo   *expo.Server
	box    *inbox.Inbox
	root   string
	google string              // where FCM is
	live   map[string][]string // sessions by account
	over   sync.Map            // sessions that count no more
}

// options change what start starts with.
type options struct {
	cfg  func(*push.Config)
	deps func(*push.Deps)

	// dir is a data folder that another fixture has left, and connect another way to open the databases.
	dir     string
	connect func(core.DBConnectFunc) core.DBConnectFunc

	// stubs starts more of them, with the certificates and the inbox of the others.
	stubs func(authority *loopback.Authority, box *inbox.Inbox, cfg *push.Config)
}

func start(t testing.TB, o options) *fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{box: &inbox.Inbox{}, vault: secret.Fixed([]byte("root key of the tests")), live: map[string][]string{}}
	if f.apns, err = apns.Start(apns.Options{Address: "127.0.0.1:0", SandboxAddress: "127.0.0.1:0", Authority: authority, Inbox: f.box}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.apns.Close() })
	if f.expo, err = expo.Start("127.0.0.1:0", authority, f.box); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.expo.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, authority.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: append(jobs.Tables(), outbox.Tables()...)})
	if err != nil {
		t.Fatal(err)
	}
	cfg := settings.Defaults[push.Config]()
	cfg.APNsEndpoint, cfg.APNsSandboxEndpoint, cfg.ExpoEndpoint = f.apns.Production.URL, f.apns.Sandbox.URL, f.expo.URL
	cfg.CAFile, cfg.AllowLoopback = ca, true
	if o.cfg != nil {
		o.cfg(&cfg)
	}
	if o.stubs != nil {
		o.stubs(authority, f.box, &cfg)
	}
	f.google = cfg.FCMEndpoint
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	f.jobs = jobs.New(settings.Defaults[jobs.Config]())
	clog := changes.New(settings.Defaults[changes.Config](), db)
	deps := push.Deps{Vault: f.vault, Jobs: f.jobs, Log: clog, Live: func(_, id string) ([]string, bool) {
		sessions, connected := f.live[id]
		return sessions, connected
	}}
	deps.Over = func(_ dbx.Builder, sessions []string, _ time.Time) (over []string, _ error) {
		for _, id := range sessions {
			if _, is := f.over.Load(id); is {
				over = append(over, id)
			}
		}
		return over, nil
	}
	if o.deps != nil {
		o.deps(&deps)
	}
	f.push = push.New(cfg, deps)
	ops := operations.New()
	ops.Add(f.push.Operations(), console.Operations(f.jobs))
	connect := core.DBConnectFunc(db.Connect)
	if o.connect != nil {
		connect = o.connect(connect)
	}
	list := []extensions.Extension{
		api.New(settings.Defaults[api.Config]()), store.New(db), clog.Extension(),
		f.jobs.Extension(jobs.Deps{Vault: f.vault}), ops.Extension(operations.Deps{Audit: func(core.App, audit.Entry) error { return nil }}), f.push.Extension(),
	}
	if o.dir != "" {
		f.App = reopen(t, o.dir, connect, list)
		return f
	}
	f.App = apptest.Open(t, connect, list...)
	_, f.root = f.Superuser(t)
	f.connect(t, credentials.Set{APNs: &sut.Credentials{Key: string(f.apns.P8()), KeyID: apns.KeyID, TeamID: apns.TeamID, Topic: apns.Topic}})
	f.connect(t, credentials.Set{Expo: &expoSender.Credentials{}})
	return f
}

// reopen starts with what another process has left.
func reopen(t testing.TB, dir string, connect core.DBConnectFunc, list []extensions.Extension) *apptest.App {
	t.Helper()
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: connect})
	h := &extensions.Host{App: app, Version: "test", Logger: slog.New(slog.DiscardHandler)}
	if err := extensions.Install(h, list); err != nil {
		t.Fatal(err)
	}
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e := &core.TerminateEvent{App: app}
		if err := app.OnTerminate().Trigger(e, func(*core.TerminateEvent) error { return app.ClearBootstrap() }); err != nil {
			t.Errorf("terminate: %v", err)
		}
	})
	return &apptest.App{App: app, Host: h, URL: apptest.Serve(t, app)}
}

func (f *fixture) connect(t testing.TB, set credentials.Set) {
	t.Helper()
	if _, err := credentials.New(f.vault, credentials.Options{Size: 1, FCM: f.google}).Save(f.App.App, set); err != nil {
		t.Fatal(err)
	}
}

// token is one of APNs, with a prefix that tells the stub how to answer.
func token(prefix string, n int) string { return prefix + fmt.Sprintf("%0*x", 64-len(prefix), n) }

// spec is a device that a test registers.
type spec struct{ id, user, session, token, platform, locale, zone string }

// devices registers devices that have been there for a while.
func (f *fixture) devices(t testing.TB, list ...spec) {
	t.Helper()
	users, err := f.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-24 * time.Hour).UnixMilli()
	err = f.RunInTransaction(func(tx core.App) error {
		for i, d := range list {
			if d.platform == "" {
				d.platform = "apns"
			}
			if d.session == "" {
				d.session = "session-" + d.id
			}
			sealed, err := f.vault.Seal("push_devices|token|"+d.id, []byte(d.token))
			if err != nil {
				return err
			}
			_, err = tx.NonconcurrentDB().Insert("push_devices", dbx.Params{
				"id": d.id, "collection": users.Id, "record": d.user, "session": d.session, "platform": d.platform, "environment": "", "hash": fmt.Sprint(d.id, i),
				"token": sealed, "app": "", "locale": d.locale, "time_zone": d.zone, "app_version": "", "registered_at": then, "seen_at": then,
			}).Execute()
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// user creates a user with one device of the same id.
func (f *fixture) user(t testing.TB, name string) (id, token string) {
	t.Helper()
	record, credential := f.User(t, name+"@example.test")
	f.devices(t, spec{id: "device-" + name, user: record.Id, token: tokenOf(name)})
	return record.Id, credential
}

func tokenOf(name string) string { return token("", 0)[:64-2*len(name)] + fmt.Sprintf("%x", name) }

// operation calls one as a superuser and returns data.
func (f *fixture) operation(t testing.TB, name string, in, out any) apptest.Response {
	t.Helper()
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/" + name, Token: f.root, Body: in})
	return decode(t, r, out)
}

// get calls one that reads.
func (f *fixture) get(t testing.TB, path string) apptest.Response {
	t.Helper()
	return f.Do(t, apptest.Request{Path: "/api/v1/operations/" + path, Token: f.root})
}

func decode(t testing.TB, r apptest.Response, out any) apptest.Response {
	t.Helper()
	if r.Status == http.StatusOK && out != nil {
		if err := json.Unmarshal(r.Body, &struct{ Data any }{out}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (f *fixture) send(t testing.TB, in map[string]any) outbox.Sent {
	t.Helper()
	var sent outbox.Sent
	if r := f.operation(t, "push.send", in, &sent); r.Status != http.StatusOK {
		t.Fatalf("send: %d %s", r.Status, r.Body)
	}
	return sent
}

func (f *fixture) show(t testing.TB, id string) outbox.View {
	t.Helper()
	var v outbox.View
	r := decode(t, f.Do(t, apptest.Request{Path: "/api/v1/operations/push.message?id=" + id, Token: f.root}), &v)
	if r.Status != http.StatusOK {
		t.Fatalf("show: %d %s", r.Status, r.Body)
	}
	return v
}

// done waits until the message is sent and returns its totals.
func (f *fixture) done(t testing.TB, id string) outbox.Totals {
	t.Helper()
	var v outbox.View
	await(t, "the end of message "+id, func() bool {
		v = f.show(t, id)
		return v.State == outbox.Done
	})
	if v.Totals.Queued != 0 {
		t.Errorf("a message that is done has deliveries without an end: %+v", v.Totals)
	}
	return *v.Totals
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: has not come", what)
}

// row reads one value.
func row[T any](t testing.TB, f *fixture, query string) (out T) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery(query).Row(&out); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return out
}

// hurry makes the scheduled job of a kind due now, once there is one, and returns when it would have been.
func (f *fixture) hurry(t testing.TB, kind string) time.Time {
	t.Helper()
	var due int64
	var id string
	await(t, "a waiting job "+kind, func() bool {
		var page table.Page
		decode(t, f.Do(t, apptest.Request{Path: "/api/v1/operations/jobs.list?state=scheduled&kind=" + kind, Token: f.root}), &page)
		if len(page.Jobs) == 0 {
			return false
		}
		id, due = page.Jobs[0].ID, page.Jobs[0].DueAt.UnixMilli()
		return true
	})
	if err := f.jobs.Retry(f.App.App, id, nil); err != nil {
		t.Fatal(err)
	}
	return time.UnixMilli(due)
}
