package runs

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// maxInput bounds what a run is given and what it remembers, in bytes of JSON: a run names its work, it does not hold it.
const maxInput = 256 << 10

// Owner is the account on whose behalf a run works. Collection is an id. The zero value is the program.
type Owner struct{ Collection, ID string }

// OwnerOf is the account as an owner; nil is the program.
func OwnerOf(account *core.Record) Owner {
	if account == nil {
		return Owner{}
	}
	return Owner{Collection: account.Collection().Id, ID: account.Id}
}

// Options say when a run may start. The zero value is at once.
type Options struct {
	At time.Time

	// Unique is a key that no two runs of the kind have that have not ended.
	Unique string
}

// Enqueue asks for a run, in the transaction of tx if it is one: the run exists if that is committed, and starts after it.
// When there is a run with the unique key, its id is returned and nothing is changed.
func (r *Runs) Enqueue(tx core.App, kind string, owner Owner, input any, o Options) (id string, err error) {
	if _, known := r.kinds[kind]; !known {
		return "", fmt.Errorf("enqueue run: the kind %q is not registered", kind)
	}
	raw, err := marshal(input)
	if err != nil {
		return "", fmt.Errorf("enqueue run %s: %w", kind, err)
	}
	now := r.now()
	if o.At.Before(now) {
		o.At = now
	}
	id = newID()
	err = tx.RunInTransaction(func(tx core.App) error {
		res, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + table + ` (id, kind, unique_key, owner_collection, owner, state, due_at, input, created_at)
			VALUES ({:id}, {:kind}, {:key}, {:collection}, {:owner}, 'queued', {:due}, {:input}, {:now}) ON CONFLICT DO NOTHING`).
			Bind(dbx.Params{
				"id": id, "kind": kind, "key": o.Unique, "collection": owner.Collection, "owner": owner.ID, "due": o.At.UnixMilli(),
				"input": raw, "now": now.UnixMilli(),
			}).Execute()
		if err != nil {
			return fmt.Errorf("enqueue run %s: %w", kind, err)
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			pb.AfterCommit(tx, r.rouse)
			return err
		}
		err = tx.NonconcurrentDB().NewQuery(`SELECT id FROM ` + table + ` WHERE kind = {:kind} AND unique_key = {:key} AND state IN ('queued', 'running')`).
			Bind(dbx.Params{"kind": kind, "key": o.Unique}).Row(&id)
		if err != nil {
			return fmt.Errorf("find run %s with the same key: %w", kind, err)
		}
		return nil
	})
	return id, err
}

func (r *Runs) rouse() {
	select {
	case r.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Cancel ends a run that nobody works on, and reports whether it was one. A run that has begun and waits for its next
// attempt is cancelled, too.
func (r *Runs) Cancel(tx core.App, id string) (bool, error) {
	res, err := tx.NonconcurrentDB().Update(table, dbx.Params{
		"state": Cancelled, "finished_at": r.now().UnixMilli(), "unique_key": "", "input": "", "position": "",
	}, dbx.HashExp{"id": id, "state": Queued}).Execute()
	if err != nil {
		return false, fmt.Errorf("cancel run: %w", err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// Get returns where a run stands. The error is [ErrNotFound] if there is none.
func (r *Runs) Get(app core.App, id string) (Status, error) {
	found, err := find(app, id)
	if err != nil {
		return Status{}, err
	}
	return found.status(), nil
}

// Forget removes the runs of an owner that nobody works on, and what names the owner in the others.
func (r *Runs) Forget(tx core.App, owner Owner) error {
	_, err := tx.NonconcurrentDB().Delete(table, dbx.And(dbx.HashExp{"owner_collection": owner.Collection, "owner": owner.ID},
		dbx.Not(dbx.HashExp{"state": Running}))).Execute()
	if err != nil {
		return fmt.Errorf("forget runs: %w", err)
	}
	_, err = tx.NonconcurrentDB().Update(table, dbx.Params{"owner_collection": "", "owner": ""},
		dbx.HashExp{"owner_collection": owner.Collection, "owner": owner.ID}).Execute()
	if err != nil {
		return fmt.Errorf("forget owner of runs: %w", err)
	}
	return nil
}

func marshal(value any) (string, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("marshal: %w", err)
	}
	if len(raw) > maxInput {
		return "", fmt.Errorf("%d bytes are more than a run may hold", len(raw))
	}
	return string(raw), nil
}
