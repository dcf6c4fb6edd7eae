package jobs

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// The tables. A job is in queueTable until it has ended well or was cancelled, and in historyTable afterwards.
const (
	queueTable    = "jobs_queue"
	historyTable  = "jobs_history"
	keysTable     = "jobs_keys"
	queuesTable   = "jobs_queues"
	scheduleTable = "jobs_schedules"
)

// Tables lists those that the feature has. No rule, collection or view reads them.
func Tables() []string {
	return []string{queueTable, historyTable, keysTable, queuesTable, scheduleTable}
}

// State is where a job stands.
type State string

// States of a job. Scheduled jobs wait for their time, held ones for another of their lane or for a program that knows
// their kind. Dead ones have failed for good and wait for somebody to decide. The last three are those of the history.
const (
	Ready     State = "ready"
	Running   State = "running"
	Scheduled State = "scheduled"
	Dead      State = "dead"
	Held      State = "held"
	Succeeded State = "succeeded"
	Cancelled State = "cancelled"
	Expired   State = "expired"
)

// Numbers of the states in queueTable. Literals of them are in the conditions of the indexes, so that a claim reads ready
// jobs alone however many others there are.
const (
	ready = iota
	running
	scheduled
	dead
	held
)

func states() []State { return []State{Ready, Running, Scheduled, Dead, Held} }

