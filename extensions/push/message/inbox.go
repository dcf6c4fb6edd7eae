package message

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
	"github.com/satchelbase/satchel/extensions/push/template"
)

// inboxText bounds what an entry holds, in characters.
const inboxText = 5000

// PrepareInbox makes the collection of the inbox if it is wanted and not there. Its records belong to one auth collection,
// users; their owner may read and delete them and say that they are read, and nothing else.
func (o *Outbox) PrepareInbox(app core.App) error {
	if o.cfg.Inbox == "" {
		return nil
	}
	c, err := app.FindCollectionByNameOrId(o.cfg.Inbox)
	if err == nil {
		return o.checkInbox(c)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("find collection %s: %w", o.cfg.Inbox, err)
	}
	accounts, err := app.FindCollectionByNameOrId(defaultAccounts)
	if err != nil || !accounts.IsAuth() {
		return fmt.Errorf("the inbox belongs to the auth collection %s, which is missing: set SATCHEL_PUSH_INBOX to nothing to go without", defaultAccounts)
	}
	c = core.NewBaseCollection(o.cfg.Inbox)
	c.Fields.Add(
		&core.RelationField{Name: "user", CollectionId: accounts.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		&core.TextField{Name: "message", Max: 20, Required: true},
		&core.TextField{Name: "category", Max: 100},
		&core.TextField{Name: "title", Max: inboxText},
		&core.TextField{Name: "body", Max: inboxText},
		&core.TextField{Name: "image", Max: 2048},
		&core.JSONField{Name: "data", MaxSize: maxSpec},
		&core.BoolField{Name: "read"},
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	c.AddIndex("idx_"+c.Name+"_message", true, "user, message", "")
	c.AddIndex("idx_"+c.Name+"_created", false, "user, created, id", "")
	c.AddIndex("idx_"+c.Name+"_read", false, "user, read, created, id", "")
	own := "@request.auth.collectionId = '" + accounts.Id + "' && user = @request.auth.id"
	change := own
	for _, name := range inboxFields() {
		change += " && @request.body." + name + ":changed = false"
	}
	c.ListRule, c.ViewRule, c.DeleteRule, c.UpdateRule = new(own), new(own), new(own), new(change)
	if err := app.Save(c); err != nil {
		return fmt.Errorf("create collection %s: %w", c.Name, err)
	}
	return nil
}

// inboxFields are those that an entry has from the beginning and for ever.
func inboxFields() []string {
	return []string{"user", "message", "category", "title", "body", "image", "data"}
}

// checkInbox refuses a collection of the app's that only has the same name.
func (o *Outbox) checkInbox(c *core.Collection) error {
	for _, name := range append(inboxFields(), "read", "created", "updated") {
		if c.Fields.GetByName(name) == nil {
			return fmt.Errorf("the collection %s is no inbox, since it has no field %s: name another one in SATCHEL_PUSH_INBOX", c.Name, name)
		}
	}
	return nil
}

// deliverInbox writes an entry for each of the accounts that has none, in the language of the device that it was last seen
// with. Hooks of the collection are not called; whoever follows its changes sees them.
func (o *Outbox) deliverInbox(tx core.App, id int64, m *Message, accounts []device.Account) error {
	if len(accounts) == 0 || o.cfg.Inbox == "" {
		return nil
	}
	c, err := tx.FindCachedCollectionByNameOrId(o.cfg.Inbox)
	if err != nil {
		return fmt.Errorf("find inbox: %w", err)
	}
	owners, ok := c.Fields.GetByName("user").(*core.RelationField)
	if !ok {
		return fmt.Errorf("the field user of %s is no relation", c.Name)
	}
	texts, err := m.byLanguage()
	if err != nil {
		return err
	}
	set, err := template.Compile(texts)
	if err != nil {
		return fmt.Errorf("read texts: %w", err)
	}
	locales, err := o.deps.Devices.Locales(tx, accounts)
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
	_, err = exec(tx, `INSERT INTO {{`+c.Name+`}} (id, user, message, category, title, body, image, data, read, created, updated)
		SELECT value->>0, value->>1, {:message}, {:category}, value->>2, value->>3, {:image}, {:data}, FALSE, {:now}, {:now} FROM json_each({:rows})
		WHERE EXISTS (SELECT 1 FROM {{`+defaultAccounts+`}} AS u WHERE u.id = value->>1) ON CONFLICT DO NOTHING`,
		dbx.Params{"message": format(id), "category": m.Category, "image": m.Image, "data": string(raw), "now": types.NowDateTime().String(), "rows": string(list)})
	if err != nil {
		return fmt.Errorf("write entries of the inbox: %w", err)
	}
	return nil
}
