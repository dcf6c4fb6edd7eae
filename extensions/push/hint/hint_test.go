package hint_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/stubs/apns"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push"
	sut "github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/hint"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

type fixture struct {
	*apptest.App

	box   *inbox.Inbox
	tasks *core.Collection
}

// start returns an application with a collection of tasks that sends the hint to Apple's stand-in. live are the sessions
// that are connected.
func start(t *testing.T, h hint.Hint, live ...string) *fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	must(t, err)
	f := &fixture{box: &inbox.Inbox{}}
	provider, err := apns.Start(apns.Options{Address: "127.0.0.1:0", SandboxAddress: "127.0.0.1:0", Authority: authority, Inbox: f.box})
	must(t, err)
	t.Cleanup(func() { _ = provider.Close() })
	cfg := settings.Defaults[push.Config]()
	cfg.APNsEndpoint, cfg.APNsSandboxEndpoint = provider.Production.URL, provider.Sandbox.URL
	cfg.CAFile, cfg.AllowLoopback = filepath.Join(t.TempDir(), "ca.pem"), true
	must(t, os.WriteFile(cfg.CAFile, authority.PEM(), 0o600))
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: append(jobs.Tables(), outbox.Tables()...)})
	must(t, err)
	vault := secret.Fixed([]byte("root key of the tests"))
	queue, clog := jobs.New(settings.Defaults[jobs.Config]()), changes.New(settings.Defaults[changes.Config](), db)
	p := push.New(cfg, push.Deps{
		Vault: vault, Jobs: queue, Log: clog, Hints: []hint.Hint{h}, Live: func(_, _ string) ([]string, bool) { return live, len(live) > 0 },
	})
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), clog.Extension(), queue.Extension(jobs.Deps{Vault: vault}), p.Extension())
	_, err = credentials.New(vault, credentials.Options{Size: 1}).Save(f.App.App, credentials.Set{
		APNs: &sut.Credentials{Key: string(provider.P8()), KeyID: apns.KeyID, TeamID: apns.TeamID, Topic: apns.Topic},
	})
	must(t, err)
	f.tasks = core.NewBaseCollection("tasks")
	f.tasks.Fields.Add(&core.TextField{Name: "owner"}, &core.TextField{Name: "title"})
	must(t, f.Save(f.tasks))
	users, err := f.FindCollectionByNameOrId("users")
	must(t, err)
	for i, user := range []string{"ada", "ada", "bob"} { // two devices of Ada's
		id := fmt.Sprint(user, i)
		sealed, err := vault.Seal("push_devices|token|"+id, fmt.Appendf(nil, "%064x", i+1))
		must(t, err)
		then := time.Now().Add(-time.Hour).UnixMilli()
		_, err = f.NonconcurrentDB().Insert("push_devices", dbx.Params{
			"id": id, "collection": users.Id, "record": user, "session": "session-" + id, "platform": "apns", "environment": "", "hash": id, "token": sealed,
			"app": "", "locale": "", "time_zone": "", "app_version": "", "registered_at": then, "seen_at": then,
		}).Execute()
		must(t, err)
	}
	return f
}

// owner is who is told of a task.
func owner(_ core.App, task *core.Record) (message.To, bool) {
	return message.To{Users: []string{task.GetString("owner")}}, task.GetString("owner") != ""
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) task(t *testing.T, owner string) *core.Record {
	t.Helper()
	r := core.NewRecord(f.tasks)
	r.Load(map[string]any{"owner": owner, "title": "a secret title"})
	must(t, f.Save(r))
	return r
}

func (f *fixture) count(t *testing.T, from string) (n int) {
	t.Helper()
	must(t, f.ConcurrentDB().NewQuery("SELECT count(*) FROM "+from).Row(&n))
	return n
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: has not come", what)
}

// quiet waits until the triggers have seen all that was written.
func (f *fixture) quiet(t *testing.T) {
	t.Helper()
	await(t, "the end of the log", func() bool {
		return f.count(t, "changes_log WHERE seq > (SELECT seq FROM changes_readers WHERE name = 'push.triggers')") == 0 &&
			f.count(t, "jobs_queue WHERE kind = 'push.trigger'") == 0
	})
}

// Many changes that concern the same receivers are one hint, and it says nothing of them.
func TestBurst(t *testing.T) {
	f := start(t, hint.Hint{Collection: "tasks", To: owner, Every: 200 * 24 * time.Hour}) // nothing is sent while the test runs
	var last *core.Record
	for range 20 {
		last = f.task(t, "ada")
		f.task(t, "")
	}
	last.Set("title", "another")
	must(t, f.Save(last))
	f.task(t, "bob")
	must(t, f.Delete(last))
	f.quiet(t)
	var specs []string
	must(t, f.ConcurrentDB().NewQuery("SELECT spec FROM push_messages ORDER BY spec ->> '$.to.users[0]'").Column(&specs))
	if len(specs) != 2 {
		t.Fatalf("%d messages for two receivers: %v", len(specs), specs)
	}
	for i, who := range []string{"ada", "bob"} {
		m, err := message.Decode(specs[i])
		must(t, err)
		if len(m.To.Users) != 1 || m.To.Users[0] != who || !m.Silent || !m.Hint || m.Collapse != "sync" || m.TTL != 3600 || m.Presence != message.PresenceDevice ||
			len(m.Data) != 1 || m.Data["sync"] != "tasks" || m.Title != "" || strings.Contains(specs[i], "secret") {
			t.Errorf("%s", specs[i])
		}
	}
}

// A device of Apple's is woken twice in an hour, however much changes, and one that is connected not at all.
func TestCapAndPresence(t *testing.T) {
	f := start(t, hint.Hint{Collection: "tasks", To: owner, Every: time.Second}, "session-ada1")
	for i := range 3 {
		f.task(t, "ada")
		await(t, "the end of a hint", func() bool { return f.count(t, "push_messages WHERE state = 2") == i+1 })
	}
	for what, want := range map[string]int{
		"device = 'ada0' AND state = 1": 2, "device = 'ada0' AND code = 'hints'": 1, "device = 'ada1' AND code = 'live'": 3, "device = 'bob2'": 0,
	} {
		if got := f.count(t, "push_deliveries WHERE "+what); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	arrived := f.box.List("apns")
	if len(arrived) != 2 {
		t.Errorf("%d have arrived", len(arrived))
	}
	for _, a := range arrived {
		if a.Title != "" || !strings.Contains(a.Body, `"content-available":1`) || strings.Contains(a.Body, "secret") ||
			a.Headers["apns-push-type"] != "background" || a.Headers["apns-priority"] != "5" || a.Headers["apns-collapse-id"] != "sync" {
			t.Errorf("arrived: %+v", a)
		}
	}
}

// Whoever writes has its answer before anybody is asked whom the change concerns, and also when that goes wrong.
func TestNotInTheWritersWay(t *testing.T) {
	written, asked := make(chan struct{}), make(chan string, 10)
	f := start(t, hint.Hint{Collection: "tasks", To: func(_ core.App, r *core.Record) (message.To, bool) {
		select {
		case <-written:
		case <-time.After(30 * time.Second): // the writer waits for this, which waits for the writer
			t.Error("a hint is made within the write")
		}
		asked <- r.Id
		panic("it goes wrong")
	}})
	task := f.task(t, "ada")
	close(written)
	if id := <-asked; id != task.Id {
		t.Errorf("asked for %s", id)
	}
	if other := f.task(t, "bob"); f.count(t, "tasks") != 2 || other.Id == "" {
		t.Error("the writes are not there")
	}
}
