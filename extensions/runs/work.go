package runs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions"
)

const (
	// maxAttempts is how often a run is tried: with the waits below, for most of a day.
	maxAttempts = 25

	// firstWait doubles with every attempt until it is longestWait.
	firstWait   = 5 * time.Second
	longestWait = time.Hour

	// crashesAtOnce is how often a run is taken up without a wait after its process has died. One that dies more often may
	// be the cause.
	crashesAtOnce = 3
)

// backoff is how long to wait after a number of attempts: between half and all of a time that doubles, so that what
// failed together does not come back together.
func backoff(attempts int) time.Duration {
	wait := longestWait
	if attempts < 12 { // 5 s doubled eleven times is more than an hour
		wait = min(firstWait<<max(attempts-1, 0), longestWait)
	}
	return wait/2 + rand.N(wait/2+1) //nolint:gosec // nobody gains by guessing it
}

func (r *Runs) start(_ context.Context, _ *extensions.Host) error {
	if err := r.present.enter(r.app.DataDir(), r.epoch); err != nil {
		return err
	}
	ctx, end := context.WithCancel(context.Background())
	r.end = end
	r.working.Go(func() { r.dispatch(ctx) })
	return nil
}

// stop ends the work. What does not return in time is taken up like that of a crashed process.
func (r *Runs) stop(ctx context.Context) error {
	if r.end == nil {
		return nil // another extension could not start
	}
	r.end()
	returned := make(chan struct{})
	go func() { r.working.Wait(); close(returned) }()
	select {
	case <-returned:
		r.present.leave()
		return nil
	case <-ctx.Done():
		return errors.New("background runs did not stop in time; they will be taken up again")
	}
}

// dispatch gives runs to free slots until ctx ends.
func (r *Runs) dispatch(ctx context.Context) {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	var recovered, swept time.Time
	for {
		if now := r.now(); now.Sub(recovered) >= beatEvery {
			recovered = now
			r.complain(ctx, r.recover())
		}
		if now := r.now(); now.Sub(swept) >= sweepEvery {
			swept = now
			r.complain(ctx, r.sweep(ctx))
			r.present.tidy(now.Add(-sweepEvery))
		}
		for more := true; more; {
			more = r.dispatchOne(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-ticker.C:
		}
	}
}

func (r *Runs) complain(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		r.logger.Warn("background runs could not be looked after", "error", err)
	}
}

// dispatchOne starts a run, and reports whether there may be another one to start.
func (r *Runs) dispatchOne(ctx context.Context) bool {
	if ctx.Err() != nil || len(r.kinds) == 0 {
		return false
	}
	select {
	case r.slots <- struct{}{}:
	default:
		return false // whoever frees a slot wakes the dispatcher
	}
	claimed, err := r.claim("")
	if err != nil || claimed == nil {
		<-r.slots
		r.complain(ctx, err)
		return false
	}
	r.working.Go(func() {
		defer func() { <-r.slots; r.rouse() }()
		_ = r.execute(ctx, claimed) // it is in the log and in the row
	})
	return true
}

// execute works on a claimed run and writes down how it ended. The error is the work's.
func (r *Runs) execute(ctx context.Context, claimed *row) error {
	r.running.Add(1)
	defer r.running.Add(-1)
	workCtx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	run := &Run{
		ID: claimed.ID, Kind: claimed.Kind, Owner: claimed.owner(), Attempt: claimed.Attempts,
		runs: r, input: claimed.Input, position: claimed.Position, lose: lose,
	}
	run.Progress(claimed.Done, claimed.Total)

	beating := make(chan struct{})
	go func() {
		defer close(beating)
		ticker := time.NewTicker(beatEvery)
		defer ticker.Stop()
		for {
			select {
			case <-workCtx.Done():
				return
			case <-ticker.C:
				if err := run.beat(); err != nil && !errors.Is(err, ErrLost) {
					r.complain(workCtx, fmt.Errorf("beat of run %s: %w", run.Kind, err))
				}
			}
		}
	}()
	err := r.attempt(workCtx, run)
	lost := errors.Is(context.Cause(workCtx), ErrLost)
	lose(nil)
	<-beating
	if lost {
		r.logger.Warn("a background run was taken over by another process", "run", run.ID, "kind", run.Kind)
		return ErrLost
	}
	r.finish(ctx, run, err)
	return err
}

// attempt calls the work and makes an error of a panic.
func (r *Runs) attempt(ctx context.Context, run *Run) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	work, known := r.kinds[run.Kind]
	if !known {
		return fmt.Errorf("the kind %q is not registered", run.Kind)
	}
	return work(ctx, run)
}

// finish writes down how an attempt ended. Until that is written nobody else takes the run, so it is tried until the
// process ends.
func (r *Runs) finish(ctx context.Context, run *Run, err error) {
	change := r.outcome(ctx, run, err)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		failure := run.write(r.app, change)
		if failure == nil || errors.Is(failure, ErrLost) {
			return
		}
		r.logger.Warn("the end of a background run could not be written", "run", run.ID, "error", failure)
		select {
		case <-ctx.Done():
			return // the next process finds the run without an owner
		case <-time.After(wait):
		}
	}
}

// outcome is what becomes of the row. A run that ended well or was given up for good keeps no more than its owner may see.
func (r *Runs) outcome(ctx context.Context, run *Run, err error) dbx.Params {
	now := r.now()
	change := dbx.Params{"epoch": "", "error": ""}
	switch {
	case err == nil:
		change["state"], change["finished_at"], change["result"] = Succeeded, now.UnixMilli(), run.result
		change["unique_key"], change["input"], change["position"] = "", "", ""
		return change
	case ctx.Err() != nil: // the server stops, which is not the run's fault
		change["state"], change["due_at"], change["attempts"] = Queued, now.UnixMilli(), max(run.Attempt-1, 0)
		return change
	}
	change["error"] = cut(err.Error())
	_, final := errors.AsType[permanent](err)
	if final || run.Attempt >= maxAttempts {
		r.logger.Error("a background run was given up", "run", run.ID, "kind", run.Kind, "attempts", run.Attempt, "error", err)
		change["state"], change["finished_at"], change["unique_key"] = Failed, now.UnixMilli(), ""
		return change
	}
	wait := backoff(run.Attempt)
	r.logger.Warn("a background run failed and will be tried again", "run", run.ID, "kind", run.Kind, "attempt", run.Attempt, "wait", wait.String(), "error", err)
	change["state"], change["due_at"] = Queued, now.Add(wait).UnixMilli()
	return change
}

// cut bounds the text of an error.
func cut(text string) string { return text[:min(len(text), 2000)] }

// Do works on a run in this process and returns when it has ended, for commands. It need not be due. When another process
// works on it, Do waits for that. The error is that of the work; unless it is permanent the run stays in the queue.
func (r *Runs) Do(ctx context.Context, id string) error {
	if err := r.present.enter(r.app.DataDir(), r.epoch); err != nil {
		return err
	}
	defer r.present.leave()
	for {
		if err := r.recover(); err != nil {
			return err
		}
		claimed, err := r.claim(id)
		if err != nil {
			return err
		}
		if claimed != nil {
			return r.execute(ctx, claimed)
		}
		status, err := r.Get(r.app, id)
		switch {
		case err != nil:
			return err
		case status.State == Succeeded:
			return nil
		case status.State == Failed, status.State == Cancelled:
			return fmt.Errorf("the run is %s: %s", status.State, status.Err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery / 4):
		}
	}
}
