package device

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Reasons why a device is not sent to.
const (
	ReasonGone  = "gone"          // it was deleted with its session or account, has another account's token, or is stale or dead
	ReasonEnded = "session_ended" // or has expired
)

// Get returns those of the devices that can be sent to at this moment, in no order, and tells why the others cannot.
func (r *Registry) Get(ctx context.Context, app core.App, ids []string) (list []Device, others map[string]string, err error) {
	text, err := json.Marshal(ids)
	if err != nil {
		return nil, nil, fmt.Errorf("encode ids: %w", err)
	}
	now := time.Now()
	var rows []row
	err = app.ConcurrentDB().NewQuery(`SELECT d.* FROM json_each({:ids}) AS j CROSS JOIN ` + table + ` d ON d.id = j.value WHERE ` + living).
		Bind(dbx.Params{"ids": string(text), "stale": now.Add(-Stale).UnixMilli()}).WithContext(ctx).All(&rows)
	if err != nil {
		return nil, nil, fmt.Errorf("find devices: %w", err)
	}
	over, err := r.over(app, rows, now)
	if err != nil {
		return nil, nil, err
	}
	list, others = make([]Device, 0, len(rows)), make(map[string]string, len(ids)-len(rows))
	for _, id := range ids {
		others[id] = ReasonGone
	}
	for _, row := range rows {
		if over[row.Session] {
			others[row.ID] = ReasonEnded
			continue
		}
		delete(others, row.ID)
		list = append(list, row.device())
	}
	return list, others, nil
}

// over tells which sessions of devices count no more. Tokens that no session is behind have none to end.
func (r *Registry) over(app core.App, rows []row, now time.Time) (map[string]bool, error) {
	if r.deps.Over == nil {
		return nil, nil
	}
	var ids []string
	for _, d := range rows {
		if !strings.HasPrefix(d.Session, sessionless) {
			ids = append(ids, d.Session)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	list, err := r.deps.Over(app.ConcurrentDB(), ids, now)
	over := make(map[string]bool, len(list))
	for _, id := range list {
		over[id] = true
	}
	return over, err
}

// expire deletes the devices of sessions that count no more.
func (r *Registry) expire(ctx context.Context, app core.App) error {
	after := ""
	for {
		var rows []row
		err := app.ConcurrentDB().NewQuery(`SELECT id, session FROM ` + table + ` WHERE id > {:after} ORDER BY id LIMIT {:limit}`).
			Bind(dbx.Params{"after": after, "limit": sweepChunk}).WithContext(ctx).All(&rows)
		if err != nil {
			return fmt.Errorf("list sessions of devices: %w", err)
		}
		over, err := r.over(app, rows, time.Now())
		if err != nil {
			return err
		}
		var ids []string
		for _, d := range rows {
			if after = d.ID; over[d.Session] {
				ids = append(ids, d.Session)
			}
		}
		if len(ids) > 0 {
			text, err := json.Marshal(ids)
			if err != nil {
				return fmt.Errorf("encode sessions: %w", err)
			}
			err = app.RunInTransaction(func(tx core.App) error {
				return forget(tx, `session IN (SELECT value FROM json_each({:sessions}))`, dbx.Params{"sessions": string(text)})
			})
			if err != nil {
				return err
			}
		}
		if len(rows) < sweepChunk {
			return nil
		}
	}
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
