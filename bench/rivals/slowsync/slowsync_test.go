package slowsync_test

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/satchelbase/satchel/bench/rivals/slowsync"
)

func TestOnlyCommitsAreSlow(t *testing.T) {
	const delay = 50 * time.Millisecond
	db, err := slowsync.Open(filepath.Join(t.TempDir(), "a.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)", delay)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("create table a(b)"); err != nil {
		t.Fatal(err)
	}
	insert, err := db.Prepare("insert into a values(?)")
	if err != nil {
		t.Fatal(err)
	}
	transaction := func(n int, end func(*sql.Tx) error) func() error {
		return func() error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			for range n {
				if _, err := tx.Stmt(insert).Exec(1); err != nil {
					return err
				}
			}
			var count int
			if err := tx.QueryRow("select count(*) from a").Scan(&count); err != nil {
				return err
			}
			return end(tx)
		}
	}
	for name, c := range map[string]struct {
		run  func() error
		slow bool
	}{
		"write":                {func() error { _, err := db.Exec(" INSERT INTO a VALUES(1)"); return err }, true},
		"prepared write":       {func() error { _, err := insert.Exec(1); return err }, true},
		"transaction":          {transaction(5, (*sql.Tx).Commit), true},
		"rollback":             {transaction(5, (*sql.Tx).Rollback), false},
		"reading transaction":  {transaction(0, (*sql.Tx).Commit), false},
		"read":                 {func() error { var n int; return db.QueryRow("select count(*) from a").Scan(&n) }, false},
		"pragma":               {func() error { _, err := db.Exec("pragma optimize"); return err }, false},
		"write that must fail": {func() error { _, _ = db.Exec("insert into b values(1)"); return nil }, false},
	} {
		start := time.Now()
		if err := c.run(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); (took >= delay) != c.slow {
			t.Errorf("%s took %v", name, took)
		}
	}
}
