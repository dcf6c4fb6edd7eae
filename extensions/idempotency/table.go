package idempotency

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Table is written by every request with a key and read by no rule: the store may leave it out of its version.
const Table = "idempotency_keys"

// schema puts what every search reads first and the answer last. The table has rowids: in one without, the answers would
// stand in the index, and SQLite reads a long row as a whole to compare its key (with 400 answers of 256 KiB a search
// took 5.9 ms instead of 0.02). A row with the status 0 is an operation that has begun: owner has it until lease_until.
func schema() []string {
	return []string{
		`CREATE TABLE idempotency_keys (
			id BLOB NOT NULL UNIQUE,
			caller BLOB NOT NULL,
			fingerprint BLOB NOT NULL,
			expires_at INTEGER NOT NULL,
			status INTEGER NOT NULL,
			owner TEXT NOT NULL DEFAULT '',
			lease_until INTEGER NOT NULL DEFAULT 0,
			called INTEGER NOT NULL DEFAULT 0,
			nonce BLOB,
			route TEXT NOT NULL DEFAULT '',
			request TEXT NOT NULL DEFAULT '',
			head TEXT NOT NULL DEFAULT '',
			reference TEXT NOT NULL DEFAULT '',
			points TEXT NOT NULL DEFAULT '',
			body BLOB
		)`,
		`CREATE INDEX idempotency_keys_caller ON idempotency_keys (caller, expires_at)`,
		`CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at)`,
		`CREATE INDEX idempotency_keys_unfinished ON idempotency_keys (lease_until) WHERE status = 0`,
	}
}

// row is what is kept of a request. Times are Unix milliseconds.
type row struct {
	ID          []byte `db:"id"`
	Caller      []byte `db:"caller"`
	Fingerprint []byte `db:"fingerprint"`
	ExpiresAt   int64  `db:"expires_at"`
	Status      int    `db:"status"`
	Owner       string `db:"owner"`
	LeaseUntil  int64  `db:"lease_until"`
	Called      bool   `db:"called"`
	Nonce       []byte `db:"nonce"`
	Route       string `db:"route"`
	Request     string `db:"request"`
	Head        string `db:"head"`
	Reference   string `db:"reference"`
	Points      string `db:"points"`
	Body        []byte `db:"body"`
}

const columns = `id, caller, fingerprint, expires_at, status, owner, lease_until, called, nonce, route, request, head, reference, points, body`

// find returns the live row of the id, nil if there is none.
func find(db dbx.Builder, id [sha256.Size]byte, now time.Time) (*row, error) {
	var r row
	err := db.NewQuery("SELECT " + columns + " FROM idempotency_keys WHERE id = {:id} AND expires_at > {:now}").
		Bind(dbx.Params{"id": id[:], "now": now.UnixMilli()}).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read idempotency key: %w", err)
	}
	return &r, nil
}

// quotas remembers how many keys callers have at most, so that most requests need not count them.
type quotas struct {
	mu    sync.Mutex
	known map[[callerBytes]byte]int
}

// maxQuotas bounds the memory: a hundred kilobytes or two.
const maxQuotas = 4096

// take counts one more key of the caller, and reports false if it is not known that it may have one.
func (q *quotas) take(caller []byte, most int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, ok := q.known[[callerBytes]byte(caller)]
	if !ok || n >= most {
		return false
	}
	q.known[[callerBytes]byte(caller)] = n + 1
	return true
}

func (q *quotas) set(caller []byte, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known == nil || len(q.known) >= maxQuotas {
		q.known = map[[callerBytes]byte]int{}
	}
	q.known[[callerBytes]byte(caller)] = n
}

// mayAdd reports whether the caller may have one more key. What is remembered is never too small: keys expire, but
// nobody else adds any.
func (k *keeper) mayAdd(db dbx.Builder, caller []byte) (bool, error) {
	if k.quotas.take(caller, k.cfg.MaxKeys) {
		return true, nil
	}
	n, err := count(db, caller, k.cfg.MaxKeys, k.now())
	if err != nil || n >= k.cfg.MaxKeys {
		return false, err
	}
	k.quotas.set(caller, n+1)
	return true, nil
}

