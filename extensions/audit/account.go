package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// ExportAccount writes the entries whose actor or subject is the account as a JSON array, for a person who wants to know
// what is stored. Who else took part is left out, with the details: that is other people's data.
func ExportAccount(ctx context.Context, app core.App, account *core.Record, w io.Writer) error {
	own := account.Collection().Name + "/" + account.Id
	separator := "["
	for _, f := range []Filter{{Actor: own}, {Subject: own}} {
		q, err := f.query(app.ConcurrentDB())
		if err != nil {
			return err
		}
		var after *position
		for {
			chunk, err := q.page(ctx, app.ConcurrentDB(), after, exportChunk, true)
			if err != nil {
				return err
			}
			for _, v := range chunk {
				acted := v.Actor.ID == account.Id
				if f.Actor == "" && acted {
					continue // it was among the first
				}
				shown := struct {
					At      time.Time `json:"at"`
					Action  string    `json:"action"`
					Outcome string    `json:"outcome"`
					Acted   bool      `json:"byTheAccount"`
					Address string    `json:"address,omitempty"`
				}{At: v.At, Action: v.Action, Outcome: v.Outcome, Acted: acted}
				if acted {
					shown.Address = v.Address
				}
				raw, err := json.Marshal(shown)
				if err != nil {
					return fmt.Errorf("marshal audit entry: %w", err)
				}
				if _, err := fmt.Fprintf(w, "%s\n%s", separator, raw); err != nil {
					return err
				}
				separator = ","
			}
			if len(chunk) < exportChunk {
				break
			}
			after = &chunk[len(chunk)-1].key
		}
	}
	if separator == "[" {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	_, err := io.WriteString(w, "\n]\n")
	return err
}
