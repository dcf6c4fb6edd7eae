// Package inbox keeps notifications as records of their receivers, who can read them again on any device: a collection like
// every other, with rules, live updates and sync.
package inbox

import (
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// Bounds of an entry: of its texts in characters, of its data in bytes.
const (
	maxText = 5000
	maxData = 128 << 10
)

// Inbox is the collection. With an empty name there is none.
type Inbox struct {
	name    string
	devices *device.Registry
}

// New returns an inbox. The devices know the languages of accounts.
func New(name string, devices *device.Registry) *Inbox { return &Inbox{name, devices} }

// Prepare makes the collection of the inbox if it is wanted and not there. Its records belong to one auth collection,
// users; their owner may read and delete them and say that they are read, and nothing else.
func (i *Inbox) Prepare(app core.App) error {
	if i.name == "" {
		return nil
	}
	c, err := app.FindCollectionByNameOrId(i.name)
	if err == nil {
		return i.check(c)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("find collection %s: %w", i.name, err)
	}
	accounts, err := app.FindCollectionByNameOrId(message.DefaultAccounts)
	if err != nil || !accounts.IsAuth() {
		return fmt.Errorf("the inbox belongs to the auth collection %s, which is missing: set SATCHEL_PUSH_INBOX to nothing to go without", message.DefaultAccounts)
	}
	c = core.NewBaseCollection(i.name)
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

// Deliver writes an entry for each of the accounts that has none, in the language of the device that it was last seen
// with. Hooks of the collection are not called; whoever follows its changes sees them.
func (i *Inbox) Deliver(tx core.App, id string, m *message.Message, accounts []device.Account) error {
	if len(accounts) == 0 || i.name == "" {
		return nil
	}
	c, err := tx.FindCachedCollectionByNameOrId(i.name)
	if err != nil {
		return fmt.Errorf("find inbox: %w", err)
	}
	owners, ok := c.Fields.GetByName("user").(*core.RelationField)
	if !ok {
		return fmt.Errorf("the field user of %s is no relation", c.Name)
	}
	texts, err := m.ByLanguage()
	if err != nil {
		return err
	}
	set, err := template.Compile(texts)
	if err != nil {
		return fmt.Errorf("read texts: %w", err)
	}
	locales, err := i.devices.Locales(tx, accounts)
	if err != nil {
		return err
	}
	data := m.Data
	if data == nil {
		data = map[string]string{}
	}
	var rows []any
	for _, a := range accounts {
		if a.Collection != owners.CollectionId {
			continue
		}
		text, err := set.Render(locales[a], m.Values)
		if err != nil {
			return fmt.Errorf("render text: %w", err)
		}
		rows = append(rows, []any{strings.ToLower(rand.Text())[:15], a.ID, text.Title, text.Body})
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode entries: %w", err)
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode data: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT INTO {{` + c.Name + `}} (id, user, message, category, title, body, image, data, read, created, updated)
		SELECT value->>0, value->>1, {:message}, {:category}, value->>2, value->>3, {:image}, {:data}, FALSE, {:now}, {:now} FROM json_each({:rows})
		WHERE EXISTS (SELECT 1 FROM {{` + message.DefaultAccounts + `}} AS u WHERE u.id = value->>1) ON CONFLICT DO NOTHING`).Bind(
		dbx.Params{"message": id, "category": m.Category, "image": m.Image, "data": string(raw), "now": types.NowDateTime().String(), "rows": string(list)}).Execute()
	if err != nil {
		return fmt.Errorf("write entries of the inbox: %w", err)
	}
	return nil
}

// Forget deletes the entries of an account. A relation that deletes with the account has done so.
func (i *Inbox) Forget(tx core.App, account device.Account) error {
	if i.name == "" {
		return nil
	}
	c, err := tx.FindCachedCollectionByNameOrId(i.name)
	if err != nil {
		return nil //nolint:nilerr // it was not made yet
	}
	if owners, ok := c.Fields.GetByName("user").(*core.RelationField); !ok || owners.CollectionId != account.Collection {
		return nil
	}
	if _, err := tx.NonconcurrentDB().Delete(c.Name, dbx.HashExp{"user": account.ID}).Execute(); err != nil {
		return fmt.Errorf("erase inbox: %w", err)
	}
	return nil
}
