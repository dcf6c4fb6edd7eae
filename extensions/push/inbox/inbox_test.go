package inbox_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/inbox"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const (
	summary = "/api/v1/push/inbox"
	read    = "/api/v1/push/inbox/read"
)

type fixture struct {
	*apptest.App

	inbox    *inbox.Inbox
	log      *changes.Log
	ada, bob *core.Record
	token    string // of ada
	other    string
}

func start(t testing.TB, change func(o *inbox.Options)) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: append(jobs.Tables(), changes.Tables()...)})
	if err != nil {
		t.Fatal(err)
	}
	o := inbox.Options{Name: "inbox"}
	if change != nil {
		change(&o)
	}
	cfg := settings.Defaults[push.Config]()
	cfg.Inbox, cfg.InboxHooks = o.Name, o.Hooks
	vault := secret.Fixed([]byte("root key of the tests"))
	clog, queue := changes.New(settings.Defaults[changes.Config](), db), jobs.New(settings.Defaults[jobs.Config]())
	p := push.New(cfg, push.Deps{Vault: vault, Jobs: queue, Log: clog})
	f := &fixture{inbox: inbox.New(o, p.Devices()), log: clog}
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), clog.Extension(), queue.Extension(jobs.Deps{Vault: vault}), p.Extension())
	f.ada, f.token = f.User(t, "ada@example.test")
	f.bob, f.other = f.User(t, "bob@example.test")
	return f
}

// deliver writes an entry of a message for each of the users, as a fan-out does.
func (f *fixture) deliver(t testing.TB, id, title string, users ...*core.Record) {
	t.Helper()
	var accounts []device.Account
	for _, u := range users {
		accounts = append(accounts, device.AccountOf(u))
	}
	m := &message.Message{Title: title, Category: "news", Data: map[string]string{"route": "/x"}}
	if _, err := f.inbox.Announce(t.Context(), f.App.App, id, m, accounts); err != nil {
		t.Fatal(err)
	}
	if err := f.RunInTransaction(func(tx core.App) error { return f.inbox.Deliver(tx, id, m, accounts) }); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) count(t testing.TB, where string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM inbox WHERE " + where).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// unread asks for the number or, with POST, marks entries before that.
func (f *fixture) unread(t testing.TB, token, method string, body any) int {
	t.Helper()
	path := summary
	if method == http.MethodPost {
		path = read
	}
	r := f.Do(t, apptest.Request{Method: method, Path: path, Token: token, Body: body})
	if r.Status != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, r.Status, r.Body)
	}
	data, _ := r.JSON(t)["data"].(map[string]any)
	n, ok := data["unread"].(float64)
	if !ok {
		t.Fatalf("%s", r.Body)
	}
	return int(n)
}

// changed lists what the change log says of the inbox.
func (f *fixture) changed(t testing.TB, from changes.Position) (list []changes.Action, to changes.Position) {
	t.Helper()
	all, to, err := f.log.Since(t.Context(), from, 1000)
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.FindCollectionByNameOrId("inbox")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		if one.Collection == c.Id {
			list = append(list, one.Action)
		}
	}
	return list, to
}

