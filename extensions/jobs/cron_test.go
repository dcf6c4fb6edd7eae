package jobs

import (
	"context"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/cron"

	"github.com/satchelbase/satchel/extensions/jobs/schedule"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

func TestNext(t *testing.T) {
	at := func(text string) time.Time {
		got, err := time.Parse(time.DateTime, text)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, c := range [][3]string{
		{"* * * * *", "2026-03-01 12:00:00", "2026-03-01 12:01:00"},
		{"* * * * *", "2026-03-01 12:00:59", "2026-03-01 12:01:00"},
		{"30 8 * * *", "2026-03-01 08:30:00", "2026-03-02 08:30:00"},
		{"0 0 1 1 *", "2026-03-01 08:30:00", "2027-01-01 00:00:00"},
		{"0 12 29 2 *", "2026-03-01 08:30:00", "2028-02-29 12:00:00"},
		{"*/15 9-17 * * 1-5", "2026-03-06 17:45:00", "2026-03-09 09:00:00"},
	} {
		s, err := cron.NewSchedule(c[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := schedule.Next(s, at(c[1])); !got.Equal(at(c[2])) {
			t.Errorf("%s after %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

// A schedule fires once for each time, once for all that were missed if it catches up, and never beside itself.
func TestSchedule(t *testing.T) {
	idle := func(context.Context, *Job, int) error { return nil }
	f := start(t,
		Define(Spec[int]{Kind: "test.hourly", Queue: "later", Cron: "0 * * * *", Work: idle}),
		Define(Spec[int]{Kind: "test.careful", Queue: "later", Cron: "0 * * * *", CatchUp: true, Work: idle}))
	if err := f.jobs.Pause(f.App.App, "later"); err != nil {
		t.Fatal(err)
	}
	await(t, "the first look", func() bool { return f.count(t, table.Schedules) == 2 })
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	fire := func(last, now time.Time, hourly, careful int) {
		t.Helper()
		if _, err := f.NonconcurrentDB().Update(table.Schedules, dbx.Params{"last_at": last.UnixMilli()}, nil).Execute(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second process finds nothing to do
			err := f.RunInTransaction(func(tx core.App) error {
				due, err := f.jobs.fire(tx, now)
				if !due.After(now) || due.Sub(now) > time.Hour {
					t.Errorf("next at %s", due)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for kind, want := range map[string]int{"test.hourly": hourly, "test.careful": careful} {
			if got := f.count(t, table.Queue+" WHERE kind = '"+kind+"'"); got != want {
				t.Errorf("%s: %d jobs, want %d", kind, got, want)
			}
		}
		if _, err := f.NonconcurrentDB().Delete(table.Queue, nil).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	fire(noon.Add(-time.Minute), noon.Add(-time.Second), 0, 0)
	fire(noon.Add(-time.Minute), noon.Add(time.Second), 1, 1)
	fire(noon.Add(-72*time.Hour), noon.Add(30*time.Minute), 0, 1)
	if _, err := f.jobs.Enqueue(f.App.App, "test.hourly", 0, Options{Key: scheduledKey}); err != nil {
		t.Fatal(err)
	}
	fire(noon.Add(-time.Minute), noon.Add(time.Second), 1, 1) // the one that waits
}

// A time that was missed long ago is made up for at once, not when the next one comes.
func TestScheduleMissedLongAgo(t *testing.T) {
	f := start(t, Define(Spec[int]{Kind: "test.monthly", Queue: "later", Cron: "0 0 1 * *", CatchUp: true, Work: func(context.Context, *Job, int) error { return nil }}))
	if err := f.jobs.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 2, 10, 12, 0, 0, 0, time.UTC)
	err := f.RunInTransaction(func(tx core.App) error {
		if _, err := tx.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + table.Schedules + ` VALUES ('test.monthly', {:last})`).Bind(dbx.Params{"last": now.AddDate(0, -1, 0).UnixMilli()}).Execute(); err != nil {
			return err
		}
		_, err := f.jobs.fire(tx, now)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var due int64
	if err := f.DB().NewQuery("SELECT run_at FROM " + table.Queue).Row(&due); err != nil || !time.UnixMilli(due).Equal(time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("due %s, %v", time.UnixMilli(due).UTC(), err)
	}
}
