package store

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPragmas(t *testing.T) {
	p := openPair(t, full(), Options{})
	for _, db := range []*sql.DB{p.read, p.write} {
		for name, want := range map[string]string{
			"busy_timeout": "10000", "journal_mode": "wal", "journal_size_limit": "200000000", "synchronous": "1",
			"foreign_keys": "1", "temp_store": "2", "cache_size": "-32000",
		} {
			var got string
			if err := db.QueryRow("PRAGMA " + name).Scan(&got); err != nil || got != want {
				t.Errorf("%s is %q, want %q: %v", name, got, want, err)
			}
		}
		if driverName != "modernc" {
			continue
		}
		// Defensive mode makes this a silent no-op.
		if _, err := db.Exec("PRAGMA writable_schema=ON"); err != nil {
			t.Error(err)
		}
		if _, err := db.Exec("UPDATE sqlite_schema SET sql = 'x' WHERE 0"); err == nil {
			t.Error("the schema can be written: defensive mode is off")
		}
	}
}

// What each kind of statement costs in syncs; a caller that gets its answer has waited for them.
func TestWhatIsSynced(t *testing.T) {
	counted := newSyncs()
	p := openPair(t, full(), Options{Sync: counted.sync})
	ctx := t.Context()
	query := func(db *sql.DB, text string) error {
		r, err := db.Query(text)
		if err != nil {
			return err
		}
		defer r.Close()
		for r.Next() {
		}
		return r.Err()
	}
	counted.take()
	for _, c := range []struct {
		name string
		want int
		do   func() error
	}{
		{"autocommit", 1, func() error { _, err := p.write.Exec("INSERT INTO notes VALUES (1, 'a')"); return err }},
		{"returning, read to the end", 1, func() error { return query(p.write, "INSERT INTO notes VALUES (2, 'a') RETURNING id") }},
		{"returning, one row", 1, func() error {
			return p.write.QueryRow("INSERT INTO notes VALUES (3, 'a') RETURNING id").Scan(new(int))
		}},
		{"script", 1, func() error {
			_, err := p.write.Exec("BEGIN; INSERT INTO notes VALUES (4, 'a'); INSERT INTO notes VALUES (5, 'a'); COMMIT")
			return err
		}},
		{"schema", 1, func() error { _, err := p.write.Exec("CREATE INDEX i ON notes (title)"); return err }},
		{"user_version", 1, func() error { _, err := p.write.Exec("PRAGMA user_version = 7"); return err }},
		{"transaction", 1, func() error {
			return inTx(ctx, p.write, func(tx *sql.Tx) error {
				_, err := tx.Exec("UPDATE notes SET title = 'b'")
				_, more := tx.Exec("UPDATE notes SET title = 'c'")
				return errors.Join(err, more)
			})
		}},
		{"prepared", 1, func() error {
			s, err := p.write.Prepare("INSERT INTO notes VALUES (?, ?)")
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Exec(6, "d")
			return err
		}},
		{"text transaction", 1, func() error {
			c, err := p.write.Conn(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			for _, text := range []string{"BEGIN", "SAVEPOINT a", "DELETE FROM notes WHERE id = 6", "RELEASE a", "END"} {
				if _, err := c.ExecContext(ctx, text); err != nil {
					return err
				}
			}
			return nil
		}},
		{"with, on the read pool", 1, func() error {
			return query(p.read, "WITH a AS (SELECT 8) INSERT INTO notes SELECT *, 'w' FROM a RETURNING id")
		}},
		{"transaction on the read pool", 1, func() error {
			return inTx(ctx, p.read, func(tx *sql.Tx) error { _, err := tx.Exec("INSERT INTO notes VALUES (9, 'r')"); return err })
		}},
		{"read", 0, func() error { return query(p.write, "SELECT * FROM notes") }},
		{"reading transaction", 0, func() error {
			return inTx(ctx, p.write, func(tx *sql.Tx) error { return tx.QueryRow("SELECT count(*) FROM notes").Scan(new(int)) })
		}},
		{"checkpoint", 0, func() error { return query(p.write, "PRAGMA wal_checkpoint(TRUNCATE)") }},
		{"rollback", 0, func() error {
			tx, err := p.write.Begin()
			if err != nil {
				return err
			}
			_, err = tx.Exec("DELETE FROM notes")
			return errors.Join(err, tx.Rollback())
		}},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := counted.take(); got != c.want {
			t.Errorf("%s: %d syncs, want %d", c.name, got, c.want)
		}
	}
	if n := p.count(t, "1"); n != 7 { // 1-5, 8 and 9
		t.Errorf("%d rows", n)
	}
}

func TestNormalDoesNotSync(t *testing.T) {
	for name, p := range map[string]pair{
		"normal":    openPair(t, Config{Durability: Normal}, Options{Sync: newSyncs().sync}),
		"auxiliary": openAt(t, t.TempDir()+"/auxiliary.db", full(), Options{Sync: newSyncs().sync}),
	} {
		p.exec(t, "INSERT INTO notes VALUES (1, 'a')")
		if n := p.file().wal.syncs(); n != 0 {
			t.Errorf("%s: %d syncs", name, n)
		}
	}
}

// While one fsync runs, others commit; all who come during it share the next one.
func TestCommitsShareASync(t *testing.T) {
	counted := newSyncs()
	p := openPair(t, full(), Options{Sync: counted.sync})
	counted.take()
	hold := make(chan struct{})
	counted.before = func() error { <-hold; return nil }
	var all sync.WaitGroup
	const n = 50
	var answered atomic.Int64
	for i := range n {
		all.Go(func() {
			p.exec(t, "INSERT INTO notes VALUES (?, 'a')", i)
			answered.Add(1)
		})
	}
	waitFor(t, "all commits, visible while the disk is busy", func() bool { return p.count(t, "1") == n })
	if answered.Load() != 0 {
		t.Fatal("a write was answered before its sync")
	}
	close(hold)
	all.Wait()
	if got := counted.take(); got > 3 {
		t.Errorf("%d syncs for %d commits", got, n)
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	counted := newSyncs()
	p := openPair(t, full(), Options{Sync: counted.sync})
	hold, broken := make(chan struct{}), errors.New("no such luck")
	counted.before = func() error { <-hold; return broken }
	results := make(chan error, 20)
	for i := range cap(results) {
		go func() {
			results <- inTx(context.Background(), p.write, func(tx *sql.Tx) error {
				_, err := tx.Exec("INSERT INTO notes VALUES (?, 'a')", i)
				return err
			})
		}()
	}
	waitFor(t, "all commits", func() bool { return p.count(t, "1") == cap(results) })
	close(hold)
	for range cap(results) {
		if err := <-results; !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrNotDurable) || !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	}
	counted.before = nil // the disk recovers, but nobody knows what it holds
	for name, do := range map[string]func() error{
		"write": func() error { _, err := p.write.Exec("DELETE FROM notes"); return err },
		"begin": func() error { _, err := p.write.Begin(); return err },
		"read pool": func() error {
			return inTx(t.Context(), p.read, func(tx *sql.Tx) error { _, err := tx.Exec("DELETE FROM notes"); return err })
		},
	} {
		if err := do(); !errors.Is(err, ErrNotDurable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p.count(t, "1") != cap(results) {
		t.Error("a refused write was executed")
	}
	if err := p.store.Healthy(); !errors.Is(err, broken) {
		t.Errorf("healthy: %v", err)
	}
}

func TestRemovedLogIsNoticed(t *testing.T) {
	p := openPair(t, full(), Options{})
	path := p.file().wal.path
	moved := path + "-moved"
	rename(t, path, moved)
	if _, err := p.write.Exec("INSERT INTO notes VALUES (1, 'a')"); !errors.Is(err, errReplaced) || !errors.Is(err, ErrUnavailable) {
		t.Fatalf("%v", err)
	}
	rename(t, moved, path)
	p.exec(t, "INSERT INTO notes VALUES (2, 'a')")
}

func TestWriteThroughTheOuterAppFails(t *testing.T) {
	p := openPair(t, full(), Options{})
	p.file().patience = 50 * time.Millisecond
	err := inTx(t.Context(), p.write, func(*sql.Tx) error {
		_, err := p.write.Exec("INSERT INTO notes VALUES (1, 'a')")
		return err
	})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "txApp") {
		t.Fatalf("%v", err)
	}
	// PocketBase repeats statements with these words in their error, up to twelve times.
	if strings.Contains(err.Error(), "is locked") {
		t.Fatalf("%v", err)
	}
	p.exec(t, "INSERT INTO notes VALUES (2, 'a')")
}

// Another process holds SQLite's lock.
func TestForeignLock(t *testing.T) {
	p := openPair(t, full(), Options{})
	other := openAt(t, p.file().path, full(), Options{}).write
	tx, err := other.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.write.Exec("PRAGMA busy_timeout = 30"); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"write": func() error { _, err := p.write.Exec("INSERT INTO notes VALUES (1, 'a')"); return err },
		"begin": func() error { _, err := p.write.Begin(); return err },
	} {
		if err := do(); !errors.Is(err, ErrBusy) || !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "is locked") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	p.exec(t, "INSERT INTO notes VALUES (1, 'a')")
}

// However a transaction ends, the next one can begin and sees nothing of it.
func TestTransactionsThatDoNotEndWell(t *testing.T) {
	p := openPair(t, full(), Options{})
	p.file().patience = 5 * time.Second
	slow := "INSERT INTO notes WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM a LIMIT 100000000) SELECT x + 1000, 'slow' FROM a"
	for name, do := range map[string]func(t *testing.T){
		"the context of the transaction ends": func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			tx, err := p.write.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("INSERT INTO notes VALUES (1, 'a')"); err != nil {
				t.Fatal(err)
			}
			cancel()
		},
		"a statement is interrupted": func(t *testing.T) {
			tx, err := p.write.Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("INSERT INTO notes VALUES (2, 'a')"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, err := tx.ExecContext(ctx, slow); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			// SQLite has rolled back. Without care the next statement would be committed on its own.
			if _, err := tx.Exec("INSERT INTO notes VALUES (3, 'a')"); !errors.Is(err, ErrAborted) {
				t.Errorf("%v", err)
			}
			if err := tx.Commit(); !errors.Is(err, ErrAborted) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v", err)
			}
		},
		"a conflict rolls back": func(t *testing.T) {
			tx, err := p.write.Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("INSERT OR ROLLBACK INTO notes VALUES (4, 'a'), (4, 'b')"); err == nil {
				t.Error("no conflict")
			}
			if err := tx.Rollback(); err != nil {
				t.Errorf("%v", err)
			}
		},
		"a connection is given back in the middle": func(t *testing.T) {
			c, err := p.write.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"BEGIN", "INSERT INTO notes VALUES (5, 'a')"} {
				if _, err := c.ExecContext(t.Context(), text); err != nil {
					t.Fatal(err)
				}
			}
			c.Close()
		},
		"a script leaves it open": func(t *testing.T) {
			if _, err := p.write.Exec("BEGIN; INSERT INTO notes VALUES (6, 'a');"); !errors.Is(err, errDangling) {
				t.Errorf("%v", err)
			}
		},
		"a savepoint begins it": func(t *testing.T) {
			if _, err := p.write.Exec("SAVEPOINT a"); !errors.Is(err, errDangling) {
				t.Errorf("%v", err)
			}
		},
		"a script commits it": func(t *testing.T) {
			tx, err := p.write.Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("UPDATE notes SET id = id; COMMIT"); err != nil {
				t.Error(err)
			}
			if err := tx.Commit(); !errors.Is(err, ErrAborted) {
				t.Errorf("%v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			do(t)
			p.exec(t, "INSERT INTO notes VALUES (100, 'after')")
			p.exec(t, "DELETE FROM notes WHERE id = 100")
			if n := p.count(t, "1"); n != 0 {
				t.Errorf("%d rows are left", n)
			}
		})
	}
}

