package table

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Fresh is a job to be inserted; its payload may be sealed.
type Fresh struct {
	ID           int64
	Key, Payload string
}

// Batch is what fresh jobs have in common.
type Batch struct {
	Queue, Kind                           string
	State, Priority, Attempts             int
	At, Expires, Now                      time.Time
	Lane, OwnerCollection, Owner, Request string
	Sealed                                bool
}

// Insert writes the jobs whose ids and keys are free, and returns the ids.
func Insert(tx core.App, b Batch, list []Fresh) (made []int64, err error) {
	values := make([]any, len(list))
	for i, f := range list {
		values[i] = []any{f.ID, f.Key, f.Payload}
	}
	rows, err := json.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("marshal jobs: %w", err)
	}
	sealed := 0
	if b.Sealed {
		sealed = 1
	}
	err = tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + Queue + ` (id, unique_key, payload, queue, kind, state, priority, run_at, expires_at, max_attempts,
			lane, owner_collection, owner, request, sealed, created_at)
		SELECT value->>0, value->>1, value->>2, {:queue}, {:kind}, {:state}, {:priority}, {:at}, {:expires}, {:most},
			{:lane}, {:collection}, {:owner}, {:request}, {:sealed}, {:now}
		FROM json_each({:rows}) WHERE true ON CONFLICT DO NOTHING RETURNING id`).
		Bind(dbx.Params{
			"rows": string(rows), "queue": b.Queue, "kind": b.Kind, "state": b.State, "priority": b.Priority, "at": b.At.UnixMilli(), "expires": Millis(b.Expires),
			"most": b.Attempts, "lane": b.Lane, "collection": b.OwnerCollection, "owner": b.Owner, "request": b.Request, "sealed": sealed, "now": b.Now.UnixMilli(),
		}).Column(&made)
	if err != nil {
		return nil, fmt.Errorf("write jobs: %w", err)
	}
	return made, nil
}

// Taken is the job for which a key is taken for a time that is not over, else 0.
func Taken(tx core.App, kind, key string, now time.Time) (job int64, err error) {
	if key == "" {
		return 0, errors.New("a key that is taken for a time must not be empty")
	}
	err = tx.NonconcurrentDB().NewQuery(`SELECT job FROM ` + Keys + ` WHERE kind = {:kind} AND key = {:key} AND until > {:now}`).
		Bind(dbx.Params{"kind": kind, "key": key, "now": now.UnixMilli()}).Row(&job)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("look for the key: %w", err)
	}
	return job, nil
}

// Reserve takes the key of a job for a time.
func Reserve(tx core.App, kind string, f Fresh, until time.Time) error {
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + Keys + ` (kind, key, job, until) VALUES ({:kind}, {:key}, {:job}, {:until})
		ON CONFLICT (kind, key) DO UPDATE SET job = excluded.job, until = excluded.until`).
		Bind(dbx.Params{"kind": kind, "key": f.Key, "job": f.ID, "until": until.UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("take the key: %w", err)
	}
	return nil
}

// HolderOf finds the job that has a key. The error is [ErrNotFound] if none has.
func HolderOf(tx core.App, kind, key string) (id int64, err error) {
	err = tx.NonconcurrentDB().NewQuery(`SELECT id FROM ` + Queue + ` WHERE kind = {:kind} AND unique_key = {:key} AND unique_key <> '' AND state <> 3`).
		Bind(dbx.Params{"kind": kind, "key": key}).Row(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("find job with the key: %w", err)
	}
	return id, nil
}
