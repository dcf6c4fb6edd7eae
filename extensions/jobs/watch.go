package jobs

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// sweepAfter is how many jobs may end, and sweepEvery how much time pass, until old rows are removed, sweepBatch at a time.
const (
	sweepAfter = 10_000
	sweepEvery = time.Hour
	sweepBatch = 500
)

// metrics begin with the age of the oldest job: whatever is wrong with a queue, it grows.
func (j *Jobs) metrics() []extensions.Metric {
	count := func(state int) func() float64 {
		return func() float64 {
			return j.number(fmt.Sprintf(`SELECT count(*) FROM %s WHERE state = %d`, queueTable, state))
		}
	}
	return []extensions.Metric{
		{Name: "satchel_jobs_oldest_seconds", Help: "How long the oldest ready job has been waiting.", Read: j.oldest},
		{Name: "satchel_jobs_ready_count", Help: "Jobs that are due and wait for a worker.", Read: count(ready)},
		{Name: "satchel_jobs_scheduled_count", Help: "Jobs that wait for their time.", Read: count(scheduled)},
		{Name: "satchel_jobs_running_count", Help: "Jobs that are being done.", Read: count(running)},
		{Name: "satchel_jobs_dead_count", Help: "Jobs that have failed for good and wait for a decision.", Read: count(dead)},
		{Name: "satchel_jobs_attempts_total", Help: "Attempts that have ended.", Counter: true, Read: func() float64 { return float64(j.count.ended.Load()) }},
		{Name: "satchel_jobs_failed_attempts_total", Help: "Attempts that have failed.", Counter: true, Read: func() float64 { return float64(j.count.failed.Load()) }},
	}
}

func (j *Jobs) number(query string) float64 {
	if j.app == nil || !j.app.IsBootstrapped() {
		return 0
	}
	var n float64
	_ = j.app.ConcurrentDB().NewQuery(query).Row(&n) // a metric has nobody to tell an error to
	return n
}

// oldest looks at the first job of each priority in each queue, however many wait behind it.
func (j *Jobs) oldest() float64 {
	first := j.number(`WITH RECURSIVE head(queue, priority) AS (
			SELECT * FROM (SELECT queue, priority FROM ` + queueTable + ` WHERE state = 0 ORDER BY queue, priority LIMIT 1)
			UNION ALL
			SELECT (SELECT queue FROM ` + queueTable + ` WHERE state = 0 AND (queue, priority) > (head.queue, head.priority) ORDER BY queue, priority LIMIT 1),
				(SELECT priority FROM ` + queueTable + ` WHERE state = 0 AND (queue, priority) > (head.queue, head.priority) ORDER BY queue, priority LIMIT 1)
			FROM head WHERE head.queue IS NOT NULL
		) SELECT coalesce(min((SELECT run_at FROM ` + queueTable + ` AS q WHERE q.state = 0 AND q.queue = head.queue AND q.priority = head.priority
			ORDER BY run_at LIMIT 1)), 0) FROM head`)
	if first == 0 {
		return 0
	}
	return max(j.now().Sub(time.UnixMilli(int64(first))).Seconds(), 0)
}

// check tells of dead jobs, and of kinds that this program does not know.
func (j *Jobs) check(_ context.Context, h *extensions.Host) extensions.Result {
	var gone, waiting, unknown int
	err := h.App.ConcurrentDB().NewQuery(`SELECT (SELECT count(*) FROM `+queueTable+` WHERE state = 3), (SELECT count(*) FROM `+queueTable+` WHERE state = 0),
		(SELECT count(*) FROM `+queueTable+` WHERE state = 4 AND lane = '')`).Row(&gone, &waiting, &unknown)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Fail, Message: fmt.Sprintf("jobs cannot be read: %v", err)}
	case gone > 0:
		return extensions.Result{Level: extensions.Warn, Message: fmt.Sprintf("%d jobs are dead", gone), Next: "satchel jobs list --state dead"}
	case unknown > 0:
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("%d jobs are of kinds that this program does not know", unknown), Next: "satchel jobs list --state held",
		}
	}
	return extensions.Result{Message: fmt.Sprintf("%d waiting, none dead", waiting)}
}

// sweepIfDue removes a batch of what is kept no longer.
func (j *Jobs) sweepIfDue(now time.Time) error {
	if j.sinceSweep < sweepAfter && now.Sub(j.swept) < sweepEvery {
		return nil
	}
	more := false
	err := j.app.RunInTransaction(func(tx core.App) (err error) {
		more, err = j.sweep(tx, now)
		return err
	})
	if err != nil {
		return err
	}
	if more {
		j.sinceSweep, j.swept = sweepAfter, now // go on in the next turn
		return nil
	}
	j.sinceSweep, j.swept = 0, now
	return nil
}

// sweep removes some of each sort, and reports whether there is more.
func (j *Jobs) sweep(tx core.App, now time.Time) (more bool, err error) {
	for _, s := range []struct {
		query  string
		params dbx.Params
	}{
		{`DELETE FROM ` + historyTable + ` WHERE id IN (SELECT id FROM ` + historyTable + ` WHERE finished_at < {:before} ORDER BY finished_at LIMIT {:n})`,
			dbx.Params{"before": now.Add(-j.cfg.Keep).UnixMilli()}},
		{`DELETE FROM ` + historyTable + ` WHERE id IN (SELECT id FROM ` + historyTable + ` ORDER BY finished_at
			LIMIT min({:n}, max(0, (SELECT count(*) FROM ` + historyTable + `) - {:most})))`, dbx.Params{"most": j.cfg.KeepMost}},
		{`DELETE FROM ` + queueTable + ` WHERE id IN (SELECT id FROM ` + queueTable + ` WHERE state = 3 AND finished_at < {:before} LIMIT {:n})`,
			dbx.Params{"before": now.Add(-j.cfg.KeepDead).UnixMilli()}},
		{`DELETE FROM ` + queueTable + ` WHERE id IN (SELECT id FROM ` + queueTable + ` WHERE state = 3 AND expires_at > 0 AND expires_at < {:before} LIMIT {:n})`,
			dbx.Params{"before": now.UnixMilli()}},
		{`DELETE FROM ` + keysTable + ` WHERE (kind, key) IN (SELECT kind, key FROM ` + keysTable + ` WHERE until < {:before} LIMIT {:n})`,
			dbx.Params{"before": now.UnixMilli()}},
	} {
		s.params["n"] = sweepBatch
		res, err := tx.NonconcurrentDB().NewQuery(s.query).Bind(s.params).Execute()
		if err != nil {
			return false, fmt.Errorf("remove old jobs: %w", err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return false, fmt.Errorf("count old jobs: %w", err)
		}
		more = more || n == sweepBatch
	}
	return more, nil
}
