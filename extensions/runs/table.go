package runs

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const table = "runs_runs"

// State is where a run stands.
type State string

// States of a run. The last three are final.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// ErrNotFound says that there is no run with an id.
var ErrNotFound = errors.New("there is no such run")

// schema is the table; times are Unix milliseconds. A key is unique among the runs that have not ended.
func schema() []string {
	return []string{
		`CREATE TABLE ` + table + ` (
			id TEXT PRIMARY KEY, kind TEXT NOT NULL, unique_key TEXT NOT NULL,
			owner_collection TEXT NOT NULL, owner TEXT NOT NULL,
			state TEXT NOT NULL, due_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
			epoch TEXT NOT NULL DEFAULT '', beat_at INTEGER NOT NULL DEFAULT 0,
			input TEXT NOT NULL, position TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
			done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
			created_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0, finished_at INTEGER NOT NULL DEFAULT 0
		) WITHOUT ROWID`,
		`CREATE INDEX ` + table + `_due ON ` + table + ` (due_at) WHERE state = 'queued'`,
		`CREATE INDEX ` + table + `_running ON ` + table + ` (epoch) WHERE state = 'running'`,
		`CREATE INDEX ` + table + `_finished ON ` + table + ` (finished_at) WHERE finished_at > 0`,
		`CREATE INDEX ` + table + `_owner ON ` + table + ` (owner_collection, owner)`,
		`CREATE UNIQUE INDEX ` + table + `_key ON ` + table + ` (kind, unique_key) WHERE unique_key <> '' AND state IN ('queued', 'running')`,
	}
}

// row is a run as it is stored.
type row struct {
	ID              string `db:"id"`
	Kind            string `db:"kind"`
	UniqueKey       string `db:"unique_key"`
	OwnerCollection string `db:"owner_collection"`
	Owner           string `db:"owner"`
	State           State  `db:"state"`
	DueAt           int64  `db:"due_at"`
	Attempts        int    `db:"attempts"`
	Epoch           string `db:"epoch"`
	BeatAt          int64  `db:"beat_at"`
	Input           string `db:"input"`
	Position        string `db:"position"`
	Result          string `db:"result"`
	Error           string `db:"error"`
	Done            int64  `db:"done"`
	Total           int64  `db:"total"`
	CreatedAt       int64  `db:"created_at"`
	StartedAt       int64  `db:"started_at"`
	FinishedAt      int64  `db:"finished_at"`
}

// Status is a run as its owner sees it. Total is 0 as long as nobody knows how much there is to do.
type Status struct {
	ID         string          `json:"id"`
	Kind       string          `json:"kind"`
	State      State           `json:"state"`
	Done       int64           `json:"done"`
	Total      int64           `json:"total"`
	DueAt      time.Time       `json:"dueAt"`
	CreatedAt  time.Time       `json:"createdAt"`
	StartedAt  *time.Time      `json:"startedAt"`
	FinishedAt *time.Time      `json:"finishedAt"`
	Result     json.RawMessage `json:"result"`

	// Err is why the last attempt failed. It is for operators.
	Err string `json:"-"`
}

// FinishedForGood reports whether nobody will work on the run any more.
func (s Status) FinishedForGood() bool { return s.State != Queued && s.State != Running }

func (r *row) owner() Owner { return Owner{Collection: r.OwnerCollection, ID: r.Owner} }

func (r *row) status() Status {
	s := Status{
		ID: r.ID, Kind: r.Kind, State: r.State, Done: r.Done, Total: r.Total, DueAt: time.UnixMilli(r.DueAt).UTC(),
		CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), StartedAt: moment(r.StartedAt), FinishedAt: moment(r.FinishedAt), Err: r.Error,
	}
	if r.Result != "" {
		s.Result = json.RawMessage(r.Result)
	}
	return s
}

func moment(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	return new(time.UnixMilli(ms).UTC())
}

// newID is 130 random bits.
func newID() string { return strings.ToLower(rand.Text()) }

func find(app core.App, id string) (*row, error) {
	var r row
	err := app.ConcurrentDB().NewQuery(`SELECT * FROM ` + table + ` WHERE id = {:id}`).Bind(dbx.Params{"id": id}).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("find run: %w", err)
	}
	return &r, nil
}

