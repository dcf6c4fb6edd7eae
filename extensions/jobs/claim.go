package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// claim takes up to n jobs of the queue, and reports whether there may be more. What cannot be done now, because its lane
// is busy or its kind unknown, is set aside so that the next claim does not read it again.
func (j *Jobs) claim(tx core.App, q *queue, n int) (claimed []row, more bool, err error) {
	for len(claimed) < n {
		part, err := j.take(tx, q, n-len(claimed))
		if err != nil || len(part) == 0 {
			return claimed, false, err
		}
		full := len(part) == n-len(claimed)
		if part, err = j.setAside(tx, part); err != nil {
			return nil, false, err
		}
		claimed = append(claimed, part...)
		if !full {
			return claimed, false, nil
		}
	}
	return claimed, true, nil
}

// take marks the most urgent jobs as running here, in one statement that reads no more rows than it takes.
func (j *Jobs) take(tx core.App, q *queue, n int) (list []row, err error) {
	now := j.now()
	params := dbx.Params{"epoch": j.epoch, "lease": now.Add(lease).UnixMilli(), "now": now.UnixMilli(), "queue": q.name, "n": n}
	where := `state = 0 AND queue = {:queue} AND NOT EXISTS (SELECT 1 FROM ` + queuesTable + ` WHERE name = {:queue} AND paused_at > 0)`
	if j.only != 0 {
		where, params["only"] = `state = 0 AND queue = {:queue} AND id = {:only}`, j.only
	}
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET state = 1, attempt = attempt + 1, epoch = {:epoch}, lease_until = {:lease},
			started_at = CASE started_at WHEN 0 THEN {:now} ELSE started_at END
		WHERE id IN (SELECT id FROM ` + queueTable + ` WHERE ` + where + ` ORDER BY priority, run_at, id LIMIT {:n})
		RETURNING id, queue, kind, priority, run_at, expires_at, attempt, max_attempts, lane, owner_collection, owner, request, payload, sealed,
			position, steps, done, total`).Bind(params).All(&list)
	if err != nil {
		return nil, fmt.Errorf("claim jobs of %s: %w", q.name, err)
	}
	slices.SortFunc(list, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.RunAt, b.RunAt), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// setAside holds the claimed jobs that must wait.
func (j *Jobs) setAside(tx core.App, claimed []row) (kept []row, err error) {
	room := map[[2]string]int{}
	var waits []int64
	for _, r := range claimed {
		k, known := j.kinds[r.Kind]
		if !known {
			waits = append(waits, r.ID)
			continue
		}
		if r.Lane != "" {
			lane := [2]string{r.Kind, r.Lane}
			if _, counted := room[lane]; !counted {
				if room[lane], err = j.room(tx, k, r.Lane, claimed); err != nil {
					return nil, err
				}
			}
			if room[lane]--; room[lane] < 0 {
				waits = append(waits, r.ID)
				continue
			}
		}
		kept = append(kept, r)
	}
	if len(waits) == 0 {
		return kept, nil
	}
	list, err := json.Marshal(waits)
	if err != nil {
		return nil, fmt.Errorf("marshal ids: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET state = 4, attempt = attempt - 1, epoch = ''
		WHERE id IN (SELECT value FROM json_each({:ids}))`).Bind(dbx.Params{"ids": string(list)}).Execute()
	if err != nil {
		return nil, fmt.Errorf("hold jobs: %w", err)
	}
	return kept, nil
}

// room is how many of the claimed jobs the lane takes.
func (j *Jobs) room(tx core.App, k *Kind, lane string, claimed []row) (int, error) {
	var busy int
	err := tx.NonconcurrentDB().NewQuery(`SELECT count(*) FROM ` + queueTable + ` WHERE kind = {:kind} AND lane = {:lane} AND lane <> '' AND state = 1`).
		Bind(dbx.Params{"kind": k.name, "lane": lane}).Row(&busy)
	if err != nil {
		return 0, fmt.Errorf("count jobs of the lane: %w", err)
	}
	for _, r := range claimed {
		if r.Kind == k.name && r.Lane == lane {
			busy-- // it was counted
		}
	}
	return k.perLane - busy, nil
}

// freeLane makes the next job of a lane ready.
func (j *Jobs) freeLane(tx core.App, kind, lane string) error {
	_, err := tx.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET state = 0 WHERE id = (SELECT id FROM ` + queueTable + `
		WHERE kind = {:kind} AND lane = {:lane} AND lane <> '' AND state = 4 ORDER BY priority, run_at, id LIMIT 1)`).
		Bind(dbx.Params{"kind": kind, "lane": lane}).Execute()
	if err != nil {
		return fmt.Errorf("free lane: %w", err)
	}
	return nil
}

// promote makes jobs ready whose time has come, and returns when the next one is due.
func (j *Jobs) promote(tx core.App) (next int64, err error) {
	var queues []string
	err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET state = 0 WHERE id IN (SELECT id FROM ` + queueTable + `
		WHERE state = 2 AND run_at <= {:now} ORDER BY run_at LIMIT {:n}) RETURNING queue`).
		Bind(dbx.Params{"now": j.now().UnixMilli(), "n": maxBatch}).Column(&queues)
	if err != nil {
		return 0, fmt.Errorf("find jobs that are due: %w", err)
	}
	for _, name := range queues {
		if q := j.queues[name]; q != nil {
			q.maybe.Store(true)
		}
	}
	err = tx.NonconcurrentDB().NewQuery(`SELECT coalesce(min(run_at), {:never}) FROM ` + queueTable + ` WHERE state = 2`).
		Bind(dbx.Params{"never": int64(math.MaxInt64)}).Row(&next)
	if err != nil {
		return 0, fmt.Errorf("find the next job: %w", err)
	}
	return next, nil
}

