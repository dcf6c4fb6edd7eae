package passkeys

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// Export writes the passkeys of an account as JSON, for a person who wants to know what is stored.
func Export(_ context.Context, app core.App, account *core.Record, w io.Writer) error {
	rows, err := credentials(app, account)
	if err != nil {
		return err
	}
	out := make([]map[string]any, len(rows))
	for i, r := range rows {
		out[i] = map[string]any{"id": r.ID, "name": r.Name, "createdAt": time.Unix(r.CreatedAt, 0).UTC(), "usedAt": nil}
		if r.UsedAt > 0 {
			out[i]["usedAt"] = time.Unix(r.UsedAt, 0).UTC()
		}
	}
	return json.NewEncoder(w).Encode(out)
}
