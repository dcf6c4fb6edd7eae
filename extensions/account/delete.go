package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/operations"
)

// deletionKind is the kind of the runs that delete accounts.
const deletionKind = "account.delete"

// target is the input of a run.
type target struct {
	Collection string `json:"collection"`
	Record     string `json:"record"`
}

// doDelete asks for the deletion of the caller's account. Asking again changes nothing.
func (a *Accounts) doDelete(c *operations.Call, _ struct{}) (Status, error) {
	c.Subject(c.Auth)
	known, err := a.pending(c.App, c.Auth)
	if err != nil || known != nil {
		return known.status(), err
	}
	if err := a.recent(c.Event, c.Auth); err != nil {
		return Status{}, err
	}
	if err := a.blocked(c.App, c.Auth); err != nil {
		return Status{}, err
	}
	grace := a.cfg.Grace
	anonymous, err := a.deps.Anonymous(c.App, c.Auth)
	if err != nil {
		return Status{}, err
	}
	if anonymous {
		grace = 0 // there is nothing to sign in with again
	}
	d, err := a.request(c.App, c.Auth, grace)
	if err != nil {
		return Status{}, err
	}
	c.Detail("deleteAt", moment(d.DueAt))
	c.AfterCommit(func() { a.gate.add(keyOf(c.Auth)) })
	return d.status(), nil
}

// pending is the deletion that is on its way. One that was given up is forgotten.
func (a *Accounts) pending(tx core.App, account *core.Record) (*deletion, error) {
	d, err := findDeletion(tx, keyOf(account))
	if err != nil || d == nil {
		return nil, err
	}
	status, err := a.deps.Jobs.Get(tx, d.Run)
	switch {
	case errors.Is(err, jobs.ErrNotFound) || err == nil && status.Ended():
		return nil, forgetDeletion(tx, keyOf(account))
	case err != nil:
		return nil, err
	}
	return d, nil
}

// request schedules the deletion and ends the sessions.
func (a *Accounts) request(tx core.App, account *core.Record, grace time.Duration) (*deletion, error) {
	k := keyOf(account)
	due := a.now().Add(grace)
	run, err := a.deps.Jobs.Enqueue(tx, deletionKind, target{k.collection, k.record},
		jobs.Options{Owner: jobs.OwnerOf(account), At: due, Key: k.collection + "/" + k.record})
	if err != nil {
		return nil, err
	}
	d := &deletion{Collection: k.collection, Record: k.record, Run: run, RequestedAt: a.now().UnixMilli(), DueAt: due.UnixMilli()}
	_, err = tx.NonconcurrentDB().Insert(deletionsTable, dbx.Params{
		"collection": d.Collection, "record": d.Record, "run": d.Run, "requested_at": d.RequestedAt, "due_at": d.DueAt,
	}).Execute()
	if err != nil {
		return nil, fmt.Errorf("note deletion: %w", err)
	}
	return d, a.deps.EndSessions(tx, account, "account_deletion")
}

// blocked lists all that must be settled first.
func (a *Accounts) blocked(app core.App, account *core.Record) error {
	if a.deps.Blockers == nil {
		return nil
	}
	blockers, err := a.deps.Blockers(app, account)
	if err != nil || len(blockers) == 0 {
		return err
	}
	problem := api.Fail(ErrBlocked, "settle what errors lists, and try again")
	for _, b := range blockers[:min(len(blockers), 50)] {
		problem.Errors = append(problem.Errors, api.FieldError{Field: b.Kind + "." + b.ID, Code: ErrBlocked.Name, Message: b.Message})
	}
	return problem
}

// doCancel keeps the account, unless its deletion has begun.
func (a *Accounts) doCancel(c *operations.Call, _ struct{}) (Status, error) {
	c.Subject(c.Auth)
	k := keyOf(c.Auth)
	d, err := findDeletion(c.App, k)
	if err != nil {
		return Status{}, err
	}
	if d != nil {
		// A run that has begun may be queued again, for its next attempt.
		cancelled := false
		if d.StartedAt == 0 {
			if cancelled, err = a.deps.Jobs.Cancel(c.App, d.Run); err != nil {
				return Status{}, err
			}
		}
		if !cancelled {
			return Status{}, ErrStarted
		}
		if err := forgetDeletion(c.App, k); err != nil {
			return Status{}, err
		}
		c.AfterCommit(func() { a.gate.remove(k) })
	}
	return a.status(c.App, c.Auth)
}

