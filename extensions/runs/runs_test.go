package runs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// start returns an application whose runs of the kind "test" do the work.
func start(t testing.TB, work Work) (*apptest.App, *Runs) {
	t.Helper()
	r := New(settings.Defaults[Config]())
	r.Register("test", work)
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), r.Extension()), r
}

func (r *Runs) mustEnqueue(t testing.TB, owner Owner, input any, o Options) string {
	t.Helper()
	id, err := r.Enqueue(r.app, "test", owner, input, o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// await waits for the run to be in the state.
func (r *Runs) await(t testing.TB, id string, want State) Status {
	t.Helper()
	var s Status
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var err error
		if s, err = r.Get(r.app, id); err != nil {
			t.Fatal(err)
		}
		if s.State == want {
			return s
		}
	}
	t.Fatalf("the run is %s (%s), not %s", s.State, s.Err, want)
	return s
}

// hurry makes a run due.
func (r *Runs) hurry(t testing.TB, id string) {
	t.Helper()
	if _, err := r.app.NonconcurrentDB().Update(table, dbx.Params{"due_at": 0}, dbx.HashExp{"id": id}).Execute(); err != nil {
		t.Fatal(err)
	}
	r.rouse()
}

func TestRun(t *testing.T) {
	app, r := start(t, func(_ context.Context, run *Run) error {
		var n int
		if err := run.Input(&n); err != nil {
			return err
		}
		run.Progress(int64(n), 9)
		return run.SetResult(map[string]int{"twice": 2 * n})
	})
	ada, token := app.User(t, "ada@example.test")
	_, other := app.User(t, "bob@example.test")

	var id string
	failure := errors.New("no")
	err := app.RunInTransaction(func(tx core.App) (err error) {
		id, err = r.Enqueue(tx, "test", OwnerOf(ada), 4, Options{})
		return errors.Join(err, failure)
	})
	if !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if _, err := r.Get(app, id); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a run of a transaction that was rolled back: %v", err)
	}

	id = r.mustEnqueue(t, OwnerOf(ada), 4, Options{})
	r.await(t, id, Succeeded)
	path := "/api/v1/runs/" + id
	got := app.Do(t, apptest.Request{Path: path, Token: token})
	if got.Status != http.StatusOK || !strings.Contains(string(got.Body), `"state":"succeeded","done":4,"total":9,`) ||
		!strings.Contains(string(got.Body), `"result":{"twice":8}`) {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	again := app.Do(t, apptest.Request{Path: path, Token: token, Header: map[string]string{"If-None-Match": got.Header.Get("ETag")}})
	if again.Status != http.StatusNotModified {
		t.Errorf("with the ETag: %d", again.Status)
	}
	for who, want := range map[string]int{other: 404, "": 401} {
		if got := app.Do(t, apptest.Request{Path: path, Token: who}); got.Status != want {
			t.Errorf("another's run: %d %s", got.Status, got.Body)
		}
	}
	if got := app.Do(t, apptest.Request{Path: "/api/v1/runs/none", Token: token}); got.Status != 404 {
		t.Errorf("no run: %d", got.Status)
	}
	left, err := find(app, id)
	if err != nil || left.Input != "" || left.Position != "" || left.Epoch != "" {
		t.Errorf("what is left: %+v %v", left, err)
	}
	if err := r.Forget(app, OwnerOf(ada)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(app, id); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Forget: %v", err)
	}
}

func TestEnqueueRefuses(t *testing.T) {
	app, r := start(t, func(context.Context, *Run) error { return nil })
	if _, err := r.Enqueue(app, "unknown", Owner{}, nil, Options{}); err == nil {
		t.Error("an unknown kind is taken")
	}
	if _, err := r.Enqueue(app, "test", Owner{}, strings.Repeat("x", maxInput), Options{}); err == nil {
		t.Error("an input without bounds is taken")
	}
	defer func() {
		if recover() == nil {
			t.Error("a kind can be registered twice")
		}
	}()
	r.Register("test", nil)
}

func TestLaterUniqueCancel(t *testing.T) {
	_, r := start(t, func(context.Context, *Run) error { return nil })
	later := Options{At: time.Now().Add(time.Hour), Unique: "key"}
	first := r.mustEnqueue(t, Owner{}, nil, later)
	if second := r.mustEnqueue(t, Owner{}, nil, Options{Unique: "key"}); second != first {
		t.Error("two runs have the key")
	}
	r.await(t, first, Queued)
	if done, err := r.Cancel(r.app, first); !done || err != nil {
		t.Fatalf("%v %v", done, err)
	}
	if done, err := r.Cancel(r.app, first); done || err != nil {
		t.Fatalf("cancelled twice: %v %v", done, err)
	}
	third := r.mustEnqueue(t, Owner{}, nil, later)
	if third == first {
		t.Error("the key of a run that has ended is taken still")
	}
	r.hurry(t, third)
	r.await(t, third, Succeeded)
	r.await(t, first, Cancelled)
}

func TestFailures(t *testing.T) {
	errNo := errors.New("it does not work")
	_, r := start(t, func(_ context.Context, run *Run) error {
		var how string
		if err := run.Input(&how); err != nil {
			return err
		}
		switch {
		case how == "permanent":
			return fmt.Errorf("give up: %w", Permanent(errNo))
		case how == "panic" && run.Attempt == 1:
			panic("ouch")
		case how == "twice" && run.Attempt < 3:
			return errNo
		case how == "never":
			return errNo
		}
		return nil
	})
	if s := r.await(t, r.mustEnqueue(t, Owner{}, "permanent", Options{}), Failed); !strings.Contains(s.Err, errNo.Error()) {
		t.Errorf("%q", s.Err)
	}
	for how, times := range map[string]int{"panic": 1, "twice": 2} {
		id := r.mustEnqueue(t, Owner{}, how, Options{})
		for n := range times {
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				now, err := find(r.app, id)
				if err != nil || time.Now().After(end) {
					t.Fatalf("%s: attempt %d: %+v %v", how, n+1, now, err)
				}
				if now.State == Queued && now.Attempts == n+1 && now.Error != "" {
					if wait := time.Until(time.UnixMilli(now.DueAt)); wait < time.Second || wait > 2*firstWait {
						t.Errorf("%s: waits %s after attempt %d", how, wait, n+1)
					}
					break
				}
			}
			r.hurry(t, id)
		}
		r.await(t, id, Succeeded)
	}
	never := r.mustEnqueue(t, Owner{}, "never", Options{At: time.Now().Add(time.Hour)})
	if _, err := r.app.NonconcurrentDB().Update(table, dbx.Params{"attempts": maxAttempts - 1}, dbx.HashExp{"id": never}).Execute(); err != nil {
		t.Fatal(err)
	}
	r.hurry(t, never)
	r.await(t, never, Failed)
	if result := r.check(t.Context(), &extensions.Host{App: r.app}); result.Level == 0 || !strings.Contains(result.Message, "2 background runs") {
		t.Errorf("%+v", result)
	}
}

