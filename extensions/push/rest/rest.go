// Package rest leaves devices in peace that have had their silent hints of this hour.
package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// hintsAnHour is how many silent hints a device gets: Apple asks for no more than two or three, and holds more back.
func hintsAnHour(p sender.Platform) int {
	if p == sender.APNs || p == sender.Expo { // which may be one of Apple's
		return 2
	}
	return 12
}

// Take counts a hint for each device, and returns the ids of those that may have it.
func Take(ctx context.Context, app core.App, list []device.Device, now time.Time) (map[string]bool, error) {
	rows := make([]any, len(list))
	for i, d := range list {
		rows[i] = []any{d.ID, hintsAnHour(d.Platform)}
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return nil, fmt.Errorf("encode devices: %w", err)
	}
	var allowed []string
	err = app.NonconcurrentDB().NewQuery(`INSERT INTO ` + ledger.Hints + ` AS h (device, since, count) SELECT value->>0, {:now}, 1 FROM json_each({:rows}) WHERE true
		ON CONFLICT (device) DO UPDATE SET since = CASE WHEN h.since <= {:hour} THEN {:now} ELSE h.since END,
			count = CASE WHEN h.since <= {:hour} THEN 1 ELSE h.count + 1 END
		WHERE h.since <= {:hour} OR h.count < (SELECT e.value->>1 FROM json_each({:rows}) AS e WHERE e.value->>0 = h.device) RETURNING device`).
		Bind(dbx.Params{"rows": string(text), "now": now.UnixMilli(), "hour": now.Add(-time.Hour).UnixMilli()}).WithContext(ctx).Column(&allowed)
	if err != nil {
		return nil, fmt.Errorf("count hints: %w", err)
	}
	may := make(map[string]bool, len(allowed))
	for _, id := range allowed {
		may[id] = true
	}
	return may, nil
}
