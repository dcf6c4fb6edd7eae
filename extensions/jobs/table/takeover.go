package table

import (
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
)

// runsTable held background work before this package did.
const runsTable = "runs_runs"

// TakeOverRuns makes jobs of the background runs of earlier versions: what was asked for is done, and what has ended can
// be asked for. Accounts that are exported or deleted refer to their new ids.
func TakeOverRuns(app core.App) error {
	if !app.HasTable(runsTable) {
		return nil
	}
	var runs []struct {
		ID, Kind, State, Input, Position, Result, Error, Owner string
		UniqueKey                                              string `db:"unique_key"`
		OwnerCollection                                        string `db:"owner_collection"`
		DueAt                                                  int64  `db:"due_at"`
		Done, Total, Attempts                                  int64
		CreatedAt                                              int64 `db:"created_at"`
		StartedAt                                              int64 `db:"started_at"`
		FinishedAt                                             int64 `db:"finished_at"`
	}
	if err := app.NonconcurrentDB().Select("*").From(runsTable).OrderBy("created_at").All(&runs); err != nil {
		return fmt.Errorf("read background runs: %w", err)
	}
	var ids serial.Counter
	for _, r := range runs {
		id := ids.Next(time.UnixMilli(r.CreatedAt))
		row := dbx.Params{
			"id": id, "queue": "account", "kind": r.Kind, "run_at": r.DueAt, "owner_collection": r.OwnerCollection, "owner": r.Owner, "request": "",
			"error": r.Error, "done": r.Done, "total": r.Total, "created_at": r.CreatedAt, "started_at": r.StartedAt, "finished_at": r.FinishedAt,
		}
		table := Queue
		switch r.State {
		case string(Succeeded), string(Cancelled):
			table = History
			row["outcome"], row["result"], row["attempt"] = r.State, r.Result, r.Attempts
		default:
			row["state"], row["priority"], row["expires_at"], row["max_attempts"] = IsScheduled, 5, 0, 25
			row["unique_key"], row["lane"], row["payload"], row["sealed"], row["position"] = r.UniqueKey, "", r.Input, 0, r.Position
			row["attempt"] = 0
			if r.State == "failed" {
				row["state"], row["attempt"] = IsDead, r.Attempts
			}
		}
		if _, err := app.NonconcurrentDB().Insert(table, row).Execute(); err != nil {
			return fmt.Errorf("make a job of run %s: %w", r.ID, err)
		}
		for _, refers := range []string{"account_deletions", "account_exports"} {
			if !app.HasTable(refers) {
				continue
			}
			if _, err := app.NonconcurrentDB().Update(refers, dbx.Params{"run": serial.Format(id)}, dbx.HashExp{"run": r.ID}).Execute(); err != nil {
				return fmt.Errorf("name the job of run %s in %s: %w", r.ID, refers, err)
			}
		}
	}
	if _, err := app.NonconcurrentDB().DropTable(runsTable).Execute(); err != nil {
		return fmt.Errorf("drop table %s: %w", runsTable, err)
	}
	return nil
}
