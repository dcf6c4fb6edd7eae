package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs/presence"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// steal makes a job another process's.
func (f *fixture) steal(t testing.TB, id, epoch string, leaseUntil time.Time, attempt int) {
	t.Helper()
	number, err := table.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.NonconcurrentDB().Update(table.Queue, dbx.Params{
		"state": table.IsRunning, "epoch": epoch, "lease_until": leaseUntil.UnixMilli(), "attempt": attempt,
	}, dbx.HashExp{"id": number}).Execute()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) lookNow(t testing.TB) {
	t.Helper()
	if err := presence.Ring(f.jobs.folder()); err != nil {
		t.Fatal(err)
	}
}

func TestProcesses(t *testing.T) {
	f := start(t, Define(Spec[int]{Kind: kind, Attempts: 10, Work: func(context.Context, *Job, int) error { return nil }}))
	later := time.Now().Add(time.Hour)
	file := func(epoch string) string { return filepath.Join(f.jobs.folder(), epoch) }

	// One on this machine whose lock is gone: at once, whatever its lease says. But not for ever at once.
	for attempt, want := range map[int]State{1: Succeeded, 4: Scheduled, 10: Dead} {
		epoch := fmt.Sprintf("crashed%d", attempt)
		if err := os.WriteFile(file(epoch), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		id := f.enqueue(t, 1, Options{Delay: time.Hour})
		f.steal(t, id, epoch, later, attempt)
		f.lookNow(t)
		if attempt == 1 {
			f.await(t, id, Succeeded)
			continue
		}
		await(t, string(want), func() bool {
			s, err := f.jobs.Get(f.App.App, id)
			return err == nil && s.State == want
		})
	}
	await(t, "the files of the processes to go", func() bool {
		left, err := filepath.Glob(file("crashed*"))
		return err == nil && len(left) == 0
	})

	// One that is alive on this machine, and one elsewhere whose lease is good, keep theirs.
	alive := new(presence.Folder)
	if err := alive.Enter(f.jobs.folder(), "alive"); err != nil {
		t.Fatal(err)
	}
	theirs := f.enqueue(t, 1, Options{Delay: time.Hour})
	f.steal(t, theirs, "alive", time.Now().Add(-time.Hour), 1)
	elsewhere := f.enqueue(t, 1, Options{Delay: time.Hour})
	f.steal(t, elsewhere, "elsewhere", later, 1)
	gone := f.enqueue(t, 1, Options{Delay: time.Hour})
	f.steal(t, gone, "silent", time.Now().Add(-time.Second), 1)
	f.lookNow(t)
	f.await(t, gone, Succeeded)
	for _, id := range []string{theirs, elsewhere} {
		if s, err := f.jobs.Get(f.App.App, id); err != nil || s.State != Running {
			t.Errorf("taken from its process: %+v %v", s, err)
		}
	}
	alive.Leave()
}

// A job that was taken over can write nothing any more.
func TestLost(t *testing.T) {
	lost := make(chan error, 1)
	begun := make(chan string, 1)
	f := start(t, work(func(ctx context.Context, job *Job, _ int) error {
		if job.Attempt > 1 {
			return nil
		}
		begun <- job.ID
		<-ctx.Done()
		lost <- job.Once(job.jobs.app, "effect", func(core.App) error { return errors.New("it is tried") })
		return nil
	}))
	f.enqueue(t, 1, Options{})
	id := <-begun
	f.steal(t, id, "another", time.Now().Add(time.Hour), 2)
	f.lookNow(t)
	if err := <-lost; !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	if s, err := f.jobs.Get(f.App.App, id); err != nil || s.State != Running {
		t.Errorf("%+v %v", s, err)
	}
}

// When the server stops, what can go on later is ended at once, others get time, and nothing is lost or counted.
func TestStop(t *testing.T) {
	g := newGate()
	f := startWith(t, func(c *Config) { c.Drain = 50 * time.Millisecond; c.Workers = 2 },
		work(func(ctx context.Context, _ *Job, _ int) error { return g.pass(ctx) }),
		Define(Spec[int]{Kind: "test.resumable", Resumable: true, Timeout: NoTimeout, Work: func(ctx context.Context, _ *Job, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}}))
	ids := []string{f.enqueue(t, 1, Options{}), "", f.enqueue(t, 1, Options{}), f.enqueue(t, 1, Options{})}
	var err error
	if ids[1], err = f.jobs.Enqueue(f.App.App, "test.resumable", 1, Options{Priority: 1}); err != nil {
		t.Fatal(err)
	}
	await(t, "work", func() bool { return f.count(t, table.Queue+" WHERE state = 1") == 2 })
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count(t, table.Queue+" WHERE state = 0 AND attempt = 0 AND epoch = ''"); n != 4 {
		t.Errorf("%d jobs wait as if nothing had happened", n)
	}
	close(g.open)
	if err := f.jobs.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		if i != 1 {
			f.await(t, id, Succeeded)
		}
	}
	f.await(t, ids[1], Running)
}