// workDeletion deletes an account. It finds out by itself how far it has come.
func (a *Accounts) workDeletion(ctx context.Context, run *jobs.Job, in target) error {
	k := key{in.Collection, in.Record}
	e := newEraser(a.app, run, nil, a.logger)
	if err := run.State(&e.pos); err != nil {
		return jobs.Permanent(err)
	}
	if err := e.removeFiles(ctx); err != nil { // of an attempt before
		return err
	}
	account, err := a.app.FindRecordById(in.Collection, in.Record)
	if errors.Is(err, sql.ErrNoRows) {
		return a.afterwards(ctx, k)
	}
	if err != nil {
		return fmt.Errorf("find account: %w", err)
	}
	begun, err := a.begin(k)
	if err != nil || !begun {
		return err
	}
	if e.plan, err = a.plan(a.app, account.Collection()); err != nil {
		return err
	}
	if err := e.everything(ctx, account); err != nil {
		return err
	}
	if err := a.removeExports(ctx, dbx.And(k.where())); err != nil {
		return err
	}
	for _, s := range a.deps.Sections {
		if s.Clear != nil {
			if err := s.Clear(ctx, a.app, account); err != nil {
				return fmt.Errorf("clear %s of account: %w", s.Name, err)
			}
		}
		if s.Delete == nil {
			continue
		}
		if err := a.app.RunInTransaction(func(tx core.App) error { return s.Delete(tx, account) }); err != nil {
			return fmt.Errorf("delete %s of account: %w", s.Name, err)
		}
	}
	if err := a.finish(ctx, e, account); err != nil {
		return err
	}
	return a.afterwards(ctx, k)
}

// begin marks the point after which there is no way back. It reports false if the deletion was cancelled.
func (a *Accounts) begin(k key) (bool, error) {
	res, err := a.app.NonconcurrentDB().NewQuery(`UPDATE ` + deletionsTable + `
		SET started_at = CASE started_at WHEN 0 THEN {:now} ELSE started_at END WHERE collection = {:collection} AND record = {:record}`).
		Bind(dbx.Params{"now": a.now().UnixMilli(), "collection": k.collection, "record": k.record}).Execute()
	if err != nil {
		return false, fmt.Errorf("begin deletion: %w", err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// finish deletes the account itself and all that names it, in one transaction.
func (a *Accounts) finish(ctx context.Context, e *eraser, account *core.Record) error {
	before := e.pos
	if err := a.deps.Jobs.Clear(jobs.OwnerOf(account)); err != nil {
		return fmt.Errorf("delete account: %w", err)
	}
	err := a.app.RunInTransaction(func(tx core.App) error {
		if err := e.remove(ctx, tx, account.Collection(), account.Id); err != nil {
			return err
		}
		if err := a.deps.Audit(tx, nil, "account.deleted", "success", account, map[string]any{"records": e.pos.Erased}); err != nil {
			return err
		}
		if a.deps.Forget != nil {
			if err := a.deps.Forget(tx, account.Collection().Name, account.Id); err != nil {
				return err
			}
		}
		if err := forgetDeletion(tx, keyOf(account)); err != nil {
			return err
		}
		if err := e.run.Checkpoint(tx, e.pos); err != nil {
			return err
		}
		return a.deps.Jobs.Forget(tx, jobs.OwnerOf(account))
	})
	if err != nil {
		if _, gone := a.app.FindRecordById(account.Collection(), account.Id); !errors.Is(gone, sql.ErrNoRows) {
			e.pos = before
			return fmt.Errorf("delete account: %w", err)
		}
		a.logger.Warn("a hook after the deletion of an account failed", "error", err)
	}
	return e.removeFiles(ctx)
}

// afterwards does what is left when the account is gone, also in the attempt after the one that has deleted it.
func (a *Accounts) afterwards(ctx context.Context, k key) error {
	if err := forgetDeletion(a.app, k); err != nil {
		return err
	}
	a.gate.remove(k)
	return a.removeExports(ctx, dbx.And(k.where()))
}

// checkDeletions tells of deletions that do not come to an end.
func (a *Accounts) checkDeletions(_ context.Context, h *extensions.Host) extensions.Result {
	var waiting, late int
	err := h.App.ConcurrentDB().NewQuery(`SELECT count(*), count(*) FILTER (WHERE due_at < {:late}) FROM `+deletionsTable).
		Bind(dbx.Params{"late": a.now().Add(-24 * time.Hour).UnixMilli()}).Row(&waiting, &late)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Fail, Message: fmt.Sprintf("deletions cannot be read: %v", err)}
	case late > 0:
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("%d accounts should have been deleted a day ago", late),
			Next: "see the log for what is in the way, then: satchel account delete ID --yes",
		}
	}
	return extensions.Result{Message: fmt.Sprintf("%d accounts are going to be deleted", waiting)}
}
