// Package personal is what messages hold of a person: to show it to them, and to erase it with their account.
//
// What was for the person alone goes as a whole, and only totals stay. What was for others as well keeps its text and names
// the person no longer: not in the list of receivers, not in the deliveries, whose devices get other names, and not in what
// still waits to be sent. Tables: push_addressees, and two columns of push_deliveries.
package personal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/internal/pace"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/message"
)

// Outbox is what the package needs of the one that sends.
type Outbox struct {
	// End cancels a message if it is not done, and leaves nothing of it but its totals.
	End func(tx core.App, id int64) error

	// Later asks for [Outbox.Rest], in the transaction that deletes a collection.
	Later func(tx core.App, collection string) error

	// Inbox forgets the entries of an account.
	Inbox func(tx core.App, account device.Account) error
}

const (
	// portion is how many messages are looked at in a transaction, for which all other writers wait.
	portion = 10

	// erased stands where the id of an account was. No record has it: it is too short.
	erased = "(deleted)"

	// codeErased is why a delivery was skipped.
	codeErased = "account_deleted"
)

// Bind erases what is left of an account in the transaction that deletes it. The devices must be known still, so that it
// comes before those are deleted.
func (o Outbox) Bind(app core.App) {
	const inside = 101 // behind which package device deletes the devices
	app.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelPushErase", Priority: inside, Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		return o.erase(e.App, device.AccountOf(e.Record))
	}})
	app.OnCollectionDeleteExecute().Bind(&hook.Handler[*core.CollectionEvent]{Id: "satchelPushEraseAll", Priority: inside, Func: func(e *core.CollectionEvent) error {
		if err := e.Next(); err != nil || !e.Collection.IsAuth() {
			return err
		}
		return o.Later(e.App, e.Collection.Id)
	}})
}

const (
	// accounts is how many are looked up at once when a whole collection is erased, and longestTurn the time after which a
	// transaction takes no further one.
	accounts    = 500
	longestTurn = 4 * time.Millisecond
)