// job makes an attempt of a claimed row.
func (j *Jobs) job(r row) *Job {
	job := &Job{
		ID: formatID(r.ID), Kind: r.Kind, Owner: r.owner(), Attempt: r.Attempt, DueAt: time.UnixMilli(r.RunAt).UTC(), Request: r.Request,
		jobs: j, kind: j.kinds[r.Kind], id: r.ID, lane: r.Lane, payload: []byte(r.Payload), position: r.Position, expires: r.ExpiresAt, most: r.MaxAttempts,
	}
	if r.Steps != "" {
		_ = json.Unmarshal([]byte(r.Steps), &job.steps) // written by marshal
	}
	job.Progress(r.Done, r.Total)
	job.told = r.Done
	job.ctx, job.cancel = context.WithCancelCause(j.work)
	return job
}

// recover gives the jobs of processes that are gone back to the queue.
func (j *Jobs) recover() error {
	var others []struct {
		Epoch string `db:"epoch"`
		Until int64  `db:"until"`
	}
	err := j.app.ConcurrentDB().NewQuery(`SELECT epoch, max(lease_until) AS until FROM ` + queueTable + ` WHERE state = 1 AND epoch <> {:epoch} GROUP BY epoch`).
		Bind(dbx.Params{"epoch": j.epoch}).All(&others)
	if err != nil {
		return fmt.Errorf("look for jobs of other processes: %w", err)
	}
	for _, other := range others {
		gone, known := j.present.Gone(other.Epoch)
		if !gone && (known || j.now().UnixMilli() < other.Until) {
			continue
		}
		if err := j.release(other.Epoch); err != nil {
			return err
		}
		j.present.Bury(other.Epoch)
		j.lookAgain()
	}
	return nil
}

// release makes the jobs of a process ready that has ended: at once, but for those that may be what has ended it several
// times.
func (j *Jobs) release(epoch string) error {
	_, err := j.app.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET epoch = '', error = 'the process ended in the middle of the work',
			finished_at = CASE WHEN attempt >= max_attempts THEN {:now} ELSE 0 END,
			run_at = CASE WHEN attempt > {:atOnce} THEN {:now} + (1000 << min(attempt - {:atOnce}, 10)) ELSE run_at END,
			state = CASE WHEN attempt >= max_attempts THEN 3 WHEN attempt > {:atOnce} THEN 2 ELSE 0 END
		WHERE state = 1 AND epoch = {:epoch}`).
		Bind(dbx.Params{"epoch": epoch, "now": j.now().UnixMilli(), "atOnce": crashesAtOnce}).Execute()
	if err != nil {
		return fmt.Errorf("give jobs back: %w", err)
	}
	return j.freeHeld()
}

// freeHeld makes held jobs ready that nobody would free: those whose lane is empty, and at the start those whose kind may
// be known now.
func (j *Jobs) freeHeld() error {
	_, err := j.app.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET state = 0 WHERE state = 4 AND NOT EXISTS (
		SELECT 1 FROM ` + queueTable + ` AS other WHERE other.kind = ` + queueTable + `.kind AND other.lane = ` + queueTable + `.lane
			AND other.lane <> '' AND other.state = 1)`).Execute()
	if err != nil {
		return fmt.Errorf("free held jobs: %w", err)
	}
	return nil
}

// beat extends the leases, writes how far jobs are, and finds out what others have done to them meanwhile. settled are
// those whose end has just been written.
func (j *Jobs) beat(tx core.App) error {
	var mine []struct {
		ID        int64 `db:"id"`
		Cancelled bool  `db:"cancelled"`
	}
	err := tx.NonconcurrentDB().NewQuery(`SELECT id, cancelled FROM ` + queueTable + ` WHERE state = 1 AND epoch = {:epoch}`).
		Bind(dbx.Params{"epoch": j.epoch}).All(&mine)
	if err != nil {
		return fmt.Errorf("look at the jobs of this process: %w", err)
	}
	rows := make(map[int64]bool, len(mine))
	for _, m := range mine {
		rows[m.ID] = true
		job := j.inflight[m.ID]
		if job == nil { // claimed by a commit that was reported as failed
			if err := j.giveBack(tx, m.ID); err != nil {
				return err
			}
		} else if m.Cancelled {
			job.cancel(errCancelled)
		}
	}
	for id, job := range j.inflight {
		if !rows[id] && !j.settling(id) {
			job.lose()
		}
		if done := job.done.Load(); done != job.told && rows[id] {
			job.told = done
			_, err := tx.NonconcurrentDB().Update(queueTable, dbx.Params{"done": done, "total": job.total.Load()}, job.mine()).Execute()
			if err != nil {
				return fmt.Errorf("write progress: %w", err)
			}
		}
	}
	_, err = tx.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET lease_until = {:until} WHERE state = 1 AND epoch = {:epoch}`).
		Bind(dbx.Params{"epoch": j.epoch, "until": j.now().Add(lease).UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("extend leases: %w", err)
	}
	return nil
}

func (j *Jobs) settling(id int64) bool {
	return slices.ContainsFunc(j.pending, func(r result) bool { return r.job.id == id })
}

// giveBack makes a job ready that was not begun.
func (j *Jobs) giveBack(tx core.App, id int64) error {
	_, err := tx.NonconcurrentDB().NewQuery(`UPDATE ` + queueTable + ` SET state = 0, attempt = attempt - 1, epoch = '' WHERE id = {:id} AND state = 1 AND epoch = {:epoch}`).
		Bind(dbx.Params{"id": id, "epoch": j.epoch}).Execute()
	if err != nil {
		return fmt.Errorf("give job back: %w", err)
	}
	return nil
}
