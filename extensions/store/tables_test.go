package store

import (
	"database/sql"
	"errors"
	"sync/atomic"
	"testing"
)

// stable waits until nobody's commit is in doubt.
func stable(t testing.TB, s *Store, table string) uint64 {
	t.Helper()
	exact(t, s)
	return s.TableVersion(table)
}

func TestTableVersion(t *testing.T) {
	p := openPair(t, full(), Options{})
	other := openAt(t, p.file().path, full(), Options{}) // as another process
	p.exec(t, "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
	p.exec(t, "INSERT INTO users VALUES (1, 'ada')")
	exec := func(db *sql.DB, texts ...string) func() error {
		return func() error {
			return inTx(t.Context(), db, func(tx *sql.Tx) error {
				for _, text := range texts {
					if _, err := tx.Exec(text); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	single := func(db *sql.DB, text string) func() error {
		return func() error { _, err := db.Exec(text); return err }
	}
	undone := errors.New("undone")
	for _, c := range []struct {
		name         string
		users, notes bool // which versions change
		do           func() error
	}{
		{"nothing", false, false, func() error { return nil }},
		{"read", false, false, single(p.write, "SELECT * FROM users")},
		{"a write", true, false, single(p.write, "UPDATE users SET name = 'b'")},
		{"a write, other case and quotes", true, false, single(p.write, "DELETE FROM `Users` WHERE id = 9")},
		{"a transaction", false, true, exec(p.write, "INSERT INTO notes VALUES (1, 'x')", "SELECT * FROM users")},
		{"a transaction over both", true, true, exec(p.write, "UPDATE notes SET title = 'y'", "UPDATE users SET name = 'c'")},
		{"a rollback", false, false, func() error {
			err := inTx(t.Context(), p.write, func(tx *sql.Tx) error {
				if _, err := tx.Exec("UPDATE users SET name = 'z'"); err != nil {
					return err
				}
				return undone
			})
			if errors.Is(err, undone) {
				return nil
			}
			return err
		}},
		{"a schema change", true, true, single(p.write, "ALTER TABLE notes ADD COLUMN more")},
		{"a script", true, true, single(p.write, "UPDATE notes SET title = 'd'; UPDATE users SET name = 'd'")},
		{"with", true, false, single(p.write, "WITH a AS (SELECT 1) UPDATE users SET name = 'e'")},
		{"the read pool", true, true, single(p.read, "UPDATE users SET name = 'f'")},
		{"another process", true, true, single(other.write, "UPDATE users SET name = 'g'")},
		{"a trigger that only refuses", true, true, single(p.write, "CREATE TRIGGER no BEFORE DELETE ON notes BEGIN SELECT RAISE(ABORT, 'kept'); END")},
		{"a write beside it", false, true, single(p.write, "INSERT INTO notes (title) VALUES ('plain')")},
		{"a trigger appears", true, true, single(p.write, "CREATE TRIGGER tr AFTER INSERT ON notes BEGIN UPDATE users SET name = new.title; END")},
		{"a write of a trigger", true, true, single(p.write, "INSERT INTO notes (title) VALUES ('by trigger')")},
		{"the trigger goes", true, true, single(p.write, "DROP TRIGGER tr")},
		{"no trigger any more", false, true, single(p.write, "INSERT INTO notes (title) VALUES ('plain')")},
	} {
		users, notes := stable(t, p.store, "USERS"), stable(t, p.store, "notes")
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := stable(t, p.store, "users") != users; got != c.users {
			t.Errorf("%s: the version of users changed: %v", c.name, got)
		}
		if got := stable(t, p.store, "notes") != notes; got != c.notes {
			t.Errorf("%s: the version of notes changed: %v", c.name, got)
		}
	}
}

// Before a file is open, nothing is known, and nothing may be taken for unchanged.
func TestTableVersionOfNothing(t *testing.T) {
	s, err := Open(full(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if first := s.TableVersion("users"); first == s.TableVersion("users") {
		t.Error("two calls agree about a file that is not open")
	}
}

// Triggers that write to quiet tables leave the versions exact.
func TestTableVersionWithContainedTriggers(t *testing.T) {
	p := openPair(t, full(), Options{Quiet: []string{"Changes_Log"}})
	p.exec(t, "CREATE TABLE changes_log (seq INTEGER PRIMARY KEY AUTOINCREMENT, rec TEXT)")
	p.exec(t, "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
	p.exec(t, `CREATE TRIGGER changes_1_insert AFTER INSERT ON "notes" BEGIN INSERT INTO changes_log (rec) VALUES (NEW.id); END`)
	users, notes := stable(t, p.store, "users"), stable(t, p.store, "notes")
	p.exec(t, "INSERT INTO notes VALUES (1, 'x')")
	if stable(t, p.store, "users") != users {
		t.Error("a write to notes changed the version of users")
	}
	if stable(t, p.store, "notes") == notes {
		t.Error("a write to notes did not change its version")
	}
	var n int
	if err := p.read.QueryRow("SELECT count(*) FROM changes_log").Scan(&n); err != nil || n != 1 {
		t.Errorf("the trigger recorded %d changes: %v", n, err)
	}
}

// Those who want to know are told of each commit before the writer returns, and of those of other processes.
func TestNotify(t *testing.T) {
	p := openPair(t, full(), Options{Quiet: []string{"jobs"}})
	other := openAt(t, p.file().path, full(), Options{})
	var told atomic.Int64
	p.store.Notify(func() { told.Add(1) })
	p.exec(t, "CREATE TABLE jobs (id INTEGER PRIMARY KEY)")
	for _, c := range []struct {
		name string
		want bool
		do   func() error
	}{
		{"a write", true, func() error { _, err := p.write.Exec("INSERT INTO notes (title) VALUES ('x')"); return err }},
		{"a quiet write", false, func() error { _, err := p.write.Exec("INSERT INTO jobs DEFAULT VALUES"); return err }},
		{"a read", false, func() error { _, err := p.read.Exec("SELECT 1 FROM notes"); return err }},
		{"another process", true, func() error {
			if _, err := other.write.Exec("INSERT INTO notes (title) VALUES ('y')"); err != nil {
				return err
			}
			exact(t, p.store)
			return nil
		}},
	} {
		before := told.Load()
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := told.Load() > before; got != c.want {
			t.Errorf("%s: told %v", c.name, got)
		}
	}
	if err := p.store.Durable(); err != nil {
		t.Errorf("durable: %v", err)
	}
}

// Rows that REPLACE evicts are deletions for triggers too.
func TestReplaceFiresDeleteTriggers(t *testing.T) {
	p := openPair(t, full(), Options{})
	p.exec(t, "CREATE TABLE gone (id INTEGER)")
	p.exec(t, "CREATE UNIQUE INDEX notes_title ON notes (title)")
	p.exec(t, "CREATE TRIGGER tr AFTER DELETE ON notes BEGIN INSERT INTO gone VALUES (OLD.id); END")
	p.exec(t, "INSERT INTO notes VALUES (1, 'a')")
	p.exec(t, "INSERT OR REPLACE INTO notes VALUES (2, 'a')")
	var id int
	if err := p.read.QueryRow("SELECT id FROM gone").Scan(&id); err != nil || id != 1 {
		t.Errorf("%d %v", id, err)
	}
}
