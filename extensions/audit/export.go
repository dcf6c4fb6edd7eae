package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// ownPage is how many entries are read at a time.
const ownPage = 500

// ExportOf writes the entries whose actor or subject is the account as a JSON array, for a person who wants to know what is
// stored. Who else took part is left out: that is other people's data.
func ExportOf(ctx context.Context, app core.App, account *core.Record, w io.Writer) error {
	own := PartyOf(account)
	separator, last := "[\n", int64(0)
	for {
		var rows []struct {
			ID      int64  `db:"id" json:"-"`
			At      string `db:"at" json:"at"`
			Action  string `db:"action" json:"action"`
			Outcome string `db:"outcome" json:"outcome"`
			Acted   bool   `db:"acted" json:"byTheAccount"`
			Address string `db:"address" json:"address"`
		}
		err := app.ConcurrentDB().NewQuery(`SELECT id, at, action, outcome, acted, CASE WHEN acted THEN address ELSE '' END AS address FROM (
				SELECT *, actor_collection = {:collection} AND actor_id = {:id} AS acted FROM audit_entries)
			WHERE id > {:last} AND (acted OR subject_collection = {:collection} AND subject_id = {:id}) ORDER BY id LIMIT {:limit}`).
			Bind(dbx.Params{"collection": own.Collection, "id": own.ID, "last": last, "limit": ownPage}).WithContext(ctx).All(&rows)
		if err != nil {
			return fmt.Errorf("list audit entries: %w", err)
		}
		for _, row := range rows {
			raw, err := json.Marshal(row)
			if err != nil {
				return fmt.Errorf("marshal audit entry: %w", err)
			}
			if _, err := fmt.Fprintf(w, "%s%s", separator, raw); err != nil {
				return err
			}
			separator, last = ",\n", row.ID
		}
		if len(rows) < ownPage {
			break
		}
	}
	if last == 0 {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	_, err := io.WriteString(w, "\n]\n")
	return err
}
