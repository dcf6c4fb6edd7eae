package ending

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pace"
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/personal"
)

// Keep is how long things are kept behind the end of a message.
type Keep struct {
	Rows time.Duration // deliveries and texts
	Sums time.Duration // totals
}

// Forget removes what is old: the deliveries and texts of messages, of which the totals stay, and later these.
func (m Messages) Forget(ctx context.Context, app core.App, keep Keep) error {
	for {
		var old int64
		err := app.ConcurrentDB().NewQuery(`SELECT id FROM ` + ledger.Messages + ` WHERE done_at > 0 AND spec <> '' AND done_at < {:before} ORDER BY done_at LIMIT 1`).
			Bind(dbx.Params{"before": time.Now().Add(-keep.Rows).UnixMilli()}).WithContext(ctx).Row(&old)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return fmt.Errorf("look for old messages: %w", err)
		}
		if err := m.archive(ctx, app, old); err != nil {
			return err
		}
	}
	// Ids grow with the time at which the message was asked for. One for a time far ahead is younger than its texts.
	p := dbx.Params{"before": time.Now().Add(-keep.Sums).UnixMilli() << 21, "hour": time.Now().Add(-time.Hour).UnixMilli(), "done": ledger.Done}
	if err := portions(ctx, app, ledger.Messages, `id IN (SELECT id FROM `+ledger.Messages+` WHERE id < {:before} AND state >= {:done} AND spec = '' ORDER BY id LIMIT {:n})`, p); err != nil {
		return err
	}
	return portions(ctx, app, ledger.Hints, `device IN (SELECT device FROM `+ledger.Hints+` WHERE since < {:hour} LIMIT {:n})`, p)
}

// portions deletes what a condition with {:n} rows at most finds.
func portions(ctx context.Context, app core.App, from, where string, p dbx.Params) error {
	p["n"] = portion
	for {
		begun := time.Now()
		res, err := app.NonconcurrentDB().NewQuery(`DELETE FROM ` + from + ` WHERE ` + where).Bind(p).Execute()
		if err != nil {
			return fmt.Errorf("forget rows of %s: %w", from, err)
		}
		if n, err := res.RowsAffected(); err != nil || n < portion {
			return err
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
}

// archive makes totals of the deliveries of a message, and forgets it. They are counted before the first rows go, which is
// the moment from which on nothing that is learned about it counts.
func (m Messages) archive(ctx context.Context, app core.App, id int64) error {
	s, err := find(app, id)
	if err != nil {
		return err
	}
	if s != nil && s.State == ledger.Cancelled { // a queue that was paused for long
		if err := m.stop(ctx, app, id); err != nil {
			return err
		}
	}
	for written := false; !written; {
		begun := time.Now()
		if written, err = m.count(app, id, ledger.Archived); err != nil {
			return err
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
	p := dbx.Params{"id": id}
	err = portions(ctx, app, ledger.Deliveries, `message = {:id} AND device IN (SELECT device FROM `+ledger.Deliveries+` WHERE message = {:id} LIMIT {:n})`, p)
	if err != nil {
		return err
	}
	for more := true; more; {
		begun := time.Now()
		if more, err = personal.Unname(app, id, portion); err != nil {
			return err
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
	if _, err := app.NonconcurrentDB().NewQuery(`UPDATE ` + ledger.Messages + ` SET spec = '' WHERE id = {:id}`).Bind(p).Execute(); err != nil {
		return fmt.Errorf("forget texts: %w", err)
	}
	return nil
}
