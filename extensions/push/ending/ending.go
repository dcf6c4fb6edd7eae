// Package ending does what is left of messages that have ended: it stops the deliveries of one that was cancelled, counts
// the totals, and forgets what is old.
//
// A message may have a million deliveries, and while one transaction writes, all others wait. So the end of a message is a
// mark on its row, in the transaction that ends it, and what follows is done by a job: it looks for what is to do on a
// connection that reads, and writes in portions of up to [portion] rows with rests in between. Wherever it dies, it finds the
// rest again by the rows themselves. A message whose totals are not counted, or not any more, says so in the column stale;
// the job is asked for again as long as it does.
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

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/ledger"
)

const (
	// Kind is that of the jobs.
	Kind = "push.end"

	// portion bounds the rows of one transaction to some milliseconds.
	portion = 500

	// Settle is how long the totals of a message that has ended may be behind what is learned about it later, so that they
	// are counted once for many receipts.
	Settle = time.Minute
)

// Migration adds the column stale: how many changes the totals of a message that has ended do not know of. An index finds the
// deliveries that receipts are about, so that no job has to name their devices.
func Migration() extensions.Migration {
	run := func(statements ...string) func(core.App) error {
		return func(app core.App) error {
			for _, statement := range statements {
				if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
					return fmt.Errorf("note which totals are counted: %w", err)
				}
			}
			return nil
		}
	}
	const index, receipts = ledger.Messages + `_stale`, ledger.Deliveries + `_receipts`
	return extensions.Migration{
		Unix: 1795514000, What: "note_counted",
		Up: run(`ALTER TABLE `+ledger.Messages+` ADD COLUMN stale INTEGER NOT NULL DEFAULT 0`,
			`CREATE INDEX `+index+` ON `+ledger.Messages+` (id) WHERE stale > 0`,
			`CREATE INDEX `+receipts+` ON `+ledger.Deliveries+` (provider) WHERE platform = 'expo' AND provider <> ''`),
		Down: run(`DROP INDEX `+receipts, `DROP INDEX `+index, `ALTER TABLE `+ledger.Messages+` DROP COLUMN stale`),
	}
}

// Messages is what ends them.
type Messages struct {
	Jobs *jobs.Jobs

	// Release gives back what deliveries have taken of caps, of which each is an array that begins with message and device.
	Release func(tx core.App, lost []any) error
}

// named is what the job is given.
type named struct {
	Message string `json:"message"`
}

// Define is the kind of the jobs, in a queue.
func (m Messages) Define(queue string) jobs.Kind {
	return jobs.Define(jobs.Spec[named]{
		Kind: Kind, Queue: queue, Priority: 2, Attempts: 25, FirstWait: time.Second, LongestWait: 10 * time.Minute,
		Timeout: jobs.NoTimeout, Resumable: true, Work: m.work,
	})
}

func (m Messages) ask(tx core.App, id int64, delay time.Duration) error {
	name := serial.Format(id)
	_, err := m.Jobs.Enqueue(tx, Kind, named{name}, jobs.Options{Key: name, Delay: delay})
	return err
}

// Total writes the totals of a message that has just ended, or asks for them if they take long.
func (m Messages) Total(tx core.App, id int64) error {
	few, err := ledger.Few(tx, id)
	if err != nil {
		return err
	}
	if !few {
		return m.Changed(tx, []int64{id}, 0)
	}
	_, err = m.count(tx, id, 0)
	return err
}

// Changed says that the totals of those of the messages that have ended are not right any more. They are counted after the
// delay, once for all who say so meanwhile.
func (m Messages) Changed(tx core.App, ids []int64, delay time.Duration) error {
	if len(ids) == 0 {
		return nil
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return fmt.Errorf("encode ids: %w", err)
	}
	var ended []int64
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + ledger.Messages + ` SET stale = stale + 1
		WHERE id IN (SELECT value FROM json_each({:ids})) AND state >= {:done} AND fanned < {:archived} RETURNING id`).
		Bind(dbx.Params{"ids": string(list), "done": ledger.Done, "archived": ledger.Archived}).Column(&ended)
	if err != nil {
		return fmt.Errorf("note that totals have changed: %w", err)
	}
	for _, id := range ended {
		if err := m.ask(tx, id, delay); err != nil {
			return err
		}
	}
	return nil
}

// Mend asks for what nobody is at work on any more: a job was cancelled, or something changed while it ended.
func (m Messages) Mend(ctx context.Context, app core.App) error {
	var ids []int64
	err := app.ConcurrentDB().NewQuery(`SELECT id FROM ` + ledger.Messages + ` WHERE stale > 0 LIMIT {:n}`).Bind(dbx.Params{"n": portion}).WithContext(ctx).Column(&ids)
	if err != nil {
		return fmt.Errorf("look for totals to count: %w", err)
	}
	for _, id := range ids {
		if err := m.ask(app, id, 0); err != nil {
			return err
		}
	}
	return nil
}

// state is a message as far as its end goes.
type state struct {
	State  int `db:"state"`
	Fanned int `db:"fanned"`
	Stale  int `db:"stale"`
}

// find is nil if there is nothing to do any more.
func find(app core.App, id int64) (*state, error) {
	var s state
	err := app.DB().NewQuery(`SELECT state, fanned, stale FROM ` + ledger.Messages + ` WHERE id = {:id}`).Bind(dbx.Params{"id": id}).One(&s)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil //nolint:nilnil // nothing is what it says
	case err != nil:
		return nil, fmt.Errorf("find message: %w", err)
	case s.State < ledger.Done || s.Fanned >= ledger.Archived:
		return nil, nil //nolint:nilnil // as above
	}
	return &s, nil
}

func (m Messages) work(ctx context.Context, _ *jobs.Job, in named) error {
	id, err := serial.Parse(in.Message)
	if err != nil {
		return jobs.Permanent(err)
	}
	app := m.Jobs.App()
	s, err := find(app, id)
	if err != nil || s == nil {
		return err
	}
	if s.State == ledger.Cancelled {
		if err := m.stop(ctx, app, id); err != nil {
			return err
		}
	}
	if written, err := m.count(app, id, 0); err != nil || written {
		return err
	}
	return jobs.Snooze(Settle)
}

// count writes the totals, unless something has changed meanwhile. With archived they are the last ones.
func (m Messages) count(app core.App, id int64, archived int) (written bool, err error) {
	s, err := find(app, id)
	if err != nil || s == nil {
		return true, err
	}
	t, err := ledger.Count(app, id, s.State)
	if err != nil {
		return false, err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return false, fmt.Errorf("encode totals: %w", err)
	}
	res, err := app.NonconcurrentDB().NewQuery(`UPDATE ` + ledger.Messages + ` SET totals = {:totals}, stale = 0, fanned = max(fanned, {:archived})
		WHERE id = {:id} AND stale = {:stale}`).Bind(dbx.Params{"id": id, "totals": string(text), "stale": s.Stale, "archived": archived}).Execute()
	if err != nil {
		return false, fmt.Errorf("write totals: %w", err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}
