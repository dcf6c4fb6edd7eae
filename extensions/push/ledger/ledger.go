// Package ledger is the tables of messages, which package outbox writes: what was asked for, and what became of it on each
// device.
package ledger

import "github.com/satchelbase/satchel/extensions"

// The tables.
const (
	Messages   = "push_messages"
	Deliveries = "push_deliveries"
	Chunks     = "push_chunks"
	Hints      = "push_hints"
)

// Tables lists them. No rule, collection or view reads them.
func Tables() []string { return []string{Messages, Deliveries, Chunks, Hints} }

// Migrations create them. Times are Unix milliseconds, 0 is never. A delivery is in the order of the fan-out, so that its
// rows are appended; a chunk is the devices of one job, as JSON, and is gone when that has ended.
func Migrations() []extensions.Migration {
	first := extensions.Tables(1795505500, "create_messages", []string{
		`CREATE TABLE ` + Messages + ` (
			id INTEGER PRIMARY KEY, key TEXT NOT NULL, digest BLOB NOT NULL, state INTEGER NOT NULL, spec TEXT NOT NULL,
			target TEXT NOT NULL, category TEXT NOT NULL, job TEXT NOT NULL DEFAULT '', fanned INTEGER NOT NULL DEFAULT 0, totals TEXT NOT NULL DEFAULT '',
			due_at INTEGER NOT NULL, ends_at INTEGER NOT NULL, created_at INTEGER NOT NULL, done_at INTEGER NOT NULL DEFAULT 0
		) STRICT`,
		`CREATE UNIQUE INDEX ` + Messages + `_key ON ` + Messages + ` (key) WHERE key <> ''`,
		`CREATE INDEX ` + Messages + `_open ON ` + Messages + ` (state, id) WHERE state < 2`,
		`CREATE INDEX ` + Messages + `_done ON ` + Messages + ` (done_at) WHERE done_at > 0 AND spec <> ''`,
		`CREATE TABLE ` + Deliveries + ` (
			message INTEGER NOT NULL, device TEXT NOT NULL, state INTEGER NOT NULL, platform TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
			code TEXT NOT NULL DEFAULT '', provider TEXT NOT NULL DEFAULT '', at INTEGER NOT NULL, opened_at INTEGER NOT NULL DEFAULT 0,
			PRIMARY KEY (message, device)
		) STRICT, WITHOUT ROWID`,
		`CREATE TABLE ` + Chunks + ` (
			id INTEGER PRIMARY KEY, message INTEGER NOT NULL, job TEXT NOT NULL, due_at INTEGER NOT NULL, devices TEXT NOT NULL,
			collapse TEXT NOT NULL
		) STRICT`,
		`CREATE INDEX ` + Chunks + `_collapse ON ` + Chunks + ` (collapse, message) WHERE collapse <> ''`,
		`CREATE INDEX ` + Chunks + `_message ON ` + Chunks + ` (message)`,
		`CREATE TABLE ` + Hints + ` (device TEXT PRIMARY KEY, since INTEGER NOT NULL, count INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
	}, Tables()...)
	return []extensions.Migration{
		first,
		extensions.Columns(1795510001, "name_templates", Messages, `template TEXT NOT NULL DEFAULT ''`, `template_version INTEGER NOT NULL DEFAULT 0`),
	}
}
