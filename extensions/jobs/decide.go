package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
	"github.com/satchelbase/satchel/extensions/jobs/table"
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
	number, err := table.ParseID(id)
	if err != nil {
		return false, nil //nolint:nilerr // no job has the id
	}
	cancelled := false
	err = tx.RunInTransaction(func(tx core.App) (err error) {
		if cancelled, err = table.Cancel(tx, number, j.now()); cancelled {
			pb.AfterCommit(tx, j.hurry) // others of its lane may go on
		}
		return err
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
		if _, err := table.Find(tx, id); err != nil {
			return err
		}
		number, err := table.ParseID(id)
		if err != nil {
			return err
		}
		if found, err := table.Interrupt(tx, number); err != nil || !found {
			return cmp.Or(err, error(ErrNotWaiting))
		}
		pb.AfterCommit(tx, j.hurry)
		return nil
	})
}

// Retry makes a job due now that is dead or waits for its time. Its attempts begin anew. A payload that is not nil replaces
// what the job was given.
func (j *Jobs) Retry(tx core.App, id string, payload json.RawMessage) error {
	return tx.RunInTransaction(func(tx core.App) error {
		found, err := table.Find(tx, id)
		switch {
		case err != nil:
			return err
		case found.Outcome != "":
			return ErrNotWaiting
		case found.State == table.IsRunning:
			return ErrRunning
		}
		text, sealed := "", false
		if payload != nil {
			if text, sealed, err = j.replacement(found, payload); err != nil {
				return err
			}
		}
		if err := table.Retry(tx, found.ID, text, sealed, j.now()); err != nil {
			if errors.Is(err, table.ErrKeyTaken) {
				return ErrKeyTaken
			}
			return err
		}
		pb.AfterCommit(tx, func() { j.rouse(found.Queue, 0) })
		return nil
	})
}

// replacement checks what an operator gives a job instead, and seals it if the kind says so.
func (j *Jobs) replacement(found *table.Row, payload json.RawMessage) (text string, sealed bool, err error) {
	k := j.kinds[found.Kind]
	if k == nil {
		return "", false, api.InvalidBody(api.FieldError{Field: "payload", Code: api.ErrValidation.Name, Message: "this program does not know the kind " + found.Kind})
	}
	err = k.check(payload)
	if err == nil && len(payload) > maxPayload {
		err = fmt.Errorf("more than %d bytes", maxPayload)
	}
	if err != nil {
		return "", false, api.InvalidBody(api.FieldError{Field: "payload", Code: api.ErrValidation.Name, Message: err.Error()})
	}
	text, err = j.seal(k, found.ID, string(payload))
	return text, k.sealed, err
}

// Wake makes whoever works on jobs look at everything soon, after something was written to the tables past this package.
func (j *Jobs) Wake() { j.hurry() }

// Pause keeps jobs of a queue from being begun, and Resume lets them.
func (j *Jobs) Pause(tx core.App, queue string) error { return table.Pause(tx, queue, j.now()) }

// Resume ends a pause.
func (j *Jobs) Resume(tx core.App, queue string) error {
	if err := table.Resume(tx, queue); err != nil {
		return err
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
		if j.only, err = table.ParseID(id); err != nil {
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
		found, err := table.Find(j.app, id)
		switch {
		case err != nil:
			return err
		case found.Stands() == Succeeded:
			return nil
		case found.Status().Ended(), found.State == table.IsScheduled && found.Attempt > before:
			return fmt.Errorf("the job is %s: %s", found.Stands(), found.Error)
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
	found, err := table.Find(j.app, id)
	if err != nil || found.Outcome != "" {
		return 0, err
	}
	_, err = j.app.NonconcurrentDB().Update(table.Queue, dbx.Params{"state": table.IsReady, "run_at": j.now().UnixMilli()}, dbx.HashExp{"id": found.ID, "state": table.IsScheduled}).Execute()
	if err != nil {
		return 0, fmt.Errorf("hurry job: %w", err)
	}
	if found.State == table.IsRunning {
		found.Attempt-- // what is to come is the end of this one
	}
	j.rouse(found.Queue, 0)
	return found.Attempt, nil
}

// Get returns where a job stands. The error is [ErrNotFound] if there is none.
func (j *Jobs) Get(app core.App, id string) (Status, error) {
	found, err := table.Find(app, id)
	if err != nil {
		return Status{}, err
	}
	return found.Status(), nil
}

// Clear does most of [Jobs.Forget] before the transaction that does the rest, in short ones.
func (j *Jobs) Clear(owner Owner) error { return table.Clear(j.app, owner.Collection, owner.ID) }

// Forget removes the jobs of an owner that nobody works on, and what names the owner in the others.
func (j *Jobs) Forget(tx core.App, owner Owner) error {
	if err := table.Forget(tx, owner.Collection, owner.ID); err != nil {
		return err
	}
	pb.AfterCommit(tx, j.hurry)
	return nil
}

// handleGet shows a job to its owner. To anybody else it does not exist.
func (j *Jobs) handleGet(e *core.RequestEvent) error {
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	found, err := table.Find(e.App, e.Request.PathValue("id"))
	if errors.Is(err, ErrNotFound) || err == nil && ownerOf(found) != OwnerOf(e.Auth) {
		return api.ErrNotFound
	}
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, found.Status())
}
