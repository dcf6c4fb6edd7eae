package table

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// crashesAtOnce is how often a job is taken up without a wait after its process has died. One that dies more often may be
// the cause.
const crashesAtOnce = 3

// Claim says which jobs a process takes: up to N of the queue, the most urgent or the Oldest ones, or Only the one with the id,
// also of a paused queue.
type Claim struct {
	Queue, Epoch string
	N            int
	Oldest       bool
	Only         int64
	Now          time.Time
	Lease        time.Duration
}

// Take marks ready jobs as running in the process, in one statement. Of the most urgent it reads no more rows than it takes, of
// the oldest as many of each priority.
func Take(tx core.App, c Claim) (list []Row, err error) {
	params := dbx.Params{"epoch": c.Epoch, "lease": c.Now.Add(c.Lease).UnixMilli(), "now": c.Now.UnixMilli(), "queue": c.Queue, "n": c.N}
	where := `state = 0 AND queue = {:queue} AND NOT EXISTS (SELECT 1 FROM ` + Paused + ` WHERE name = {:queue} AND paused_at > 0)`
	if c.Only != 0 {
		where, params["only"] = `state = 0 AND queue = {:queue} AND id = {:only}`, c.Only
	}
	chosen := `SELECT id FROM ` + Queue + ` WHERE ` + where + ` ORDER BY priority, run_at, id LIMIT {:n}`
	if c.Oldest {
		chosen = Oldest(where)
	}
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET state = 1, attempt = attempt + 1, epoch = {:epoch}, lease_until = {:lease},
			started_at = CASE started_at WHEN 0 THEN {:now} ELSE started_at END
		WHERE id IN (` + chosen + `)
		RETURNING id, queue, kind, priority, run_at, expires_at, attempt, max_attempts, lane, owner_collection, owner, request, payload, sealed, cancelled,
			position, steps, done, total`).Bind(params).All(&list)
	if err != nil {
		return nil, fmt.Errorf("claim jobs of %s: %w", c.Queue, err)
	}
	slices.SortFunc(list, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.RunAt, b.RunAt), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Priorities are 1 to lastPriority.
const lastPriority = 9

// Oldest selects the {:n} jobs that were due first, whatever their priority, by the index of the most urgent ones: the first of each
// priority, and of these the first.
func Oldest(where string) string {
	var all []string
	for p := 1; p <= lastPriority; p++ {
		all = append(all, fmt.Sprintf(`SELECT * FROM (SELECT id, run_at FROM %s WHERE %s AND priority = %d ORDER BY run_at, id LIMIT {:n})`, Queue, where, p))
	}
	return `SELECT id FROM (` + strings.Join(all, ` UNION ALL `) + `) ORDER BY run_at, id LIMIT {:n}`
}

// Hold sets claimed jobs aside.
func Hold(tx core.App, ids []int64) error {
	list, err := json.Marshal(ids)
	if err != nil {
		return fmt.Errorf("marshal ids: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET state = 4, attempt = attempt - 1, epoch = ''
		WHERE id IN (SELECT value FROM json_each({:ids}))`).Bind(dbx.Params{"ids": string(list)}).Execute()
	if err != nil {
		return fmt.Errorf("hold jobs: %w", err)
	}
	return nil
}

// Busy counts the running jobs of a lane.
func Busy(tx core.App, kind, lane string) (n int, err error) {
	err = tx.NonconcurrentDB().NewQuery(`SELECT count(*) FROM ` + Queue + ` WHERE kind = {:kind} AND lane = {:lane} AND lane <> '' AND state = 1`).
		Bind(dbx.Params{"kind": kind, "lane": lane}).Row(&n)
	if err != nil {
		return 0, fmt.Errorf("count jobs of the lane: %w", err)
	}
	return n, nil
}

// FreeLane makes the next job of a lane ready.
func FreeLane(tx core.App, kind, lane string) error {
	_, err := tx.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET state = 0 WHERE id = (SELECT id FROM ` + Queue + `
		WHERE kind = {:kind} AND lane = {:lane} AND lane <> '' AND state = 4 ORDER BY priority, run_at, id LIMIT 1)`).
		Bind(dbx.Params{"kind": kind, "lane": lane}).Execute()
	if err != nil {
		return fmt.Errorf("free lane: %w", err)
	}
	return nil
}

// Promote makes up to n scheduled jobs ready whose time has come, and returns their queues and when the next one is due.
func Promote(tx core.App, now time.Time, n int) (queues []string, next int64, err error) {
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET state = 0 WHERE id IN (SELECT id FROM ` + Queue + `
		WHERE state = 2 AND run_at <= {:now} ORDER BY run_at LIMIT {:n}) RETURNING queue`).
		Bind(dbx.Params{"now": now.UnixMilli(), "n": n}).Column(&queues)
	if err != nil {
		return nil, 0, fmt.Errorf("find jobs that are due: %w", err)
	}
	err = tx.NonconcurrentDB().NewQuery(`SELECT coalesce(min(run_at), {:never}) FROM ` + Queue + ` WHERE state = 2`).
		Bind(dbx.Params{"never": int64(math.MaxInt64)}).Row(&next)
	if err != nil {
		return nil, 0, fmt.Errorf("find the next job: %w", err)
	}
	return queues, next, nil
}

// Holder is a process that has jobs, and until when its last lease runs.
type Holder struct {
	Epoch string `db:"epoch"`
	Until int64  `db:"until"`
}

