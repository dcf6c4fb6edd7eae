package changes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

// Writers of every kind at once; readers must see every number, in order and without gaps.
func TestReadersSeeEveryNumber(t *testing.T) {
	const writers, readers, each = 8, 4, 60
	cfg := defaults()
	cfg.Tail = 64 // so that slow readers need the database too
	f := start(t, cfg)
	from := f.at()
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				r := core.NewRecord(f.notes)
				r.Set("title", fmt.Sprint(w, " ", i))
				var err error
				switch i % 3 {
				case 0:
					err = f.Save(r)
				case 1:
					err = f.RunInTransaction(func(tx core.App) error {
						if err := tx.Save(r); err != nil {
							return err
						}
						return tx.Delete(r)
					})
				default:
					undone := errors.New("undone")
					err = f.RunInTransaction(func(tx core.App) error { return errors.Join(tx.Save(r), undone) })
					if errors.Is(err, undone) {
						err = nil
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	const total = writers * (each/3*1 + each/3*2)
	for n := range readers {
		reading.Go(func() {
			at, seen := from, 0
			for seen < total {
				if err := f.Wait(within(t, 30*time.Second), at.Seq); err != nil {
					t.Errorf("reader %d saw %d of %d: %v", n, seen, total, err)
					return
				}
				list, to, err := f.Since(t.Context(), at, 7+n)
				if err != nil {
					t.Error(err)
					return
				}
				for i, c := range list {
					if c.Seq != at.Seq+int64(i)+1 {
						t.Errorf("reader %d: %d came after %d", n, c.Seq, at.Seq+int64(i))
						return
					}
				}
				at, seen = to, seen+len(list)
			}
		})
	}
	writing.Wait()
	reading.Wait()
	if got := f.at().Seq - from.Seq; got != total {
		t.Errorf("%d numbers, want %d", got, total)
	}
	f.sound("notes")
}

// What returned before the question is in the answer.
func TestOwnWritesAreSeen(t *testing.T) {
	f := start(t, defaults())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				r := core.NewRecord(f.notes)
				if err := f.Save(r); err != nil {
					t.Error(err)
				}
				heads, err := f.HeadsOf(t.Context(), "notes", []string{r.Id})
				if err != nil || heads[r.Id].Version == 0 {
					t.Errorf("no head after the write: %v", err)
				}
				if last, err := f.LastChange(t.Context(), "notes"); err != nil || last < heads[r.Id].Version {
					t.Errorf("last change %d, version %d: %v", last, heads[r.Id].Version, err)
				}
			}
		})
	}
	all.Wait()
}

// A thousand readers at the end of the log cost one query.
func TestReadersShareTheTail(t *testing.T) {
	f := start(t, defaults())
	from := f.at()
	for range 10 {
		f.note("a", "")
	}
	f.at()
	loaded := f.tail.Load()
	for range 1000 {
		list, to, err := f.Since(t.Context(), from, 0)
		if err != nil || len(list) != 10 || to != f.at() {
			t.Fatalf("%d changes, %v, %v", len(list), to, err)
		}
	}
	if f.tail.Load() != loaded {
		t.Error("the log was read again")
	}
}

func TestPositions(t *testing.T) {
	f := start(t, defaults())
	f.note("a", "")
	now := f.at()
	for text, ok := range map[string]bool{
		now.String(): true, now.Epoch + ".0": true, "": false, ".": false, now.Epoch: false, "x.1": false, now.Epoch + ".-1": false, now.Epoch + ".00": false,
		now.Epoch + ".zzzzzzzzzzzzzzzzz": false,
	} {
		if p, got := ParsePosition(text); got != ok || ok && p.String() != text {
			t.Errorf("%q: %v %v", text, p, got)
		}
	}
	for _, c := range []struct {
		at     Position
		reason Reason
	}{
		{Position{now.Epoch, now.Seq + 1}, Ahead}, {Position{"other", 1}, OtherEpoch}, {now, ""}, {Position{now.Epoch, 0}, ""},
	} {
		_, _, err := f.Since(t.Context(), c.at, 0)
		reset, _ := errors.AsType[*ResetError](err)
		if (reset == nil) != (c.reason == "") || reset != nil && (reset.Reason != c.reason || reset.Now != now) {
			t.Errorf("%v: %v", c.at, err)
		}
	}
}

// Old positions are read from the database in pages.
func TestBehindTheTail(t *testing.T) {
	cfg := defaults()
	cfg.Tail = 64
	f := start(t, cfg)
	from := f.at()
	for range 200 {
		f.note("a", "")
		f.at()
	}
	if f.tail.Load().start <= from.Seq {
		t.Fatal("the tail holds everything")
	}
	seen := 0
	for at := from; ; {
		list, to, err := f.Since(t.Context(), at, 30)
		f.must(err)
		if len(list) == 0 {
			break
		}
		at, seen = to, seen+len(list)
	}
	if seen != 200 {
		t.Errorf("%d changes", seen)
	}
}

