package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// maxSteps bounds the names of the steps that a job remembers.
const maxSteps = 1000

// Job is one attempt. Its methods may be called from one goroutine at a time.
type Job struct {
	ID      string
	Kind    string
	Owner   Owner
	Attempt int // from 1
	DueAt   time.Time
	Request string // the id of the request that asked for it

	jobs *Jobs
	kind *Kind
	id   int64
	lane string
	from *queue

	payload  []byte
	sealed   bool // the payload, until it is opened for the work
	position string
	steps    []string
	result   string
	expires  int64
	most     int // attempts

	ctx         context.Context //nolint:containedctx // whoever claims, begins and cancels are three
	cancel      context.CancelCauseFunc
	lost        atomic.Bool
	done, total atomic.Int64
	told        int64 // done, as it was last written
}

// Key names the job to other services that take idempotency keys. It is the same in every attempt.
func (j *Job) Key() string { return "job-" + j.ID }

// State reads the position of the last checkpoint, also that of an earlier attempt. Without one it leaves into alone.
func (j *Job) State(into any) error {
	if j.position == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(j.position), into); err != nil {
		return fmt.Errorf("read position of job %s: %w", j.Kind, err)
	}
	return nil
}

// Checkpoint remembers where to go on from, in the transaction of tx if it is one. It is [ErrLost] when the job belongs to
// this process no longer, so that an effect in the same transaction happens once, whatever ends the process.
func (j *Job) Checkpoint(tx core.App, position any) error {
	raw, err := marshal(position)
	if err != nil {
		return fmt.Errorf("checkpoint job %s: %w", j.Kind, err)
	}
	if err := j.write(tx, dbx.Params{"position": raw}); err != nil {
		return fmt.Errorf("checkpoint job %s: %w", j.Kind, err)
	}
	raw, j.position = j.position, raw
	pb.AfterRollback(tx, func() { j.position = raw })
	return nil
}

// Once does a step of the job in a transaction, which also remembers that it is done: in all attempts together it happens
// once, however often the process dies. What fn does elsewhere than in its transaction is not undone; give [Job.Key] to
// other services.
func (j *Job) Once(app core.App, step string, fn func(tx core.App) error) error {
	if slices.Contains(j.steps, step) {
		return nil
	}
	if len(j.steps) >= maxSteps || len(step) > 100 {
		return fmt.Errorf("step %.100q of job %s: at most %d steps with names of 100 bytes; use Checkpoint", step, j.Kind, maxSteps)
	}
	steps := append(slices.Clone(j.steps), step)
	raw, err := marshal(steps)
	if err != nil {
		return err
	}
	err = app.RunInTransaction(func(tx core.App) error {
		// Before the effect, so that it is not even tried once the job is another process's.
		if err := j.write(tx, dbx.Params{"steps": raw}); err != nil {
			return fmt.Errorf("step %s of job %s: %w", step, j.Kind, err)
		}
		return fn(tx)
	})
	if err == nil {
		steps, j.steps = j.steps, steps
		pb.AfterRollback(app, func() { j.steps = steps })
	}
	return err
}

// Progress says how much is done, for the owner to see. A total of 0 is not known. It costs nothing: what is said is
// written every few seconds.
func (j *Job) Progress(done, total int64) {
	j.done.Store(done)
	j.total.Store(total)
}

// SetResult is what the owner gets to see when the job has succeeded.
func (j *Job) SetResult(value any) error {
	raw, err := marshal(value)
	if err != nil {
		return fmt.Errorf("set result of job %s: %w", j.Kind, err)
	}
	j.result = raw
	return nil
}

// write changes the row if the job is still this process's.
func (j *Job) write(tx core.App, change dbx.Params) error {
	if j.lost.Load() {
		return ErrLost
	}
	change["done"], change["total"] = j.done.Load(), j.total.Load()
	change["lease_until"] = j.jobs.now().Add(lease).UnixMilli()
	res, err := tx.NonconcurrentDB().Update(table.Queue, change, j.mine()).Execute()
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		j.lose()
		return ErrLost
	}
	return err
}

// mine is the condition under which the row is this attempt's.
func (j *Job) mine() dbx.Expression {
	return dbx.HashExp{"id": j.id, "epoch": j.jobs.epoch, "attempt": j.Attempt, "state": table.IsRunning}
}

// lose ends the attempt without a word: the job is somebody else's.
func (j *Job) lose() {
	j.lost.Store(true)
	j.cancel(ErrLost)
}
