package inbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/template"
)

const (
	// portion is how many entries are written in a transaction with hooks, and longestPause bounds the rest after it, which
	// is as long.
	portion      = 20
	longestPause = 50 * time.Millisecond
)

// entry is what an account is going to read.
type entry struct {
	ID, User string
	template.Text
}

// Deliver writes an entry for each of the accounts that has none, in the language of the device that it was last seen with,
// in the transaction of the fan-out. With hooks, [Inbox.Announce] has done so before.
func (i *Inbox) Deliver(tx core.App, id string, m *message.Message, accounts []device.Account) error {
	if i.Hooks {
		return nil
	}
	c, owners, entries, err := i.entries(tx, m, accounts)
	if err != nil || len(entries) == 0 {
		return err
	}
	rows := make([]any, len(entries))
	for n, e := range entries {
		rows[n] = []any{e.ID, e.User, e.Title, e.Body}
	}
	list, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode entries: %w", err)
	}
	raw, err := json.Marshal(data(m))
	if err != nil {
		return fmt.Errorf("encode data: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT INTO {{` + c.Name + `}} (id, user, message, category, title, body, image, data, read, created, updated)
		SELECT value->>0, value->>1, {:message}, {:category}, value->>2, value->>3, {:image}, {:data}, FALSE, {:now}, {:now} FROM json_each({:rows})
		WHERE EXISTS (SELECT 1 FROM {{` + owners.Name + `}} AS u WHERE u.id = value->>1) ON CONFLICT DO NOTHING`).Bind(
		dbx.Params{"message": id, "category": m.Category, "image": m.Image, "data": string(raw), "now": types.NowDateTime().String(), "rows": string(list)}).Execute()
	if err != nil {
		return fmt.Errorf("write entries of the inbox: %w", err)
	}
	return nil
}

func data(m *message.Message) map[string]string {
	if m.Data == nil {
		return map[string]string{}
	}
	return m.Data
}

// entries renders what the accounts are going to read. Those of other collections than the one that owns the inbox read nothing.
func (i *Inbox) entries(app core.App, m *message.Message, accounts []device.Account) (c, owners *core.Collection, out []entry, err error) {
	if len(accounts) == 0 || i.Name == "" {
		return nil, nil, nil, nil
	}
	c, err = app.FindCachedCollectionByNameOrId(i.Name)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("find inbox: %w", err)
	}
	field, ok := c.Fields.GetByName("user").(*core.RelationField)
	if !ok {
		return nil, nil, nil, fmt.Errorf("the field user of %s is no relation", c.Name)
	}
	if owners, err = app.FindCachedCollectionByNameOrId(field.CollectionId); err != nil {
		return nil, nil, nil, fmt.Errorf("find owners of the inbox: %w", err)
	}
	texts, err := m.ByLanguage()
	if err != nil {
		return nil, nil, nil, err
	}
	set, err := template.Compile(texts)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read texts: %w", err)
	}
	locales, err := i.devices.Locales(app, accounts)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, a := range accounts {
		if a.Collection != owners.Id {
			continue
		}
		text, err := set.Render(locales[a], m.Values)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("render text: %w", err)
		}
		out = append(out, entry{strings.ToLower(rand.Text())[:core.DefaultIdLength], a.ID, text})
	}
	return c, owners, out, nil
}

// Announce is Deliver with the hooks of the app, in short transactions of its own. It can be repeated: who has an entry gets no
// other. A hook that refuses an entry keeps it from being written, which the returned number counts.
func (i *Inbox) Announce(ctx context.Context, app core.App, id string, m *message.Message, accounts []device.Account) (refused int, err error) {
	if !i.Hooks {
		return 0, nil
	}
	c, _, entries, err := i.entries(app, m, accounts)
	for err == nil && len(entries) > 0 {
		some := entries[:min(portion, len(entries))]
		entries = entries[len(some):]
		begun := time.Now()
		var no int
		err = app.RunInTransaction(func(tx core.App) (err error) {
			no, err = i.save(ctx, tx, c, id, m, some)
			return err
		})
		refused += no
		select {
		case <-ctx.Done():
			return refused, ctx.Err()
		case <-time.After(min(time.Since(begun), longestPause)):
		}
	}
	return refused, err
}

// save writes a few entries as records.
func (i *Inbox) save(ctx context.Context, tx core.App, c *core.Collection, id string, m *message.Message, list []entry) (refused int, err error) {
	for _, e := range list {
		var known bool
		err := tx.NonconcurrentDB().NewQuery(`SELECT EXISTS (SELECT 1 FROM {{` + c.Name + `}} WHERE user = {:user} AND message = {:message})`).
			Bind(dbx.Params{"user": e.User, "message": id}).Row(&known)
		if err != nil {
			return refused, fmt.Errorf("look for entry of the inbox: %w", err)
		}
		if known {
			continue
		}
		record := core.NewRecord(c)
		record.Load(map[string]any{
			"id": e.ID, "user": e.User, "message": id, "category": m.Category, "title": e.Title, "body": e.Body, "image": m.Image, "data": data(m), "read": false,
		})
		if err := tx.SaveWithContext(ctx, record); err != nil {
			if ctx.Err() != nil {
				return refused, ctx.Err()
			}
			refused++ // by a hook, or because the account is gone
		}
	}
	return refused, nil
}