// Others lists the processes besides one that have jobs.
func Others(app core.App, epoch string) (list []Holder, err error) {
	err = app.ConcurrentDB().NewQuery(`SELECT epoch, max(lease_until) AS until FROM ` + Queue + ` WHERE state = 1 AND epoch <> {:epoch} GROUP BY epoch`).
		Bind(dbx.Params{"epoch": epoch}).All(&list)
	if err != nil {
		return nil, fmt.Errorf("look for jobs of other processes: %w", err)
	}
	return list, nil
}

// Release makes the jobs of a process ready that has ended: at once, but for those that may be what has ended it several
// times.
func Release(app core.App, epoch string, now time.Time) error {
	_, err := app.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET epoch = '', error = 'the process ended in the middle of the work',
			finished_at = CASE WHEN attempt >= max_attempts THEN {:now} ELSE 0 END,
			run_at = CASE WHEN attempt > {:atOnce} THEN {:now} + (1000 << min(attempt - {:atOnce}, 10)) ELSE run_at END,
			state = CASE WHEN attempt >= max_attempts THEN 3 WHEN attempt > {:atOnce} THEN 2 ELSE 0 END
		WHERE state = 1 AND epoch = {:epoch}`).
		Bind(dbx.Params{"epoch": epoch, "now": now.UnixMilli(), "atOnce": crashesAtOnce}).Execute()
	if err != nil {
		return fmt.Errorf("give jobs back: %w", err)
	}
	return FreeHeld(app)
}

// portion is how many jobs one statement changes that concerns many.
const portion = 250

// portions repeats a statement that changes {:n} rows at most until there are none left for it.
func portions(app core.App, statement string, params dbx.Params) error {
	params["n"] = portion
	for {
		res, err := app.NonconcurrentDB().NewQuery(statement).Bind(params).Execute()
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n < portion {
			return err
		}
	}
}

// each calls a statement for the jobs, of which it changes as many as others may wait for.
func each(app core.App, statement string, params dbx.Params, ids []int64) error {
	for some := range slices.Chunk(ids, portion) {
		list, err := json.Marshal(some)
		if err != nil {
			return fmt.Errorf("marshal ids: %w", err)
		}
		params["ids"] = string(list)
		if _, err := app.NonconcurrentDB().NewQuery(statement + ` AND id IN (SELECT value FROM json_each({:ids}))`).Bind(params).Execute(); err != nil {
			return err
		}
	}
	return nil
}

// FreeHeld makes held jobs ready that nobody would free: those whose lane is empty, and those of kinds that were unknown. One
// too many is held again.
func FreeHeld(app core.App) error {
	var ids []int64
	err := app.ConcurrentDB().NewQuery(`SELECT id FROM ` + Queue + ` WHERE state = 4 AND NOT EXISTS (
		SELECT 1 FROM ` + Queue + ` AS other WHERE other.kind = ` + Queue + `.kind AND other.lane = ` + Queue + `.lane
			AND other.lane <> '' AND other.state = 1)`).Column(&ids)
	if err == nil {
		err = each(app, `UPDATE `+Queue+` SET state = 0 WHERE +state = 4`, dbx.Params{}, ids)
	}
	if err != nil {
		return fmt.Errorf("free held jobs: %w", err)
	}
	return nil
}

// Move puts jobs into the queue of their kind that are in another one, where there may be no workers.
func Move(app core.App, queueOf func(kind string) string) error {
	var pairs []struct{ Queue, Kind string }
	if err := app.ConcurrentDB().NewQuery(`SELECT DISTINCT queue, kind FROM ` + Queue).All(&pairs); err != nil {
		return fmt.Errorf("look for jobs in other queues: %w", err)
	}
	for _, p := range pairs {
		to := queueOf(p.Kind)
		if to == "" || to == p.Queue {
			continue
		}
		var ids []int64
		params := dbx.Params{"to": to, "kind": p.Kind, "from": p.Queue}
		if err := app.ConcurrentDB().NewQuery(`SELECT id FROM ` + Queue + ` WHERE kind = {:kind} AND queue = {:from} AND state <> 1`).Bind(params).Column(&ids); err != nil {
			return fmt.Errorf("find jobs in another queue: %w", err)
		}
		if err := each(app, `UPDATE `+Queue+` SET queue = {:to} WHERE +state <> 1`, params, ids); err != nil {
			return fmt.Errorf("move jobs to another queue: %w", err)
		}
	}
	return nil
}

// Mine is a job of this process, and whether somebody wants it to end.
type Mine struct {
	ID        int64 `db:"id"`
	Cancelled bool  `db:"cancelled"`
}

// Beat extends the leases of a process and lists its jobs.
func Beat(tx core.App, epoch string, until time.Time) (mine []Mine, err error) {
	params := dbx.Params{"epoch": epoch, "until": until.UnixMilli()}
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET lease_until = {:until} WHERE state = 1 AND epoch = {:epoch} RETURNING id, cancelled`).
		Bind(params).All(&mine)
	if err != nil {
		return nil, fmt.Errorf("extend leases: %w", err)
	}
	return mine, nil
}

// GiveBack makes a job of the process ready that was not begun.
func GiveBack(tx core.App, id int64, epoch string) error {
	_, err := tx.NonconcurrentDB().NewQuery(`UPDATE ` + Queue + ` SET state = 0, attempt = attempt - 1, epoch = '' WHERE id = {:id} AND state = 1 AND epoch = {:epoch}`).
		Bind(dbx.Params{"id": id, "epoch": epoch}).Execute()
	if err != nil {
		return fmt.Errorf("give job back: %w", err)
	}
	return nil
}
