package inbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/internal/pace"
)

// sweepPortion is how many entries are changed in a transaction.
const sweepPortion = 200

// Sweep deletes entries that are too old, and the oldest of accounts that have too many.
func (i *Inbox) Sweep(ctx context.Context, app core.App, now time.Time) error {
	if i.Name == "" {
		return nil
	}
	c, err := app.FindCachedCollectionByNameOrId(i.Name)
	if err != nil {
		return fmt.Errorf("find inbox: %w", err)
	}
	if i.Keep > 0 {
		before, err := types.ParseDateTime(now.Add(-i.Keep).UTC())
		if err != nil {
			return fmt.Errorf("read time: %w", err)
		}
		// The index by user, created and id covers it.
		err = i.drop(ctx, app, c, `SELECT id FROM {{`+c.Name+`}} WHERE created < {:before} LIMIT {:limit}`, dbx.Params{"before": before.String()})
		if err != nil {
			return err
		}
	}
	if i.Entries <= 0 {
		return nil
	}
	var users []string
	err = app.ConcurrentDB().NewQuery(`SELECT user FROM {{` + c.Name + `}} GROUP BY user HAVING count(*) > {:most}`).Bind(dbx.Params{"most": i.Entries}).WithContext(ctx).Column(&users)
	if err != nil {
		return fmt.Errorf("count entries of the inbox: %w", err)
	}
	for _, user := range users {
		err := i.drop(ctx, app, c, `SELECT id FROM {{`+c.Name+`}} WHERE user = {:user} ORDER BY created DESC, id DESC LIMIT {:limit} OFFSET {:most}`,
			dbx.Params{"user": user, "most": i.Entries})
		if err != nil {
			return err
		}
	}
	return nil
}

// drop deletes the entries that a query finds, a few hundred at a time.
func (i *Inbox) drop(ctx context.Context, app core.App, c *core.Collection, query string, params dbx.Params) error {
	params["limit"] = sweepPortion
	if i.Hooks {
		params["limit"] = portion
	}
	for {
		var ids []string
		if err := app.ConcurrentDB().NewQuery(query).Bind(params).WithContext(ctx).Column(&ids); err != nil {
			return fmt.Errorf("find old entries of the inbox: %w", err)
		}
		if len(ids) == 0 {
			return nil
		}
		begun := time.Now()
		if err := app.RunInTransaction(func(tx core.App) error { return i.remove(ctx, tx, c, ids) }); err != nil {
			return fmt.Errorf("delete old entries of the inbox: %w", err)
		}
		if err := pace.Rest(ctx, time.Since(begun)); err != nil {
			return err
		}
	}
}

func (i *Inbox) remove(ctx context.Context, tx core.App, c *core.Collection, ids []string) error {
	if !i.Hooks {
		list, err := json.Marshal(ids)
		if err != nil {
			return err
		}
		_, err = tx.NonconcurrentDB().NewQuery(`DELETE FROM {{` + c.Name + `}} WHERE id IN (SELECT value FROM json_each({:ids}))`).Bind(dbx.Params{"ids": string(list)}).Execute()
		return err
	}
	records, err := tx.FindRecordsByIds(c, ids)
	if err != nil {
		return err
	}
	for _, record := range records {
		if err := tx.DeleteWithContext(ctx, record); err != nil {
			return err
		}
	}
	return nil
}