// A command does one job, also beside a server, and no other.
func TestDo(t *testing.T) {
	f := start(t, work(func(_ context.Context, job *Job, n int) error {
		if n == 2 {
			return RetryAfter(time.Hour, errors.New("no"))
		}
		return nil
	}))
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := f.enqueue(t, 1, Options{})
	for n, want := range map[int]string{1: "", 2: "the job is scheduled: no"} {
		id := f.enqueue(t, n, Options{Delay: time.Hour})
		got := ""
		if err := f.jobs.Do(t.Context(), id); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	if s, err := f.jobs.Get(f.App.App, other); err != nil || s.State != Ready {
		t.Errorf("another job: %+v %v", s, err)
	}
	if err := f.jobs.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f.await(t, other, Succeeded)
	if err := f.jobs.Do(t.Context(), f.enqueue(t, 1, Options{Delay: time.Hour})); err != nil {
		t.Errorf("beside a server: %v", err)
	}
}

// What is kept no longer goes away, and nothing else.
func TestSweep(t *testing.T) {
	f := startWith(t, func(c *Config) { c.KeepMost = 1000 }, work(func(context.Context, *Job, int) error { return nil }))
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := f.NonconcurrentDB().NewQuery(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1600)
		INSERT INTO ` + table.History + ` SELECT i, 'q', 'k', 'succeeded', 1, '', '', '', '', '', 0, 0, 1, 1, 1, unixepoch() * 1000 + i FROM n`).Execute()
	if err != nil {
		t.Fatal(err)
	}
	for more := true; more; {
		var err error
		if more, err = table.Sweep(f.App.App, time.Now(), f.jobs.cfg.Keep, f.jobs.cfg.KeepDead, f.jobs.cfg.KeepMost); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.count(t, table.History); n != 1000 {
		t.Errorf("%d are kept", n)
	}
	if _, err := table.Sweep(f.App.App, time.Now().Add(8*24*time.Hour), f.jobs.cfg.Keep, f.jobs.cfg.KeepDead, 1000); err != nil || f.count(t, table.History) != 750 {
		t.Errorf("%d are kept too long, %v", f.count(t, table.History), err)
	}
}

// Background runs of earlier versions become jobs under the names by which accounts know them.
func TestTakeOverRuns(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }))
	if err := table.TakeOverRuns(f.App.App); err != nil {
		t.Fatalf("without any: %v", err)
	}
	for _, statement := range []string{
		`CREATE TABLE runs_runs (id TEXT PRIMARY KEY, kind TEXT NOT NULL, unique_key TEXT NOT NULL, owner_collection TEXT NOT NULL, owner TEXT NOT NULL,
			state TEXT NOT NULL, due_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, epoch TEXT NOT NULL DEFAULT '', beat_at INTEGER NOT NULL DEFAULT 0,
			input TEXT NOT NULL, position TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
			done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
			created_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0, finished_at INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID`,
		`INSERT INTO runs_runs (id, kind, unique_key, owner_collection, owner, state, due_at, input, position, created_at, finished_at) VALUES
			('waits', 'test.job', 'k', 'c', 'ada', 'queued', 1000, '7', '3', 1000, 0), ('works', 'test.job', '', '', '', 'running', 1000, '7', '', 1000, 0),
			('ended', 'test.job', '', 'c', 'ada', 'succeeded', 1000, '', '', 1000, unixepoch() * 1000), ('failed', 'test.job', '', '', '', 'failed', 1000, '7', '', 1000, unixepoch() * 1000)`,
		`CREATE TABLE account_exports (run TEXT)`, `INSERT INTO account_exports VALUES ('waits')`,
	} {
		if _, err := f.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.RunInTransaction(table.TakeOverRuns); err != nil {
		t.Fatal(err)
	}
	var id string
	if err := f.ConcurrentDB().NewQuery("SELECT run FROM account_exports").Row(&id); err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.start(t.Context(), nil); err != nil { // which finds them in a queue that this program does not have
		t.Fatal(err)
	}
	f.await(t, id, Succeeded)
	await(t, "the other", func() bool { return f.count(t, table.History+" WHERE outcome = 'succeeded'") == 3 })
	if f.count(t, table.Queue+" WHERE state = 3") != 1 || f.HasTable("runs_runs") {
		t.Error("the one that had failed, or the table, is not as it should be")
	}
}