// A log that has run ahead of the tail is joined anew.
func TestTailJumps(t *testing.T) {
	cfg := defaults()
	cfg.Tail = 64
	f := start(t, cfg)
	from := f.at()
	f.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO notes (id) SELECT printf('%015d', i) FROM n`)
	list, _, err := f.Since(t.Context(), from, maxLimit)
	if err != nil || len(list) != 500 {
		t.Errorf("%d changes: %v", len(list), err)
	}
	if last, err := f.LastChange(t.Context(), "notes"); err != nil || last != f.at().Seq {
		t.Errorf("last change %d, horizon %d: %v", last, f.at().Seq, err)
	}
}

func TestWait(t *testing.T) {
	f := start(t, defaults())
	at := f.at()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := f.Wait(short, at.Seq); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a change: %v", err)
	}
	var woken atomic.Int64
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if f.Wait(within(t, 10*time.Second), at.Seq) == nil {
				woken.Add(1)
			}
		})
	}
	f.note("a", "")
	all.Wait()
	if woken.Load() != 100 {
		t.Errorf("%d of 100 woke", woken.Load())
	}
	// A change of the epoch wakes too.
	at = f.at()
	done := make(chan error, 1)
	go func() { done <- f.Wait(within(t, 10*time.Second), at.Seq) }()
	for !f.watched.Load() {
		time.Sleep(time.Millisecond)
	}
	if _, err := f.BeginEpoch(); err != nil {
		t.Fatal(err)
	}
	f.must(<-done)
}

func TestLastChange(t *testing.T) {
	f := start(t, defaults())
	f.collection("others")
	before, err := f.LastChange(t.Context(), "notes", "users")
	f.must(err)
	f.exec("INSERT INTO others (id) VALUES ('000000000000001')")
	if n, err := f.LastChange(t.Context(), "notes", "users"); err != nil || n != before {
		t.Errorf("after another collection's change: %d, was %d: %v", n, before, err)
	}
	if n, err := f.LastChange(t.Context(), "notes", "others"); err != nil || n != f.at().Seq {
		t.Errorf("%d %v", n, err)
	}
	if _, err := f.LastChange(t.Context(), "notes", "_superusers"); !errors.Is(err, ErrNotCaptured) {
		t.Errorf("a collection that is not captured: %v", err)
	}
	f.notes.ListRule = new("title = 'x'")
	f.save(f.notes)
	if n, err := f.LastChange(t.Context(), f.notes.Id); err != nil || n != f.at().Seq {
		t.Errorf("after a change of the rule: %d %v", n, err)
	}
	// The same after a restart, when some of it is folded.
	want, err := f.LastChange(t.Context(), "others")
	f.must(err)
	if _, err := f.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.tail.Store(nil)
	if n, err := f.LastChange(t.Context(), "others"); err != nil || n != want {
		t.Errorf("after a restart: %d, was %d: %v", n, want, err)
	}
}

func TestTouch(t *testing.T) {
	f := start(t, defaults())
	r := f.note("a", "")
	equal(t, "touch", f.during(func() { f.must(f.Touch(f.App, "notes", r.Id)) }), "update "+r.Id)
	at := f.at()
	done := make(chan error, 1)
	go func() { done <- f.Wait(within(t, 10*time.Second), at.Seq) }()
	f.must(f.RunInTransaction(func(tx core.App) error { return f.Touch(tx, f.notes.Id, r.Id) }))
	f.must(<-done)
	if err := f.Touch(f.App, "_superusers", "x"); !errors.Is(err, ErrNotCaptured) {
		t.Errorf("%v", err)
	}
	f.sound("notes")
}

func TestHeads(t *testing.T) {
	f := start(t, defaults())
	a, b := f.note("a", ""), f.note("b", "")
	f.must(f.Delete(a))
	b.Set("title", "c")
	f.save(b)
	heads := f.heads("notes")
	ha, hb := heads[a.Id], heads[b.Id]
	if !ha.Deleted || hb.Deleted || hb.Version != f.at().Seq || ha.Version != hb.Version-1 || ha.HID == hb.HID {
		t.Errorf("%+v %+v", ha, hb)
	}
	after, err := f.HeadsAfter(t.Context(), "notes", ha.Version, 0)
	if err != nil || len(after) != 1 || after[0] != hb {
		t.Errorf("after: %+v %v", after, err)
	}
	of, err := f.HeadsOf(t.Context(), "notes", []string{a.Id, "unknown"})
	if err != nil || len(of) != 1 || of[a.Id] != ha {
		t.Errorf("of: %+v %v", of, err)
	}
	by, err := f.HeadsByHID(t.Context(), "notes", []int64{hb.HID, 999})
	if err != nil || len(by) != 1 || by[0] != hb {
		t.Errorf("by hid: %+v %v", by, err)
	}
	// A record that comes back keeps its number.
	f.exec("INSERT INTO notes (id) VALUES ('" + a.Id + "')")
	if again := f.heads("notes")[a.Id]; again.HID != ha.HID || again.Deleted {
		t.Errorf("again: %+v", again)
	}
}

// Whatever statistics SQLite has, each head that is asked for is looked up.
func TestHeadsAreLookedUp(t *testing.T) {
	f := start(t, defaults())
	f.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO notes (id) SELECT printf('%015d', i) FROM n`)
	f.heads("notes")
	for _, statistics := range []string{"SELECT 1", "ANALYZE"} {
		f.exec(statistics)
		for query, want := range map[string]string{
			headsAfter:    "SEARCH changes_heads USING COVERING INDEX changes_heads_seq (c=? AND seq>?)",
			headsByNumber: "SEARCH h USING INTEGER PRIMARY KEY (rowid=?)",
			headsByRecord: "SEARCH h USING INDEX sqlite_autoindex_changes_heads_1 (c=? AND rec=?)",
		} {
			var plan []struct{ Detail string }
			f.must(f.ConcurrentDB().NewQuery("EXPLAIN QUERY PLAN " + query).Bind(dbx.Params{"c": 1, "values": "[1,2]", "after": 7, "limit": 100}).All(&plan))
			found := false
			for _, step := range plan {
				found = found || step.Detail == want
				if strings.HasPrefix(step.Detail, "SCAN h") || strings.HasPrefix(step.Detail, "SCAN changes_heads") || strings.Contains(step.Detail, "TEMP B-TREE FOR ORDER") {
					t.Errorf("after %s: %s: %v", statistics, query, plan)
				}
			}
			if !found {
				t.Errorf("after %s: %s: %v, want %s", statistics, query, plan, want)
			}
		}
	}
	list, err := f.HeadsByHID(t.Context(), "notes", []int64{7, 7, 8})
	if err != nil || len(list) != 2 {
		t.Errorf("a head that is named twice: %v %v", list, err)
	}
}