// Entries are counted, marked and deleted for their owner alone, and whoever follows changes sees all of it.
func TestUnread(t *testing.T) {
	for _, hooks := range []bool{false, true} {
		t.Run(fmt.Sprint("hooks ", hooks), func(t *testing.T) {
			f := start(t, func(o *inbox.Options) { o.Hooks = hooks })
			at, err := f.log.Reader("test").Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				f.deliver(t, fmt.Sprint("m", i), "Hello", f.ada, f.bob)
				f.deliver(t, fmt.Sprint("m", i), "Hello", f.ada) // as after a crash
			}
			if n, m := f.unread(t, f.token, http.MethodGet, nil), f.unread(t, f.other, http.MethodGet, nil); n != 3 || m != 3 {
				t.Errorf("%d and %d are unread", n, m)
			}
			list, at := f.changed(t, at)
			if len(list) != 6 || list[0] != changes.Create {
				t.Errorf("changes %v", list)
			}
			// What arrives while somebody reads stays unread.
			var middle string
			if err := f.ConcurrentDB().NewQuery("SELECT created FROM inbox WHERE message = 'm1' AND user = {:id}").Bind(dbx.Params{"id": f.ada.Id}).Row(&middle); err != nil {
				t.Fatal(err)
			}
			if _, err := f.NonconcurrentDB().NewQuery("UPDATE inbox SET created = '2999-01-01 00:00:00.000Z' WHERE message = 'm2'").Execute(); err != nil {
				t.Fatal(err)
			}
			_, at = f.changed(t, at)
			if n := f.unread(t, f.token, http.MethodPost, map[string]string{"until": strings.Replace(middle, " ", "T", 1)}); n != 1 {
				t.Errorf("%d are left", n)
			}
			if list, _ := f.changed(t, at); len(list) != 2 || list[0] != changes.Update {
				t.Errorf("changes %v", list)
			}
			if n := f.unread(t, f.token, http.MethodPost, map[string]string{"until": "2999-12-31T00:00:00Z"}); n != 0 || f.count(t, "read = FALSE") != 3 {
				t.Errorf("%d are left, %d of both", n, f.count(t, "read = FALSE"))
			}
			if n := f.unread(t, f.other, http.MethodGet, nil); n != 3 {
				t.Errorf("bob has %d", n)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	f := start(t, nil)
	for _, c := range []struct {
		method, path, token string
		body                any
		status              int
	}{
		{http.MethodGet, summary, "", nil, 401},
		{http.MethodPost, read, "", nil, 401},
		{http.MethodPost, read, f.token, `{"until":"yesterday"}`, 400},
		{http.MethodPost, read, f.token, `{"all":true}`, 400},
	} {
		if r := f.Do(t, apptest.Request{Method: c.method, Path: c.path, Token: c.token, Body: c.body}); r.Status != c.status {
			t.Errorf("%s %s %v: %d %s", c.method, c.path, c.body, r.Status, r.Body)
		}
	}
	none := start(t, func(o *inbox.Options) { o.Name = "" })
	for method, path := range map[string]string{http.MethodGet: summary, http.MethodPost: read} {
		if r := none.Do(t, apptest.Request{Method: method, Path: path, Token: none.token}); r.Status != 404 || r.Code() != "push.inbox_unavailable" {
			t.Errorf("%s: %d %s", path, r.Status, r.Body)
		}
	}
}

// With hooks, the app's run for each entry and may refuse it; without, none does.
func TestHooks(t *testing.T) {
	for _, hooks := range []bool{false, true} {
		f := start(t, func(o *inbox.Options) { o.Hooks = hooks })
		var created, after, updated atomic.Int64
		f.OnRecordCreate("inbox").BindFunc(func(e *core.RecordEvent) error {
			created.Add(1)
			if e.Record.GetString("user") == f.bob.Id {
				return errors.New("not for Bob")
			}
			e.Record.Set("title", "Changed")
			return e.Next()
		})
		f.OnRecordAfterCreateSuccess("inbox").BindFunc(func(e *core.RecordEvent) error { after.Add(1); return e.Next() })
		f.OnRecordUpdate("inbox").BindFunc(func(e *core.RecordEvent) error { updated.Add(1); return e.Next() })
		f.deliver(t, "m1", "Hello", f.ada, f.bob)
		f.unread(t, f.token, http.MethodPost, nil)
		want := [3]int64{}
		entries, titles := 2, 0
		if hooks {
			want, entries, titles = [3]int64{2, 1, 1}, 1, 1
		}
		if got := [3]int64{created.Load(), after.Load(), updated.Load()}; got != want {
			t.Errorf("hooks %v: called %v, want %v", hooks, got, want)
		}
		if f.count(t, "true") != entries || f.count(t, "title = 'Changed'") != titles || f.count(t, "read = TRUE") != 1 {
			t.Errorf("hooks %v: %d entries, %d changed", hooks, f.count(t, "true"), f.count(t, "title = 'Changed'"))
		}
	}
}

// Old entries go, and the oldest of those that are too many, a portion at a time.
func TestRetention(t *testing.T) {
	for _, hooks := range []bool{false, true} {
		f := start(t, func(o *inbox.Options) { o.Hooks, o.Keep, o.Entries = hooks, 24*time.Hour, 5 })
		var deleted atomic.Int64
		f.OnRecordDelete("inbox").BindFunc(func(e *core.RecordEvent) error { deleted.Add(1); return e.Next() })
		for i := range 7 {
			f.deliver(t, fmt.Sprint("m", i), "Hello", f.ada)
		}
		f.deliver(t, "m0", "Hello", f.bob)
		fill := `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 450) INSERT INTO inbox (id, user, message, created, read)
			SELECT 'old' || i, {:user}, 'old' || i, '2020-01-01 00:00:00.000Z', TRUE FROM n`
		if _, err := f.NonconcurrentDB().NewQuery(fill).Bind(dbx.Params{"user": f.bob.Id}).Execute(); err != nil {
			t.Fatal(err)
		}
		if err := f.inbox.Sweep(t.Context(), f.App.App, time.Now()); err != nil {
			t.Fatal(err)
		}
		if ada, bob := f.count(t, "user = '"+f.ada.Id+"'"), f.count(t, "user = '"+f.bob.Id+"'"); ada != 5 || bob != 1 {
			t.Errorf("%d and %d entries are left", ada, bob)
		}
		if want := map[bool]int64{true: 452}[hooks]; deleted.Load() != want {
			t.Errorf("hooks %v: %d deletions were seen", hooks, deleted.Load())
		}
		if err := f.inbox.Sweep(t.Context(), f.App.App, time.Now().Add(48*time.Hour)); err != nil || f.count(t, "true") != 0 {
			t.Errorf("%v, %d entries two days later", err, f.count(t, "true"))
		}
	}
}

// A collection of the app's that has the same name is not taken.
func TestPrepare(t *testing.T) {
	f := start(t, nil)
	other := inbox.New(inbox.Options{Name: "users"}, nil)
	if err := other.Prepare(f.App.App); err == nil || !strings.Contains(err.Error(), "no inbox") {
		t.Errorf("%v", err)
	}
	if err := f.inbox.Prepare(f.App.App); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := inbox.New(inbox.Options{}, nil).Prepare(f.App.App); err != nil {
		t.Errorf("none: %v", err)
	}
	f.deliver(t, "m1", "Hello", f.ada)
	if err := f.Delete(f.ada); err != nil || f.count(t, "true") != 0 {
		t.Errorf("%v, %d entries of a user who is gone", err, f.count(t, "true"))
	}
}

// What hooks cost: 500 accounts, as many as a page of a fan-out has.
func BenchmarkDeliver(b *testing.B) {
	for _, hooks := range []bool{false, true} {
		b.Run(fmt.Sprint("hooks=", hooks), func(b *testing.B) {
			f := start(b, func(o *inbox.Options) { o.Hooks = hooks })
			users := make([]*core.Record, 500)
			for i := range users {
				users[i], _ = f.User(b, fmt.Sprintf("user%d@example.test", i))
			}
			n := 0
			for b.Loop() {
				n++
				f.deliver(b, fmt.Sprint("m", n), "Hello", users...)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n*len(users)), "us/account")
		})
	}
}
