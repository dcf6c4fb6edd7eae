package changes

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

func number(n int64) string { return strconv.FormatInt(n, 10) }

// later moves the clock of the log; capture's own columns keep the real one.
func (f *fixture) later(d time.Duration) {
	now := f.now()
	f.now = func() time.Time { return now.Add(d) }
}

// quiet ends the background work, so that a test can turn the clock.
func (f *fixture) quiet() {
	f.t.Helper()
	f.must(f.end(f.t.Context()))
	f.stop = nil
}

func TestRetention(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	from := f.at()
	a, b := f.note("a", ""), f.note("b", "")
	f.must(f.Delete(a))
	f.must(f.purge(t.Context())) // notes the time
	equal(t, "kept", f.since(from), "create "+a.Id, "create "+b.Id, "delete "+a.Id)
	tombstone := f.heads("notes")[a.Id]

	f.later(25 * time.Hour)
	f.must(f.purge(t.Context()))
	f.note("c", "")
	floors, err := f.Floor(t.Context())
	if err != nil || floors.Log <= from.Seq || floors.Log > tombstone.Version || floors.Heads != 0 {
		t.Errorf("floors: %+v %v", floors, err)
	}
	_, _, err = f.Since(t.Context(), from, 0)
	if reset, _ := errors.AsType[*ResetError](err); reset == nil || reset.Reason != Floor {
		t.Errorf("below the floor: %v", err)
	}
	if !f.heads("notes")[a.Id].Deleted {
		t.Error("the tombstone went with the log")
	}
	before := f.at()
	f.later(61 * 24 * time.Hour)
	f.must(f.purge(t.Context()))
	if _, there := f.heads("notes")[a.Id]; there {
		t.Error("the tombstone is still there")
	}
	_, err = f.HeadsAfter(t.Context(), "notes", tombstone.Version-1, 0)
	if reset, _ := errors.AsType[*ResetError](err); reset == nil {
		t.Errorf("a reader from before the tombstone: %v", err)
	}
	if _, err := f.HeadsAfter(t.Context(), "notes", tombstone.Version, 0); err != nil {
		t.Errorf("a reader from after it: %v", err)
	}
	// Neither numbers nor hids come again, although the newest rows may be gone.
	f.exec("INSERT INTO notes (id) VALUES ('" + a.Id + "')")
	if again := f.heads("notes")[a.Id]; again.HID <= tombstone.HID || f.at().Seq != before.Seq+1 {
		t.Errorf("%+v after %+v, horizon %d after %d", again, tombstone, f.at().Seq, before.Seq)
	}
	f.sound("notes")
}

