package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/ending"
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
		found, err := receivers(tx, ids)
		if err != nil {
			return err
		}
		for i, a := range answers {
			p := in.Pushes[i]
			id, err := parse(p.Message)
			device := found[p.ID]
			if err != nil || device == "" {
				continue
			}
			state := 0
			switch a.Outcome {
			case sender.Dead:
				state = dead
				if err := o.deps.Devices.Dead(tx, device, p.Sent, a.Code); err != nil {
					return err
				}
			case sender.Rejected, sender.Unauthorized:
				state = rejected
			case sender.Retry:
				again, wait = true, max(wait, a.After)
			case sender.Pending:
				pending = append(pending, result{message: id, provider: p.ID, since: p.Sent})
			case sender.Accepted:
			}
			if state != 0 {
				rows = append(rows, []any{id, device, state, a.Code})
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

// receivers are the devices of accepted pushes, by the ids of the provider. What was erased is not there.
func receivers(tx core.App, ids []string) (map[string]string, error) {
	text, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode receipts: %w", err)
	}
	var rows []struct {
		Provider string `db:"provider"`
		Device   string `db:"device"`
	}
	err = tx.NonconcurrentDB().NewQuery(`SELECT d.provider, d.device FROM json_each({:ids}) AS e CROSS JOIN ` + deliveriesTable + ` AS d
		ON d.provider = e.value AND d.platform = 'expo' AND d.provider <> '' WHERE d.state = {:accepted}`).
		Bind(dbx.Params{"ids": string(text), "accepted": accepted}).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("find deliveries of receipts: %w", err)
	}
	found := make(map[string]string, len(rows))
	for _, r := range rows {
		found[r.Provider] = r.Device
	}
	return found, nil
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
	slices.Sort(messages)
	return o.ends().Changed(tx, slices.Compact(messages), ending.Settle)
}

// sweep ends what lost its job, and forgets what is old.
func (o *Outbox) sweep(ctx context.Context, _ *jobs.Job, _ struct{}) error {
	if err := errors.Join(o.mend(ctx), o.ends().Mend(ctx, o.app)); err != nil {
		return err
	}
	return o.ends().Forget(ctx, o.app, ending.Keep{Rows: o.cfg.Keep, Sums: o.cfg.KeepSums})
}

// mend ends chunks and fan-outs whose jobs have ended without doing so: an operator has cancelled them, or they are dead.
func (o *Outbox) mend(ctx context.Context) error {
	var chunks []struct {
		ID      int64  `db:"id"`
		Message int64  `db:"message"`
		Job     string `db:"job"`
		Devices string `db:"devices"`
	}
	// Those of a message that was cancelled are stopped by what ends it.
	const ours = `NOT EXISTS (SELECT 1 FROM ` + messagesTable + ` AS m WHERE m.id = message AND m.state = {:cancelled})`
	err := o.app.ConcurrentDB().NewQuery(`SELECT id, message, job, devices FROM ` + chunksTable + ` WHERE due_at < {:past} AND ` + ours).
		Bind(dbx.Params{"past": o.now().Add(-time.Minute).UnixMilli(), "cancelled": cancelled}).WithContext(ctx).All(&chunks)
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
			params := dbx.Params{"id": c.ID, "message": c.Message, "devices": c.Devices, "failed": failed, "queued": queued, "cancelled": cancelled, "now": o.now().UnixMilli()}
			if n, err := exec(tx, `DELETE FROM `+chunksTable+` WHERE id = {:id} AND `+ours, params); err != nil || n == 0 {
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
