package audit

import (
	"fmt"

	"github.com/pocketbase/pocketbase/core"
)

const table = "audit_entries"

// schema is one statement each. Ids are given in the order in which entries are committed, because there is one writer,
// and AUTOINCREMENT never gives one twice. The last trigger stops REPLACE, for which SQLite fires delete triggers only
// with recursive_triggers on.
func schema() []string {
	return []string{
		`CREATE TABLE audit_entries (
			id INTEGER PRIMARY KEY AUTOINCREMENT,
			at TEXT NOT NULL,
			action TEXT NOT NULL,
			outcome TEXT NOT NULL,
			actor_kind TEXT NOT NULL,
			actor_collection TEXT NOT NULL DEFAULT '',
			actor_id TEXT NOT NULL DEFAULT '',
			act_as TEXT NOT NULL DEFAULT '',
			subject_kind TEXT NOT NULL DEFAULT '',
			subject_collection TEXT NOT NULL DEFAULT '',
			subject_id TEXT NOT NULL DEFAULT '',
			session TEXT NOT NULL DEFAULT '',
			request TEXT NOT NULL DEFAULT '',
			address TEXT NOT NULL DEFAULT '',
			details TEXT NOT NULL DEFAULT '{}'
		)`,
		`CREATE TRIGGER audit_entries_no_update BEFORE UPDATE ON audit_entries BEGIN
			SELECT RAISE(ABORT, 'audit_entries is append-only'); END`,
		`CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries BEGIN
			SELECT RAISE(ABORT, 'audit_entries is append-only'); END`,
		`CREATE TRIGGER audit_entries_no_replace BEFORE INSERT ON audit_entries
			WHEN EXISTS (SELECT 1 FROM audit_entries WHERE id = NEW.id) BEGIN
			SELECT RAISE(ABORT, 'audit_entries is append-only'); END`,
	}
}

func createEntries(app core.App) error {
	for _, statement := range schema() {
		if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			return fmt.Errorf("create %s: %w", table, err)
		}
	}
	return nil
}

func dropEntries(app core.App) error {
	if _, err := app.NonconcurrentDB().DropTable(table).Execute(); err != nil {
		return fmt.Errorf("drop %s: %w", table, err)
	}
	return nil
}
