package ledger_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

func vault() *secret.Vault { return secret.Fixed([]byte("root key of the tests")) }

// feature has the tables and nothing else, so that tests know every entry.
func feature() extensions.Extension {
	return extensions.Extension{Name: "audit", Migrations: []extensions.Migration{
		{Unix: 1795310000, What: "create_entries", Up: ledger.CreateEntries, Down: ledger.DropEntries},
		{Unix: 1795450000, What: "chain", Up: ledger.Create, Down: ledger.Drop},
	}}
}

// open returns an application with a ledger and the path of its file.
func open(t testing.TB) (*apptest.App, *ledger.Ledger, string) {
	t.Helper()
	app := apptest.New(t, feature())
	file := filepath.Join(t.TempDir(), "head")
	l := ledger.New(vault())
	l.Connect(app, func() string { return file }, func(err error) { t.Errorf("write file: %v", err) })
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return app, l, file
}

// fill writes n entries by and about a few accounts.
func fill(t testing.TB, l *ledger.Ledger, app core.App, n int) {
	t.Helper()
	err := app.RunInTransaction(func(tx core.App) error {
		for i := range n {
			err := l.Append(tx, ledger.Entry{
				Action: []string{"sessions.ended", "totp.enabled", "apikeys.created"}[i%3], Outcome: []string{"success", "denied"}[i%7/6],
				Actor:   ledger.Party{Kind: ledger.User, Collection: "users", ID: fmt.Sprintf("u%d", i%5)},
				Subject: ledger.Party{Kind: ledger.User, Collection: "users", ID: fmt.Sprintf("u%d", i%3)},
				Session: fmt.Sprintf("s%d", i%11), Request: fmt.Sprintf("request-%d", i), Address: "192.0.2.7", Details: map[string]any{"n": i},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func verify(t testing.TB, l *ledger.Ledger, app core.App) *ledger.Report {
	t.Helper()
	r, err := l.Verify(t.Context(), app, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func intact(t testing.TB, l *ledger.Ledger, app core.App, entries int64) {
	t.Helper()
	if r := verify(t, l, app); !r.OK || r.Entries != entries {
		t.Fatalf("%d entries, want %d: %+v", r.Entries, entries, r.Problems)
	}
}

// found demands a problem with the code, and that it names the entry unless that is 0.
func found(t testing.TB, r *ledger.Report, code string, entry int64) {
	t.Helper()
	if r.OK || !slices.ContainsFunc(r.Problems, func(p ledger.Problem) bool { return p.Code == code && (entry == 0 || p.Entry == entry) }) {
		t.Fatalf("want %s at entry %d, got %+v", code, entry, r.Problems)
	}
}

// force executes statements without the triggers, as whoever holds the database file can, and puts them back.
func force(t testing.TB, app core.App, statements ...string) {
	t.Helper()
	if err := app.RunInTransaction(func(tx core.App) error { return forceIn(tx, statements) }); err != nil {
		t.Fatal(err)
	}
}

func forceIn(tx core.App, statements []string) error {
	var triggers []struct {
		Name string `db:"name"`
		SQL  string `db:"sql"`
	}
	if err := tx.DB().NewQuery("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit_%'").All(&triggers); err != nil {
		return err
	}
	var all []string
	for _, trigger := range triggers {
		all = append(all, "DROP TRIGGER "+trigger.Name)
	}
	all = append(all, statements...)
	for _, trigger := range triggers {
		all = append(all, trigger.SQL)
	}
	for _, s := range all {
		if _, err := tx.NonconcurrentDB().NewQuery(s).Execute(); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}
