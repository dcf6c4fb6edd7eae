package table

import (
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// sweepBatch bounds the rows that one statement of a sweep removes.
const sweepBatch = 250

// OldestQuery finds when the oldest ready job was due, or 0. It looks at the first job of each priority in each queue,
// however many wait behind it.
func OldestQuery() string {
	return `WITH RECURSIVE head(queue, priority) AS (
			SELECT * FROM (SELECT queue, priority FROM ` + Queue + ` WHERE state = 0 ORDER BY queue, priority LIMIT 1)
			UNION ALL
			SELECT (SELECT queue FROM ` + Queue + ` WHERE state = 0 AND (queue, priority) > (head.queue, head.priority) ORDER BY queue, priority LIMIT 1),
				(SELECT priority FROM ` + Queue + ` WHERE state = 0 AND (queue, priority) > (head.queue, head.priority) ORDER BY queue, priority LIMIT 1)
			FROM head WHERE head.queue IS NOT NULL
		) SELECT coalesce(min((SELECT run_at FROM ` + Queue + ` AS q WHERE q.state = 0 AND q.queue = head.queue AND q.priority = head.priority
			ORDER BY run_at LIMIT 1)), 0) FROM head`
}

// sweeping is one statement of a sweep.
type sweeping struct {
	query  string
	params dbx.Params
}

// Sweep removes some of each sort, in a transaction for each, and reports whether there is more.
func Sweep(app core.App, now time.Time, keep, keepDead time.Duration, keepMost int) (more bool, err error) {
	old := func(from, where string, params dbx.Params) sweeping {
		return sweeping{`DELETE FROM ` + from + ` WHERE ` + where, params}
	}
	var kept int // which is counted while others write
	if err := app.ConcurrentDB().NewQuery(`SELECT count(*) FROM ` + History).Row(&kept); err != nil {
		return false, fmt.Errorf("count jobs that have ended: %w", err)
	}
	past := func(d time.Duration) dbx.Params { return dbx.Params{"before": now.Add(-d).UnixMilli()} }
	for _, s := range []sweeping{
		old(History, `id IN (SELECT id FROM `+History+` ORDER BY finished_at LIMIT min({:n}, {:beyond}))`, dbx.Params{"beyond": max(0, kept-keepMost)}),
		old(History, `id IN (SELECT id FROM `+History+` WHERE finished_at < {:before} ORDER BY finished_at LIMIT {:n})`, past(keep)),
		old(Queue, `id IN (SELECT id FROM `+Queue+` WHERE state = 3 AND finished_at < {:before} LIMIT {:n})`, past(keepDead)),
		old(Queue, `id IN (SELECT id FROM `+Queue+` WHERE state = 3 AND expires_at > 0 AND expires_at < {:before} LIMIT {:n})`, past(0)),
		old(Keys, `(kind, key) IN (SELECT kind, key FROM `+Keys+` WHERE until < {:before} LIMIT {:n})`, past(0)),
	} {
		s.params["n"] = sweepBatch
		res, err := app.NonconcurrentDB().NewQuery(s.query).Bind(s.params).Execute()
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
