package jobs

import (
	"time"

	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// sweepAfter is how many jobs may end, and sweepEvery how much time pass, until old rows are removed.
const (
	sweepAfter = 10_000
	sweepEvery = time.Hour
)

// Attempts is how many attempts have ended and how many of them have failed, in this process.
func (j *Jobs) Attempts() (ended, failed int64) { return j.count.ended.Load(), j.count.failed.Load() }

// sweepIfDue removes a batch of what is kept no longer.
func (j *Jobs) sweepIfDue(now time.Time) error {
	if j.sinceSweep < sweepAfter && now.Sub(j.swept) < sweepEvery {
		return nil
	}
	more, err := table.Sweep(j.app, now, j.cfg.Keep, j.cfg.KeepDead, j.cfg.KeepMost)
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
