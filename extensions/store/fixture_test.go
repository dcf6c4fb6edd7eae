package store

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pair is a database file opened as PocketBase opens it.
type pair struct {
	store       *Store
	read, write *sql.DB
}

func (p pair) file() *file { return p.store.list()[0] }

func full() Config { return Config{Durability: Full} }

func openPair(t testing.TB, cfg Config, options Options) pair {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), dataFile), cfg, options)
}

func openAt(t testing.TB, path string, cfg Config, options Options) pair {
	t.Helper()
	s, err := Open(cfg, options)
	if err != nil {
		t.Fatal(err)
	}
	read, err := s.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	write, err := s.Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	p := pair{store: s, read: read.DB(), write: write.DB()}
	p.write.SetMaxOpenConns(writers)
	p.write.SetMaxIdleConns(writers)
	t.Cleanup(func() {
		if err := errors.Join(p.read.Close(), p.write.Close()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	p.exec(t, "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, title TEXT)")
	return p
}

func (p pair) exec(t testing.TB, text string, args ...any) {
	t.Helper()
	if _, err := p.write.Exec(text, args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func (p pair) count(t testing.TB, where string) int {
	t.Helper()
	var n int
	if err := p.read.QueryRow("SELECT count(*) FROM notes WHERE " + where).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// syncs counts calls and can be made to fail or wait.
type syncs struct {
	before func() error
	calls  chan string
}

func newSyncs() *syncs { return &syncs{calls: make(chan string, 10000)} }

func (s *syncs) sync(f *os.File) error {
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	err := f.Sync()
	s.calls <- f.Name()
	return err
}

// take returns how many syncs there were since the last time.
func (s *syncs) take() int {
	for n := 0; ; n++ {
		select {
		case <-s.calls:
		default:
			return n
		}
	}
}

func inTx(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}
