package ledger_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

func TestIntact(t *testing.T) {
	app, l, file := open(t)
	intact(t, l, app, 0)
	fill(t, l, app, 2100) // more than a chunk
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	r := verify(t, l, app)
	if !r.OK || r.Entries != 2100 || r.First != 1 || r.Last != 2100 || r.File != "checked" {
		t.Fatalf("%+v", r)
	}
	fill(t, l, app, 10)
	known := r.End
	r, err := l.Verify(t.Context(), app, &known)
	if err != nil || !r.OK || r.Entries != 10 || r.First != 2101 {
		t.Fatalf("what is new: %+v, %v", r, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l, app); !r.OK || r.File != "missing" {
		t.Fatalf("without the file: %+v", r)
	}
}

// The same account as actor and subject of its first entry is one party.
func TestNewPartyTwice(t *testing.T) {
	app, l, _ := open(t)
	p := ledger.Party{Kind: ledger.User, Collection: "users", ID: "ann"}
	for range 2 {
		if err := l.Append(app, ledger.Entry{Action: "a.b", Actor: p, Subject: p, ActAs: p}); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	if err := app.DB().NewQuery("SELECT count(*) FROM audit_parties").Row(&n); err != nil || n != 1 {
		t.Errorf("%d parties, %v", n, err)
	}
	intact(t, l, app, 2)
}

// Each way to change the log without the key, drawn at random, is found. A failure prints the seed of its round.
func TestRandomTampering(t *testing.T) {
	const (
		entries = 40
		rounds  = 1000
	)
	app, l, _ := open(t)
	fill(t, l, app, entries)
	if err := l.Close(); err != nil { // nothing in the background may write between
		t.Fatal(err)
	}
	undo := errors.New("undo")
	err := app.RunInTransaction(func(tx core.App) error {
		run := func(statement string) {
			if _, err := tx.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		// Without triggers all the time, which is a problem of its own: it does not count here.
		var triggers []string
		if err := tx.DB().NewQuery("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit_%'").Column(&triggers); err != nil {
			return err
		}
		for _, name := range triggers {
			run("DROP TRIGGER " + name)
		}
		problems := func() []ledger.Problem {
			return slices.DeleteFunc(verify(t, l, tx).Problems, func(p ledger.Problem) bool { return p.Code == ledger.ProblemSchema })
		}
		for seed := range uint64(rounds) {
			if seed%50 == 0 && len(problems()) > 0 {
				t.Fatalf("before seed %d: %+v", seed, problems())
			}
			what, statements := tampering(rand.New(rand.NewPCG(seed, 0)), entries)
			run("SAVEPOINT round")
			for _, s := range statements {
				run(s)
			}
			if len(problems()) == 0 {
				t.Errorf("seed %d: %s was not found: %q", seed, what, statements)
			}
			run("ROLLBACK TO round")
		}
		return undo
	})
	if !errors.Is(err, undo) {
		t.Fatal(err)
	}
	intact(t, l, app, entries)
}

// tampering returns what is done to the log and the statements that do it.
func tampering(random *rand.Rand, entries int) (string, []string) {
	id := 1 + random.IntN(entries)
	other := 1 + (id+random.IntN(entries-1))%entries
	if other == id {
		other = id%entries + 1
	}
	text := func() string { return fmt.Sprintf("'x%d'", random.Uint32()) }
	one := func(what, format string, args ...any) (string, []string) {
		return what, []string{fmt.Sprintf(format, args...)}
	}
	switch random.IntN(14) {
	case 0:
		column := []string{"action", "outcome", "session", "request", "address", "details"}[random.IntN(6)]
		return one("changed text", "UPDATE audit_chain SET %s = %s WHERE id = %d", column, text(), id)
	case 1:
		column := []string{"at", "actor", "subject", "act_as"}[random.IntN(4)]
		return one("changed number", "UPDATE audit_chain SET %s = %s + %d WHERE id = %d", column, column, 1+random.IntN(1000), id)
	case 2:
		return one("changed MAC", "UPDATE audit_chain SET mac = randomblob(32) WHERE id = %d", id)
	case 3:
		return one("deleted", "DELETE FROM audit_chain WHERE id = %d", id)
	case 4:
		return one("cut off", "DELETE FROM audit_chain WHERE id > %d", random.IntN(entries))
	case 5: // numbers closed up again
		return "deleted and moved up", []string{
			fmt.Sprintf("DELETE FROM audit_chain WHERE id = %d", id),
			fmt.Sprintf("UPDATE audit_chain SET id = -(id - 1) WHERE id > %d", id), "UPDATE audit_chain SET id = -id WHERE id < 0",
		}
	case 6: // two swapped, with all they hold
		return "reordered", []string{
			fmt.Sprintf("UPDATE audit_chain SET id = -1 WHERE id = %d", id), fmt.Sprintf("UPDATE audit_chain SET id = %d WHERE id = %d", id, other),
			fmt.Sprintf("UPDATE audit_chain SET id = %d WHERE id = -1", other),
		}
	case 7: // one twice, the others moved down
		return "duplicated", []string{
			fmt.Sprintf("UPDATE audit_chain SET id = -(id + 1) WHERE id > %d", id), "UPDATE audit_chain SET id = -id WHERE id < 0",
			fmt.Sprintf("INSERT INTO audit_chain SELECT %d, at, action, outcome, actor, subject, act_as, session, request, address, details, mac FROM audit_chain WHERE id = %d", id+1, id),
		}
	case 8:
		return one("appended", "INSERT INTO audit_chain SELECT %d, at, action, outcome, actor, subject, act_as, session, request, address, details, randomblob(32) FROM audit_chain WHERE id = %d", entries+1, id)
	case 9:
		return one("changed account", "UPDATE audit_parties SET record = %s WHERE id = %d", text(), 1+random.IntN(5))
	case 10:
		return one("hidden account", "UPDATE audit_parties SET record = '', salt = x'', forgotten = randomblob(32) WHERE id = %d", 1+random.IntN(5))
	case 11:
		return "forged floor", []string{
			fmt.Sprintf("INSERT INTO audit_checkpoints SELECT 2, 'floor', id, mac, %d, at, randomblob(32) FROM audit_chain WHERE id = %d", id, id),
			fmt.Sprintf("DELETE FROM audit_chain WHERE id <= %d", id),
		}
	case 12:
		return "emptied", []string{"DELETE FROM audit_chain", "DELETE FROM audit_checkpoints"}
	}
	return one("deleted account", "DELETE FROM audit_parties WHERE id = %d", 1+random.IntN(5))
}

// The first bad entry is the one that is named.
func TestFirstBadEntry(t *testing.T) {
	app, l, _ := open(t)
	fill(t, l, app, 2100)
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	undo := errors.New("undo")
	for name, c := range map[string]struct {
		statement string
		code      string
		entry     int64
	}{
		"changed":   {"UPDATE audit_chain SET outcome = 'denied' WHERE id IN (2100, 17)", ledger.ProblemChanged, 17},
		"missing":   {"DELETE FROM audit_chain WHERE id BETWEEN 2000 AND 2005", ledger.ProblemMissing, 2000},
		"truncated": {"DELETE FROM audit_chain WHERE id > 2004", ledger.ProblemTruncated, 2005},
		"below":     {"UPDATE audit_chain SET id = -5 WHERE id = 2100", ledger.ProblemMisplaced, -5},
	} {
		t.Run(name, func(t *testing.T) {
			err := app.RunInTransaction(func(tx core.App) error {
				if err := forceIn(tx, []string{c.statement}); err != nil {
					return err
				}
				found(t, verify(t, l, tx), c.code, c.entry)
				return undo
			})
			if !errors.Is(err, undo) {
				t.Fatal(err)
			}
		})
	}
}

// Whoever recomputes all MACs, with another key than the master key's, is found out, with and without the file.
func TestRecomputed(t *testing.T) {
	app, l, file := open(t)
	fill(t, l, app, 20)
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	thief := ledger.New(secret.Fixed([]byte("a key that the thief made up")))
	force(t, app, "DELETE FROM audit_chain", "DELETE FROM audit_parties", "DELETE FROM audit_checkpoints")
	fill(t, thief, app, 20)
	if r := verify(t, thief, app); !r.OK {
		t.Fatalf("the thief's own chain: %+v", r.Problems)
	}
	r := verify(t, l, app)
	found(t, r, ledger.ProblemChanged, 1)
	found(t, r, ledger.ProblemCheckpoint, 0)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	found(t, verify(t, l, app), ledger.ProblemChanged, 1)
}

// An older copy of the whole database verifies by itself, so that the file is what tells.
func TestRolledBack(t *testing.T) {
	app, l, file := open(t)
	fill(t, l, app, 10)
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	force(t, app, "DELETE FROM audit_chain WHERE id > 6")
	found(t, verify(t, l, app), ledger.ProblemTruncated, 7)
	// The server goes on without noticing: the file keeps what it has seen.
	fill(t, l, app, 10)
	if err := l.Close(); err != nil { // nothing in the background may write between
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), "\n") != 2 {
		t.Fatalf("%s, %v", text, err)
	}
	found(t, verify(t, l, app), ledger.ProblemReplaced, 10)
	if err := l.WriteMarks(func(ledger.Mark) bool { return true }, nil); err != nil {
		t.Fatal(err)
	}
	intact(t, l, app, 16)
}

func TestFileIsSigned(t *testing.T) {
	app, l, file := open(t)
	fill(t, l, app, 10)
	if err := l.Close(); err != nil { // nothing in the background may write between
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	force(t, app, "DELETE FROM audit_chain WHERE id > 6")
	forged := bytes.Replace(text, []byte(`"entry":10`), []byte(`"entry":6`), 1)
	for _, bad := range [][]byte{forged, []byte("nonsense\n"), append([]byte("{}\n"), text...)} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		found(t, verify(t, l, app), ledger.ProblemFile, 0)
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		found(t, verify(t, l, app), ledger.ProblemFile, 0) // a line that was changed does not go away by itself
	}
}

func TestReplacedTables(t *testing.T) {
	for name, statements := range map[string][]string{
		"no trigger":  {"DROP TRIGGER audit_chain_update"},
		"new trigger": {"CREATE TRIGGER quiet BEFORE INSERT ON audit_chain BEGIN SELECT RAISE(IGNORE); END"},
		"other table": {"DROP TRIGGER audit_parties_delete", "DROP VIEW audit_entries", "CREATE TABLE t AS SELECT * FROM audit_chain", "DROP TABLE audit_chain", "ALTER TABLE t RENAME TO audit_chain"},
		"no table":    {"DROP VIEW audit_entries", "DROP TRIGGER audit_parties_delete", "DROP TABLE audit_chain"},
	} {
		t.Run(name, func(t *testing.T) {
			app, l, _ := open(t)
			l.Connect(app, func() string { return "" }, nil) // its writing would fail, and rightly
			fill(t, l, app, 3)
			for _, s := range statements {
				if _, err := app.NonconcurrentDB().NewQuery(s).Execute(); err != nil {
					t.Fatal(err)
				}
			}
			found(t, verify(t, l, app), ledger.ProblemSchema, 0)
		})
	}
}

// What was written before entries were sealed is sealed by the first entry after the migration.
func TestOldEntries(t *testing.T) {
	app, l, _ := open(t)
	for _, step := range []func(core.App) error{ledger.Drop, ledger.CreateEntries} {
		if err := step(app); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 700 {
		_, err := app.NonconcurrentDB().NewQuery(fmt.Sprintf(`INSERT INTO audit_entries (at, action, outcome, actor_kind, actor_collection, actor_id, act_as, request)
			VALUES ('2026-02-03T04:05:06.789Z', 'a.b', 'success', 'superuser', '_superusers', 'root', 'ann', 'r%d')`, i)).Execute()
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := ledger.Create(app); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(app, ledger.Entry{Action: "c.d"}); err != nil {
		t.Fatal(err)
	}
	intact(t, l, app, 701)
	var at, actor, actAs, request string
	err := app.DB().NewQuery("SELECT at, actor_id, act_as, request FROM audit_entries WHERE id = 700").Row(&at, &actor, &actAs, &request)
	if err != nil || at != "2026-02-03T04:05:06.789Z" || actor != "root" || actAs != "ann" || request != "r699" {
		t.Errorf("%s %s %s %s %v", at, actor, actAs, request, err)
	}
	if n := len(tablesLike(t, app, "audit_unsealed")); n != 0 {
		t.Error("the old table is still there")
	}
}

func tablesLike(t testing.TB, app core.App, name string) []string {
	t.Helper()
	var names []string
	if err := app.DB().NewQuery("SELECT name FROM sqlite_master WHERE name LIKE '" + name + "'").Column(&names); err != nil {
		t.Fatal(err)
	}
	return names
}

// A file that cannot be written is an error of the file and not of the entry.
func TestFileCannotBeWritten(t *testing.T) {
	app, _, _ := open(t)
	failed := make(chan error, 10)
	l := ledger.New(vault())
	file := filepath.Join(t.TempDir(), "no such folder", "head")
	l.Connect(app, func() string { return file }, func(err error) { failed <- err })
	defer func() { _ = l.Close() }()
	if err := l.Append(app, ledger.Entry{Action: "a.b"}); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil || l.FileError() == nil {
		t.Errorf("%v, %v", err, l.FileError())
	}
}
