package totp

import (
	"crypto/hmac"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

const (
	secretsTable = "totp_secrets"
	codesTable   = "totp_codes"
	triesTable   = "totp_tries"
)

// ownerPriority is inside the transaction of a delete, which PocketBase opens at 99.
const ownerPriority = 100

// triesKept is longer than any mfaId lives; PocketBase allows a day at most.
const triesKept = 25 * time.Hour

// row is a user's secret. ConfirmedAt is 0 while enrolment is under way. LastStep is the time step of the last code that
// was taken. Failures counts wrong codes since the last good one. Times are in seconds since 1970.
type row struct {
	Secret      string `db:"secret"`
	CreatedAt   int64  `db:"created_at"`
	ConfirmedAt int64  `db:"confirmed_at"`
	LastStep    int64  `db:"last_step"`
	Failures    int64  `db:"failures"`
	LockedUntil int64  `db:"locked_until"`
}

func migrations() []extensions.Migration {
	statements := []string{
		`CREATE TABLE totp_secrets (
			collection TEXT NOT NULL, record TEXT NOT NULL, secret TEXT NOT NULL,
			created_at INTEGER NOT NULL, confirmed_at INTEGER NOT NULL DEFAULT 0, last_step INTEGER NOT NULL DEFAULT 0,
			failures INTEGER NOT NULL DEFAULT 0, locked_until INTEGER NOT NULL DEFAULT 0,
			PRIMARY KEY (collection, record)) WITHOUT ROWID`,
		`CREATE TABLE totp_codes (
			collection TEXT NOT NULL, record TEXT NOT NULL, hash BLOB NOT NULL,
			PRIMARY KEY (collection, record, hash)) WITHOUT ROWID`,
		`CREATE TABLE totp_tries (mfa TEXT NOT NULL PRIMARY KEY, tries INTEGER NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID`,
		`CREATE INDEX totp_tries_at ON totp_tries (at)`,
	}
	return []extensions.Migration{extensions.Tables(1795340000, "create_tables", statements, secretsTable, codesTable, triesTable)}
}

func of(record *core.Record) dbx.HashExp {
	return dbx.HashExp{"collection": record.Collection().Id, "record": record.Id}
}

func params(record *core.Record, more dbx.Params) dbx.Params {
	more["collection"], more["record"] = record.Collection().Id, record.Id
	return more
}

// load returns the user's row, or nil.
func load(app core.App, record *core.Record) (*row, error) {
	var r row
	err := app.DB().Select("secret", "created_at", "confirmed_at", "last_step", "failures", "locked_until").
		From(secretsTable).Where(of(record)).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // most users have none
	}
	if err != nil {
		return nil, fmt.Errorf("read second factor: %w", err)
	}
	return &r, nil
}

// Enabled reports whether the user's sign-ins need a code.
func Enabled(app core.App, record *core.Record) (bool, error) {
	r, err := load(app, record)
	return r != nil && r.ConfirmedAt != 0, err
}

