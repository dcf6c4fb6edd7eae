// Package capture is the writer's side of the change log: its tables, the triggers that append to it, and which
// collections have them. It has no routes or settings.
package capture

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// EpochLength is the length of the name of an epoch.
const EpochLength = 12

// NewEpoch is a name that never comes again.
func NewEpoch() string { return strings.ToLower(rand.Text()[:EpochLength]) }

// HorizonSQL is the number of the last change, as an expression. SQLite keeps it for an AUTOINCREMENT table, but not
// when a statement is cut off by OR FAIL; the newest row, which is never purged, covers that.
const HorizonSQL = `max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes_log'), 0), coalesce((SELECT max(seq) FROM changes_log), 0))`

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
		`INSERT INTO changes_state (k, epoch) VALUES (1, '` + NewEpoch() + `')`,
	}
}

// Migration makes the tables; on the way down the triggers go first, or every write would fail.
func Migration() extensions.Migration {
	m := extensions.Tables(1795480000, "create", schema(), Tables()...)
	down := m.Down
	m.Down = func(app core.App) error {
		triggers, err := StoredTriggers(app.NonconcurrentDB())
		if err != nil {
			return err
		}
		for name := range triggers {
			if err := Exec(app.NonconcurrentDB(), "DROP TRIGGER "+Quote(name), nil); err != nil {
				return err
			}
		}
		return down(app)
	}
	return m
}

// Covering makes the index by version hold all that readers of changed heads want, so that they read a few neighbouring
// pages instead of one for every head.
func Covering() extensions.Migration {
	index := func(columns string) func(app core.App) error {
		return func(app core.App) error {
			for _, text := range []string{"DROP INDEX changes_heads_seq", "CREATE INDEX changes_heads_seq ON changes_heads (" + columns + ")"} {
				if err := Exec(app.NonconcurrentDB(), text, nil); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return extensions.Migration{Unix: 1795501000, What: "covering_index", Up: index("c, seq, rec, del"), Down: index("c, seq")}
}

// Installed reports whether the migration has run: PocketBase's own migrations make collections before it.
func Installed(app core.App) bool { return app.HasTable("changes_state") }

// Exec runs a statement.
func Exec(db dbx.Builder, query string, params dbx.Params) error {
	if _, err := db.NewQuery(query).Bind(params).Execute(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(strings.Fields(query)[:2], " "), err)
	}
	return nil
}

// Quote makes an identifier as SQLite writes it when it renames a table.
func Quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Append writes an entry about a whole collection, or one that no trigger wrote, and returns its number.
func Append(db dbx.Builder, c int64, record string, action Action) (int64, error) {
	result, err := db.NewQuery("INSERT INTO changes_log (c, rec, op) VALUES ({:c}, {:rec}, {:op})").
		Bind(dbx.Params{"c": c, "rec": record, "op": int(action)}).Execute()
	if err != nil {
		return 0, fmt.Errorf("record %s: %w", action, err)
	}
	return result.LastInsertId()
}

// Tables are the tables that only this package and its triggers write to. They must be quiet in the store's options.
func Tables() []string {
	return []string{"changes_log", "changes_state", "changes_collections", "changes_heads", "changes_marks", "changes_readers"}
}

// State is the one row of changes_state, and the number of the last change.
type State struct {
	Epoch      string `db:"epoch"`
	Folded     int64  `db:"folded"`
	LogFloor   int64  `db:"log_floor"`
	HeadsFloor int64  `db:"heads_floor"`
	Horizon    int64  `db:"horizon"`
}

// ReadState reads it.
func ReadState(ctx context.Context, db dbx.Builder) (State, error) {
	var s State
	err := db.NewQuery("SELECT epoch, folded, log_floor, heads_floor, " + HorizonSQL + " AS horizon FROM changes_state").WithContext(ctx).One(&s)
	if err != nil {
		return s, fmt.Errorf("read state of the change log: %w", err)
	}
	return s, nil
}
