package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/personal"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// fetchReceipts learns what became of pushes that the provider has accepted.
func (o *Outbox) fetchReceipts(ctx context.Context, _ *jobs.Job, in receipts) error {
	carrier, err := o.deps.Sender(ctx, sender.Expo)
	if errors.Is(err, credentials.ErrNotConnected) {
		return nil
	}
	if err != nil {
		return err
	}
	source, ok := carrier.(sender.Receipts)
	if !ok {
		return nil
	}
	ids := make([]string, len(in.Pushes))
	for i, p := range in.Pushes {
		ids[i] = p.ID
	}
	answers := source.Receipts(ctx, ids)
	var wait time.Duration
	again := false
	var pending []result
	var rows []any
	err = o.app.RunInTransaction(func(tx core.App) error {
		for i, a := range answers {
			p := in.Pushes[i]
			id, err := parse(p.Message)
			if err != nil {
				continue
			}
			state := 0
			switch a.Outcome {
			case sender.Dead:
				state = dead
				if err := o.deps.Devices.Dead(tx, p.Device, p.Sent, a.Code); err != nil {
					return err
				}
			case sender.Rejected, sender.Unauthorized:
				state = rejected
			case sender.Retry:
				again, wait = true, max(wait, a.After)
			case sender.Pending:
				pending = append(pending, result{message: id, device: p.Device, provider: p.ID, since: p.Sent})
			case sender.Accepted:
			}
			if state != 0 {
				rows = append(rows, []any{id, p.Device, state, a.Code})
			}
		}
		if again { // all of them, when it can be asked
			return nil
		}
		if next := in.Round + 1; next < len(receiptWaits()) {
			if err := o.askReceipts(tx, pending, next); err != nil {
				return err
			}
		}
		return o.amend(tx, rows)
	})
	if err == nil && again {
		return jobs.RetryAfter(max(wait, time.Minute), errors.New("the provider has no receipts now"))
	}
	return err
}

