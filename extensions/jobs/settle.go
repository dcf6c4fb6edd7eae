package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs/meter"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// result is how an attempt ended. The job is gone from the queue if the outcome is one of the history's; otherwise it is
// in the state, at the time.
type result struct {
	job     *Job
	outcome State
	at      time.Time // when it is due again
	free    bool      // the attempt is not counted
	err     string
	ended   time.Time
}

// execute makes one attempt, and hands over how it ended.
func (j *Jobs) execute(q *queue, job *Job) {
	job.kind.meter.Wait.Observe(j.now().Sub(job.DueAt))
	begun := time.Now()
	err := j.attempt(job)
	took := time.Since(begun)
	q.observe(took)
	job.kind.meter.Run.Observe(took)
	j.finished <- j.judge(job, err)
	job.cancel(nil)
}

// attempt calls the work and makes an error of a panic.
func (j *Jobs) attempt(job *Job) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if err := job.ctx.Err(); err != nil {
		return err // it was cancelled before it was begun
	}
	ctx := job.ctx
	end := time.Time{}
	if job.kind.timeout != NoTimeout {
		end = time.Now().Add(job.kind.timeout)
	}
	if job.expires > 0 {
		expires := time.UnixMilli(job.expires)
		if !j.now().Before(expires) {
			return context.DeadlineExceeded
		}
		if end.IsZero() || expires.Before(end) {
			end = expires
		}
	}
	if !end.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, end)
		defer stop()
	}
	if job.sealed {
		if job.payload, err = j.deps.Vault.Open(sealedFor(job.id), string(job.payload)); err != nil {
			return fmt.Errorf("open what the job is given: %w", err)
		}
	}
	if err = job.kind.work(ctx, job); err != nil {
		_ = err.Error() // a nil pointer that is an error panics here, and not where nobody catches it
	}
	return err
}

// judge decides what becomes of a job after an attempt.
func (j *Jobs) judge(job *Job, err error) result {
	now := j.now()
	r := result{job: job, ended: now, outcome: Succeeded}
	if err == nil || job.lost.Load() {
		return r
	}
	r.err = cut(err.Error())
	nap, napping := errors.AsType[snooze](err)
	told, isTold := errors.AsType[later](err)
	_, final := errors.AsType[permanent](err)
	cause := context.Cause(job.ctx)
	log := j.logger.With("job", job.ID, "kind", job.Kind, "attempt", job.Attempt)
	switch {
	case errors.Is(cause, errCancelled):
		r.outcome = Cancelled
	case job.expires > 0 && now.UnixMilli() >= job.expires:
		log.Warn("a job was not done before it expired", "error", err)
		r.outcome = Expired
	case napping:
		r.outcome, r.at, r.free, r.err = Scheduled, now.Add(nap.wait), true, ""
	case errors.Is(cause, errStopping): // which is not the job's fault
		r.outcome, r.free = Ready, true
	case final || job.Attempt >= job.most:
		log.Error("a job is dead", "error", err, "next", "satchel jobs show "+job.ID)
		r.outcome = Dead
		j.count.failed.Add(1)
	default:
		wait := job.kind.backoff(job.Attempt)
		if isTold {
			wait = told.wait
		}
		log.Warn("a job failed and will be tried again", "wait", wait.Round(time.Millisecond).String(), "error", err)
		r.outcome, r.at = Scheduled, now.Add(wait)
		j.count.failed.Add(1)
	}
	return r
}

// backoff is how long to wait after a number of attempts: between half and all of a time that doubles, so that what
// failed together does not come back together.
func (k *Kind) backoff(attempts int) time.Duration {
	wait := k.most
	if shift := attempts - 1; shift < 30 && k.first<<shift>>shift == k.first {
		wait = min(k.first<<shift, k.most)
	}
	return wait/2 + rand.N(wait/2+1) //nolint:gosec // nobody gains by guessing it
}

// counted is how the attempt is counted.
func (r *result) counted() meter.Outcome {
	switch {
	case r.job.lost.Load():
		return meter.Lost
	case r.outcome == Scheduled && r.free:
		return meter.Snoozed
	case r.outcome == Scheduled:
		return meter.Failed
	case r.outcome == Succeeded:
		return meter.Succeeded
	case r.outcome == Dead:
		return meter.Dead
	case r.outcome == Cancelled:
		return meter.Cancelled
	case r.outcome == Expired:
		return meter.Expired
	}
	return meter.Returned
}

// settle writes how attempts ended. It can be repeated: what was written is left alone the second time.
func (j *Jobs) settle(tx core.App, results []result) error {
	var ended []table.End
	for _, r := range results {
		switch {
		case r.job.lost.Load():
			continue
		case r.outcome == Succeeded || r.outcome == Cancelled || r.outcome == Expired:
			ended = append(ended, table.End{
				ID: r.job.id, Outcome: r.outcome, At: r.ended, Result: r.job.result, Err: r.err, Done: r.job.done.Load(), Total: r.job.total.Load(),
			})
		default:
			if err := j.requeue(tx, r); err != nil {
				return err
			}
		}
	}
	if err := table.Archive(tx, j.epoch, ended); err != nil {
		return err
	}
	for _, r := range results {
		if r.job.lane != "" {
			if err := table.FreeLane(tx, r.job.Kind, r.job.lane); err != nil {
				return err
			}
		}
	}
	return nil
}

// requeue writes the end of an attempt after which the job stays.
func (j *Jobs) requeue(tx core.App, r result) error {
	number := slices.Index(table.States(), r.outcome)
	change := dbx.Params{"state": number, "epoch": "", "error": r.err, "done": r.job.done.Load(), "total": r.job.total.Load()}
	if r.free {
		change["attempt"] = dbx.NewExp("attempt - 1")
	}
	if r.outcome == Scheduled {
		change["run_at"] = r.at.UnixMilli()
	}
	if r.outcome == Dead {
		change["finished_at"] = r.ended.UnixMilli()
	}
	if _, err := tx.NonconcurrentDB().Update(table.Queue, change, r.job.mine()).Execute(); err != nil {
		return fmt.Errorf("write end of attempt: %w", err)
	}
	return nil
}

// cut bounds the text of an error.
func cut(text string) string { return text[:min(len(text), 2000)] }
