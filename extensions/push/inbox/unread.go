package inbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/push/device"
)

// Routes adds the routes to the group /api/v1/push.
func (i *Inbox) Routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.GET("/inbox", i.handleSummary)
	g.POST("/inbox/read", i.handleRead).Bind(apis.BodyLimit(4 << 10))
}

// Summary is the body of the answers.
type Summary struct {
	Unread int `json:"unread"`
}

// Unread counts the entries of accounts that are not read. Those that have none are not in the answer.
func (i *Inbox) Unread(app core.App, accounts []device.Account) (map[device.Account]int, error) {
	ids := map[string][]string{} // by collection
	for _, a := range accounts {
		ids[a.Collection] = append(ids[a.Collection], a.ID)
	}
	out := make(map[device.Account]int, len(accounts))
	for collection, some := range ids {
		c, err := i.of(app, device.Account{Collection: collection})
		if err != nil || c == nil {
			if err != nil {
				return nil, err
			}
			continue
		}
		list, err := json.Marshal(some)
		if err != nil {
			return nil, fmt.Errorf("encode accounts: %w", err)
		}
		var rows []struct {
			User string `db:"user"`
			N    int    `db:"n"`
		}
		err = app.ConcurrentDB().NewQuery(`SELECT e.user, count(*) AS n FROM (SELECT DISTINCT value FROM json_each({:users})) AS j
			CROSS JOIN {{` + c.Name + `}} AS e ON e.user = j.value AND e.read = FALSE GROUP BY e.user`).Bind(dbx.Params{"users": string(list)}).All(&rows)
		if err != nil {
			return nil, fmt.Errorf("count unread entries: %w", err)
		}
		for _, row := range rows {
			out[device.Account{Collection: collection, ID: row.User}] = row.N
		}
	}
	return out, nil
}

func (i *Inbox) handleSummary(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	if i.Name == "" {
		return ErrNone
	}
	return i.answer(e)
}

func (i *Inbox) answer(e *core.RequestEvent) error {
	a := device.AccountOf(e.Auth)
	counts, err := i.Unread(e.App, []device.Account{a})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, Summary{counts[a]})
}

// handleRead marks the entries of the caller as read, all of them or those that were there at a moment, so that one that
// arrives while somebody reads the others stays unread.
func (i *Inbox) handleRead(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	var in struct {
		Until *time.Time `json:"until,omitempty"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	c, err := i.of(e.App, device.AccountOf(e.Auth))
	if err != nil {
		return err
	}
	if c == nil {
		return ErrNone
	}
	until := time.Now()
	if in.Until != nil {
		until = *in.Until
	}
	if err := i.mark(e, c, until); err != nil {
		return err
	}
	return i.answer(e)
}

// mark is a few hundred entries in a transaction.
func (i *Inbox) mark(e *core.RequestEvent, c *core.Collection, until time.Time) error {
	moment, err := types.ParseDateTime(until.UTC())
	if err != nil {
		return fmt.Errorf("read time: %w", err)
	}
	params := dbx.Params{"user": e.Auth.Id, "until": moment.String(), "now": types.NowDateTime().String(), "limit": sweepPortion}
	if i.Hooks {
		params["limit"] = portion
	}
	for {
		var ids []string
		err := e.App.ConcurrentDB().NewQuery(`SELECT id FROM {{` + c.Name + `}} WHERE user = {:user} AND read = FALSE AND created <= {:until} ORDER BY created, id LIMIT {:limit}`).
			Bind(params).WithContext(e.Request.Context()).Column(&ids)
		if err != nil {
			return fmt.Errorf("find unread entries: %w", err)
		}
		if len(ids) == 0 {
			return nil
		}
		err = e.App.RunInTransaction(func(tx core.App) error {
			if i.Hooks {
				return markRecords(e, tx, c, ids)
			}
			return markRows(tx, c, ids, params)
		})
		if err != nil {
			return err
		}
	}
}

func markRows(tx core.App, c *core.Collection, ids []string, params dbx.Params) error {
	list, err := json.Marshal(ids)
	if err != nil {
		return fmt.Errorf("encode ids: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`UPDATE {{` + c.Name + `}} SET read = TRUE, updated = {:now} WHERE read = FALSE AND id IN (SELECT value FROM json_each({:ids}))`).
		Bind(dbx.Params{"ids": string(list), "now": params["now"]}).Execute()
	if err != nil {
		return fmt.Errorf("mark entries as read: %w", err)
	}
	return nil
}

func markRecords(e *core.RequestEvent, tx core.App, c *core.Collection, ids []string) error {
	records, err := tx.FindRecordsByIds(c, ids)
	if err != nil {
		return fmt.Errorf("find entries: %w", err)
	}
	for _, record := range records {
		record.Set("read", true)
		if err := tx.SaveWithContext(e.Request.Context(), record); err != nil {
			return fmt.Errorf("mark entry as read: %w", err)
		}
	}
	return nil
}
