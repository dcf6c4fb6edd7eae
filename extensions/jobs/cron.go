package jobs

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs/schedule"
)

// scheduledKey keeps scheduled jobs of a kind from overlapping.
const scheduledKey = "schedule"

func (j *Jobs) leads() bool { return j.deps.Leader == nil || j.deps.Leader() }

// fires reports whether this process enqueues what is scheduled.
func (j *Jobs) fires() bool { return j.schedules > 0 && j.only == 0 && j.leads() }

// fire enqueues the jobs whose time has come, and returns when the next one is due. That a time was used is written in the
// same transaction, so no two processes use it.
func (j *Jobs) fire(tx core.App, now time.Time) (time.Time, error) {
	first := now.Add(24 * time.Hour)
	for _, name := range slices.Sorted(maps.Keys(j.kinds)) {
		k := j.kinds[name]
		if k.schedule == nil {
			continue
		}
		due, next, err := schedule.Due(tx, name, k.schedule, k.catchUp, now)
		if err == nil && !due.IsZero() {
			_, err = j.insert(tx, k, []any{json.RawMessage(k.zero)}, Options{At: due, Key: scheduledKey}, now)
			if q := j.queues[k.queue]; q != nil && err == nil {
				q.maybe.Store(true)
				j.nudge()
			}
		}
		if err != nil {
			return first, fmt.Errorf("schedule of %s: %w", name, err)
		}
		if !next.IsZero() && next.Before(first) {
			first = next
		}
	}
	return first, nil
}
