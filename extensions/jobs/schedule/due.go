package schedule

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/cron"

	"github.com/satchelbase/satchel/extensions/jobs/table"
)

const (
	// punctual is how late a scheduled job may be without having been missed.
	punctual = 2 * time.Minute

	// missedIn bounds the search for the last time that was missed; of older ones the first is taken.
	missedIn = 48 * time.Hour
)

// Due uses up the times of a kind's schedule that have come, in the transaction of tx. It returns the last of them if a job
// is to be enqueued for it, else the zero time, and when the next one is. Times that were missed are made up for once with
// catchUp, and else skipped.
func Due(tx core.App, kind string, s *cron.Schedule, catchUp bool, now time.Time) (due, next time.Time, err error) {
	var last int64
	err = tx.NonconcurrentDB().NewQuery(`SELECT last_at FROM ` + table.Schedules + ` WHERE kind = {:kind}`).Bind(dbx.Params{"kind": kind}).Row(&last)
	// A time that is ahead was written by a clock that was: whoever waited for it would be silent until then.
	if errors.Is(err, sql.ErrNoRows) || err == nil && time.UnixMilli(last).Sub(now) > punctual {
		return due, Next(s, now), used(tx, kind, now)
	}
	if err != nil {
		return due, next, fmt.Errorf("read last time: %w", err)
	}
	if next = Next(s, time.UnixMilli(last)); next.IsZero() || next.After(now) {
		return due, next, nil
	}
	if due = next; due.Before(now.Add(-missedIn)) {
		if recent := Next(s, now.Add(-missedIn)); !recent.IsZero() && !recent.After(now) {
			due = recent
		}
	}
	for later := Next(s, due); !later.IsZero() && !later.After(now); later = Next(s, due) {
		due = later
	}
	if !catchUp && now.Sub(due) >= punctual {
		due = time.Time{}
	}
	return due, Next(s, now), used(tx, kind, now)
}

func used(tx core.App, kind string, now time.Time) error {
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + table.Schedules + ` (kind, last_at) VALUES ({:kind}, {:now})
		ON CONFLICT (kind) DO UPDATE SET last_at = excluded.last_at`).Bind(dbx.Params{"kind": kind, "now": now.UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("write last time: %w", err)
	}
	return nil
}
