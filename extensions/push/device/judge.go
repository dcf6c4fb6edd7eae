package device

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/push/caps"
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
// not declared, obeys quiet hours and the common cap, and waits.
//
// What it lets through counts for the caps from then on, by the number of the message, which counts once however often it is
// judged. It looks and counts in one transaction, so that messages of the same moment do not exceed a cap. Without caps
// nothing is written.
func (r *Registry) Judge(ctx context.Context, app core.App, message int64, accounts []Account, category string, now time.Time) (map[Account]Verdict, error) {
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
	limits := r.limits(c)
	if len(limits) == 0 {
		for _, a := range accounts {
			out[a] = r.judge(c, said[a], zones[a], time.Time{}, now)
		}
		return out, nil
	}
	err = app.RunInTransaction(func(tx core.App) error {
		full, err := caps.Full(ctx, tx, list, limits, message, now)
		if err != nil {
			return err
		}
		var sent []Account
		for _, a := range accounts {
			if out[a] = r.judge(c, said[a], zones[a], full[caps.Account{a.Collection, a.ID}], now); out[a].Send {
				sent = append(sent, a)
			}
		}
		get, err := encode(sent)
		if err != nil {
			return err
		}
		return caps.Take(tx, message, list, get, category, now)
	})
	return out, err
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

// limits are the caps that hold for a category. There are none for most.
func (r *Registry) limits(c Category) []caps.Limit {
	var list []caps.Limit
	if c.Policy == Always {
		return nil
	}
	if c.Cap.Count > 0 {
		list = append(list, caps.Limit{Category: c.Name, Count: c.Cap.Count, Per: c.Cap.Per})
	}
	if r.options.Cap.Count > 0 {
		list = append(list, caps.Limit{All: true, Count: r.options.Cap.Count, Per: r.options.Cap.Per})
	}
	return list
}

// Caps reports whether there are any.
func (r *Registry) Caps() bool { return r.longest() > 0 }