func TestWritersAreServedInOrderAndTogether(t *testing.T) {
	p := openPair(t, full(), Options{})
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for n := range 20 {
				err := inTx(t.Context(), p.write, func(tx *sql.Tx) error {
					var last int
					if err := tx.QueryRow("SELECT count(*) FROM notes").Scan(&last); err != nil {
						return err
					}
					_, err := tx.Exec("INSERT INTO notes VALUES (?, ?)", last, n*100+i)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := p.count(t, "1"); n != 32*20 {
		t.Fatalf("%d rows", n)
	}
	if s := p.store.statistics(); s.commits < 32*20 || s.syncs >= s.commits {
		t.Errorf("%+v", s)
	}
}

func TestCheckpointsOfAnOwner(t *testing.T) {
	p := openPair(t, full(), Options{})
	reader, err := p.read.BeginTx(t.Context(), nil) // keeps the log as a replicator does
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback()
	if err := reader.QueryRow("SELECT count(*) FROM notes").Scan(new(int)); err != nil {
		t.Fatal(err)
	}
	p.exec(t, "INSERT INTO notes VALUES (1, 'a')")
	p.exec(t, "PRAGMA busy_timeout = 200")
	truncate := func() (blocked bool, took time.Duration) {
		start := time.Now()
		var busy, log, copied int
		if err := p.write.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &copied); err != nil {
			t.Fatal(err)
		}
		return busy == 1, time.Since(start)
	}
	if blocked, took := truncate(); !blocked || took < 150*time.Millisecond {
		t.Fatalf("blocked %v after %s: the test shows nothing", blocked, took)
	}
	p.store.OwnCheckpoints(true)
	if blocked, took := truncate(); blocked || took > 100*time.Millisecond {
		t.Errorf("blocked %v after %s", blocked, took)
	}
	p.store.OwnCheckpoints(false)
	if blocked, _ := truncate(); !blocked {
		t.Error("checkpoints were not given back")
	}
}

func TestCloseAndOpenAgain(t *testing.T) {
	p := openPair(t, full(), Options{})
	p.exec(t, "INSERT INTO notes VALUES (1, 'a')")
	path := p.file().path
	before, _ := p.store.Version()
	if err := errors.Join(p.read.Close(), p.write.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.write.Exec("SELECT 1"); err == nil {
		t.Error("a closed pool works")
	}
	read, err := p.store.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	write, err := p.store.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if _, err := write.NewQuery("INSERT INTO notes VALUES (2, 'b')").Execute(); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := read.NewQuery("SELECT count(*) FROM notes").Row(&n); err != nil || n != 2 {
		t.Errorf("%d rows, %v", n, err)
	}
	if after, _ := p.store.Version(); after == before || after[:12] == before[:12] {
		t.Errorf("versions %s and %s", before, after)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
