package ledger_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit/ledger"
)

// BenchmarkAppend is what an entry adds to the transaction of its act, without the commit; "plain" is the same columns in
// one insert into a table without indexes, MACs and parties, as before entries were sealed.
func BenchmarkAppend(b *testing.B) {
	app, l := second(b, filepath.Join(b.TempDir(), "data"))
	b.Cleanup(func() { _ = l.Close(); _ = app.ClearBootstrap() })
	entry := ledger.Entry{
		Action: "sessions.ended", Actor: ledger.Party{Kind: ledger.User, Collection: "users", ID: "ann"}, Subject: ledger.Party{Kind: ledger.User, Collection: "users", ID: "ann"},
		Session: "session", Request: "request", Address: "192.0.2.7", Details: map[string]any{"reason": "signed_out"},
	}
	run := func(b *testing.B, write func(tx core.App) error) {
		err := app.RunInTransaction(func(tx core.App) error {
			for b.Loop() {
				if err := write(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("sealed", func(b *testing.B) { run(b, func(tx core.App) error { return l.Append(tx, entry) }) })
	_, err := app.NonconcurrentDB().NewQuery("CREATE TABLE plain (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT, action TEXT, outcome TEXT, actor_kind TEXT, actor_collection TEXT, actor_id TEXT, act_as TEXT, subject_kind TEXT, subject_collection TEXT, subject_id TEXT, session TEXT, request TEXT, address TEXT, details TEXT)").Execute()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("plain", func(b *testing.B) {
		run(b, func(tx core.App) error {
			_, err := tx.NonconcurrentDB().Insert("plain", dbx.Params{
				"at": time.Now().UTC().Format(time.RFC3339), "action": entry.Action, "outcome": "success", "actor_kind": "user", "actor_collection": "users", "actor_id": "ann",
				"act_as": "", "subject_kind": "user", "subject_collection": "users", "subject_id": "ann", "session": "session", "request": "request", "address": "192.0.2.0/24", "details": `{"reason":"signed_out"}`,
			}).Execute()
			return err
		})
	})
}

// BenchmarkVerify reads a log of 100,000 entries by 2,000 accounts; the time for 1,000,000 is ten times that.
func BenchmarkVerify(b *testing.B) {
	const entries = 100_000
	app, l := second(b, filepath.Join(b.TempDir(), "data"))
	b.Cleanup(func() { _ = l.Close(); _ = app.ClearBootstrap() })
	err := app.RunInTransaction(func(tx core.App) error {
		for i := range entries {
			p := ledger.Party{Kind: ledger.User, Collection: "users", ID: fmt.Sprint(i % 2000)}
			if err := l.Append(tx, ledger.Entry{Action: "sessions.ended", Actor: p, Subject: p, Session: fmt.Sprint(i), Request: fmt.Sprint(i), Details: map[string]any{"n": i}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		intact(b, l, app, entries)
	}
	b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