// The log is purged in chunks, so that no writer waits long.
func TestPurgeChunks(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	f.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200) INSERT INTO notes (id) SELECT printf('%015d', i) FROM n`)
	f.must(f.purge(t.Context()))
	f.later(25 * time.Hour)
	f.must(f.purge(t.Context()))
	var n int
	f.must(f.ConcurrentDB().NewQuery("SELECT count(*) FROM changes_log").Row(&n))
	if n != 1 {
		t.Errorf("%d rows are left", n)
	}
	f.exec("DELETE FROM notes")
	f.must(f.purge(t.Context()))
	f.later(61 * 24 * time.Hour)
	f.must(f.purge(t.Context()))
	f.must(f.ConcurrentDB().NewQuery("SELECT count(*) FROM changes_heads").Row(&n))
	if n != 0 {
		t.Errorf("%d heads are left", n)
	}
}

func TestReader(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	r := f.Reader("hooks")
	at, err := r.Position(t.Context())
	if err != nil || at != f.at() {
		t.Fatalf("%v %v", at, err)
	}
	a := f.note("a", "")
	for range 2 { // without an Advance it comes again
		list, _, err := r.Next(t.Context(), 0)
		if err != nil || len(list) != 1 || list[0].Record != a.Id {
			t.Fatalf("%+v %v", list, err)
		}
	}
	_, to, err := r.Next(t.Context(), 0)
	f.must(err)
	undone := errors.New("undone")
	err = f.RunInTransaction(func(tx core.App) error { return errors.Join(r.Advance(tx, to), undone) })
	if p, perr := r.Position(t.Context()); !errors.Is(err, undone) || perr != nil || p != at {
		t.Errorf("after a rollback: %v %v", p, perr)
	}
	f.must(f.RunInTransaction(func(tx core.App) error { return r.Advance(tx, to) }))
	f.must(r.Advance(f.App, at)) // not back
	if p, err := f.Reader("hooks").Position(t.Context()); err != nil || p != to {
		t.Errorf("%v %v, want %v", p, err, to)
	}
	f.note("b", "")
	if lag := f.metrics()[2].Read(); lag != 1 {
		t.Errorf("lag: %v", lag)
	}

	// The log waits for it, but not for ever.
	f.must(f.purge(t.Context()))
	f.later(25 * time.Hour)
	f.must(f.purge(t.Context()))
	if list, _, err := r.Next(t.Context(), 0); err != nil || len(list) != 1 {
		t.Errorf("after a day: %v %v", list, err)
	}
	f.note("c", "")
	f.later(8 * 24 * time.Hour)
	f.must(f.purge(t.Context()))
	f.tail.Store(nil)
	_, _, err = r.Next(t.Context(), 0)
	reset, _ := errors.AsType[*ResetError](err)
	if reset == nil || reset.Reason != Floor {
		t.Fatalf("after a week: %v", err)
	}
	f.must(r.Reset(f.App, reset.Now))
	if p, err := r.Position(t.Context()); err != nil || p != f.at() {
		t.Errorf("%v %v", p, err)
	}

	// A position of another epoch cannot be stored.
	if _, err := f.BeginEpoch(); err != nil {
		t.Fatal(err)
	}
	if _, reset := errors.AsType[*ResetError](r.Advance(f.App, f.at())); !reset {
		t.Error("a reader of the old epoch advanced")
	}
}

// A reader that no program has any more does not hold the log for ever, nor stay in the list.
func TestForgottenReader(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	if _, err := f.Reader("old").Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.readers.Clear()
	for range 3 {
		f.note("a", "")
	}
	f.must(f.purge(t.Context()))
	f.later(8 * 24 * time.Hour)
	f.must(f.purge(t.Context()))
	var n int
	f.must(f.ConcurrentDB().NewQuery("SELECT count(*) FROM changes_readers").Row(&n))
	if n != 0 {
		t.Error("it is still there")
	}
}

func TestConfig(t *testing.T) {
	if err := defaults().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for name, change := range map[string]func(c *Config){
		"log":        func(c *Config) { c.LogRetention = time.Second },
		"reader":     func(c *Config) { c.ReaderRetention = time.Hour },
		"tombstones": func(c *Config) { c.TombstoneRetention = time.Hour },
		"small tail": func(c *Config) { c.Tail = 1 },
		"large tail": func(c *Config) { c.Tail = 1 << 30 },
	} {
		c := defaults()
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// A machine without a clock of its own begins in 1970 until it has asked others. That makes nothing old which is not.
func TestWrongClockPurgesNothing(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	r := f.Reader("hooks")
	if _, err := r.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.must(f.purge(t.Context())) // notes the time
	const years = 50 * 365 * 24 * time.Hour
	f.later(-years)
	a, b := f.note("a", ""), f.note("b", "")
	if err := f.purge(t.Context()); !errors.Is(err, errClock) {
		t.Errorf("in 1970: %v", err)
	}
	f.later(years + time.Hour)
	f.must(f.purge(t.Context()))
	f.tail.Store(nil)
	list, _, err := r.Next(t.Context(), 0)
	if err != nil || len(list) != 2 || list[0].Record != a.Id || list[1].Record != b.Id {
		t.Errorf("with the right time: %v %v", list, err)
	}
	f.later(years) // and for a moment it was far ahead
	f.must(f.stamp(t.Context()))
	f.later(-years)
	f.must(f.purge(t.Context()))
}
