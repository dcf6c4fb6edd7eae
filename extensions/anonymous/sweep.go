package anonymous

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit"
)

const (
	// sweepEvery is how often accounts that are not used are looked for.
	sweepEvery = 6 * time.Hour

	// sweepChunk is how many rows are read at a time. Each account is deleted in a transaction of its own, so that other
	// writers hardly wait.
	sweepChunk = 100
)

// tend sweeps until ctx ends.
func (a *accounts) tend(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		if err := a.sweep(ctx); err != nil && ctx.Err() == nil {
			a.logger.Warn("anonymous accounts could not be removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// mark is a row of the table.
type mark struct {
	Collection string `db:"collection"`
	Record     string `db:"record"`
	CreatedAt  int64  `db:"created_at"`
}

// sweep deletes the anonymous accounts that were not used for the time of the setting, with all that PocketBase deletes
// with a record. One that cannot be deleted is left, for another record may need it.
func (a *accounts) sweep(ctx context.Context) error {
	before := a.now().Add(-a.cfg.MaxUnused)
	var after mark
	removed := 0
	for {
		var chunk []mark
		err := a.app.ConcurrentDB().NewQuery(`SELECT collection, record, created_at FROM ` + table + `
			WHERE created_at < {:before} AND (created_at, collection, record) > ({:created}, {:collection}, {:record})
			ORDER BY created_at, collection, record LIMIT {:limit}`).
			Bind(dbx.Params{
				"before": before.UnixMilli(), "created": after.CreatedAt, "collection": after.Collection, "record": after.Record,
				"limit": sweepChunk,
			}).All(&chunk)
		if err != nil {
			return fmt.Errorf("find anonymous accounts: %w", err)
		}
		for _, m := range chunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			done, err := a.remove(m, before)
			if err != nil {
				a.logger.Warn("an anonymous account could not be removed", "record", m.Record, "error", err)
			}
			if done {
				removed++
			}
			after = m
		}
		if len(chunk) < sweepChunk {
			break
		}
	}
	if removed > 0 {
		return a.record(a.app, audit.Entry{Action: "anonymous.swept", Details: map[string]any{"count": removed}})
	}
	return nil
}

// remove deletes an account unless it was used or upgraded. Most were used, so that is asked before the writer is.
func (a *accounts) remove(m mark, before time.Time) (done bool, err error) {
	used, err := a.sessions.LastUse(a.app, m.Collection, m.Record)
	if err != nil || !used.Before(before) {
		return false, err
	}
	err = a.app.RunInTransaction(func(tx core.App) error {
		user, err := tx.FindRecordById(m.Collection, m.Record)
		if errors.Is(err, sql.ErrNoRows) { // deleted past the hooks, or with its collection
			return forget(tx, m.Collection, m.Record)
		}
		if err != nil {
			return fmt.Errorf("find anonymous account: %w", err)
		}
		anonymous, err := Is(tx, user)
		if err != nil || !anonymous {
			return err
		}
		if used, err = a.sessions.LastUse(tx, m.Collection, m.Record); err != nil || !used.Before(before) {
			return err
		}
		done = true
		return tx.Delete(user)
	})
	return done && err == nil, err
}
