package changes

import (
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

const epochLength = 12

// newEpoch is a name that never comes again.
func newEpoch() string { return strings.ToLower(rand.Text()[:epochLength]) }

// horizonSQL is the number of the last change, as an expression. SQLite keeps it for an AUTOINCREMENT table, but not
// when a statement is cut off by OR FAIL; the newest row, which is never purged, covers that.
const horizonSQL = `max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes_log'), 0), coalesce((SELECT max(seq) FROM changes_log), 0))`

// schema is one statement each. changes_log has no constraints, because OR IGNORE of the statement that fires a trigger
// holds in its body too and would drop a change in silence.
func schema() []string {
	return []string{
		`CREATE TABLE changes_log (seq INTEGER PRIMARY KEY AUTOINCREMENT, c INTEGER, rec TEXT, op INTEGER)`,
		`CREATE TABLE changes_state (
			k INTEGER PRIMARY KEY CHECK (k = 1),
			epoch TEXT NOT NULL,
			folded INTEGER NOT NULL DEFAULT 0,
			log_floor INTEGER NOT NULL DEFAULT 0,
			heads_floor INTEGER NOT NULL DEFAULT 0
		)`,
		`CREATE TABLE changes_collections (
			c INTEGER PRIMARY KEY AUTOINCREMENT,
			collection TEXT NOT NULL,
			name TEXT NOT NULL,
			fields TEXT NOT NULL,
			base INTEGER NOT NULL DEFAULT 0,
			changed INTEGER NOT NULL DEFAULT 0,
			filled INTEGER NOT NULL DEFAULT 0,
			gone INTEGER NOT NULL DEFAULT 0,
			gone_at INTEGER NOT NULL DEFAULT 0
		)`,
		`CREATE UNIQUE INDEX changes_collections_live ON changes_collections (collection) WHERE gone = 0`,
		`CREATE TABLE changes_heads (
			hid INTEGER PRIMARY KEY AUTOINCREMENT,
			c INTEGER NOT NULL,
			rec TEXT NOT NULL,
			seq INTEGER NOT NULL,
			del INTEGER NOT NULL,
			at INTEGER NOT NULL,
			UNIQUE (c, rec)
		)`,
		`CREATE INDEX changes_heads_seq ON changes_heads (c, seq)`,
		`CREATE INDEX changes_heads_deleted ON changes_heads (at) WHERE del = 1`,
		`CREATE TABLE changes_marks (at INTEGER PRIMARY KEY, seq INTEGER NOT NULL)`,
		`CREATE TABLE changes_readers (name TEXT PRIMARY KEY, epoch TEXT NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID`,
		`INSERT INTO changes_state (k, epoch) VALUES (1, '` + newEpoch() + `')`,
	}
}

func migration() extensions.Migration {
	m := extensions.Tables(1795480000, "create", schema(), Tables()...)
	down := m.Down
	m.Down = func(app core.App) error {
		triggers, err := storedTriggers(app.NonconcurrentDB())
		if err != nil {
			return err
		}
		for name := range triggers {
			if err := exec(app.NonconcurrentDB(), "DROP TRIGGER "+quote(name), nil); err != nil {
				return err
			}
		}
		return down(app)
	}
	return m
}

// installed reports whether the migration has run: PocketBase's own migrations make collections before it.
func installed(app core.App) bool { return app.HasTable("changes_state") }

func exec(db dbx.Builder, query string, params dbx.Params) error {
	if _, err := db.NewQuery(query).Bind(params).Execute(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(strings.Fields(query)[:2], " "), err)
	}
	return nil
}

// quote makes an identifier as SQLite writes it when it renames a table.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// append writes an entry about a whole collection, or one that no trigger wrote, and returns its number.
func appendEntry(db dbx.Builder, c int64, record string, action Action) (int64, error) {
	result, err := db.NewQuery("INSERT INTO changes_log (c, rec, op) VALUES ({:c}, {:rec}, {:op})").
		Bind(dbx.Params{"c": c, "rec": record, "op": int(action)}).Execute()
	if err != nil {
		return 0, fmt.Errorf("record %s: %w", action, err)
	}
	return result.LastInsertId()
}
