// Package caps counts what accounts have got, so that nobody gets more than a cap says. A row is a message that an account
// gets or is about to get: it is written before the message is sent, by whoever has looked in the same transaction whether
// there is room, and goes when no device has got it in the end.
package caps

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/push/ledger"
)

// Table is that of the counts. Times are Unix milliseconds; accounts are the id of a collection and that of a record.
const Table = "push_counts"

// Create are the statements that make the table.
func Create() []string {
	return []string{
		`CREATE TABLE ` + Table + ` (collection TEXT NOT NULL, record TEXT NOT NULL, category TEXT NOT NULL, at INTEGER NOT NULL) STRICT`,
		`CREATE INDEX ` + Table + `_account ON ` + Table + ` (collection, record, at)`,
		`CREATE INDEX ` + Table + `_at ON ` + Table + ` (at)`,
	}
}

// Migration makes a message count once for an account.
func Migration(unix int64) extensions.Migration {
	run := func(statements ...string) func(core.App) error {
		return func(app core.App) error {
			for _, statement := range statements {
				if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
					return fmt.Errorf("change %s: %w", Table, err)
				}
			}
			return nil
		}
	}
	return extensions.Migration{
		Unix: unix, What: "count_messages",
		Up: run(`ALTER TABLE `+Table+` ADD COLUMN message INTEGER NOT NULL DEFAULT 0`,
			`CREATE UNIQUE INDEX `+Table+`_message ON `+Table+` (message, record, collection) WHERE message <> 0`),
		Down: run(`DROP INDEX `+Table+`_message`, `ALTER TABLE `+Table+` DROP COLUMN message`),
	}
}

// Limit is a cap on what is counted for a category, or for all with an empty one.
type Limit struct {
	Category string
	All      bool
	Count    int
	Per      time.Duration
}

// Account is the id of a collection and that of a record.
type Account = [2]string

// listed ties the counts to the accounts of json_each AS j.
const listed = Table + ` c ON c.collection = j.value ->> 0 AND c.record = j.value ->> 1`

// Full returns when those of the accounts, a JSON array of pairs, that are at a limit have room again for a message that is
// not counted yet; for one that is, what is counted for itself takes no room.
func Full(ctx context.Context, app core.App, accounts string, limits []Limit, message int64, now time.Time) (map[Account]time.Time, error) {
	out := map[Account]time.Time{}
	for _, l := range limits {
		if l.Count == 0 {
			continue
		}
		var rows []struct {
			Collection string `db:"collection"`
			Record     string `db:"record"`
			At         int64  `db:"at"`
		}
		err := app.ConcurrentDB().NewQuery(`SELECT collection, record, at FROM (
				SELECT c.collection, c.record, c.at, ROW_NUMBER() OVER (PARTITION BY c.collection, c.record ORDER BY c.at DESC) AS nth
				FROM json_each({:accounts}) j CROSS JOIN ` + listed + `
				WHERE c.at > {:since} AND ({:all} OR c.category = {:category}) AND (c.message = 0 OR c.message <> {:message})
			) WHERE nth = {:count}`).Bind(dbx.Params{
			"accounts": accounts, "since": now.Add(-l.Per).UnixMilli(), "all": l.All, "category": l.Category, "message": message, "count": l.Count,
		}).WithContext(ctx).All(&rows)
		if err != nil {
			return nil, fmt.Errorf("look at caps: %w", err)
		}
		for _, row := range rows {
			a, room := Account{row.Collection, row.Record}, time.UnixMilli(row.At).UTC().Add(l.Per)
			if room.After(out[a]) {
				out[a] = room
			}
		}
	}
	return out, nil
}

// Take counts a message for those of the accounts that get it, and for the others not any more. Accounts without a device,
// such as one that was deleted a moment ago, get nothing. tx is the transaction in which [Full] was asked.
func Take(tx core.App, message int64, accounts, get, category string, now time.Time) error {
	params := dbx.Params{"message": message, "accounts": accounts, "get": get, "category": category, "now": now.UnixMilli()}
	for _, statement := range []string{
		`DELETE FROM ` + Table + ` WHERE rowid IN (SELECT c.rowid FROM json_each({:accounts}) j CROSS JOIN ` + listed + ` WHERE c.message = {:message} AND c.message <> 0)`,
		`INSERT INTO ` + Table + ` (collection, record, category, at, message)
			SELECT value ->> 0, value ->> 1, {:category}, {:now}, {:message} FROM json_each({:get})
			WHERE EXISTS (SELECT 1 FROM push_devices d WHERE d.collection = value ->> 0 AND d.record = value ->> 1)`,
	} {
		if _, err := tx.NonconcurrentDB().NewQuery(statement).Bind(params).Execute(); err != nil {
			return fmt.Errorf("count messages: %w", err)
		}
	}
	return nil
}

// Release gives the room back that messages have taken for accounts of which no device has got them or still may. The
// deliveries, a JSON array that begins with message and device, have ended without being accepted.
func Release(tx core.App, deliveries string) error {
	_, err := tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + Table + ` WHERE rowid IN (
		SELECT c.rowid FROM json_each({:deliveries}) e CROSS JOIN ` + ledger.Deliveries + ` d ON d.message = e.value ->> 0 AND d.device = e.value ->> 1
			CROSS JOIN ` + Table + ` c ON c.message = d.message AND c.record = d.record AND c.collection = d.collection AND c.message <> 0
		WHERE NOT EXISTS (SELECT 1 FROM ` + ledger.Deliveries + ` o WHERE o.record = d.record AND o.record <> '' AND o.collection = d.collection AND o.message = d.message AND o.state IN ({:queued}, {:accepted})))`).
		Bind(dbx.Params{"deliveries": deliveries, "queued": ledger.Queued, "accepted": ledger.Accepted}).Execute()
	if err != nil {
		return fmt.Errorf("release counts: %w", err)
	}
	return nil
}
