package ending

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pace"
	"github.com/satchelbase/satchel/extensions/push/ledger"
)

// Cancel marks a message as cancelled, from which on nothing more is sent, and reports whether it had not ended. A job
// stops what is left.
func (m Messages) Cancel(tx core.App, id int64) (bool, error) {
	var job string
	err := tx.NonconcurrentDB().NewQuery(`UPDATE ` + ledger.Messages + ` SET state = {:cancelled}, done_at = {:now}, stale = stale + 1
		WHERE id = {:id} AND state < {:done} RETURNING job`).
		Bind(dbx.Params{"id": id, "now": time.Now().UnixMilli(), "cancelled": ledger.Cancelled, "done": ledger.Done}).Row(&job)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cancel message: %w", err)
	}
	if _, err := m.Jobs.Cancel(tx, job); err != nil { // a fan-out that runs finds out by itself
		return false, err
	}
	return true, m.ask(tx, id, 0)
}

// stop ends the deliveries of a cancelled message that have none, and its chunks. No new ones come: who writes them looks
// at the message in the same transaction.
func (m Messages) stop(ctx context.Context, app core.App, id int64) error {
	p := dbx.Params{"id": id, "queued": ledger.Queued, "n": portion, "after": ""}
	for more := true; more; {
		begun := time.Now()
		var err error
		if more, err = m.stopChunk(ctx, app, id); err != nil {
			return err
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
	for {
		var devices []string
		err := app.ConcurrentDB().NewQuery(`SELECT device FROM ` + ledger.Deliveries + ` WHERE message = {:id} AND device > {:after} AND state = {:queued} ORDER BY device LIMIT {:n}`).
			Bind(p).WithContext(ctx).Column(&devices)
		if err != nil {
			return fmt.Errorf("find deliveries: %w", err)
		}
		if len(devices) == 0 {
			return nil
		}
		p["after"] = devices[len(devices)-1]
		list, err := json.Marshal(devices)
		if err != nil {
			return fmt.Errorf("encode devices: %w", err)
		}
		begun := time.Now()
		if err := app.RunInTransaction(func(tx core.App) error { return m.halt(tx, id, string(list)) }); err != nil {
			return err
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
}

// stopChunk ends one chunk with its deliveries and its job, and reports whether there was one.
func (m Messages) stopChunk(ctx context.Context, app core.App, id int64) (bool, error) {
	var c struct {
		ID      int64  `db:"id"`
		Job     string `db:"job"`
		Devices string `db:"devices"`
	}
	err := app.ConcurrentDB().NewQuery(`SELECT id, job, devices FROM ` + ledger.Chunks + ` WHERE message = {:id} ORDER BY id LIMIT 1`).Bind(dbx.Params{"id": id}).WithContext(ctx).One(&c)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find chunk: %w", err)
	}
	err = app.RunInTransaction(func(tx core.App) error {
		if _, err := tx.NonconcurrentDB().Delete(ledger.Chunks, dbx.HashExp{"id": c.ID}).Execute(); err != nil {
			return fmt.Errorf("cancel chunk: %w", err)
		}
		if _, err := m.Jobs.Cancel(tx, c.Job); err != nil { // one that runs finds out by itself
			return err
		}
		return m.halt(tx, id, c.Devices)
	})
	return true, err
}

// halt stops those deliveries that wait, of a JSON array of devices.
func (m Messages) halt(tx core.App, id int64, devices string) error {
	var stopped []string
	err := tx.NonconcurrentDB().NewQuery(`UPDATE ` + ledger.Deliveries + ` SET state = {:stopped}, at = {:now}
		WHERE message = {:id} AND device IN (SELECT value FROM json_each({:devices})) AND state = {:queued} RETURNING device`).
		Bind(dbx.Params{"id": id, "devices": devices, "now": time.Now().UnixMilli(), "stopped": ledger.Stopped, "queued": ledger.Queued}).Column(&stopped)
	if err != nil {
		return fmt.Errorf("stop deliveries: %w", err)
	}
	lost := make([]any, len(stopped))
	for i, device := range stopped {
		lost[i] = []any{id, device}
	}
	return m.Release(tx, lost)
}

// Erase ends a message of a few devices, and leaves nothing of it but the totals, in the transaction.
func (m Messages) Erase(tx core.App, id int64) error {
	if _, err := m.Cancel(tx, id); err != nil {
		return err
	}
	var chunks []string
	p := dbx.Params{"id": id, "archived": ledger.Archived}
	if err := tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + ledger.Chunks + ` WHERE message = {:id} RETURNING job`).Bind(p).Column(&chunks); err != nil {
		return fmt.Errorf("erase chunks: %w", err)
	}
	for _, job := range chunks {
		if _, err := m.Jobs.Cancel(tx, job); err != nil {
			return err
		}
	}
	if _, err := m.count(tx, id, ledger.Archived); err != nil {
		return err
	}
	for _, statement := range []string{
		`DELETE FROM ` + ledger.Deliveries + ` WHERE message = {:id}`,
		`UPDATE ` + ledger.Messages + ` SET spec = '', key = '', digest = zeroblob(32), stale = 0, fanned = {:archived} WHERE id = {:id}`,
	} {
		if _, err := tx.NonconcurrentDB().NewQuery(statement).Bind(p).Execute(); err != nil {
			return fmt.Errorf("erase message: %w", err)
		}
	}
	return nil
}