// A version is that of the transaction, whether the log was folded or not.
func TestVersionIn(t *testing.T) {
	f := start(t, defaults())
	check := func(app core.App, what, collection, record string, want int64, wantDeleted bool) {
		t.Helper()
		v, deleted, err := f.VersionIn(app, collection, record)
		if err != nil || v != want || deleted != wantDeleted {
			t.Errorf("%s: %d %v %v, want %d %v", what, v, deleted, err, want, wantDeleted)
		}
	}
	r := f.note("a", "")
	check(f.App, "not folded", f.notes.Id, r.Id, f.at().Seq, false)
	f.heads("notes")
	check(f.App, "folded, by name", "Notes", r.Id, f.at().Seq, false)
	check(f.App, "unknown", "notes", "unknown", 0, false)
	before := f.at().Seq
	undone := errors.New("undone")
	err := f.RunInTransaction(func(tx core.App) error {
		r.Set("title", "b")
		f.must(tx.Save(r))
		check(tx, "in the transaction", f.notes.Id, r.Id, before+1, false)
		f.must(tx.Delete(r))
		check(tx, "deleted in the transaction", f.notes.Id, r.Id, before+2, true)
		return undone
	})
	if !errors.Is(err, undone) {
		t.Fatal(err)
	}
	check(f.App, "undone", f.notes.Id, r.Id, before, false)
	f.must(f.Delete(r))
	check(f.App, "deleted", f.notes.Id, r.Id, f.at().Seq, true)
	f.heads("notes")
	check(f.App, "deleted and folded", f.notes.Id, r.Id, f.at().Seq, true)
	if _, _, err := f.VersionIn(f.App, "_superusers", "x"); !errors.Is(err, ErrNotCaptured) {
		t.Errorf("%v", err)
	}

	// Records from before the capture have the number with which it began, whether they have a head yet or not.
	old := f.note("old", "")
	k, err := f.Collection(t.Context(), "notes")
	f.must(err)
	f.exec("DROP TRIGGER changes_" + number(k.C) + "_insert")
	f.must(capture.Sync(f.App, f.excluded))
	k, err = f.Collection(t.Context(), "notes")
	f.must(err)
	check(f.App, "before the capture", "notes", old.Id, k.Base, false)
	check(f.App, "never, before the capture", "notes", "unknown", 0, false)
	f.heads("notes")
	check(f.App, "before the capture, with a head", "notes", old.Id, k.Base, false)
}

// What touches no captured table makes nobody read the log.
func TestQuietWritesNotifyNobody(t *testing.T) {
	f := start(t, defaults())
	f.at()
	noted := f.noted.Load()
	if _, err := f.Reader("r").Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.noted.Load() != noted {
		t.Error("the log's own tables are not quiet")
	}
	// And the versions of tables stay exact beside the triggers.
	users, notes := f.db.TableVersion("users"), f.db.TableVersion("notes")
	f.note("a", "")
	if f.db.TableVersion("users") != users || f.db.TableVersion("notes") == notes {
		t.Error("the triggers blur the versions of tables")
	}
}