// claim takes the run that is due for the longest time, or the one with the id, which need not be due. Without one it
// returns nil. The writer is not asked for as long as there is nothing to do.
func (r *Runs) claim(id string) (*row, error) {
	params := dbx.Params{"now": r.now().UnixMilli(), "epoch": r.epoch, "id": id}
	where := `state = 'queued' AND id = {:id}`
	if id == "" {
		kinds := make([]string, 0, len(r.kinds))
		for kind := range r.kinds {
			name := fmt.Sprintf("kind%d", len(kinds))
			params[name] = kind
			kinds = append(kinds, "{:"+name+"}")
		}
		where = `state = 'queued' AND due_at <= {:now} AND kind IN (` + strings.Join(kinds, ", ") + `)`
	}
	chosen := `SELECT id FROM ` + table + ` WHERE ` + where + ` ORDER BY due_at LIMIT 1`
	err := r.app.ConcurrentDB().NewQuery(chosen).Bind(params).Row(new(string))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // nothing to do is no error
	}
	if err != nil {
		return nil, fmt.Errorf("look for runs: %w", err)
	}
	var claimed row
	err = r.app.NonconcurrentDB().NewQuery(`UPDATE ` + table + ` SET state = 'running', epoch = {:epoch}, beat_at = {:now},
			attempts = attempts + 1, started_at = CASE started_at WHEN 0 THEN {:now} ELSE started_at END
		WHERE id = (` + chosen + `) RETURNING *`).Bind(params).One(&claimed)
	if errors.Is(err, sql.ErrNoRows) { // another process was faster
		return nil, nil //nolint:nilnil // as above
	}
	if err != nil {
		return nil, fmt.Errorf("claim run: %w", err)
	}
	return &claimed, nil
}

// recover gives the runs of processes that are gone back to the queue: at once, but for those that may be what ended
// their process several times.
func (r *Runs) recover() error {
	var others []struct {
		Epoch  string `db:"epoch"`
		BeatAt int64  `db:"beat_at"`
	}
	err := r.app.ConcurrentDB().NewQuery(`SELECT epoch, max(beat_at) AS beat_at FROM ` + table + `
		WHERE state = 'running' AND epoch <> {:epoch} GROUP BY epoch`).Bind(dbx.Params{"epoch": r.epoch}).All(&others)
	if err != nil {
		return fmt.Errorf("look for runs of other processes: %w", err)
	}
	for _, other := range others {
		gone, known := r.present.gone(other.Epoch)
		if !gone && (known || r.now().Sub(time.UnixMilli(other.BeatAt)) < staleAfter) {
			continue
		}
		if err := r.release(other.Epoch); err != nil {
			return err
		}
		r.present.bury(other.Epoch)
	}
	return nil
}

func (r *Runs) release(epoch string) error {
	return r.app.RunInTransaction(func(tx core.App) error {
		var left []row
		err := tx.NonconcurrentDB().NewQuery(`SELECT * FROM ` + table + ` WHERE state = 'running' AND epoch = {:epoch}`).
			Bind(dbx.Params{"epoch": epoch}).All(&left)
		if err != nil {
			return fmt.Errorf("find runs of a process that is gone: %w", err)
		}
		for _, l := range left {
			change := dbx.Params{"state": Queued, "epoch": "", "due_at": r.now().UnixMilli(), "error": "the process ended in the middle of the work"}
			if l.Attempts > crashesAtOnce {
				change["due_at"] = r.now().Add(backoff(l.Attempts)).UnixMilli()
			}
			if l.Attempts >= maxAttempts {
				change["state"], change["finished_at"], change["unique_key"] = Failed, r.now().UnixMilli(), ""
			}
			if _, err := tx.NonconcurrentDB().Update(table, change, dbx.HashExp{"id": l.ID}).Execute(); err != nil {
				return fmt.Errorf("give run back: %w", err)
			}
		}
		return nil
	})
}

// sweep removes runs that have ended long ago.
func (r *Runs) sweep(ctx context.Context) error {
	for ctx.Err() == nil {
		res, err := r.app.NonconcurrentDB().NewQuery(`DELETE FROM ` + table + ` WHERE id IN (
			SELECT id FROM ` + table + ` WHERE finished_at > 0 AND finished_at < {:before} LIMIT 500)`).
			Bind(dbx.Params{"before": r.now().Add(-r.cfg.Keep).UnixMilli()}).Execute()
		if err != nil {
			return fmt.Errorf("remove old runs: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n < 500 {
			return err
		}
	}
	return nil
}
