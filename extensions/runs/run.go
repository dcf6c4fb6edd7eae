package runs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// ErrLost says that a run belongs to another process now, or has been removed. What the transaction wanted to do must not
// happen.
var ErrLost = errors.New("the run belongs to another process")

// Run is one attempt. Its methods may be called from one goroutine at a time.
type Run struct {
	ID      string
	Kind    string
	Owner   Owner
	Attempt int // from 1

	runs     *Runs
	input    string
	position string
	result   string
	lose     context.CancelCauseFunc

	done, total atomic.Int64
}

// Input reads what the run was asked for with.
func (r *Run) Input(into any) error {
	if err := json.Unmarshal([]byte(r.input), into); err != nil {
		return fmt.Errorf("read input of run %s: %w", r.Kind, err)
	}
	return nil
}

// State reads the position of the last checkpoint, also that of an earlier attempt. Without one it leaves into alone.
func (r *Run) State(into any) error {
	if r.position == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(r.position), into); err != nil {
		return fmt.Errorf("read position of run %s: %w", r.Kind, err)
	}
	return nil
}

// Checkpoint remembers where to go on from, in the transaction of tx if it is one. It is [ErrLost] when the run belongs to
// this process no longer, so that an effect in the same transaction happens once, whatever ends the process.
func (r *Run) Checkpoint(tx core.App, position any) error {
	raw, err := marshal(position)
	if err != nil {
		return fmt.Errorf("checkpoint run %s: %w", r.Kind, err)
	}
	if err := r.write(tx, dbx.Params{"position": raw}); err != nil {
		return fmt.Errorf("checkpoint run %s: %w", r.Kind, err)
	}
	r.position = raw
	return nil
}

// Progress says how much is done, for the owner to see. A total of 0 is not known. It costs nothing: what is said is
// written every few seconds.
func (r *Run) Progress(done, total int64) {
	r.done.Store(done)
	r.total.Store(total)
}

// SetResult is what the owner gets to see when the run has succeeded.
func (r *Run) SetResult(value any) error {
	raw, err := marshal(value)
	if err != nil {
		return fmt.Errorf("set result of run %s: %w", r.Kind, err)
	}
	r.result = raw
	return nil
}

// beat says that the run is worked on.
func (r *Run) beat() error { return r.write(r.runs.app, dbx.Params{}) }

// write changes the row if the run is still this process's.
func (r *Run) write(tx core.App, change dbx.Params) error {
	change["beat_at"], change["done"], change["total"] = r.runs.now().UnixMilli(), r.done.Load(), r.total.Load()
	res, err := tx.NonconcurrentDB().Update(table, change, dbx.HashExp{"id": r.ID, "epoch": r.runs.epoch, "state": Running}).Execute()
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		r.lose(ErrLost)
		return ErrLost
	}
	return err
}

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that another attempt would meet, too: the run has failed.
func Permanent(err error) error { return permanent{err} }
