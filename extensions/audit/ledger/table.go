package ledger

import (
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Tables.
const (
	Chain       = "audit_chain"
	Parties     = "audit_parties"
	Checkpoints = "audit_checkpoints"
	entriesView = "audit_entries"

	// unsealedTable holds, from the migration to the first entry after it, what was written before entries were sealed.
	unsealedTable = "audit_unsealed"
)

// CreateEntries is the table as it was before entries were sealed.
func CreateEntries(app core.App) error {
	return execute(app, `CREATE TABLE audit_entries (
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
	)`)
}

// DropEntries takes it away.
func DropEntries(app core.App) error { return execute(app, "DROP TABLE IF EXISTS audit_entries") }

// tables are the statements that Verify compares with what the database holds, each under the name of its object. Ids are
// counted by [Ledger.Append]: one more than the last, which is safe because there is one writer.
//
// A delete is refused unless a floor is above the entry, and an insert unless it is behind all others, which also stops
// REPLACE, for which SQLite fires delete triggers only with recursive_triggers on. The bodies can only refuse.
func tables() map[string]string {
	return map[string]string{
		Chain: `CREATE TABLE audit_chain (
			id INTEGER PRIMARY KEY,
			at INTEGER NOT NULL,
			action TEXT NOT NULL,
			outcome TEXT NOT NULL,
			actor INTEGER NOT NULL,
			subject INTEGER NOT NULL,
			act_as INTEGER NOT NULL,
			session TEXT NOT NULL,
			request TEXT NOT NULL,
			address TEXT NOT NULL,
			details TEXT NOT NULL,
			mac BLOB NOT NULL CHECK (length(mac) = 32)
		) STRICT`,
		Parties: `CREATE TABLE audit_parties (
			id INTEGER PRIMARY KEY,
			kind TEXT NOT NULL,
			collection TEXT NOT NULL,
			record TEXT NOT NULL,
			salt BLOB NOT NULL,
			seal BLOB NOT NULL CHECK (length(seal) = 32),
			forgotten BLOB NOT NULL DEFAULT x''
		) STRICT`,
		Checkpoints: `CREATE TABLE audit_checkpoints (
			id INTEGER PRIMARY KEY,
			kind TEXT NOT NULL CHECK (kind IN ('genesis', 'floor')),
			floor INTEGER NOT NULL,
			mac BLOB NOT NULL CHECK (length(mac) = 32),
			removed INTEGER NOT NULL,
			at INTEGER NOT NULL,
			seal BLOB NOT NULL CHECK (length(seal) = 32)
		) STRICT`,
		"audit_chain_update": `CREATE TRIGGER audit_chain_update BEFORE UPDATE ON audit_chain BEGIN
			SELECT RAISE(ABORT, 'audit_chain is append-only'); END`,
		"audit_chain_delete": `CREATE TRIGGER audit_chain_delete BEFORE DELETE ON audit_chain
			WHEN OLD.id > (SELECT coalesce(max(floor), 0) FROM audit_checkpoints WHERE kind = 'floor') BEGIN
			SELECT RAISE(ABORT, 'audit_chain is append-only'); END`,
		"audit_chain_insert": `CREATE TRIGGER audit_chain_insert BEFORE INSERT ON audit_chain
			WHEN NEW.id <= (SELECT max(id) FROM audit_chain) BEGIN
			SELECT RAISE(ABORT, 'audit_chain is append-only'); END`,
		"audit_parties_update": `CREATE TRIGGER audit_parties_update BEFORE UPDATE ON audit_parties
			WHEN NOT (OLD.forgotten = x'' AND length(NEW.forgotten) = 32 AND NEW.record = '' AND NEW.salt = x'' AND NEW.id = OLD.id
				AND NEW.kind = OLD.kind AND NEW.collection = OLD.collection AND NEW.seal = OLD.seal) BEGIN
			SELECT RAISE(ABORT, 'audit_parties can only be forgotten'); END`,
		"audit_parties_delete": `CREATE TRIGGER audit_parties_delete BEFORE DELETE ON audit_parties
			WHEN EXISTS (SELECT 1 FROM audit_chain WHERE actor = OLD.id)
				OR EXISTS (SELECT 1 FROM audit_chain WHERE subject = OLD.id AND subject > 0)
				OR EXISTS (SELECT 1 FROM audit_chain WHERE act_as = OLD.id AND act_as > 0) BEGIN
			SELECT RAISE(ABORT, 'audit_parties is named by entries'); END`,
		"audit_parties_insert": `CREATE TRIGGER audit_parties_insert BEFORE INSERT ON audit_parties
			WHEN EXISTS (SELECT 1 FROM audit_parties WHERE id = NEW.id) BEGIN
			SELECT RAISE(ABORT, 'audit_parties can only be forgotten'); END`,
		"audit_checkpoints_update": `CREATE TRIGGER audit_checkpoints_update BEFORE UPDATE ON audit_checkpoints BEGIN
			SELECT RAISE(ABORT, 'audit_checkpoints is append-only'); END`,
		"audit_checkpoints_delete": `CREATE TRIGGER audit_checkpoints_delete BEFORE DELETE ON audit_checkpoints
			WHEN OLD.kind = 'genesis' OR OLD.id = (SELECT max(id) FROM audit_checkpoints) BEGIN
			SELECT RAISE(ABORT, 'audit_checkpoints is append-only'); END`,
		"audit_checkpoints_insert": `CREATE TRIGGER audit_checkpoints_insert BEFORE INSERT ON audit_checkpoints
			WHEN NEW.id <= (SELECT max(id) FROM audit_checkpoints) BEGIN
			SELECT RAISE(ABORT, 'audit_checkpoints is append-only'); END`,
	}
}

// indexes serve the queries, newest first: the rowid, which is the id, ends every index of SQLite. The partial ones leave
// out the value that most entries have.
func indexes() []string {
	return []string{
		"CREATE INDEX audit_chain_at ON audit_chain (at)",
		"CREATE INDEX audit_chain_action ON audit_chain (action, at)",
		"CREATE INDEX audit_chain_area ON audit_chain (" + AreaOfAction + ", at)",
		"CREATE INDEX audit_chain_outcome ON audit_chain (outcome, at) WHERE outcome <> 'success'",
		"CREATE INDEX audit_chain_actor ON audit_chain (actor, at)",
		"CREATE INDEX audit_chain_subject ON audit_chain (subject, at) WHERE subject > 0",
		"CREATE INDEX audit_chain_act_as ON audit_chain (act_as, at) WHERE act_as > 0",
		"CREATE INDEX audit_chain_session ON audit_chain (session, at) WHERE session <> ''",
		"CREATE INDEX audit_chain_request ON audit_chain (request, at) WHERE request <> ''",
		"CREATE UNIQUE INDEX audit_parties_who ON audit_parties (record, collection, kind) WHERE forgotten = x''",
	}
}

// AreaOfAction is the first part of an action, "sessions" of "sessions.revoked".
const AreaOfAction = "substr(action, 1, instr(action, '.') - 1)"

// view shows entries as people read them.
const view = `CREATE VIEW audit_entries AS SELECT c.id, strftime('%Y-%m-%dT%H:%M:%fZ', c.at / 1000.0, 'unixepoch') AS at, c.action, c.outcome,
	coalesce(a.kind, '') AS actor_kind, coalesce(a.collection, '') AS actor_collection, coalesce(a.record, '') AS actor_id,
	coalesce(n.record, '') AS act_as,
	coalesce(s.kind, '') AS subject_kind, coalesce(s.collection, '') AS subject_collection, coalesce(s.record, '') AS subject_id,
	c.session, c.request, c.address, c.details
	FROM audit_chain c LEFT JOIN audit_parties a ON a.id = c.actor LEFT JOIN audit_parties s ON s.id = c.subject LEFT JOIN audit_parties n ON n.id = c.act_as`

// Create makes the tables, the view, and puts aside what the old table holds: sealing it needs the key, which a
// migration does not have. The first entry seals it.
func Create(app core.App) error {
	var old int
	if err := app.NonconcurrentDB().NewQuery("SELECT count(*) FROM audit_entries").Row(&old); err != nil {
		return fmt.Errorf("count entries: %w", err)
	}
	aside := []string{"DROP TABLE audit_entries"}
	if old > 0 {
		aside = []string{
			"DROP TRIGGER IF EXISTS audit_entries_no_update", "DROP TRIGGER IF EXISTS audit_entries_no_delete",
			"DROP TRIGGER IF EXISTS audit_entries_no_replace", "ALTER TABLE audit_entries RENAME TO " + unsealedTable,
		}
	}
	if err := execute(app, aside...); err != nil {
		return err
	}
	all := tables()
	for _, name := range []string{Chain, Parties, Checkpoints} {
		if err := execute(app, all[name]); err != nil {
			return err
		}
		delete(all, name)
	}
	for _, trigger := range all {
		if err := execute(app, trigger); err != nil {
			return err
		}
	}
	return execute(app, append(indexes(), view)...)
}

// Drop takes all of it away.
func Drop(app core.App) error {
	return execute(app, "DROP VIEW "+entriesView, "DROP TABLE "+Chain, "DROP TABLE "+Parties, "DROP TABLE "+Checkpoints,
		"DROP TABLE IF EXISTS "+unsealedTable)
}

func execute(app core.App, statements ...string) error {
	for _, s := range statements {
		if _, err := app.NonconcurrentDB().NewQuery(s).Execute(); err != nil {
			return fmt.Errorf("change tables of the audit: %w", err)
		}
	}
	return nil
}

// hasUnsealed reports whether entries from before the chain wait to be sealed.
func hasUnsealed(db dbx.Builder) (bool, error) {
	var n int
	err := db.NewQuery("SELECT count(*) FROM sqlite_master WHERE name = '" + unsealedTable + "'").Row(&n)
	return n > 0, err
}
