package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// exact waits for an exact version: a writer may be busy at the moment.
func exact(t testing.TB, s *Store) string {
	t.Helper()
	var version string
	waitFor(t, "an exact version", func() (ok bool) {
		version, ok = s.Version()
		return ok
	})
	return version
}

func TestVersion(t *testing.T) {
	p := openPair(t, full(), Options{Quiet: []string{"Jobs_queue"}})
	other := openAt(t, p.file().path, full(), Options{}) // as another process
	ctx := t.Context()
	p.exec(t, "CREATE TABLE jobs_queue (id INTEGER PRIMARY KEY)")
	p.exec(t, "CREATE TABLE empty (id INTEGER PRIMARY KEY)")
	exec := func(db *sql.DB, text string) func() error {
		return func() error { _, err := db.Exec(text); return err }
	}
	tx := func(db *sql.DB, end error, texts ...string) func() error {
		return func() error {
			err := inTx(ctx, db, func(tx *sql.Tx) error {
				for _, text := range texts {
					if _, err := tx.Exec(text); err != nil {
						return err
					}
				}
				return end
			})
			if end != nil && errors.Is(err, end) {
				return nil
			}
			return err
		}
	}
	for _, c := range []struct {
		name    string
		changes bool
		do      func() error
	}{
		{"nothing", false, func() error { return nil }},
		{"read", false, exec(p.write, "SELECT * FROM notes")},
		{"insert", true, exec(p.write, "INSERT INTO notes VALUES (1, 'a')")},
		{"conflict", false, exec(p.write, "INSERT OR IGNORE INTO jobs_queue VALUES (1)")},
		{"quiet table", false, exec(p.write, "INSERT INTO `jobs_queue` VALUES (2)")},
		{"quiet transaction", false, tx(p.write, nil, "INSERT INTO jobs_queue VALUES (3)", "DELETE FROM JOBS_QUEUE")},
		{"mixed transaction", true, tx(p.write, nil, "INSERT INTO jobs_queue VALUES (3)", "UPDATE notes SET title = 'b'")},
		{"rollback", false, tx(p.write, errors.New("no"), "UPDATE notes SET title = 'c'")},
		{"schema", true, exec(p.write, "ALTER TABLE notes ADD COLUMN more")},
		{"script", true, exec(p.write, "DELETE FROM jobs_queue; UPDATE notes SET title = 'd'")},
		{"with", true, exec(p.write, "WITH a AS (SELECT 1) UPDATE notes SET title = 'e'")},
		{"text transaction", true, exec(p.write, "BEGIN; UPDATE notes SET title = 'f'; COMMIT")},
		{"read pool", true, exec(p.read, "UPDATE notes SET title = 'g'")},
		{"read pool transaction", true, tx(p.read, nil, "UPDATE notes SET title = 'h'")},
		{"other process", true, exec(other.write, "UPDATE notes SET title = 'i'")},
		{"other process, transaction", true, tx(other.write, nil, "UPDATE notes SET title = 'j'")},
		{"checkpoint", false, exec(p.write, "PRAGMA wal_checkpoint(TRUNCATE)")},
		{"returning", true, func() error {
			return p.write.QueryRow("UPDATE notes SET title = 'k' RETURNING id").Scan(new(int))
		}},
		{"after all", false, func() error { return nil }},
	} {
		before := exact(t, p.store)
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if after := exact(t, p.store); (after != before) != c.changes {
			t.Errorf("%s: %s, then %s", c.name, before, after)
		}
	}
}

// A transaction does not make answers uncertain until it commits.
func TestVersionDuringATransaction(t *testing.T) {
	p := openPair(t, full(), Options{})
	before := exact(t, p.store)
	tx, err := p.write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO notes VALUES (1, 'a')"); err != nil {
		t.Fatal(err)
	}
	if v, ok := p.store.Version(); !ok || v != before {
		t.Errorf("%s %v, want %s", v, ok, before)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if exact(t, p.store) == before {
		t.Error("the commit did not change the version")
	}
	r, err := p.write.Query("SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, ok := p.store.Version(); ok || r.Err() != nil {
		t.Error("exact while nobody can ask SQLite")
	}
}

// Readers label what they see with the version; no label may ever belong to two states, and an exact version that
// equals a label must mean that the state of the label is the current one. Writers use every path, also another process.
func TestVersionUnderConcurrency(t *testing.T) {
	p := openPair(t, Config{Durability: Normal}, Options{Quiet: []string{"jobs_queue"}})
	other := openAt(t, p.file().path, Config{Durability: Normal}, Options{})
	p.exec(t, "CREATE TABLE jobs_queue (id INTEGER PRIMARY KEY)")
	p.exec(t, "INSERT INTO notes VALUES (1, '0')")
	stop := time.Now().Add(2 * time.Second)
	var (
		all                             sync.WaitGroup
		acknowledged, observed, matches atomic.Int64
	)
	writer := func(do func(n int64) error, pause time.Duration) {
		all.Go(func() {
			for time.Now().Before(stop) {
				if err := do(0); err != nil {
					t.Error(err)
				}
				acknowledged.Add(1)
				time.Sleep(pause)
			}
		})
	}
	const next = "UPDATE notes SET title = title + 1"
	writer(func(int64) error { _, err := p.write.Exec(next); return err }, 700*time.Microsecond)
	writer(func(int64) error {
		return inTx(context.Background(), p.write, func(tx *sql.Tx) error { _, err := tx.Exec(next); return err })
	}, 900*time.Microsecond)
	writer(func(int64) error { _, err := other.write.Exec(next); return err }, 5*time.Millisecond)
	all.Go(func() {
		for time.Now().Before(stop) {
			p.exec(t, "INSERT INTO jobs_queue DEFAULT VALUES")
			time.Sleep(100 * time.Microsecond)
		}
	})
	read := func() (n int64) {
		if err := p.read.QueryRow("SELECT CAST(title AS INT) FROM notes").Scan(&n); err != nil {
			t.Error(err)
		}
		for {
			if old := observed.Load(); n <= old || observed.CompareAndSwap(old, n) {
				return n
			}
		}
	}
	for range 4 {
		all.Go(func() {
			for time.Now().Before(stop) {
				label, ok := p.store.Version()
				if rand.IntN(2) == 0 {
					label, ok = p.store.LastVersion(), true
				}
				if !ok {
					continue
				}
				seen := read()
				time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
				// What was acknowledged, or seen by another reader, before the comparison must be part of the label's state.
				known := max(acknowledged.Load(), observed.Load())
				now, ok := p.store.Version()
				if ok && now == label {
					matches.Add(1)
					if seen < known {
						t.Errorf("304 for state %d although %d was acknowledged or seen", seen, known)
						return
					}
				}
			}
		})
	}
	all.Wait()
	if want := fmt.Sprint(acknowledged.Load()); fmt.Sprint(read()) != want {
		t.Errorf("%d, want %s", read(), want)
	}
	if matches.Load() < 100 {
		t.Fatalf("only %d repeated reads: the test shows nothing", matches.Load())
	}
}