// schema is the tables; times are Unix milliseconds, 0 is never. What a job is given is JSON, or sealed.
func schema() []string {
	return []string{
		`CREATE TABLE ` + queueTable + ` (
			id INTEGER PRIMARY KEY, queue TEXT NOT NULL, kind TEXT NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL,
			run_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL,
			epoch TEXT NOT NULL DEFAULT '', lease_until INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
			unique_key TEXT NOT NULL, lane TEXT NOT NULL, owner_collection TEXT NOT NULL, owner TEXT NOT NULL, request TEXT NOT NULL,
			payload TEXT NOT NULL, sealed INTEGER NOT NULL, position TEXT NOT NULL DEFAULT '', steps TEXT NOT NULL DEFAULT '',
			error TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
			created_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0, finished_at INTEGER NOT NULL DEFAULT 0
		) STRICT`,
		`CREATE INDEX ` + queueTable + `_ready ON ` + queueTable + ` (queue, priority, run_at, id) WHERE state = 0`,
		`CREATE INDEX ` + queueTable + `_running ON ` + queueTable + ` (epoch) WHERE state = 1`,
		`CREATE INDEX ` + queueTable + `_scheduled ON ` + queueTable + ` (run_at) WHERE state = 2`,
		`CREATE INDEX ` + queueTable + `_dead ON ` + queueTable + ` (finished_at) WHERE state = 3`,
		`CREATE INDEX ` + queueTable + `_lane ON ` + queueTable + ` (kind, lane, state, priority, run_at, id) WHERE lane <> '' AND state IN (1, 4)`,
		`CREATE INDEX ` + queueTable + `_held ON ` + queueTable + ` (state) WHERE state = 4`,
		`CREATE UNIQUE INDEX ` + queueTable + `_key ON ` + queueTable + ` (kind, unique_key) WHERE unique_key <> '' AND state <> 3`,
		`CREATE INDEX ` + queueTable + `_owner ON ` + queueTable + ` (owner, owner_collection) WHERE owner <> ''`,
		`CREATE TABLE ` + historyTable + ` (
			id INTEGER PRIMARY KEY, queue TEXT NOT NULL, kind TEXT NOT NULL, outcome TEXT NOT NULL, attempt INTEGER NOT NULL,
			owner_collection TEXT NOT NULL, owner TEXT NOT NULL, request TEXT NOT NULL, error TEXT NOT NULL, result TEXT NOT NULL,
			done INTEGER NOT NULL, total INTEGER NOT NULL, run_at INTEGER NOT NULL, created_at INTEGER NOT NULL, started_at INTEGER NOT NULL,
			finished_at INTEGER NOT NULL
		) STRICT`,
		`CREATE INDEX ` + historyTable + `_finished ON ` + historyTable + ` (finished_at)`,
		`CREATE INDEX ` + historyTable + `_owner ON ` + historyTable + ` (owner, owner_collection) WHERE owner <> ''`,
		`CREATE TABLE ` + keysTable + ` (kind TEXT NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID`,
		`CREATE TABLE ` + queuesTable + ` (name TEXT PRIMARY KEY, paused_at INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
		`CREATE TABLE ` + scheduleTable + ` (kind TEXT PRIMARY KEY, last_at INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
	}
}

// row is a job as it is stored in either table.
type row struct {
	ID              int64  `db:"id"`
	Queue           string `db:"queue"`
	Kind            string `db:"kind"`
	State           int    `db:"state"`
	Outcome         string `db:"outcome"` // of the history
	Priority        int    `db:"priority"`
	RunAt           int64  `db:"run_at"`
	ExpiresAt       int64  `db:"expires_at"`
	Attempt         int    `db:"attempt"`
	MaxAttempts     int    `db:"max_attempts"`
	Lane            string `db:"lane"`
	OwnerCollection string `db:"owner_collection"`
	Owner           string `db:"owner"`
	Request         string `db:"request"`
	Payload         string `db:"payload"`
	Sealed          int    `db:"sealed"`
	Position        string `db:"position"`
	Steps           string `db:"steps"`
	Result          string `db:"result"`
	Error           string `db:"error"`
	Done            int64  `db:"done"`
	Total           int64  `db:"total"`
	CreatedAt       int64  `db:"created_at"`
	StartedAt       int64  `db:"started_at"`
	FinishedAt      int64  `db:"finished_at"`
}

// Status is a job as its owner and operators see it. Total is 0 as long as nobody knows how much there is to do.
type Status struct {
	ID         string          `json:"id"`
	Kind       string          `json:"kind"`
	Queue      string          `json:"queue"`
	State      State           `json:"state"`
	Attempts   int             `json:"attempts"`
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

// Ended reports whether nobody will work on the job any more, unless an operator decides so.
func (s Status) Ended() bool {
	return s.State == Dead || s.State == Succeeded || s.State == Cancelled || s.State == Expired
}

func (r *row) owner() Owner { return Owner{Collection: r.OwnerCollection, ID: r.Owner} }

func (r *row) state() State {
	if r.Outcome != "" {
		return State(r.Outcome)
	}
	return states()[r.State]
}

func (r *row) status() Status {
	s := Status{
		ID: formatID(r.ID), Kind: r.Kind, Queue: r.Queue, State: r.state(), Attempts: r.Attempt, Done: r.Done, Total: r.Total,
		DueAt: time.UnixMilli(r.RunAt).UTC(), CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), StartedAt: moment(r.StartedAt), FinishedAt: moment(r.FinishedAt),
		Err: r.Error,
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

// millis is a time as it is stored.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// counter makes ids that grow: 41 bits of milliseconds, good until 2039 with the sign bit free until 2109, and 21 bits that
// begin anywhere in the lower half and count. Two processes meet once in a million milliseconds that both enqueue in, and
// then try again.
type counter struct{ last atomic.Int64 }

func (c *counter) next(now time.Time) int64 {
	fresh := now.UnixMilli()<<21 | rand.Int64N(1<<20) //nolint:gosec // nobody gains by guessing it: owners see their jobs alone
	for {
		last := c.last.Load()
		id := max(fresh, last+1)
		if c.last.CompareAndSwap(last, id) {
			return id
		}
	}
}

func formatID(id int64) string { return strconv.FormatInt(id, 36) }

func parseID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 36, 64)
	if err != nil || id <= 0 || formatID(id) != text {
		return 0, ErrNotFound
	}
	return id, nil
}

func find(app core.App, text string) (*row, error) {
	id, err := parseID(text)
	if err != nil {
		return nil, err
	}
	var r row
	for _, from := range []string{queueTable, historyTable} {
		err = app.ConcurrentDB().NewQuery(`SELECT * FROM ` + from + ` WHERE id = {:id}`).Bind(dbx.Params{"id": id}).One(&r)
		if err == nil {
			return &r, nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("find job: %w", err)
		}
	}
	return nil, ErrNotFound
}

// Get returns where a job stands. The error is [ErrNotFound] if there is none.
func (j *Jobs) Get(app core.App, id string) (Status, error) {
	found, err := find(app, id)
	if err != nil {
		return Status{}, err
	}
	return found.status(), nil
}

// Forget removes the jobs of an owner that nobody works on, and what names the owner in the others.
func (j *Jobs) Forget(tx core.App, owner Owner) error {
	of := dbx.HashExp{"owner": owner.ID, "owner_collection": owner.Collection}
	if _, err := tx.NonconcurrentDB().Delete(historyTable, of).Execute(); err != nil {
		return fmt.Errorf("forget history of owner: %w", err)
	}
	if _, err := tx.NonconcurrentDB().Delete(queueTable, dbx.And(of, dbx.NewExp("state <> 1"))).Execute(); err != nil {
		return fmt.Errorf("forget jobs of owner: %w", err)
	}
	if _, err := tx.NonconcurrentDB().Update(queueTable, dbx.Params{"owner_collection": "", "owner": ""}, of).Execute(); err != nil {
		return fmt.Errorf("forget owner of jobs: %w", err)
	}
	return nil
}
