package login

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// Export writes the sessions and devices of an account as JSON, for a person who wants to know what is stored.
func Export(_ context.Context, app core.App, account *core.Record, w io.Writer) error {
	var rows []Login
	err := app.ConcurrentDB().NewQuery(`SELECT ` + columns + ` WHERE ` + Owned + ` ORDER BY l.created_at, l.id`).Bind(Owner(account)).All(&rows)
	if err != nil {
		return fmt.Errorf("list sessions: %w", err)
	}
	at := func(ms int64) *time.Time {
		if ms == 0 {
			return nil
		}
		return new(time.UnixMilli(ms).UTC())
	}
	out := make([]map[string]any, len(rows))
	for i, l := range rows {
		out[i] = map[string]any{
			"id": l.ID, "createdAt": at(l.CreatedAt), "usedAt": at(l.UsedAt), "expiresAt": at(l.ExpiresAt), "endedAt": at(l.EndedAt),
			"methods": strings.Fields(l.Methods), "deviceId": l.DeviceID, "deviceName": l.DeviceName, "platform": l.Platform,
			"appVersion": l.AppVersion, "userAgent": l.UserAgent, "address": l.Address, "impersonation": l.Actor != "",
		}
	}
	return json.NewEncoder(w).Encode(out)
}
