package jobs

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs/schedule"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

const (
	// scheduledKey keeps scheduled jobs of a kind from overlapping.
	scheduledKey = "schedule"

	// punctual is how late a scheduled job may be without having been missed.
	punctual = 2 * time.Minute

	// missedIn bounds the search for the last time that was missed; of older ones the first is taken.
	missedIn = 48 * time.Hour
)

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
		due, err := j.fireOne(tx, k, now)
		if err != nil {
			return first, fmt.Errorf("schedule of %s: %w", name, err)
		}
		if !due.IsZero() && due.Before(first) {
			first = due
		}
	}
	return first, nil
}

func (j *Jobs) fireOne(tx core.App, k *Kind, now time.Time) (due time.Time, err error) {
	var last int64
	err = tx.NonconcurrentDB().NewQuery(`SELECT last_at FROM ` + table.Schedules + ` WHERE kind = {:kind}`).Bind(dbx.Params{"kind": k.name}).Row(&last)
	// A time that is ahead was written by a clock that was: whoever waited for it would be silent until then.
	if errors.Is(err, sql.ErrNoRows) || err == nil && time.UnixMilli(last).Sub(now) > punctual {
		return schedule.Next(k.schedule, now), j.fired(tx, k, now)
	}
	if err != nil {
		return due, fmt.Errorf("read last time: %w", err)
	}
	due = schedule.Next(k.schedule, time.UnixMilli(last))
	if due.IsZero() || due.After(now) {
		return due, nil
	}
	if recent := schedule.Next(k.schedule, now.Add(-missedIn)); !recent.IsZero() && recent.After(due) {
		due = recent
	}
	for later := schedule.Next(k.schedule, due); !later.IsZero() && !later.After(now); later = schedule.Next(k.schedule, due) {
		due = later
	}
	if k.catchUp || now.Sub(due) < punctual {
		if _, err := j.insert(tx, k, []any{json.RawMessage(k.zero)}, Options{At: due, Key: scheduledKey}, now); err != nil {
			return due, err
		}
		if q := j.queues[k.queue]; q != nil {
			q.maybe.Store(true)
			j.nudge()
		}
	}
	return schedule.Next(k.schedule, now), j.fired(tx, k, now)
}

func (j *Jobs) fired(tx core.App, k *Kind, now time.Time) error {
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + table.Schedules + ` (kind, last_at) VALUES ({:kind}, {:now})
		ON CONFLICT (kind) DO UPDATE SET last_at = excluded.last_at`).Bind(dbx.Params{"kind": k.name, "now": now.UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("write last time: %w", err)
	}
	return nil
}
