package account

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const (
	deletionsTable = "account_deletions"
	exportsTable   = "account_exports"
)

// schema is the tables. Times are Unix milliseconds, collections are ids.
func schema() []string {
	return []string{
		`CREATE TABLE ` + deletionsTable + ` (
			collection TEXT NOT NULL, record TEXT NOT NULL, run TEXT NOT NULL,
			requested_at INTEGER NOT NULL, due_at INTEGER NOT NULL, started_at INTEGER NOT NULL DEFAULT 0,
			PRIMARY KEY (collection, record)) WITHOUT ROWID`,
		`CREATE TABLE ` + exportsTable + ` (
			id TEXT PRIMARY KEY, collection TEXT NOT NULL, record TEXT NOT NULL, run TEXT NOT NULL,
			created_at INTEGER NOT NULL, ready_at INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0,
			expires_at INTEGER NOT NULL) WITHOUT ROWID`,
		`CREATE INDEX ` + exportsTable + `_owner ON ` + exportsTable + ` (collection, record, created_at)`,
		`CREATE INDEX ` + exportsTable + `_expiry ON ` + exportsTable + ` (expires_at)`,
	}
}

func keyOf(account *core.Record) key { return key{account.Collection().Id, account.Id} }

func (k key) where() dbx.HashExp { return dbx.HashExp{"collection": k.collection, "record": k.record} }

// deletion is an account that is going to be deleted.
type deletion struct {
	Collection  string `db:"collection"`
	Record      string `db:"record"`
	Run         string `db:"run"`
	RequestedAt int64  `db:"requested_at"`
	DueAt       int64  `db:"due_at"`
	StartedAt   int64  `db:"started_at"`
}

func findDeletion(app core.App, k key) (*deletion, error) {
	var d deletion
	err := app.ConcurrentDB().Select("*").From(deletionsTable).Where(k.where()).One(&d)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // most accounts have none
	}
	if err != nil {
		return nil, fmt.Errorf("find deletion: %w", err)
	}
	return &d, nil
}

func forgetDeletion(tx core.App, k key) error {
	if _, err := tx.NonconcurrentDB().Delete(deletionsTable, k.where()).Execute(); err != nil {
		return fmt.Errorf("forget deletion: %w", err)
	}
	return nil
}

// Status is where an account stands.
type Status struct {
	State       string     `json:"state" enum:"active,scheduled,deleting"`
	RequestedAt *time.Time `json:"requestedAt"`
	DeleteAt    *time.Time `json:"deleteAt"`
	Exports     []Export   `json:"exports"`
}

// States of an account.
const (
	active    = "active"
	scheduled = "scheduled"
	deleting  = "deleting"
)

func (d *deletion) status() Status {
	if d == nil {
		return Status{State: active, Exports: []Export{}}
	}
	s := Status{State: scheduled, RequestedAt: moment(d.RequestedAt), DeleteAt: moment(d.DueAt), Exports: []Export{}}
	if d.StartedAt > 0 {
		s.State = deleting
	}
	return s
}

func moment(ms int64) *time.Time { return new(time.UnixMilli(ms).UTC()) }

func (a *Accounts) status(app core.App, account *core.Record) (Status, error) {
	d, err := findDeletion(app, keyOf(account))
	if err != nil {
		return Status{}, err
	}
	s := d.status()
	s.Exports, err = a.exportsOf(app, account)
	return s, err
}
