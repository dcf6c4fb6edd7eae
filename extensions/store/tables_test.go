package store

import (
	"database/sql"
	"errors"
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
