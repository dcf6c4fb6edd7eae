package jobs

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// A key that the table would hold in another form is refused: nobody would find its holder.
func TestKeysAreText(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }))
	for _, o := range []Options{{Key: "\xff\xfe"}, {Lane: "\xff\xfe"}} {
		if _, err := f.jobs.Enqueue(f.App.App, kind, 1, o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// The id that a taken key answers with is that of a job that exists, also when the key outlives its time or had none.
func TestKeyForNamesTheHolder(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }))
	first := f.enqueue(t, 1, Options{Key: "a", Delay: time.Hour})
	for range 2 {
		if id := f.enqueue(t, 1, Options{Key: "a", KeyFor: time.Hour, Delay: time.Hour}); id != first {
			t.Errorf("%s, not %s", id, first)
		}
	}
}

// What a job was given is sealed or not as it was when it was enqueued, whatever the program says of its kind now.
func TestSealedBefore(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		f := start(t, Define(Spec[int]{Kind: kind, Sealed: sealed, Attempts: 1, Work: func(_ context.Context, job *Job, n int) error { return job.SetResult(n) }}))
		queue := f.jobs.kinds[kind].queue
		if err := f.jobs.Pause(f.App.App, queue); err != nil {
			t.Fatal(err)
		}
		kept, edited := f.enqueue(t, 7, Options{}), f.enqueue(t, 7, Options{})
		if err := f.jobs.stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.jobs.kinds[kind].sealed = !sealed
		if err := f.jobs.Retry(f.App.App, edited, []byte("8")); err != nil {
			t.Fatal(err)
		}
		if v, err := table.Show(f.App.App, edited); err != nil || v.Sealed == sealed {
			t.Errorf("the edited job is shown as %+v, %v", v, err)
		}
		if err := f.jobs.Resume(f.App.App, queue); err != nil {
			t.Fatal(err)
		}
		if err := f.jobs.start(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]string{kept: "7", edited: "8"} {
			if got := f.await(t, id, Succeeded); string(got.Result) != want {
				t.Errorf("result %s, want %s", got.Result, want)
			}
		}
	}
}

