package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// fairEvery is of how many jobs one is that which was due first, whatever its priority, when there are more than the workers
// can do: otherwise a stream of urgent jobs would keep the others waiting for ever.
const fairEvery = 8

// claim takes up to n jobs of the queue, and reports whether there may be more. What cannot be done now, because its lane
// is busy or its kind unknown, is set aside so that the next claim does not read it again.
func (j *Jobs) claim(tx core.App, q *queue, n int) (claimed []table.Row, more bool, err error) {
	oldest := 0
	if q.behind && j.only == 0 {
		q.urgent += n
		oldest, q.urgent = q.urgent/fairEvery, q.urgent%fairEvery
	}
	defer func() { q.behind = more }()
	for taken := 0; len(claimed) < n; {
		if taken > n+maxAside { // of a busy lane, or of kinds that nobody knows; the next turn goes on
			return claimed, true, nil
		}
		c := table.Claim{Queue: q.name, Epoch: j.epoch, N: n - len(claimed), Only: j.only, Now: j.now(), Lease: lease}
		if oldest > 0 {
			c.N, c.Oldest, oldest = oldest, true, 0
		}
		part, err := table.Take(tx, c)
		if err != nil || len(part) == 0 {
			return claimed, false, err
		}
		taken += len(part)
		full := len(part) == c.N
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

// setAside holds the claimed jobs that must wait.
func (j *Jobs) setAside(tx core.App, claimed []table.Row) (kept []table.Row, err error) {
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
	return kept, table.Hold(tx, waits)
}

// room is how many of the claimed jobs the lane takes.
func (j *Jobs) room(tx core.App, k *Kind, lane string, claimed []table.Row) (int, error) {
	busy, err := table.Busy(tx, k.name, lane)
	for _, r := range claimed {
		if r.Kind == k.name && r.Lane == lane {
			busy-- // it was counted
		}
	}
	return k.perLane - busy, err
}

// promote makes jobs ready whose time has come, and returns when the next one is due.
func (j *Jobs) promote(tx core.App) (next int64, err error) {
	queues, next, err := table.Promote(tx, j.now(), maxSettle)
	for _, name := range queues {
		if q := j.queues[name]; q != nil {
			q.maybe.Store(true)
		}
	}
	return next, err
}

// job makes an attempt of a claimed row.
func (j *Jobs) job(r table.Row, q *queue) *Job {
	job := &Job{
		ID: serial.Format(r.ID), Kind: r.Kind, Owner: ownerOf(&r), Attempt: r.Attempt, DueAt: time.UnixMilli(r.RunAt).UTC(), Request: r.Request,
		jobs: j, kind: j.kinds[r.Kind], id: r.ID, lane: r.Lane, from: q, payload: []byte(r.Payload), sealed: r.Sealed != 0, position: r.Position, expires: r.ExpiresAt, most: r.MaxAttempts,
	}
	if r.Steps != "" {
		_ = json.Unmarshal([]byte(r.Steps), &job.steps) // written by marshal
	}
	job.Progress(r.Done, r.Total)
	job.told = r.Done
	job.ctx, job.cancel = context.WithCancelCause(j.work)
	if r.Cancelled != 0 { // in an attempt that had no time to notice
		job.cancel(errCancelled)
	}
	return job
}

// recover gives the jobs of processes that are gone back to the queue.
func (j *Jobs) recover() error {
	others, err := table.Others(j.app, j.epoch)
	if err != nil {
		return err
	}
	for _, other := range others {
		gone, known := j.present.Gone(other.Epoch)
		if !gone && (known || j.now().UnixMilli() < other.Until) {
			continue
		}
		if err := table.Release(j.app, other.Epoch, j.now()); err != nil {
			return err
		}
		j.present.Bury(other.Epoch)
		j.lookAgain()
	}
	return nil
}

// beat extends the leases, writes how far jobs are, and finds out what others have done to them meanwhile.
func (j *Jobs) beat(tx core.App) error {
	mine, err := table.Beat(tx, j.epoch, j.now().Add(lease))
	if err != nil {
		return err
	}
	rows := make(map[int64]bool, len(mine))
	for _, m := range mine {
		rows[m.ID] = true
		job := j.inflight[m.ID]
		if job == nil { // claimed by a commit that was reported as failed
			if err := table.GiveBack(tx, m.ID, j.epoch); err != nil {
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
			_, err := tx.NonconcurrentDB().Update(table.Queue, dbx.Params{"done": done, "total": job.total.Load()}, job.mine()).Execute()
			if err != nil {
				return fmt.Errorf("write progress: %w", err)
			}
		}
	}
	return nil
}

func (j *Jobs) settling(id int64) bool {
	return slices.ContainsFunc(j.pending, func(r result) bool { return r.job.id == id })
}
