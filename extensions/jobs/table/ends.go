package table

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// End is how a job that leaves the queue has ended.
type End struct {
	ID          int64
	Outcome     State
	At          time.Time
	Result, Err string
	Done, Total int64
}

const historyColumns = `id, outcome, finished_at, result, error, done, total, queue, kind, attempt, owner_collection, owner, request, run_at, created_at, started_at`

// Archive moves jobs of a process to the history. What they were given is forgotten. It can be repeated. A number that the
// history has already, because a clock was put back, is that of the newer job: an error would stop all queues.
func Archive(tx core.App, epoch string, ends []End) error {
	if len(ends) == 0 {
		return nil
	}
	rows := make([]any, len(ends))
	for i, e := range ends {
		rows[i] = []any{e.ID, string(e.Outcome), e.At.UnixMilli(), e.Result, e.Err, e.Done, e.Total}
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("marshal ends of jobs: %w", err)
	}
	params := dbx.Params{"rows": string(list), "epoch": epoch}
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + History + ` (` + historyColumns + `)
		SELECT q.id, e.value->>1, e.value->>2, e.value->>3, e.value->>4, e.value->>5, e.value->>6, q.queue, q.kind, q.attempt, q.owner_collection,
			q.owner, q.request, q.run_at, q.created_at, q.started_at
		FROM json_each({:rows}) AS e CROSS JOIN ` + Queue + ` AS q ON q.id = e.value->>0 WHERE q.state = 1 AND q.epoch = {:epoch}`).Bind(params).Execute()
	if err != nil {
		return fmt.Errorf("write history of jobs: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + Queue + ` WHERE id IN (SELECT value->>0 FROM json_each({:rows})) AND +state = 1 AND +epoch = {:epoch}`).
		Bind(params).Execute()
	if err != nil {
		return fmt.Errorf("remove jobs that have ended: %w", err)
	}
	return nil
}

// Cancel moves a job to the history that nobody works on, and reports whether it was one.
func Cancel(tx core.App, id int64, now time.Time) (bool, error) {
	res, err := tx.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + History + ` (` + historyColumns + `)
		SELECT id, {:outcome}, {:now}, '', error, done, total, queue, kind, attempt, owner_collection, owner, request, run_at, created_at, started_at
		FROM ` + Queue + ` WHERE id = {:id} AND state <> 1`).
		Bind(dbx.Params{"id": id, "outcome": string(Cancelled), "now": now.UnixMilli()}).Execute()
	if err != nil {
		return false, fmt.Errorf("cancel job: %w", err)
	}
	n, err := res.RowsAffected()
	if err != nil || n == 0 {
		return false, err
	}
	return true, remove(tx, `id = {:id}`, dbx.Params{"id": id})
}

// remove deletes jobs that nobody works on. They may have had the turn of their lanes, which is the next one's then.
func remove(tx core.App, where string, params dbx.Params) error {
	var gone []struct{ Kind, Lane string }
	if err := tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + Queue + ` WHERE ` + where + ` RETURNING kind, lane`).Bind(params).All(&gone); err != nil {
		return fmt.Errorf("remove jobs: %w", err)
	}
	for _, g := range gone {
		if g.Lane == "" {
			continue
		}
		if err := FreeLane(tx, g.Kind, g.Lane); err != nil {
			return err
		}
	}
	return nil
}

