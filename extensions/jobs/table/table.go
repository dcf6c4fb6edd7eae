// Package table is the queue as it is stored: what each statement does to the tables, and what operators see of them. It
// decides nothing; the package jobs calls it in transactions of its own.
package table

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
)

// The tables. A job is in Queue until it has ended well or was cancelled, and in History afterwards.
const (
	Queue     = "jobs_queue"
	History   = "jobs_history"
	Keys      = "jobs_keys"
	Paused    = "jobs_queues"
	Schedules = "jobs_schedules"
)

// Names lists the tables. No rule, collection or view reads them.
func Names() []string {
	return []string{Queue, History, Keys, Paused, Schedules}
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

// ErrNotFound says that there is no job with an id.
var ErrNotFound = errors.New("there is no such job")

// Numbers of the states in the queue. Literals of them are in the conditions of the indexes, so that a claim reads ready
// jobs alone however many others there are.
const (
	IsReady = iota
	IsRunning
	IsScheduled
	IsDead
	IsHeld
)

// States are the states by their numbers.
func States() []State { return []State{Ready, Running, Scheduled, Dead, Held} }

// Schema is the tables; times are Unix milliseconds, 0 is never. What a job is given is JSON, or sealed.
func Schema() []string {
	return []string{
		`CREATE TABLE ` + Queue + ` (
			id INTEGER PRIMARY KEY, queue TEXT NOT NULL, kind TEXT NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL,
			run_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, attempt INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL,
			epoch TEXT NOT NULL DEFAULT '', lease_until INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
			unique_key TEXT NOT NULL, lane TEXT NOT NULL, owner_collection TEXT NOT NULL, owner TEXT NOT NULL, request TEXT NOT NULL,
			payload TEXT NOT NULL, sealed INTEGER NOT NULL, position TEXT NOT NULL DEFAULT '', steps TEXT NOT NULL DEFAULT '',
			error TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
			created_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0, finished_at INTEGER NOT NULL DEFAULT 0
		) STRICT`,
		`CREATE INDEX ` + Queue + `_ready ON ` + Queue + ` (queue, priority, run_at, id) WHERE state = 0`,
		`CREATE INDEX ` + Queue + `_running ON ` + Queue + ` (epoch) WHERE state = 1`,
		`CREATE INDEX ` + Queue + `_scheduled ON ` + Queue + ` (run_at) WHERE state = 2`,
		`CREATE INDEX ` + Queue + `_dead ON ` + Queue + ` (finished_at) WHERE state = 3`,
		`CREATE INDEX ` + Queue + `_lane ON ` + Queue + ` (kind, lane, state, priority, run_at, id) WHERE lane <> '' AND state IN (1, 4)`,
		`CREATE INDEX ` + Queue + `_held ON ` + Queue + ` (state) WHERE state = 4`,
		`CREATE UNIQUE INDEX ` + Queue + `_key ON ` + Queue + ` (kind, unique_key) WHERE unique_key <> '' AND state <> 3`,
		`CREATE INDEX ` + Queue + `_owner ON ` + Queue + ` (owner, owner_collection) WHERE owner <> ''`,
		`CREATE TABLE ` + History + ` (
			id INTEGER PRIMARY KEY, queue TEXT NOT NULL, kind TEXT NOT NULL, outcome TEXT NOT NULL, attempt INTEGER NOT NULL,
			owner_collection TEXT NOT NULL, owner TEXT NOT NULL, request TEXT NOT NULL, error TEXT NOT NULL, result TEXT NOT NULL,
			done INTEGER NOT NULL, total INTEGER NOT NULL, run_at INTEGER NOT NULL, created_at INTEGER NOT NULL, started_at INTEGER NOT NULL,
			finished_at INTEGER NOT NULL
		) STRICT`,
		`CREATE INDEX ` + History + `_finished ON ` + History + ` (finished_at)`,
		`CREATE INDEX ` + History + `_owner ON ` + History + ` (owner, owner_collection) WHERE owner <> ''`,
		`CREATE TABLE ` + Keys + ` (kind TEXT NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID`,
		`CREATE TABLE ` + Paused + ` (name TEXT PRIMARY KEY, paused_at INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
		`CREATE TABLE ` + Schedules + ` (kind TEXT PRIMARY KEY, last_at INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
	}
}

// Row is a job as it is stored in either table.
type Row struct {
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
	Cancelled       int    `db:"cancelled"`
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

// Stands is where the job stands.
func (r *Row) Stands() State {
	if r.Outcome != "" {
		return State(r.Outcome)
	}
	return States()[r.State]
}

// Status is what the owner may see of it.
func (r *Row) Status() Status {
	s := Status{
		ID: serial.Format(r.ID), Kind: r.Kind, Queue: r.Queue, State: r.Stands(), Attempts: r.Attempt, Done: r.Done, Total: r.Total,
		DueAt: time.UnixMilli(r.RunAt).UTC(), CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), StartedAt: Moment(r.StartedAt), FinishedAt: Moment(r.FinishedAt),
		Err: r.Error,
	}
	if r.Result != "" {
		s.Result = json.RawMessage(r.Result)
	}
	return s
}

// Moment is a stored time; nil is never.
func Moment(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	return new(time.UnixMilli(ms).UTC())
}

// Millis is a time as it is stored.
func Millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// ParseID reads the id of a job. The error is [ErrNotFound].
func ParseID(text string) (int64, error) {
	id, err := serial.Parse(text)
	if err != nil {
		return 0, ErrNotFound
	}
	return id, nil
}

// Find looks for a job in both tables. The error is [ErrNotFound] if there is none.
func Find(app core.App, text string) (*Row, error) {
	id, err := ParseID(text)
	if err != nil {
		return nil, err
	}
	var r Row
	for _, from := range []string{Queue, History} {
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
