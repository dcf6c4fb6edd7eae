package personal

import (
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/message"
)

// The tables that hold something of a person, besides those of package device.
const (
	messages   = ledger.Messages
	chunks     = ledger.Chunks
	hints      = ledger.Hints
	deliveries = ledger.Deliveries

	// addressees finds the messages that name an account among their users. A row goes with the list of its message.
	addressees = "push_addressees"
)

// Tables lists those of the package. No rule, collection or view reads them.
func Tables() []string { return []string{addressees} }

// Migrations note whom a delivery is for, and whom a message names, so that both are found by the account.
func Migrations() []extensions.Migration {
	up := []string{
		`ALTER TABLE ` + deliveries + ` ADD COLUMN collection TEXT NOT NULL DEFAULT ''`,
		`ALTER TABLE ` + deliveries + ` ADD COLUMN record TEXT NOT NULL DEFAULT ''`,
		`UPDATE ` + deliveries + ` AS d SET collection = p.collection, record = p.record FROM push_devices AS p WHERE p.id = d.device`,
		`CREATE INDEX ` + deliveries + `_account ON ` + deliveries + ` (record, collection) WHERE record <> ''`,
		`CREATE TABLE ` + addressees + ` (record TEXT NOT NULL, message INTEGER NOT NULL, collection TEXT NOT NULL, PRIMARY KEY (record, message)) STRICT, WITHOUT ROWID`,
		`INSERT INTO ` + addressees + ` (record, message, collection) SELECT DISTINCT u.value, m.id, c.id FROM ` + messages + ` AS m, json_each(m.spec, '$.to.users') AS u
			JOIN _collections AS c ON c.name = coalesce(json_extract(m.spec, '$.to.collection'), '` + message.DefaultAccounts + `') WHERE m.spec <> ''`,
	}
	down := []string{
		`DROP TABLE ` + addressees, `DROP INDEX ` + deliveries + `_account`,
		`ALTER TABLE ` + deliveries + ` DROP COLUMN record`, `ALTER TABLE ` + deliveries + ` DROP COLUMN collection`,
	}
	run := func(statements []string) func(core.App) error {
		return func(app core.App) error {
			for _, statement := range statements {
				if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
					return fmt.Errorf("note accounts of messages: %w", err)
				}
			}
			return nil
		}
	}
	return []extensions.Migration{{Unix: 1795513000, What: "note_accounts", Up: run(up), Down: run(down)}}
}

// Name notes whom a new message names.
func Name(tx core.App, id int64, to message.To) error {
	if len(to.Users) == 0 {
		return nil
	}
	collection, users, err := to.Named(tx)
	if err != nil {
		return err
	}
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + addressees + ` (record, message, collection) SELECT value, {:message}, {:collection} FROM json_each({:users})`).
		Bind(dbx.Params{"message": id, "collection": collection, "users": users}).Execute()
	if err != nil {
		return fmt.Errorf("note whom a message names: %w", err)
	}
	return nil
}

// Unname forgets some of those whom a message names, while it still does, and reports whether there may be more.
func Unname(app core.App, id int64, most int) (more bool, err error) {
	res, err := app.NonconcurrentDB().NewQuery(`DELETE FROM ` + addressees + ` WHERE (record, message) IN (SELECT a.record, a.message
		FROM ` + messages + ` AS m, json_each(m.spec, '$.to.users') AS u CROSS JOIN ` + addressees + ` AS a ON a.record = u.value AND a.message = m.id
		WHERE m.id = {:message} AND m.spec <> '' LIMIT {:most})`).Bind(dbx.Params{"message": id, "most": most}).Execute()
	if err != nil {
		return false, fmt.Errorf("forget whom a message names: %w", err)
	}
	n, err := res.RowsAffected()
	return n == int64(most), err
}