// pend stores the secret of an enrolment and reports false when one is confirmed already.
func pend(app core.App, record *core.Record, sealed string, now time.Time) (bool, error) {
	result, err := app.NonconcurrentDB().NewQuery(
		`INSERT INTO totp_secrets (collection, record, secret, created_at) VALUES ({:collection}, {:record}, {:secret}, {:now})
		ON CONFLICT (collection, record) DO UPDATE SET secret = excluded.secret, created_at = excluded.created_at WHERE confirmed_at = 0`,
	).Bind(params(record, dbx.Params{"secret": sealed, "now": now.Unix()})).Execute()
	if err != nil {
		return false, fmt.Errorf("store enrolment: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// confirm turns the enrolment into the user's second factor.
func confirm(app core.App, record *core.Record, step int64, now time.Time) error {
	_, err := app.NonconcurrentDB().Update(secretsTable,
		dbx.Params{"confirmed_at": now.Unix(), "last_step": step, "failures": 0, "locked_until": 0}, of(record)).Execute()
	if err != nil {
		return fmt.Errorf("confirm enrolment: %w", err)
	}
	return nil
}

// accept notes that a code was taken. step is 0 for a recovery code.
func accept(app core.App, record *core.Record, r *row, step int64) error {
	_, err := app.NonconcurrentDB().Update(secretsTable,
		dbx.Params{"last_step": max(step, r.LastStep), "failures": 0, "locked_until": 0}, of(record)).Execute()
	if err != nil {
		return fmt.Errorf("note code: %w", err)
	}
	return nil
}

// refuse counts a wrong code and closes the second factor for a while when there were too many.
func refuse(app core.App, record *core.Record, r *row, now time.Time) error {
	failures, locked := r.Failures+1, r.LockedUntil
	if failures%failuresPerLock == 0 {
		locked = now.Add(lockAfter(failures)).Unix()
	}
	_, err := app.NonconcurrentDB().Update(secretsTable, dbx.Params{"failures": failures, "locked_until": locked}, of(record)).Execute()
	if err != nil {
		return fmt.Errorf("count wrong code: %w", err)
	}
	return nil
}

// remove deletes all that is known about the user and reports whether there was anything.
func remove(app core.App, record *core.Record) (bool, error) {
	return removeWhere(app, of(record))
}

func removeWhere(app core.App, where dbx.HashExp) (bool, error) {
	var found bool
	for _, table := range []string{secretsTable, codesTable} {
		result, err := app.NonconcurrentDB().Delete(table, where).Execute()
		if err != nil {
			return false, fmt.Errorf("delete from %s: %w", table, err)
		}
		n, err := result.RowsAffected()
		if err != nil {
			return false, err
		}
		found = found || n > 0
	}
	return found, nil
}

// setCodes replaces the user's recovery codes.
func setCodes(app core.App, record *core.Record, hashes [][]byte) error {
	if _, err := app.NonconcurrentDB().Delete(codesTable, of(record)).Execute(); err != nil {
		return fmt.Errorf("delete recovery codes: %w", err)
	}
	for _, hash := range hashes {
		if _, err := app.NonconcurrentDB().Insert(codesTable, params(record, dbx.Params{"hash": hash})).Execute(); err != nil {
			return fmt.Errorf("store recovery code: %w", err)
		}
	}
	return nil
}

func countCodes(app core.App, record *core.Record) (int, error) {
	var n int
	if err := app.DB().Select("count(*)").From(codesTable).Where(of(record)).Row(&n); err != nil {
		return 0, fmt.Errorf("count recovery codes: %w", err)
	}
	return n, nil
}

// useCode deletes the recovery code with this hash and reports whether there was one.
func useCode(app core.App, record *core.Record, hash []byte) (bool, error) {
	var stored [][]byte
	if err := app.DB().Select("hash").From(codesTable).Where(of(record)).Column(&stored); err != nil {
		return false, fmt.Errorf("read recovery codes: %w", err)
	}
	found := false
	for _, have := range stored {
		if hmac.Equal(have, hash) {
			found = true
		}
	}
	if !found {
		return false, nil
	}
	where := of(record)
	where["hash"] = hash
	if _, err := app.NonconcurrentDB().Delete(codesTable, where).Execute(); err != nil {
		return false, fmt.Errorf("use recovery code: %w", err)
	}
	return true, nil
}

// countTry counts a use of an mfaId before it is known to be good or bad, and returns how many there were.
func countTry(app core.App, mfa string, now time.Time) (int, error) {
	if _, err := app.NonconcurrentDB().Delete(triesTable, dbx.NewExp("at < {:old}", dbx.Params{"old": now.Add(-triesKept).Unix()})).Execute(); err != nil {
		return 0, fmt.Errorf("sweep tries: %w", err)
	}
	var tries int
	err := app.NonconcurrentDB().NewQuery(
		`INSERT INTO totp_tries (mfa, tries, at) VALUES ({:mfa}, 1, {:now}) ON CONFLICT (mfa) DO UPDATE SET tries = tries + 1 RETURNING tries`,
	).Bind(dbx.Params{"mfa": mfa, "now": now.Unix()}).Row(&tries)
	if err != nil {
		return 0, fmt.Errorf("count try: %w", err)
	}
	return tries, nil
}

// burn makes an mfaId useless here, whatever becomes of PocketBase's record of it.
func burn(app core.App, mfa string) error {
	if _, err := app.NonconcurrentDB().Update(triesTable, dbx.Params{"tries": maxTries}, dbx.HashExp{"mfa": mfa}).Execute(); err != nil {
		return fmt.Errorf("burn mfa: %w", err)
	}
	return nil
}

// bindOwners removes the rows of users and collections in the transaction that deletes them, and those of an account
// that comes to another owner.
func (f *factor) bindOwners(app core.App) {
	app.OnRecordUpdateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelTOTPTakeover", Priority: ownerPriority, Func: func(e *core.RecordEvent) error {
		taken := pb.TakenOver(e.Record)
		if err := e.Next(); err != nil || !taken {
			return err
		}
		if found, err := remove(e.App, e.Record); err != nil || !found {
			return err
		}
		return f.audit(e.App, nil, "totp.dropped", success, e.Record, nil)
	}})
	app.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelTOTPRecord", Priority: ownerPriority, Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		_, err := remove(e.App, e.Record)
		return err
	}})
	app.OnCollectionDeleteExecute().Bind(&hook.Handler[*core.CollectionEvent]{Id: "satchelTOTPCollection", Priority: ownerPriority, Func: func(e *core.CollectionEvent) error {
		if err := e.Next(); err != nil || !e.Collection.IsAuth() {
			return err
		}
		_, err := removeWhere(e.App, dbx.HashExp{"collection": e.Collection.Id})
		return err
	}})
}