// count is the number of live keys of the caller, most at most.
func count(db dbx.Builder, caller []byte, most int, now time.Time) (n int, err error) {
	err = db.NewQuery(`SELECT count(*) FROM (SELECT 1 FROM idempotency_keys WHERE caller = {:caller} AND expires_at > {:now} LIMIT {:most})`).
		Bind(dbx.Params{"caller": caller, "now": now.UnixMilli(), "most": most}).Row(&n)
	if err != nil {
		return 0, fmt.Errorf("count idempotency keys: %w", err)
	}
	return n, nil
}

// insert adds the row; an expired one of the same id gives way. It reports false if there is a live one: another process
// was faster.
func insert(tx core.App, r *row, now time.Time) (bool, error) {
	result, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO idempotency_keys (` + columns + `) VALUES (
			{:id}, {:caller}, {:fingerprint}, {:expires}, {:status}, {:owner}, {:lease}, {:called}, {:nonce}, {:route}, {:request}, {:head},
			{:reference}, {:points}, {:body})
		ON CONFLICT (id) DO UPDATE SET caller = excluded.caller, fingerprint = excluded.fingerprint, expires_at = excluded.expires_at,
			status = excluded.status, owner = excluded.owner, lease_until = excluded.lease_until, called = excluded.called,
			nonce = excluded.nonce, route = excluded.route, request = excluded.request, head = excluded.head,
			reference = excluded.reference, points = excluded.points, body = excluded.body
		WHERE expires_at <= {:now}`).Bind(r.params(now)).Execute()
	if err != nil {
		return false, fmt.Errorf("store idempotency key: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// update writes the row of an unfinished operation, if the owner still has it.
func update(tx core.App, r *row, now time.Time) (bool, error) {
	result, err := tx.NonconcurrentDB().NewQuery(`UPDATE idempotency_keys SET expires_at = {:expires}, status = {:status},
			lease_until = {:lease}, called = {:called}, request = {:request}, head = {:head}, reference = {:reference},
			points = {:points}, body = {:body}
		WHERE id = {:id} AND owner = {:owner} AND status = 0`).Bind(r.params(now)).Execute()
	if err != nil {
		return false, fmt.Errorf("update idempotency key: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// claim gives an unfinished operation whose lease is over to the owner of r.
func claim(app core.App, r *row, now time.Time) (bool, error) {
	result, err := app.NonconcurrentDB().NewQuery(`UPDATE idempotency_keys SET owner = {:owner}, lease_until = {:lease}
		WHERE id = {:id} AND status = 0 AND lease_until <= {:now}`).Bind(dbx.Params{
		"id": r.ID, "owner": r.Owner, "lease": r.LeaseUntil, "now": now.UnixMilli(),
	}).Execute()
	if err != nil {
		return false, fmt.Errorf("take over operation: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// remove deletes the row of an unfinished operation that has done nothing.
func remove(app core.App, r *row) (bool, error) {
	result, err := app.NonconcurrentDB().NewQuery(`DELETE FROM idempotency_keys WHERE id = {:id} AND owner = {:owner} AND status = 0`).
		Bind(dbx.Params{"id": r.ID, "owner": r.Owner}).Execute()
	if err != nil {
		return false, fmt.Errorf("delete idempotency key: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

func (r *row) params(now time.Time) dbx.Params {
	return dbx.Params{
		"id": r.ID, "caller": r.Caller, "fingerprint": r.Fingerprint, "expires": r.ExpiresAt, "status": r.Status, "owner": r.Owner,
		"lease": r.LeaseUntil, "called": r.Called, "nonce": r.Nonce, "route": r.Route, "request": r.Request, "head": r.Head,
		"reference": r.Reference, "points": r.Points, "body": r.Body, "now": now.UnixMilli(),
	}
}

// forgetUsers deletes the rows of a user with the user: an app may choose the id of a new user, who must not get the
// answers of an old one.
func forgetUsers(app core.App) {
	app.OnRecordDeleteExecute().BindFunc(func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		_, err := e.App.NonconcurrentDB().Delete(Table, dbx.HashExp{"caller": countedAs(userScope(e.Record))}).Execute()
		if err != nil {
			return fmt.Errorf("delete idempotency keys of user: %w", err)
		}
		return nil
	})
}