// Interrupt asks the process that works on a job to end it, and reports whether one does.
func Interrupt(tx core.App, id int64) (bool, error) {
	res, err := tx.NonconcurrentDB().Update(Queue, dbx.Params{"cancelled": 1}, dbx.HashExp{"id": id, "state": IsRunning}).Execute()
	if err != nil {
		return false, fmt.Errorf("interrupt job: %w", err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// ErrKeyTaken says that another job that has not ended has the key.
var ErrKeyTaken = errors.New("another job has the key")

// Retry makes a job due now that is dead or waits, with other attempts and, unless it is empty, another payload, which is
// sealed or not.
func Retry(tx core.App, id int64, payload string, sealed bool, now time.Time) error {
	change := dbx.Params{
		"state": IsReady, "run_at": now.UnixMilli(), "attempt": 0, "finished_at": 0, "cancelled": 0,
		"expires_at": dbx.NewExp("CASE state WHEN 3 THEN 0 ELSE expires_at END"),
	}
	if payload != "" {
		change["payload"], change["sealed"] = payload, sealed
	}
	_, err := tx.NonconcurrentDB().Update(Queue, change, dbx.HashExp{"id": id}).Execute()
	if err != nil && strings.Contains(err.Error(), "UNIQUE constraint failed") {
		return ErrKeyTaken
	}
	if err != nil {
		return fmt.Errorf("retry job: %w", err)
	}
	return nil
}

// Revived is what became of the dead jobs of a kind: how many are due again, how many are dead still, and how many of these
// have a key that another job has.
type Revived struct {
	Retried int `json:"retried"`
	Dead    int `json:"dead"`
	Blocked int `json:"blocked"`
}

// taken is a dead job d whose key another job has that has not ended.
const taken = `(d.unique_key <> '' AND EXISTS (SELECT 1 FROM ` + Queue + ` AS o WHERE o.kind = d.kind AND o.unique_key = d.unique_key AND o.unique_key <> '' AND o.state <> 3))`

// RetryDead makes up to n dead jobs of a kind due now, those first that died first, with other attempts.
func RetryDead(tx core.App, kind string, n int, now time.Time) (r Revived, err error) {
	params := dbx.Params{"kind": kind, "n": n, "now": now.UnixMilli()}
	var retried []int64
	// Of two with the same key the first one lives.
	err = tx.NonconcurrentDB().NewQuery(`UPDATE OR IGNORE ` + Queue + ` SET state = 0, run_at = {:now}, attempt = 0, finished_at = 0, cancelled = 0, expires_at = 0
		WHERE id IN (SELECT id FROM ` + Queue + ` AS d WHERE state = 3 AND kind = {:kind} AND NOT ` + taken + ` ORDER BY finished_at LIMIT {:n}) RETURNING id`).
		Bind(params).Column(&retried)
	if err != nil {
		return r, fmt.Errorf("retry dead jobs: %w", err)
	}
	r.Retried = len(retried)
	err = tx.NonconcurrentDB().NewQuery(`SELECT count(*), coalesce(sum(`+taken+`), 0) FROM `+Queue+` AS d WHERE state = 3 AND kind = {:kind}`).Bind(params).Row(&r.Dead, &r.Blocked)
	if err != nil {
		return r, fmt.Errorf("count dead jobs: %w", err)
	}
	return r, nil
}

// Queues lists those that have jobs, or are paused.
func Queues(app core.App) (names []string, err error) {
	if err := app.DB().NewQuery(`SELECT queue FROM ` + Queue + ` UNION SELECT name FROM ` + Paused).Column(&names); err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	return names, nil
}

// Pause keeps jobs of a queue from being claimed.
func Pause(tx core.App, queue string, now time.Time) error {
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + Paused + ` (name, paused_at) VALUES ({:queue}, {:now}) ON CONFLICT DO NOTHING`).
		Bind(dbx.Params{"queue": queue, "now": now.UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("pause queue: %w", err)
	}
	return nil
}

// Resume ends a pause.
func Resume(tx core.App, queue string) error {
	if _, err := tx.NonconcurrentDB().Delete(Paused, dbx.HashExp{"name": queue}).Execute(); err != nil {
		return fmt.Errorf("resume queue: %w", err)
	}
	return nil
}

// Clear does most of Forget, in short transactions.
func Clear(app core.App, collection, owner string) error {
	of := dbx.Params{"owner": owner, "collection": collection}
	for _, s := range []string{
		`DELETE FROM ` + History + ` WHERE id IN (SELECT id FROM ` + History + ` WHERE owner = {:owner} AND owner_collection = {:collection} AND owner <> '' LIMIT {:n})`,
		`DELETE FROM ` + Queue + ` WHERE id IN (SELECT id FROM ` + Queue + ` WHERE owner = {:owner} AND owner_collection = {:collection} AND owner <> '' AND state <> 1 LIMIT {:n})`,
	} {
		if err := portions(app, s, of); err != nil {
			return fmt.Errorf("forget most jobs of owner: %w", err)
		}
	}
	return nil
}

// Forget removes the jobs of an owner that nobody works on, and what names the owner in the others.
func Forget(tx core.App, collection, owner string) error {
	of := dbx.HashExp{"owner": owner, "owner_collection": collection}
	if _, err := tx.NonconcurrentDB().Delete(History, of).Execute(); err != nil {
		return fmt.Errorf("forget history of owner: %w", err)
	}
	if err := remove(tx, `owner = {:owner} AND owner_collection = {:collection} AND state <> 1`, dbx.Params{"owner": owner, "collection": collection}); err != nil {
		return err
	}
	if _, err := tx.NonconcurrentDB().Update(Queue, dbx.Params{"owner_collection": "", "owner": ""}, of).Execute(); err != nil {
		return fmt.Errorf("forget owner of jobs: %w", err)
	}
	return nil
}
