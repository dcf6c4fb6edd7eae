package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// Codes of what is refused.
var (
	ErrRunning    = &extensions.Code{Name: "jobs.running", Status: http.StatusConflict, Title: "The job is running"}
	ErrNotWaiting = &extensions.Code{Name: "jobs.ended", Status: http.StatusConflict, Title: "The job has ended"}
	ErrKeyTaken   = &extensions.Code{Name: "jobs.key_taken", Status: http.StatusConflict, Title: "Another job with the same key is waiting"}
)

// waitEvery is how often Do looks at a job that another process may be doing.
const waitEvery = 100 * time.Millisecond

// Cancel ends a job that nobody works on, dead ones too, and reports whether it was one.
func (j *Jobs) Cancel(tx core.App, id string) (bool, error) {
	number, err := parseID(id)
	if err != nil {
		return false, nil //nolint:nilerr // no job has the id
	}
	cancelled := false
	err = tx.RunInTransaction(func(tx core.App) error {
		res, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + historyTable + ` (id, outcome, finished_at, result, error, done, total, queue, kind, attempt,
				owner_collection, owner, request, run_at, created_at, started_at)
			SELECT id, {:outcome}, {:now}, '', error, done, total, queue, kind, attempt, owner_collection, owner, request, run_at, created_at, started_at
			FROM ` + queueTable + ` WHERE id = {:id} AND state <> 1`).
			Bind(dbx.Params{"id": number, "outcome": string(Cancelled), "now": j.now().UnixMilli()}).Execute()
		if err != nil {
			return fmt.Errorf("cancel job: %w", err)
		}
		n, err := res.RowsAffected()
		if cancelled = n > 0; err != nil || n == 0 {
			return err
		}
		if _, err := tx.NonconcurrentDB().Delete(queueTable, dbx.HashExp{"id": number}).Execute(); err != nil {
			return fmt.Errorf("cancel job: %w", err)
		}
		return nil
	})
	return cancelled, err
}

// Interrupt is [Jobs.Cancel] also for a job that runs: its context ends soon, and when its work returns with an error the
// job is cancelled. The error is [ErrNotWaiting] if it has ended already.
func (j *Jobs) Interrupt(tx core.App, id string) error {
	return tx.RunInTransaction(func(tx core.App) error {
		cancelled, err := j.Cancel(tx, id)
		if err != nil || cancelled {
			return err
		}
		if _, err := find(tx, id); err != nil {
			return err
		}
		number, err := parseID(id)
		if err != nil {
			return err
		}
		res, err := tx.NonconcurrentDB().Update(queueTable, dbx.Params{"cancelled": 1}, dbx.HashExp{"id": number, "state": running}).Execute()
		if err != nil {
			return fmt.Errorf("interrupt job: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrNotWaiting)
		}
		pb.AfterCommit(tx, j.hurry)
		return nil
	})
}

// Retry makes a job due now that is dead or waits for its time. Its attempts begin anew. A payload that is not nil replaces
// what the job was given.
func (j *Jobs) Retry(tx core.App, id string, payload json.RawMessage) error {
	return tx.RunInTransaction(func(tx core.App) error {
		found, err := find(tx, id)
		switch {
		case err != nil:
			return err
		case found.Outcome != "":
			return ErrNotWaiting
		case found.State == running:
			return ErrRunning
		}
		change := dbx.Params{
			"state": ready, "run_at": j.now().UnixMilli(), "attempt": 0, "finished_at": 0, "cancelled": 0, "expires_at": dbx.NewExp("CASE state WHEN 3 THEN 0 ELSE expires_at END"),
		}
		if payload != nil {
			if change["payload"], err = j.replacement(found, payload); err != nil {
				return err
			}
		}
		if _, err := tx.NonconcurrentDB().Update(queueTable, change, dbx.HashExp{"id": found.ID}).Execute(); err != nil {
			if strings.Contains(err.Error(), "UNIQUE constraint failed") {
				return ErrKeyTaken
			}
			return fmt.Errorf("retry job: %w", err)
		}
		pb.AfterCommit(tx, func() { j.rouse(found.Queue, 0) })
		return nil
	})
}

// replacement checks what an operator gives a job instead.
func (j *Jobs) replacement(found *row, payload json.RawMessage) (string, error) {
	k := j.kinds[found.Kind]
	if k == nil {
		return "", api.InvalidBody(api.FieldError{Field: "payload", Code: api.ErrValidation.Name, Message: "this program does not know the kind " + found.Kind})
	}
	err := k.check(payload)
	if err == nil && len(payload) > maxPayload {
		err = fmt.Errorf("more than %d bytes", maxPayload)
	}
	if err != nil {
		return "", api.InvalidBody(api.FieldError{Field: "payload", Code: api.ErrValidation.Name, Message: err.Error()})
	}
	return j.seal(k, found.ID, string(payload))
}

// Pause keeps jobs of a queue from being begun, and Resume lets them.
func (j *Jobs) Pause(tx core.App, queue string) error {
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + queuesTable + ` (name, paused_at) VALUES ({:queue}, {:now}) ON CONFLICT DO NOTHING`).
		Bind(dbx.Params{"queue": queue, "now": j.now().UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("pause queue: %w", err)
	}
	return nil
}

// Resume ends a pause.
func (j *Jobs) Resume(tx core.App, queue string) error {
	if _, err := tx.NonconcurrentDB().Delete(queuesTable, dbx.HashExp{"name": queue}).Execute(); err != nil {
		return fmt.Errorf("resume queue: %w", err)
	}
	pb.AfterCommit(tx, j.hurry)
	return nil
}

// hurry makes whoever works on jobs look at everything, also for jobs to interrupt.
func (j *Jobs) hurry() {
	if j.awake.Load() {
		j.hasty.Store(true)
		j.nudge()
		return
	}
	j.ring()
}

// Do works on a job in this process and returns when it has ended, for commands. It need not be due. When another process
// works on it, Do waits for that. The error is that of the work; unless the job is dead it stays in the queue.
func (j *Jobs) Do(ctx context.Context, id string) error {
	before, err := j.urge(id)
	if err != nil {
		return err
	}
	if !j.awake.Load() {
		if j.only, err = parseID(id); err != nil {
			return err
		}
		defer func() { j.only = 0 }()
		if err := j.start(ctx, nil); err != nil {
			return err
		}
		defer func() {
			stopping, end := context.WithTimeout(context.WithoutCancel(ctx), j.cfg.Drain+5*time.Second)
			defer end()
			_ = j.stop(stopping) // the next process takes up what is left
		}()
	}
	ticker := time.NewTicker(waitEvery)
	defer ticker.Stop()
	for {
		found, err := find(j.app, id)
		switch {
		case err != nil:
			return err
		case found.state() == Succeeded:
			return nil
		case found.status().Ended(), found.State == scheduled && found.Attempt > before:
			return fmt.Errorf("the job is %s: %s", found.state(), found.Error)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// urge makes a job due now that waits for its time, and returns how many attempts it has had.
func (j *Jobs) urge(id string) (attempts int, err error) {
	found, err := find(j.app, id)
	if err != nil || found.Outcome != "" {
		return 0, err
	}
	_, err = j.app.NonconcurrentDB().Update(queueTable, dbx.Params{"state": ready, "run_at": j.now().UnixMilli()}, dbx.HashExp{"id": found.ID, "state": scheduled}).Execute()
	if err != nil {
		return 0, fmt.Errorf("hurry job: %w", err)
	}
	if found.State == running {
		found.Attempt-- // what is to come is the end of this one
	}
	j.rouse(found.Queue, 0)
	return found.Attempt, nil
}