// Rest erases the accounts of a collection that is gone, with their devices. It can be repeated.
func (o Outbox) Rest(ctx context.Context, app core.App, collection string) error {
	for _, table := range []string{addressees, deliveries} {
		for after := ""; ; {
			var ids []string
			err := app.ConcurrentDB().NewQuery(`SELECT DISTINCT record FROM ` + table + ` WHERE record > {:after} AND record <> '' AND collection = {:collection} ORDER BY record LIMIT {:n}`).
				Bind(dbx.Params{"collection": collection, "after": after, "n": accounts}).WithContext(ctx).Column(&ids)
			if err != nil {
				return fmt.Errorf("find accounts of messages: %w", err)
			}
			if len(ids) == 0 {
				break
			}
			for after = ids[len(ids)-1]; len(ids) > 0; {
				if ids, err = o.turn(ctx, app, collection, ids); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// turn erases some of the accounts in a short transaction, and returns the others.
func (o Outbox) turn(ctx context.Context, app core.App, collection string, ids []string) ([]string, error) {
	begun := time.Now()
	left := ids
	err := app.RunInTransaction(func(tx core.App) error {
		for left = ids; len(left) > 0 && time.Since(begun) < longestTurn; {
			more, err := o.some(tx, device.Account{Collection: collection, ID: left[0]})
			if err != nil {
				return err
			}
			if !more {
				left = left[1:]
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return left, pace.Rest(ctx, time.Since(begun))
}

// Clear does most of the work before the account is deleted, in short transactions with rests in between.
func (o Outbox) Clear(ctx context.Context, app core.App, account *core.Record) error {
	for more := true; more; {
		begun := time.Now()
		err := app.RunInTransaction(func(tx core.App) (err error) {
			more, err = o.some(tx, device.AccountOf(account))
			return err
		})
		if err != nil {
			return err
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
	return nil
}

func (o Outbox) erase(app core.App, a device.Account) error {
	return app.RunInTransaction(func(tx core.App) error {
		for more := true; more; {
			var err error
			if more, err = o.some(tx, a); err != nil {
				return err
			}
		}
		if err := change(tx, `DELETE FROM `+hints+` WHERE device IN (SELECT id FROM push_devices WHERE record = {:record} AND collection = {:collection})`, params(a)); err != nil {
			return fmt.Errorf("forget hints: %w", err)
		}
		return o.Inbox(tx, a)
	})
}

func params(a device.Account) dbx.Params {
	return dbx.Params{"record": a.ID, "collection": a.Collection}
}

func change(tx core.App, statement string, p dbx.Params) error {
	_, err := tx.NonconcurrentDB().NewQuery(statement).Bind(p).Execute()
	return err
}

// part is one message as far as it concerns an account.
type part struct {
	ID    int64  `db:"id"`
	State int    `db:"state"`
	Spec  string `db:"spec"`
	Key   string `db:"key"`
}

// some erases the account from a few messages, and reports whether there may be more.
func (o Outbox) some(tx core.App, a device.Account) (more bool, err error) {
	p := params(a)
	p["limit"] = portion
	var ids []int64
	err = tx.NonconcurrentDB().NewQuery(`SELECT message FROM ` + addressees + ` WHERE record = {:record} AND collection = {:collection}
		UNION SELECT message FROM ` + deliveries + ` WHERE record = {:record} AND collection = {:collection} AND record <> '' ORDER BY 1 LIMIT {:limit}`).Bind(p).Column(&ids)
	if err != nil {
		return false, fmt.Errorf("find messages of account: %w", err)
	}
	for _, id := range ids {
		if err := o.one(tx, a, id); err != nil {
			return false, fmt.Errorf("erase account from message: %w", err)
		}
	}
	return len(ids) == portion, nil
}

// one erases the account from a message.
func (o Outbox) one(tx core.App, a device.Account, id int64) (err error) {
	p := params(a)
	p["id"], p["code"], p["now"] = id, codeErased, time.Now().UnixMilli()
	p["queued"], p["skipped"] = ledger.Queued, ledger.Skipped
	of := ` WHERE message = {:id} AND record = {:record} AND collection = {:collection}`
	var devices []string
	if err := tx.NonconcurrentDB().NewQuery(`SELECT device FROM ` + deliveries + of).Bind(p).Column(&devices); err != nil {
		return err
	}
	if err := o.text(tx, a, id, len(devices)); err != nil {
		return err
	}
	// What waits is skipped. Devices get names that lead nowhere: those who own them know the old ones.
	if err := change(tx, `UPDATE `+deliveries+` SET device = 'erased-' || lower(hex(randomblob(8))), collection = '', record = '', provider = '',
		code = CASE state WHEN {:queued} THEN {:code} ELSE code END, at = CASE state WHEN {:queued} THEN {:now} ELSE at END,
		state = CASE state WHEN {:queued} THEN {:skipped} ELSE state END`+of, p); err != nil {
		return err
	}
	if len(devices) > 0 {
		if p["devices"], err = encode(devices); err != nil {
			return err
		}
		// Looking for a name in the text of all chunks is fast; reading them all as JSON and writing them is not.
		if err := change(tx, `UPDATE `+chunks+` SET devices = (SELECT json_group_array(value) FROM json_each(devices) WHERE value NOT IN (SELECT value FROM json_each({:devices})))
			WHERE message = {:id} AND EXISTS (SELECT 1 FROM json_each({:devices}) AS j WHERE instr(`+chunks+`.devices, '"' || j.value || '"'))`, p); err != nil {
			return err
		}
	}
	return change(tx, `DELETE FROM `+addressees+` WHERE record = {:record} AND message = {:id}`, p)
}

func encode(list []string) (string, error) {
	raw, err := json.Marshal(list)
	return string(raw), err
}

// text takes the account out of what was asked for, and all of it if it was for the account alone.
func (o Outbox) text(tx core.App, a device.Account, id int64, mine int) error {
	var rows []part
	if err := tx.NonconcurrentDB().NewQuery(`SELECT id, state, spec, key FROM ` + messages + ` WHERE id = {:id} AND spec <> ''`).Bind(dbx.Params{"id": id}).All(&rows); err != nil || len(rows) == 0 {
		return err
	}
	r := rows[0]
	m, err := message.Decode(r.Spec)
	if err != nil {
		return err
	}
	alone := len(m.To.Users) == 1 && m.To.Users[0] == a.ID
	if m.To.Filter != nil && r.State >= ledger.Done && mine > 0 {
		p := params(a)
		p["id"] = id
		err := tx.NonconcurrentDB().NewQuery(`SELECT NOT EXISTS (SELECT 1 FROM ` + deliveries + ` WHERE message = {:id} AND (record <> {:record} OR collection <> {:collection}))`).
			Bind(p).Row(&alone)
		if err != nil {
			return err
		}
	}
	if alone {
		return o.End(tx, id)
	}
	m.To.Users = slices.DeleteFunc(m.To.Users, func(user string) bool { return user == a.ID })
	if f := m.To.Filter; f != nil {
		f.Where = strings.ReplaceAll(f.Where, a.ID, erased)
		for name, value := range f.Params {
			if value == a.ID {
				f.Params[name] = erased
			}
		}
	}
	if strings.Contains(r.Key, a.ID) {
		r.Key, m.Key = "", ""
	}
	spec, err := m.Encode()
	if err != nil {
		return err
	}
	return change(tx, `UPDATE `+messages+` SET spec = {:spec}, key = {:key} WHERE id = {:id}`, dbx.Params{"id": id, "spec": spec, "key": r.Key})
}