// amend writes what receipts say, and the totals that change with it.
func (o *Outbox) amend(tx core.App, rows []any) error {
	if len(rows) == 0 {
		return nil
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode receipts: %w", err)
	}
	var messages []int64
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + deliveriesTable + ` AS d SET state = e.value->>2, code = e.value->>3, at = {:now} FROM json_each({:rows}) AS e
		WHERE d.message = e.value->>0 AND d.device = e.value->>1 AND d.state = {:accepted} RETURNING message`).
		Bind(dbx.Params{"rows": string(text), "now": o.now().UnixMilli(), "accepted": accepted}).Column(&messages)
	if err != nil {
		return fmt.Errorf("write receipts: %w", err)
	}
	summed := map[int64]bool{}
	for _, id := range messages {
		if !summed[id] {
			summed[id] = true
			if err := o.resum(tx, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// resum counts again if the message has totals.
func (o *Outbox) resum(tx core.App, id int64) error {
	r, err := find(tx, id)
	if errors.Is(err, errNone) || err == nil && r.Totals == "" {
		return nil
	}
	if err != nil {
		return err
	}
	return o.sum(tx, id)
}

const (
	// sweepRows bounds one transaction, which others wait for.
	sweepRows = 2000

	// sweepPause lets others write between two of them.
	sweepPause = 50 * time.Millisecond
)

// sweep ends what lost its job, and forgets what is old.
func (o *Outbox) sweep(ctx context.Context, _ *jobs.Job, _ struct{}) error {
	if err := o.mend(ctx); err != nil {
		return err
	}
	for more := true; more; {
		err := o.app.RunInTransaction(func(tx core.App) (err error) {
			more, err = o.forget(tx)
			return err
		})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(sweepPause):
		}
	}
	return nil
}

// mend ends chunks and fan-outs whose jobs have ended without doing so: an operator has cancelled them, or they are dead.
func (o *Outbox) mend(ctx context.Context) error {
	var chunks []struct {
		ID      int64  `db:"id"`
		Message int64  `db:"message"`
		Job     string `db:"job"`
		Devices string `db:"devices"`
	}
	err := o.app.ConcurrentDB().NewQuery(`SELECT id, message, job, devices FROM ` + chunksTable + ` WHERE due_at < {:past}`).
		Bind(dbx.Params{"past": o.now().Add(-time.Minute).UnixMilli()}).WithContext(ctx).All(&chunks)
	if err != nil {
		return fmt.Errorf("list chunks: %w", err)
	}
	for _, c := range chunks {
		if over, err := o.over(c.Job); err != nil || !over {
			if err != nil {
				return err
			}
			continue
		}
		err := o.app.RunInTransaction(func(tx core.App) error {
			params := dbx.Params{"id": c.ID, "message": c.Message, "devices": c.Devices, "failed": failed, "queued": queued, "now": o.now().UnixMilli()}
			if n, err := exec(tx, `DELETE FROM `+chunksTable+` WHERE id = {:id}`, params); err != nil || n == 0 {
				return err
			}
			if _, err := exec(tx, `UPDATE `+deliveriesTable+` SET state = {:failed}, code = 'abandoned', at = {:now}
				WHERE message = {:message} AND device IN (SELECT value FROM json_each({:devices})) AND state = {:queued}`, params); err != nil {
				return err
			}
			return o.finish(tx, c.Message, false)
		})
		if err != nil {
			return fmt.Errorf("end abandoned chunk: %w", err)
		}
	}
	var open []row
	err = o.app.ConcurrentDB().NewQuery(`SELECT * FROM ` + messagesTable + ` WHERE state < 2 AND fanned = 0 AND due_at < {:past}`).
		Bind(dbx.Params{"past": o.now().Add(-time.Minute).UnixMilli()}).WithContext(ctx).All(&open)
	if err != nil {
		return fmt.Errorf("list open messages: %w", err)
	}
	for _, r := range open {
		over, err := o.over(r.Job)
		if err == nil && over {
			err = o.app.RunInTransaction(func(tx core.App) error { return o.finish(tx, r.ID, true) })
		}
		if err != nil {
			return fmt.Errorf("end abandoned message: %w", err)
		}
	}
	return nil
}

// over reports whether nobody will work on a job any more.
func (o *Outbox) over(job string) (bool, error) {
	s, err := o.deps.Jobs.Get(o.app, job)
	if errors.Is(err, jobs.ErrNotFound) {
		return true, nil
	}
	return err == nil && s.Ended(), err
}

// forget removes some old rows, and reports whether there may be more: the deliveries and texts of a message, of which the
// totals stay, and later these.
func (o *Outbox) forget(tx core.App) (more bool, err error) {
	now := o.now()
	var old int64
	err = tx.NonconcurrentDB().NewQuery(`SELECT coalesce(min(id), 0) FROM (SELECT id FROM ` + messagesTable + `
		WHERE done_at > 0 AND spec <> '' AND done_at < {:before} ORDER BY done_at LIMIT 1)`).
		Bind(dbx.Params{"before": now.Add(-o.cfg.Keep).UnixMilli()}).Row(&old)
	if err != nil {
		return false, fmt.Errorf("look for old messages: %w", err)
	}
	if old != 0 {
		if err := o.archive(tx, old); err != nil {
			return false, err
		}
		return true, nil
	}
	params := dbx.Params{"before": now.Add(-o.cfg.KeepSums).UnixMilli() << 21, "n": sweepRows, "hour": now.Add(-time.Hour).UnixMilli()}
	// Ids grow with the time at which the message was asked for. One for a time far ahead is younger than its texts.
	n, err := exec(tx, `DELETE FROM `+messagesTable+` WHERE id IN (SELECT id FROM `+messagesTable+` WHERE id < {:before} AND state >= 2 AND spec = '' ORDER BY id LIMIT {:n})`, params)
	if err != nil {
		return false, fmt.Errorf("forget totals: %w", err)
	}
	if _, err := exec(tx, `DELETE FROM `+hintsTable+` WHERE device IN (SELECT device FROM `+hintsTable+` WHERE since < {:hour} LIMIT {:n})`, params); err != nil {
		return false, fmt.Errorf("forget hints: %w", err)
	}
	return n == sweepRows, nil
}

// archive makes totals of some deliveries of a message, and at last of the message.
func (o *Outbox) archive(tx core.App, id int64) error {
	r, err := find(tx, id)
	if err != nil {
		return err
	}
	if r.Fanned < 2 { // once, before the first rows go
		if err := o.sum(tx, id); err != nil {
			return err
		}
		if _, err := exec(tx, `UPDATE `+messagesTable+` SET fanned = 2 WHERE id = {:id}`, dbx.Params{"id": id}); err != nil {
			return fmt.Errorf("begin to forget message: %w", err)
		}
	}
	n, err := exec(tx, `DELETE FROM `+deliveriesTable+` WHERE message = {:id} AND device IN (SELECT device FROM `+deliveriesTable+` WHERE message = {:id} LIMIT {:n})`,
		dbx.Params{"id": id, "n": sweepRows})
	if err != nil {
		return fmt.Errorf("forget deliveries: %w", err)
	}
	if n == sweepRows {
		return nil
	}
	if err := personal.Unname(tx, id); err != nil {
		return err
	}
	if _, err := exec(tx, `UPDATE `+messagesTable+` SET spec = '' WHERE id = {:id}`, dbx.Params{"id": id}); err != nil {
		return fmt.Errorf("forget texts: %w", err)
	}
	return nil
}
