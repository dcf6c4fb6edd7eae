package apikeys

import (
	"fmt"

	"github.com/pocketbase/pocketbase/core"
)

const (
	table = "apikeys_keys"

	// Uses is the table of when keys were last used. Its writes are no change that anything depends on.
	Uses = "apikeys_uses"
)

func createKeys(app core.App) error {
	_, err := app.NonconcurrentDB().NewQuery(`CREATE TABLE {{` + table + `}} (
		id TEXT PRIMARY KEY NOT NULL,
		name TEXT NOT NULL,
		hash BLOB NOT NULL CHECK (length(hash) = 32),
		scopes TEXT NOT NULL,
		created INTEGER NOT NULL,
		expires_at INTEGER NOT NULL DEFAULT 0,
		last_used_at INTEGER NOT NULL DEFAULT 0,
		revoked_at INTEGER NOT NULL DEFAULT 0
	) WITHOUT ROWID`).Execute()
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	return nil
}

func dropKeys(app core.App) error {
	_, err := app.NonconcurrentDB().DropTable(table).Execute()
	return err
}

// extendKeys gives keys a rate and networks, and moves what changes all the time to a table of its own.
func extendKeys(app core.App) error {
	return all(app,
		`ALTER TABLE {{`+table+`}} ADD COLUMN rate INTEGER NOT NULL DEFAULT 0`,
		`ALTER TABLE {{`+table+`}} ADD COLUMN networks TEXT NOT NULL DEFAULT '[]'`,
		`CREATE TABLE {{`+Uses+`}} ([[key]] TEXT PRIMARY KEY NOT NULL, [[at]] INTEGER NOT NULL) WITHOUT ROWID`,
		`INSERT INTO {{`+Uses+`}} ([[key]], [[at]]) SELECT id, last_used_at FROM {{`+table+`}} WHERE last_used_at > 0`,
		`ALTER TABLE {{`+table+`}} DROP COLUMN last_used_at`,
	)
}

func reduceKeys(app core.App) error {
	return all(app,
		`ALTER TABLE {{`+table+`}} ADD COLUMN last_used_at INTEGER NOT NULL DEFAULT 0`,
		`UPDATE {{`+table+`}} SET last_used_at = COALESCE((SELECT u.[[at]] FROM {{`+Uses+`}} u WHERE u.[[key]] = id), 0)`,
		`DROP TABLE {{`+Uses+`}}`,
		`ALTER TABLE {{`+table+`}} DROP COLUMN rate`,
		`ALTER TABLE {{`+table+`}} DROP COLUMN networks`,
	)
}

func all(app core.App, statements ...string) error {
	for _, statement := range statements {
		if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			return fmt.Errorf("change tables of keys: %w", err)
		}
	}
	return nil
}