func TestBackoff(t *testing.T) {
	for attempts, most := range map[int]time.Duration{0: firstWait, 1: firstWait, 2: 2 * firstWait, 5: 16 * firstWait, 11: longestWait, 12: longestWait, 1000: longestWait} {
		for range 50 {
			if wait := backoff(attempts); wait < most/2 || wait > most {
				t.Fatalf("after %d attempts: %s, want %s to %s", attempts, wait, most/2, most)
			}
		}
	}
}

// A server that stops keeps the position, gives the attempt back, and takes the run up again.
func TestStop(t *testing.T) {
	begun := make(chan struct{}, 2)
	_, r := start(t, func(ctx context.Context, run *Run) error {
		var position int
		if err := run.State(&position); err != nil {
			return err
		}
		if position == 7 {
			return nil
		}
		if err := run.Checkpoint(run.runs.app, 7); err != nil {
			return err
		}
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	id := r.mustEnqueue(t, Owner{}, nil, Options{})
	<-begun
	if err := r.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := find(r.app, id)
	if err != nil || left.State != Queued || left.Attempts != 0 || left.Position != "7" || left.Epoch != "" {
		t.Fatalf("%+v %v", left, err)
	}
	if err := r.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r.await(t, id, Succeeded)
}

// A process that lives keeps its runs, however long it is silent; those of one that is gone are taken at once, and those
// of one that nobody can look at after a while.
func TestProcesses(t *testing.T) {
	hold := make(chan struct{})
	begun := make(chan struct{}, 1)
	app, r := start(t, func(_ context.Context, run *Run) error {
		begun <- struct{}{}
		<-hold
		return run.Checkpoint(run.runs.app, 1)
	})
	id := r.mustEnqueue(t, Owner{}, nil, Options{})
	<-begun

	other := New(settings.Defaults[Config]())
	other.Register("test", func(context.Context, *Run) error { return nil })
	other.app, other.logger = app, r.logger
	if err := other.present.enter(app.DataDir(), other.epoch); err != nil {
		t.Fatal(err)
	}
	other.now = func() time.Time { return time.Now().Add(24 * time.Hour) }
	look := func() *row {
		t.Helper()
		if err := other.recover(); err != nil {
			t.Fatal(err)
		}
		found, err := find(app, id)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if got := look(); got.State != Running || got.Epoch != r.epoch {
		t.Fatalf("the run of a process that lives was taken: %+v", got)
	}
	if claimed, err := other.claim(id); claimed != nil || err != nil {
		t.Fatalf("claimed %+v %v", claimed, err)
	}

	// Without its file it may be on another machine.
	name := filepath.Join(app.DataDir(), "runs", r.epoch)
	if err := os.Rename(name, name+"x"); err != nil {
		t.Fatal(err)
	}
	other.now = time.Now
	if got := look(); got.State != Running {
		t.Fatalf("a run was taken from a process that was heard of: %+v", got)
	}
	other.now = func() time.Time { return time.Now().Add(2 * staleAfter) }
	if got := look(); got.State != Queued || got.Attempts != 1 {
		t.Fatalf("the run of a silent process was not taken: %+v", got)
	}
	other.now = time.Now
	if err := other.Do(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	close(hold) // the first process wakes up and has lost the run
	r.await(t, id, Succeeded)
}

func TestLost(t *testing.T) {
	_, r := start(t, func(context.Context, *Run) error { return nil })
	id := r.mustEnqueue(t, Owner{}, nil, Options{At: time.Now().Add(time.Hour)})
	claimed, err := r.claim(id)
	if err != nil || claimed == nil {
		t.Fatal(err)
	}
	ctx, lose := context.WithCancelCause(t.Context())
	run := &Run{ID: id, Kind: "test", runs: r, lose: lose}
	if err := run.Checkpoint(r.app, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.release(r.epoch); err != nil {
		t.Fatal(err)
	}
	if err := run.Checkpoint(r.app, 2); !errors.Is(err, ErrLost) || !errors.Is(context.Cause(ctx), ErrLost) {
		t.Errorf("%v, %v", err, context.Cause(ctx))
	}
}

func TestSweep(t *testing.T) {
	_, r := start(t, func(context.Context, *Run) error { return nil })
	id := r.mustEnqueue(t, Owner{}, nil, Options{})
	r.await(t, id, Succeeded)
	if err := r.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(r.app, id); err != nil {
		t.Fatal(err)
	}
	old := New(r.cfg)
	old.app, old.now = r.app, func() time.Time { return time.Now().Add(r.cfg.Keep + time.Hour) }
	if err := old.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(r.app, id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Concurrency: 0, Keep: time.Hour}, {Concurrency: 17, Keep: time.Hour}, {Concurrency: 1}} {
		if c.Validate() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
