package device

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Reasons of a verdict that something is not sent, or not now.
const (
	ReasonOff   = "preference"
	ReasonQuiet = "quiet_hours"
	ReasonCap   = "cap"
)

// Verdict is whether an account wants a message. If Send is false and Defer is not the zero time, judge again then; with
// Collapse, the newest of the messages of the category that wait for the account takes the place of the others.
type Verdict struct {
	Send     bool
	Defer    time.Time
	Collapse bool
	Reason   string
}

// Judge tells, for each of the accounts, whether a message of a category may be sent now: it looks at what the account has
// switched off, at its quiet hours in its own time zone, and at the caps. A message without a category, or of one that is
// not declared, obeys quiet hours and the common cap, and waits. Caps are exact if Judge and [Registry.Count] run in one
// transaction; else messages that are judged at the same time may exceed them.
func (r *Registry) Judge(ctx context.Context, app core.App, accounts []Account, category string, now time.Time) (map[Account]Verdict, error) {
	out := make(map[Account]Verdict, len(accounts))
	c, known := r.byName[category]
	if !known {
		c = Category{Name: category, Policy: Defer}
	}
	if len(accounts) == 0 || c.Policy == Always {
		for _, a := range accounts {
			out[a] = Verdict{Send: true}
		}
		return out, nil
	}
	list, err := encode(accounts)
	if err != nil {
		return nil, err
	}
	said, err := wishesOf(ctx, app, list)
	if err != nil {
		return nil, err
	}
	zones, err := zonesOf(ctx, app, said)
	if err != nil {
		return nil, err
	}
	full, err := r.full(ctx, app, list, c, now)
	if err != nil {
		return nil, err
	}
	for _, a := range accounts {
		out[a] = r.judge(c, said[a], zones[a], full[a], now)
	}
	return out, nil
}

// judge is Judge for one account. full is when its caps have room again.
func (r *Registry) judge(c Category, w wishes, zone string, full, now time.Time) Verdict {
	wait := func(until time.Time, reason string) Verdict {
		if c.Policy == Drop {
			until = time.Time{}
		}
		return Verdict{Defer: until, Collapse: c.Policy == Collapse, Reason: reason}
	}
	if w.off(c) {
		return Verdict{Reason: ReasonOff}
	}
	if hours, ok := w.quiet(); ok {
		where := r.zone(w.QuietHours.TimeZone)
		if where == nil {
			where = r.zone(zone)
		}
		if where == nil {
			where = time.UTC
		}
		if end, inside := hours.until(now, where); inside {
			return wait(end, ReasonQuiet)
		}
	}
	if full.After(now) {
		return wait(full, ReasonCap)
	}
	return Verdict{Send: true}
}

// zonesOf returns the time zones of the devices that were seen last, of those accounts whose quiet hours have none.
func zonesOf(ctx context.Context, app core.App, said map[Account]wishes) (map[Account]string, error) {
	var need []Account
	for a, w := range said {
		if w.QuietHours != nil && w.QuietHours.TimeZone == "" {
			need = append(need, a)
		}
	}
	if len(need) == 0 {
		return nil, nil
	}
	list, err := encode(need)
	if err != nil {
		return nil, err
	}
	var rows []row
	err = app.ConcurrentDB().NewQuery(`SELECT collection, record, time_zone FROM (
			SELECT d.collection, d.record, d.time_zone, ROW_NUMBER() OVER (PARTITION BY d.collection, d.record ORDER BY d.seen_at DESC) AS nth
			FROM json_each({:accounts}) j CROSS JOIN ` + table + ` d ON ` + listed("d") + ` WHERE d.time_zone <> ''
		) WHERE nth = 1`).Bind(dbx.Params{"accounts": list}).WithContext(ctx).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("find time zones: %w", err)
	}
	out := make(map[Account]string, len(rows))
	for _, row := range rows {
		out[row.account()] = row.TimeZone
	}
	return out, nil
}

// full returns when the accounts at a cap have room again.
func (r *Registry) full(ctx context.Context, app core.App, accounts string, c Category, now time.Time) (map[Account]time.Time, error) {
	out := map[Account]time.Time{}
	look := func(limit Cap, where string, params dbx.Params) error {
		if limit.Count == 0 {
			return nil
		}
		var rows []struct {
			Collection string `db:"collection"`
			Record     string `db:"record"`
			At         int64  `db:"at"`
		}
		params["accounts"], params["since"], params["count"] = accounts, now.Add(-limit.Per).UnixMilli(), limit.Count
		err := app.ConcurrentDB().NewQuery(`SELECT collection, record, at FROM (
				SELECT c.collection, c.record, c.at, ROW_NUMBER() OVER (PARTITION BY c.collection, c.record ORDER BY c.at DESC) AS nth
				FROM json_each({:accounts}) j CROSS JOIN ` + counts + ` c ON ` + listed("c") + ` WHERE c.at > {:since} AND ` + where + `
			) WHERE nth = {:count}`).Bind(params).WithContext(ctx).All(&rows)
		if err != nil {
			return fmt.Errorf("look at caps: %w", err)
		}
		for _, row := range rows {
			a, room := Account{row.Collection, row.Record}, at(row.At).Add(limit.Per)
			if room.After(out[a]) {
				out[a] = room
			}
		}
		return nil
	}
	if err := look(c.Cap, `c.category = {:category}`, dbx.Params{"category": c.Name}); err != nil {
		return nil, err
	}
	return out, look(r.options.Cap, `TRUE`, dbx.Params{})
}

// Count notes that a message of a category was sent to accounts, for the caps.
func (r *Registry) Count(tx core.App, accounts []Account, category string, now time.Time) error {
	c := r.byName[category]
	if len(accounts) == 0 || c.Policy == Always || c.Cap.Count == 0 && r.options.Cap.Count == 0 {
		return nil
	}
	list, err := encode(accounts)
	if err != nil {
		return err
	}
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + counts + ` (collection, record, category, at)
		SELECT value ->> 0, value ->> 1, {:category}, {:now} FROM json_each({:accounts})`).
		Bind(dbx.Params{"accounts": list, "category": category, "now": now.UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("count messages: %w", err)
	}
	return nil
}