// What cannot be read of a sealed job is not told to those who read errors.
func TestSealedErrors(t *testing.T) {
	f := start(t, Define(Spec[string]{Kind: kind, Sealed: true, Work: func(context.Context, *Job, string) error { return nil }}))
	if err := f.jobs.Pause(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	id := f.enqueue(t, "4711", Options{})
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := Define(Spec[time.Time]{Kind: kind, Sealed: true, Work: func(context.Context, *Job, time.Time) error { return nil }})
	f.jobs.kinds[kind].work = other.work
	if err := f.jobs.Resume(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if s := f.await(t, id, Dead); s.Err == "" || strings.Contains(s.Err, "4711") {
		t.Errorf("the error is %q", s.Err)
	}
}

// A clock that was ahead and is put right does not silence schedules until it gets there again.
func TestScheduleAfterClockWasAhead(t *testing.T) {
	f := start(t, Define(Spec[int]{Kind: "test.hourly", Queue: "later", Cron: "0 * * * *", Work: func(context.Context, *Job, int) error { return nil }}))
	if err := f.jobs.Pause(f.App.App, "later"); err != nil {
		t.Fatal(err)
	}
	await(t, "the first look", func() bool { return f.count(t, table.Schedules) == 1 })
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	last := noon.AddDate(1, 0, 0)
	if _, err := f.NonconcurrentDB().Update(table.Schedules, dbx.Params{"last_at": last.UnixMilli()}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	for i, now := range []time.Time{noon.Add(-time.Minute), noon.Add(time.Second), noon.Add(2 * time.Second)} {
		err := f.RunInTransaction(func(tx core.App) error {
			next, err := f.jobs.fire(tx, now)
			if next.Sub(now) > time.Hour {
				t.Errorf("next at %s", next)
			}
			return err
		})
		if n := f.count(t, table.Queue); err != nil || n != min(i, 1) {
			t.Errorf("at %s: %d jobs, %v", now, n, err)
		}
	}
}

// lazy can be written and not read.
type lazy struct{}

func (*lazy) UnmarshalJSON([]byte) error { return errors.New("no") }

// What a kind is given is read as it is written; one whose scheduled jobs could not be is refused.
func TestScheduledInput(t *testing.T) {
	type wait struct{ For time.Duration }
	waiting := Define(Spec[wait]{Kind: "test.wait", Cron: "0 * * * *", Work: func(_ context.Context, job *Job, in wait) error { return job.SetResult(in) }})
	if k := Define(Spec[lazy]{Kind: "test.lazy", Cron: "0 * * * *", Work: func(context.Context, *Job, lazy) error { return nil }}); k.err == nil {
		t.Error("a schedule without input is taken")
	}
	f := start(t, waiting)
	id, err := f.jobs.Enqueue(f.App.App, "test.wait", wait{time.Minute}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s := f.await(t, id, Succeeded); string(s.Result) != `{"For":60000000000}` {
		t.Errorf("result %s", s.Result)
	}
}

// A process that runs notices that its clock was put right.
func TestScheduleWhileClockIsPutBack(t *testing.T) {
	f := start(t, Define(Spec[int]{Kind: "test.hourly", Queue: "later", Cron: "0 * * * *", Work: func(context.Context, *Job, int) error { return nil }}))
	if err := f.jobs.Pause(f.App.App, "later"); err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var ahead atomic.Int64
	ahead.Store(int64(30 * time.Hour))
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	f.jobs.now = func() time.Time { return noon.Add(time.Since(begun) + time.Duration(ahead.Load())) }
	if _, err := f.NonconcurrentDB().Delete(table.Schedules, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	await(t, "the first look", func() bool { return f.count(t, table.Schedules) == 1 })
	ahead.Store(-int64(time.Since(begun) + time.Second))
	f.jobs.hurry() // a minute has passed
	await(t, "the job of noon", func() bool { return f.count(t, table.Queue) == 1 })
}

// A job that was cancelled while it ran is not begun again when its process dies.
func TestCancelledBeforeCrash(t *testing.T) {
	begun := make(chan struct{}, 8)
	f := start(t, work(func(ctx context.Context, _ *Job, _ int) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}))
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := f.enqueue(t, 1, Options{})
	number, err := table.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.NonconcurrentDB().Update(table.Queue, dbx.Params{"state": table.IsRunning, "epoch": "dead", "attempt": 1, "cancelled": 1}, dbx.HashExp{"id": number}).Execute()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if s := f.await(t, id, Cancelled); len(begun) != 0 {
		t.Errorf("it was begun again: %+v", s)
	}
}

// panicking is the error that a nil pointer of a type with a value receiver makes.
type panicking struct{}

func (*panicking) Error() string { panic("no text") }

// An error that panics when it is asked what it is costs one job and not the server.
func TestErrorThatPanics(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return &panicking{} }))
	if s := f.await(t, f.enqueue(t, 1, Options{}), Dead); !strings.Contains(s.Err, "no text") {
		t.Errorf("the error is %q", s.Err)
	}
}

// A number that was given out before, as when the clock was put back, does not stop the queue.
func TestNumberInHistory(t *testing.T) {
	g := newGate()
	f := start(t, work(func(ctx context.Context, _ *Job, _ int) error { return g.pass(ctx) }))
	id := f.enqueue(t, 1, Options{})
	waiting := f.enqueue(t, 1, Options{Delay: time.Hour})
	_, err := f.NonconcurrentDB().NewQuery(`INSERT INTO ` + table.History + ` SELECT id, queue, kind, 'succeeded', 1, '', '', '', '', '', 0, 0, 1, 1, 1, 1 FROM ` + table.Queue).Execute()
	if err != nil {
		t.Fatal(err)
	}
	close(g.open)
	f.await(t, f.enqueue(t, 1, Options{}), Succeeded)
	if f.await(t, id, Succeeded); f.count(t, table.Queue) != 1 {
		t.Error("the job is still in the queue")
	}
	if ok, err := f.jobs.Cancel(f.App.App, waiting); !ok || err != nil {
		t.Errorf("cancel: %t, %v", ok, err)
	}
}

// A step whose transaction is part of one that is rolled back is not done.
func TestOnceRolledBack(t *testing.T) {
	done := 0
	no := errors.New("no")
	f := start(t, work(func(_ context.Context, job *Job, _ int) error {
		for _, failure := range []error{no, nil} {
			err := job.jobs.app.RunInTransaction(func(tx core.App) error {
				if err := job.Once(tx, "step", func(core.App) error { done++; return nil }); err != nil {
					return err
				}
				return failure
			})
			if !errors.Is(err, failure) {
				return err
			}
		}
		return nil
	}))
	if f.await(t, f.enqueue(t, 1, Options{}), Succeeded); done != 2 {
		t.Errorf("the step was done %d times, once in vain", done)
	}
}

// The next of a lane has its turn also when the one before it goes without having run.
func TestLaneGoesOn(t *testing.T) {
	g := newGate()
	f := start(t, work(func(ctx context.Context, _ *Job, _ int) error { return g.pass(ctx) }))
	owner := Owner{Collection: "c", ID: "ada"}
	goes := map[string]func(id string) error{
		"cancelled": func(id string) error {
			_, err := f.jobs.Cancel(f.App.App, id)
			return err
		},
		"forgotten": func(string) error { return f.jobs.Forget(f.App.App, owner) },
	}
	var last []string
	for lane := range goes {
		f.enqueue(t, 1, Options{Lane: lane})
	}
	await(t, "the first of each lane", func() bool { return f.count(t, table.Queue+" WHERE state = 1") == 2 })
	if err := f.jobs.Pause(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	second := map[string]string{}
	for lane := range goes {
		second[lane] = f.enqueue(t, 1, Options{Lane: lane, Owner: owner})
		last = append(last, f.enqueue(t, 1, Options{Lane: lane}))
	}
	// As the pump leaves them that has claimed them before the pause.
	if _, err := f.NonconcurrentDB().NewQuery(`UPDATE ` + table.Queue + ` SET state = 4 WHERE state = 0`).Execute(); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	await(t, "the ends of the first", func() bool { return f.count(t, table.Queue+" WHERE state = 0") == 2 })
	for lane, do := range goes {
		if err := do(second[lane]); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.jobs.Resume(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	for _, id := range last {
		f.await(t, id, Succeeded)
	}
}
