package device

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Get returns those of the devices that can be sent to now, in no order.
func (r *Registry) Get(ctx context.Context, app core.App, ids []string) ([]Device, error) {
	text, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	var rows []row
	err = app.ConcurrentDB().NewQuery(`SELECT d.* FROM json_each({:ids}) AS j CROSS JOIN ` + table + ` d ON d.id = j.value WHERE ` + living).
		Bind(dbx.Params{"ids": string(text), "stale": time.Now().Add(-Stale).UnixMilli()}).WithContext(ctx).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("find devices: %w", err)
	}
	out := make([]Device, len(rows))
	for i, row := range rows {
		out[i] = row.device()
	}
	return out, nil
}

// Locales returns the languages of the devices that the accounts were seen with last; accounts without a device have none.
func (r *Registry) Locales(app core.App, accounts []Account) (map[Account]string, error) {
	list, err := encode(accounts)
	if err != nil {
		return nil, err
	}
	var rows []row
	err = app.DB().NewQuery(`SELECT d.collection, d.record, d.locale, max(d.seen_at) AS seen_at FROM json_each({:accounts}) j CROSS JOIN ` + table + ` d ON ` + listed("d") + `
		WHERE d.locale <> '' GROUP BY d.collection, d.record`).Bind(dbx.Params{"accounts": list}).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("find languages: %w", err)
	}
	out := make(map[Account]string, len(rows))
	for _, row := range rows {
		out[row.account()] = row.Locale
	}
	return out, nil
}
