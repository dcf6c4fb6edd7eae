// Package inbox keeps notifications as records of their receivers, who can read them again on any device: a collection like
// every other, with rules, live updates and sync.
//
//	GET  /api/v1/push/inbox        how many entries are unread
//	POST /api/v1/push/inbox/read   marks all of them as read
//
// Entries are written, marked and deleted by statements for many at once, which live updates, sync and triggers see in the
// change log. The hooks of the app for records of the collection are called if [Options.Hooks] says so, for which each entry
// is written on its own.
package inbox

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/message"
)

// Bounds of an entry: of its texts in characters, of its data in bytes.
const (
	maxText = 5000
	maxData = 128 << 10
)

// Options are what the program decides.
type Options struct {
	Name    string        // of the collection; with an empty one there is no inbox
	Keep    time.Duration // of entries, read or not; 0 is for ever
	Entries int           // of an account, beyond which the oldest go; 0 is no limit
	Hooks   bool          // call the app's hooks for records
}

// Inbox is the collection.
type Inbox struct {
	Options

	devices *device.Registry
}

// ErrNone is the code of routes without an inbox.
var ErrNone = &extensions.Code{Name: "push.inbox_unavailable", Status: http.StatusNotFound, Title: "There is no inbox"}

// New returns an inbox. The devices know the languages of accounts.
func New(o Options, devices *device.Registry) *Inbox { return &Inbox{o, devices} }

// Prepare makes the collection of the inbox if it is wanted and not there. Its records belong to one auth collection,
// users; their owner may read and delete them and say that they are read, and nothing else.
func (i *Inbox) Prepare(app core.App) error {
	if i.Name == "" {
		return nil
	}
	c, err := app.FindCollectionByNameOrId(i.Name)
	if err == nil {
		return i.check(c)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("find collection %s: %w", i.Name, err)
	}
	accounts, err := app.FindCollectionByNameOrId(message.DefaultAccounts)
	if err != nil || !accounts.IsAuth() {
		return fmt.Errorf("the inbox belongs to the auth collection %s, which is missing: set SATCHEL_PUSH_INBOX to nothing to go without", message.DefaultAccounts)
	}
	c = core.NewBaseCollection(i.Name)
	c.Fields.Add(
		&core.RelationField{Name: "user", CollectionId: accounts.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		&core.TextField{Name: "message", Max: 20, Required: true},
		&core.TextField{Name: "category", Max: 100},
		&core.TextField{Name: "title", Max: maxText},
		&core.TextField{Name: "body", Max: maxText},
		&core.TextField{Name: "image", Max: 2048},
		&core.JSONField{Name: "data", MaxSize: maxData},
		&core.BoolField{Name: "read"},
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	c.AddIndex("idx_"+c.Name+"_message", true, "user, message", "")
	c.AddIndex("idx_"+c.Name+"_created", false, "user, created, id", "")
	c.AddIndex("idx_"+c.Name+"_read", false, "user, read, created, id", "")
	own := "@request.auth.collectionId = '" + accounts.Id + "' && user = @request.auth.id"
	change := own + " && @request.body." + strings.Join(fields(), ":changed = false && @request.body.") + ":changed = false"
	c.ListRule, c.ViewRule, c.DeleteRule, c.UpdateRule = new(own), new(own), new(own), new(change)
	if err := app.Save(c); err != nil {
		return fmt.Errorf("create collection %s: %w", c.Name, err)
	}
	return nil
}

// fields are those that an entry has from the beginning and for ever.
func fields() []string {
	return []string{"user", "message", "category", "title", "body", "image", "data"}
}

// check refuses a collection of the app's that only has the same name.
func (i *Inbox) check(c *core.Collection) error {
	for _, name := range append(fields(), "read", "created", "updated") {
		if c.Fields.GetByName(name) == nil {
			return fmt.Errorf("the collection %s is no inbox, since it has no field %s: name another one in SATCHEL_PUSH_INBOX", c.Name, name)
		}
	}
	return nil
}

// Forget deletes the entries of an account. A relation that deletes with the account has done so.
func (i *Inbox) Forget(tx core.App, account device.Account) error {
	c, err := i.of(tx, account)
	if err != nil || c == nil {
		return err
	}
	if _, err := tx.NonconcurrentDB().Delete(c.Name, dbx.HashExp{"user": account.ID}).Execute(); err != nil {
		return fmt.Errorf("erase inbox: %w", err)
	}
	return nil
}

// of is the collection if there is one and accounts of the collection have entries in it.
func (i *Inbox) of(app core.App, account device.Account) (*core.Collection, error) {
	if i.Name == "" {
		return nil, nil
	}
	c, err := app.FindCachedCollectionByNameOrId(i.Name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil // it is made when the server starts
	}
	if err != nil {
		return nil, fmt.Errorf("find inbox: %w", err)
	}
	if owners, ok := c.Fields.GetByName("user").(*core.RelationField); !ok || owners.CollectionId != account.Collection {
		return nil, nil
	}
	return c, nil
}
