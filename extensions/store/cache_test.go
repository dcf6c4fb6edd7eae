package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// own returns the real connection of a pool that has one.
func own(t *testing.T, db *sql.DB) (c *connection) {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.Raw(func(s any) error { c = s.(*session).own; return nil })
	return c
}

// columns runs a query often enough that it is kept prepared, and returns the columns of the last time.
func columns(t *testing.T, db *sql.DB, text string) []string {
	t.Helper()
	var names []string
	for range 3 {
		names = readAll(t, db, text)
	}
	return names
}

// readAll scans every row, which fails if the statement's idea of its columns is stale.
func readAll(t *testing.T, db *sql.DB, text string) []string {
	t.Helper()
	r, err := db.Query(text)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	names, err := r.Columns()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]any, len(names))
	for i := range values {
		values[i] = new(any)
	}
	for r.Next() {
		if err := r.Scan(values...); err != nil {
			t.Fatalf("%v: %v", names, err)
		}
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestStatementsFollowTheSchema(t *testing.T) {
	p := openPair(t, full(), Options{})
	p.read.SetMaxOpenConns(1)
	p.exec(t, "INSERT INTO notes VALUES (1, 'a')")
	for _, step := range []struct{ change, want string }{
		{"", "id,title"},
		{"ALTER TABLE notes ADD COLUMN body TEXT DEFAULT 'b'", "id,title,body"},
		{"ALTER TABLE notes ADD COLUMN more INT", "id,title,body,more"},
		{"ALTER TABLE notes DROP COLUMN title", "id,body,more"},
		{"ALTER TABLE notes RENAME COLUMN body TO text", "id,text,more"},
		{"DROP TABLE notes", ""},
		{"CREATE TABLE notes (only_one)", "only_one"},
	} {
		if step.change != "" {
			p.exec(t, step.change)
		}
		if step.want == "" {
			if err := p.read.QueryRow("SELECT * FROM notes").Scan(new(any)); err == nil || errors.Is(err, sql.ErrNoRows) {
				t.Fatal("a dropped table was read")
			}
			continue
		}
		for name, db := range map[string]*sql.DB{"read": p.read, "write": p.write} {
			if got := strings.Join(columns(t, db, "SELECT * FROM notes"), ","); got != step.want {
				t.Errorf("%s pool after %q: %s, want %s", name, step.change, got, step.want)
			}
		}
	}
	if !driverCaches && p.file().hits.Load() == 0 {
		t.Fatal("no statement was found prepared: the test shows nothing")
	}
}

func TestStatementInUseIsNotHandedOutAgain(t *testing.T) {
	p := openPair(t, full(), Options{})
	for i := range 9 {
		p.exec(t, "INSERT INTO notes VALUES (?, 'a')", i)
	}
	conn, err := p.read.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const text = "SELECT id FROM notes ORDER BY id"
	for range 2 { // the second time it is prepared
		if err := conn.QueryRowContext(t.Context(), text).Scan(new(int)); err != nil {
			t.Fatal(err)
		}
	}
	var open []*sql.Rows
	for range 3 {
		r, err := conn.QueryContext(t.Context(), text) //nolint:rowserrcheck // checked at the end
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		open = append(open, r)
	}
	for want := range 9 {
		for i, r := range open {
			var got int
			if !r.Next() || r.Scan(&got) != nil || got != want {
				t.Fatalf("rows %d: %d, want %d: %v", i, got, want, r.Err())
			}
		}
	}
	for _, r := range open {
		if r.Next() || r.Err() != nil {
			t.Errorf("more rows, or %v", r.Err())
		}
	}
}

func TestRandomTextsAreNotKept(t *testing.T) {
	if driverCaches {
		t.Skip("the driver below keeps its own statements")
	}
	p := openPair(t, full(), Options{})
	p.read.SetMaxOpenConns(1)
	for range 3 * statementsKept {
		if err := p.read.QueryRow(fmt.Sprintf("WITH a__pb_create__%06d AS (SELECT 1) SELECT * FROM a__pb_create__%[1]d", rand.IntN(1e6))).Scan(new(int)); err == nil {
			continue
		}
	}
	kept := func() int { return own(t, p.read).cache.order.Len() }
	if n := kept(); n > 3 {
		t.Fatalf("%d random texts are kept", n)
	}
	for i := range 2 * statementsKept {
		for range 2 {
			if err := p.read.QueryRow(fmt.Sprintf("SELECT %d", i)).Scan(new(int)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := kept(); n != statementsKept {
		t.Fatalf("%d statements are kept, want %d", n, statementsKept)
	}
}

// Readers and writers with contexts that end at any moment, while the schema changes, on few connections.
func TestStatementsUnderCancellationAndSchemaChange(t *testing.T) {
	p := openPair(t, Config{Durability: Normal}, Options{})
	p.read.SetMaxOpenConns(3)
	for i := range 200 {
		p.exec(t, "INSERT INTO notes VALUES (?, ?)", i, strings.Repeat("x", 100))
	}
	var all sync.WaitGroup
	stop := time.Now().Add(1500 * time.Millisecond)
	for i := range 6 {
		all.Go(func() {
			for n := 0; time.Now().Before(stop); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(2000))*time.Microsecond)
				switch i % 3 {
				case 0:
					_ = scroll(ctx, p.read, "SELECT a.* FROM notes a, notes b WHERE a.id < ?", n%7)
				case 1:
					_, _ = p.write.ExecContext(ctx, "UPDATE notes SET title = title || ? WHERE id = ?", "y", n%200)
				case 2:
					_ = inTx(ctx, p.write, func(tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, "UPDATE notes SET title = ? WHERE id < ?", "z", n%200)
						return err
					})
				}
				cancel()
			}
		})
	}
	all.Go(func() {
		for n := 0; time.Now().Before(stop); n++ {
			p.exec(t, fmt.Sprintf("ALTER TABLE notes ADD COLUMN c%d TEXT", n))
			p.exec(t, fmt.Sprintf("ALTER TABLE notes DROP COLUMN c%d", n))
			time.Sleep(10 * time.Millisecond)
		}
	})
	all.Wait()
	// Everything is healthy afterwards, without a reconnect in the write pool.
	if n := p.count(t, "1"); n != 200 {
		t.Fatalf("%d rows", n)
	}
	if got := strings.Join(columns(t, p.read, "SELECT * FROM notes"), ","); got != "id,title" {
		t.Fatalf("columns %s", got)
	}
	var check string
	if err := p.write.QueryRow("PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
		t.Fatalf("%q, %v", check, err)
	}
	if !p.file().gate.Try() {
		t.Fatal("somebody still has the right to write")
	}
	p.file().gate.Unlock()
}

// scroll reads until the end or the end of the context.
func scroll(ctx context.Context, db *sql.DB, text string, args ...any) error {
	r, err := db.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer r.Close()
	for r.Next() {
	}
	return r.Err()
}

func TestCancelledQueryKeepsTheConnection(t *testing.T) {
	p := openPair(t, full(), Options{})
	p.read.SetMaxOpenConns(1)
	before, writer := own(t, p.read), p.file().writer
	slow := "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM a LIMIT 100000000) SELECT count(*) FROM a"
	for _, db := range []*sql.DB{p.read, p.write} {
		for range 3 { // from the third time it runs prepared
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if err := db.QueryRowContext(ctx, slow).Scan(new(int)); err == nil {
				t.Fatal("the query was not cancelled")
			}
			cancel()
			if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM notes").Scan(new(int)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if own(t, p.read) != before || p.file().writer != writer {
		t.Error("a connection was thrown away")
	}
}
