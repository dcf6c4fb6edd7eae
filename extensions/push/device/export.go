package device

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// Export writes what is stored of an account as JSON, without tokens, for a person who wants to know it.
func Export(ctx context.Context, app core.App, account *core.Record, w io.Writer) error {
	a := AccountOf(account)
	rows, joined, err := devicesOf(app, a)
	if err != nil {
		return err
	}
	said, err := wishesOfOne(ctx, app, a)
	if err != nil {
		return err
	}
	devices := make([]map[string]any, len(rows))
	for i, d := range rows {
		devices[i] = map[string]any{
			"id": d.ID, "session": d.Session, "platform": d.Platform, "environment": d.Environment, "app": d.App, "locale": d.Locale,
			"timeZone": d.TimeZone, "appVersion": d.AppVersion, "registeredAt": at(d.RegisteredAt), "lastSeenAt": at(d.SeenAt), "topics": joined[d.ID],
		}
		if d.DeadAt > 0 {
			devices[i]["deadAt"], devices[i]["reason"] = at(d.DeadAt), d.Reason
		}
	}
	var sent []time.Time
	var times []int64
	if err := app.ConcurrentDB().NewQuery(`SELECT at FROM ` + counts + ` WHERE ` + owned + ` ORDER BY at`).Bind(a.params()).Column(&times); err != nil {
		return err
	}
	for _, ms := range times {
		sent = append(sent, at(ms))
	}
	return json.NewEncoder(w).Encode(map[string]any{"devices": devices, "preferences": said, "counted": sent})
}
