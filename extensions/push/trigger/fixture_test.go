package trigger_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
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
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/console"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/trigger"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// fixture is an application in a folder, which a later one can open again.
type fixture struct {
	core.App

	jobs    *jobs.Jobs
	ops     *operations.Operations
	log     *changes.Log
	list    []extensions.Extension
	waits   atomic.Bool // another process follows the changes
	out     *outbox.Outbox
	problem error // of the start
}

// declare makes the triggers of a fixture.
type declare func(f *fixture) []trigger.Trigger

type noted struct {
	Record string `json:"record"`
	By     string `json:"by"`
}

// note leaves a row for an effect.
func note(app core.App, in noted) error {
	_, err := app.NonconcurrentDB().NewQuery("INSERT INTO effects VALUES ({:by}, {:record})").Bind(dbx.Params{"by": in.By, "record": in.Record}).Execute()
	return err
}

// start opens the application in the folder, with a collection notes, a job and an operation that leave rows.
func start(t testing.TB, dir string, d declare) (f *fixture, stop func()) {
	t.Helper()
	f = prepare(t, dir, io.Discard, d)
	if f.problem != nil {
		t.Fatal(f.problem)
	}
	apptest.Serve(t, f.App)
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		e := &core.TerminateEvent{App: f.App}
		if err := f.OnTerminate().Trigger(e, func(*core.TerminateEvent) error { return f.ClearBootstrap() }); err != nil {
			t.Errorf("terminate: %v", err)
		}
	}
	t.Cleanup(stop)
	return f, stop
}

func prepare(t testing.TB, dir string, logs io.Writer, d declare) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: append(jobs.Tables(), outbox.Tables()...)})
	must(t, err)
	vault := secret.Fixed([]byte("root key of the tests"))
	f := &fixture{
		App:  core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect}),
		jobs: jobs.New(settings.Defaults[jobs.Config]()), ops: operations.New(), log: changes.New(settings.Defaults[changes.Config](), db),
	}
	f.jobs.Add(jobs.Define(jobs.Spec[noted]{Kind: "notes.job", Work: func(_ context.Context, job *jobs.Job, in noted) error {
		return job.Once(f.App, "note", func(tx core.App) error { return note(tx, in) })
	}}))
	f.ops.Add([]operations.Operation{operations.Define(operations.Spec[noted, struct{}]{
		Name: "notes.note", Summary: "Leave a row", Do: func(c *operations.Call, in noted) (struct{}, error) { return struct{}{}, note(c.App, in) },
	})})
	p := push.New(settings.Defaults[push.Config](), push.Deps{
		Vault: vault, Jobs: f.jobs, Log: f.log, Leader: func() bool { return !f.waits.Load() },
		Triggers: func(out *outbox.Outbox) []trigger.Trigger {
			f.out = out
			return d(f)
		},
	})
	f.ops.Add(p.Operations())
	f.list = []extensions.Extension{
		api.New(settings.Defaults[api.Config]()), store.New(db), f.log.Extension(), console.Extend(f.jobs.Extension(jobs.Deps{Vault: vault}), f.jobs),
		f.ops.Extension(operations.Deps{Audit: func(core.App, audit.Entry) error { return nil }}), p.Extension(),
	}
	h := &extensions.Host{App: f.App, Version: "test", Logger: slog.New(slog.NewTextHandler(logs, nil))}
	if f.problem = extensions.Install(h, f.list); f.problem != nil {
		return f
	}
	must(t, f.Bootstrap())
	must(t, f.RunAllMigrations())
	if !f.HasTable("effects") {
		notes := core.NewBaseCollection("notes")
		notes.Fields.Add(&core.TextField{Name: "title"})
		must(t, f.Save(notes))
		_, err := f.NonconcurrentDB().NewQuery("CREATE TABLE effects (by TEXT NOT NULL, record TEXT NOT NULL)").Execute()
		must(t, err)
	}
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write creates a note.
func (f *fixture) write(t testing.TB, title string) *core.Record {
	t.Helper()
	c, err := f.FindCachedCollectionByNameOrId("notes")
	must(t, err)
	r := core.NewRecord(c)
	r.Set("title", title)
	must(t, f.Save(r))
	return r
}

func (f *fixture) count(t testing.TB, from string) (n int) {
	t.Helper()
	must(t, f.ConcurrentDB().NewQuery("SELECT count(*) FROM "+from).Row(&n))
	return n
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: has not come", what)
}

// settle waits until the triggers have seen everything, and no job of theirs waits but those that have failed.
func (f *fixture) settle(t testing.TB) {
	t.Helper()
	mark := f.write(t, "settle")
	await(t, "the end of the log", func() bool {
		return f.count(t, "effects WHERE by = 'settled' AND record = '"+mark.Id+"'") == 1 &&
			f.count(t, fmt.Sprintf("%s WHERE (state IN (%d, %d) OR state = %d AND attempt = 0) AND kind IN ('push.trigger', 'notes.job')",
				table.Queue, table.IsReady, table.IsRunning, table.IsScheduled)) == 0
	})
}

// settled is the trigger that settle waits for.
func settled() trigger.Trigger { return leave("settled", `title = "settle"`, trigger.Created) }

// leave is a trigger that leaves a row.
func leave(name, condition string, on ...trigger.Event) trigger.Trigger {
	return trigger.Trigger{Name: name, Collection: "notes", On: on, If: condition, Do: func(c *trigger.Change) error {
		return note(c.App, noted{Record: c.ID, By: name})
	}}
}

// effects lists the records after which something has left rows.
func (f *fixture) effects(t testing.TB, by string) (records []string) {
	t.Helper()
	must(t, f.ConcurrentDB().NewQuery("SELECT record FROM effects WHERE by = {:by} ORDER BY rowid").Bind(dbx.Params{"by": by}).Column(&records))
	return records
}
