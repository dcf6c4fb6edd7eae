package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/account/ownership"
	"github.com/satchelbase/satchel/extensions/internal/pace"
	"github.com/satchelbase/satchel/extensions/jobs"
)

const (
	// portionTime is how long one transaction holds the database's only writer, but for the record that it is at.
	portionTime = 5 * time.Millisecond

	// window is how many ids of a set are held at a time, batch how many of them are looked at together.
	window = 5000
	batch  = 200

	// deepest is how many records may hang below each other before PocketBase deletes what is below them in one
	// transaction. It bounds the memory.
	deepest = 100_000

	// mostFailures is how many records that cannot be deleted end the attempt.
	mostFailures = 100
)

// position is how far a deletion is.
type position struct {
	Erased int64    `json:"erased"`
	Files  []string `json:"files,omitempty"` // folders of records that are gone
}

// eraser deletes records from the leaves on, many in a row and few in a transaction. PocketBase deletes a record with all
// that hangs on it in one transaction, for which every other writer waits. Here that finds nothing left to do, but what
// was added a moment ago.
//
// Nothing is remembered about the way: what is left is found by the same queries, so an eraser that was stopped anywhere
// is replaced by a new one. A position is written in each transaction, for it holds the folders of files to delete, and
// proves that the run is this process's still.
type eraser struct {
	app    core.App
	run    *jobs.Job
	plan   *ownership.Plan
	logger *slog.Logger
	pos    position

	stack    []*level
	pending  map[key]struct{} // on the stack
	failed   map[key]error
	incoming map[string][]ownership.Reference
}

// key names a record; collection is an id.
type key struct{ collection, record string }

// level is the records of a collection that are to be deleted before those of the level below it.
type level struct {
	collection *core.Collection
	ids        []string
}

func newEraser(app core.App, run *jobs.Job, p *ownership.Plan, logger *slog.Logger) *eraser {
	return &eraser{
		app: app, run: run, plan: p, logger: logger,
		pending: map[key]struct{}{}, failed: map[key]error{}, incoming: map[string][]ownership.Reference{},
	}
}

// everything deletes what belongs to the account, and empties what else refers to it.
func (e *eraser) everything(ctx context.Context, account *core.Record) error {
	for _, s := range e.plan.FarFirst() {
		if err := e.set(ctx, s, account.Id); err != nil {
			return err
		}
	}
	e.pending[key{account.Collection().Id, account.Id}] = struct{}{} // it is deleted last, by others
	for {
		more, err := e.clear(ctx, account.Collection(), []string{account.Id})
		if err == nil {
			err = e.unwind(ctx)
		}
		if err != nil {
			return err
		}
		if !more {
			return e.verdict()
		}
	}
}

// verdict is an error if records could not be deleted.
func (e *eraser) verdict() error {
	for k, err := range e.failed {
		return fmt.Errorf("%d records could not be deleted, %s of collection %s among them: %w", len(e.failed), k.record, k.collection, err)
	}
	return nil
}

func (e *eraser) set(ctx context.Context, s *ownership.Set, account string) error {
	after := ""
	for {
		ids, err := s.IDs(e.app, account, after, window)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		e.push(s.Collection, ids)
		if err := e.unwind(ctx); err != nil {
			return err
		}
	}
}

// push puts records onto the stack that are not there, and have not failed. It reports whether there were any.
func (e *eraser) push(c *core.Collection, ids []string) bool {
	fresh := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		k := key{c.Id, id}
		_, waits := e.pending[k]
		return waits || e.failed[k] != nil
	})
	if len(fresh) == 0 || len(e.stack) >= deepest {
		return false
	}
	for _, id := range fresh {
		e.pending[key{c.Id, id}] = struct{}{}
	}
	e.stack = append(e.stack, &level{c, fresh})
	return true
}

// unwind deletes until the stack is empty.
func (e *eraser) unwind(ctx context.Context) error {
	for len(e.stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		top := e.stack[len(e.stack)-1]
		if len(top.ids) == 0 {
			e.stack = e.stack[:len(e.stack)-1]
			continue
		}
		some := top.ids[:min(batch, len(top.ids))]
		deeper, err := e.clear(ctx, top.collection, some)
		if err != nil {
			return err
		}
		if deeper {
			continue
		}
		err = e.portions(ctx, top.collection, some, func(ctx context.Context, tx core.App, id string) error {
			return e.remove(ctx, tx, top.collection, id)
		})
		if err != nil {
			return err
		}
		for _, id := range some {
			delete(e.pending, key{top.collection.Id, id})
		}
		top.ids = top.ids[len(some):]
	}
	return nil
}

// clear empties the relations to the records that do not delete, and pushes the first records onto the stack that must be
// deleted before them. It reports whether there were any. Records that refer to each other in a circle are left to
// PocketBase.
func (e *eraser) clear(ctx context.Context, c *core.Collection, targets []string) (deeper bool, err error) {
	refs, known := e.incoming[c.Id]
	if !known {
		if refs, err = e.plan.References(e.app, c); err != nil {
			return false, err
		}
		e.incoming[c.Id] = refs
	}
	for _, ref := range refs {
		after := ""
		for {
			ids, err := ref.IDs(e.app, targets, after, window)
			if err != nil {
				return false, err
			}
			if len(ids) == 0 {
				break
			}
			after = ids[len(ids)-1]
			if !ref.Erase || ref.Field.IsMultiple() {
				if ids, err = e.detach(ctx, ref, ids, targets); err != nil {
					return false, err
				}
			}
			if e.push(ref.Collection, ids) {
				return true, nil
			}
		}
	}
	return false, nil
}

// detach takes the targets out of a relation, and returns the records that are to be deleted because nothing else is in it.
func (e *eraser) detach(ctx context.Context, ref ownership.Reference, ids, targets []string) (orphans []string, err error) {
	err = e.portions(ctx, ref.Collection, ids, func(ctx context.Context, tx core.App, id string) error {
		k := key{ref.Collection.Id, id}
		if _, waits := e.pending[k]; waits { // it is going to be deleted itself
			return nil
		}
		record, err := tx.FindRecordById(ref.Collection, id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(record.GetStringSlice(ref.Field.Name), func(id string) bool { return slices.Contains(targets, id) })
		if len(left) == 0 && ref.Erase {
			orphans = append(orphans, id)
			return nil
		}
		record.Set(ref.Field.Name, left)
		// Not validated: the field may be required, and others may refer to what was deleted a moment ago.
		return tx.SaveNoValidateWithContext(ctx, record)
	})
	slices.Sort(orphans) // a portion that was repeated names some twice
	return slices.Compact(orphans), err
}

// remove deletes a record and remembers the folder of its files.
func (e *eraser) remove(ctx context.Context, tx core.App, c *core.Collection, id string) error {
	record, err := tx.FindRecordById(c, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := tx.DeleteWithContext(ctx, record); err != nil {
		return err
	}
	e.pos.Erased++
	if hasFiles(record) {
		e.pos.Files = append(e.pos.Files, record.BaseFilesPath())
	}
	return nil
}

func hasFiles(record *core.Record) bool {
	return slices.ContainsFunc(record.Collection().Fields, func(f core.Field) bool {
		return f.Type() == core.FieldTypeFile && len(record.GetStringSlice(f.GetName())) > 0
	})
}

// portions does something to each record, as many in a transaction as fit into its time. A record at which it fails is
// remembered and left.
func (e *eraser) portions(ctx context.Context, c *core.Collection, ids []string, do func(context.Context, core.App, string) error) error {
	for most := len(ids); len(ids) > 0; {
		n, refused, err := e.portion(ctx, ids[:min(most, len(ids))], do)
		switch {
		case err == nil:
			ids, most = ids[n:], len(ids)-n
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case !refused || outage(err):
			return err
		case n > 0: // do those before it without it
			most = n
			continue
		}
		e.failed[key{c.Id, ids[0]}] = err
		e.logger.Warn("a record of an account cannot be deleted", "collection", c.Name, "record", ids[0], "error", err)
		if len(e.failed) >= mostFailures {
			return e.verdict()
		}
		ids, most = ids[1:], len(ids)-1
	}
	return nil
}

// portion is one transaction. It returns how many records are done or, when one of them is what was refused, its index.
func (e *eraser) portion(ctx context.Context, ids []string, do func(context.Context, core.App, string) error) (n int, refused bool, err error) {
	var held time.Duration
	before := e.pos
	committed := false
	err = e.app.RunInTransaction(func(tx core.App) error {
		tx.TxInfo().OnComplete(func(err error) error { committed = err == nil; return nil })
		begun := time.Now()
		defer func() { held = time.Since(begun) }()
		for n = 0; n < len(ids) && (n == 0 || time.Since(begun) < portionTime); n++ {
			if err := do(ctx, tx, ids[n]); err != nil {
				refused = true
				return err
			}
		}
		return e.run.Checkpoint(tx, e.pos)
	})
	if !committed {
		e.pos = before
		if err == nil {
			err = errors.New("the transaction was not committed")
		}
		return n, refused, err
	}
	if err != nil { // a hook after success: nothing can be undone
		e.logger.Warn("a hook after the deletion of a record failed", "error", err)
	}
	e.run.Progress(e.pos.Erased, 0)
	if err := e.removeFiles(ctx); err != nil {
		return n, false, err
	}
	return n, false, pace.Rest(ctx, held)
}

// removeFiles deletes the folders of records that are gone. PocketBase does so as well, but forgets it when the process
// ends.
func (e *eraser) removeFiles(ctx context.Context) error {
	if len(e.pos.Files) == 0 {
		return nil
	}
	system, err := e.app.NewFilesystem()
	if err != nil {
		return fmt.Errorf("open storage: %w", err)
	}
	defer func() { _ = system.Close() }()
	system.SetContext(ctx)
	for _, folder := range e.pos.Files {
		prefix := strings.TrimRight(folder, "/") + "/"
		if len(system.DeletePrefix(prefix)) == 0 {
			continue
		}
		// PocketBase may have been at the same file.
		if left, err := system.List(prefix); err != nil || len(left) > 0 {
			return fmt.Errorf("delete files of a record: %w", errors.Join(system.DeletePrefix(prefix)...))
		}
	}
	e.pos.Files = nil // in the row with the next position
	return nil
}

// outage reports an error that is not about a record.
func outage(err error) bool {
	code, ok := errors.AsType[*extensions.Code](err)
	return errors.Is(err, jobs.ErrLost) || ok && code.Status == http.StatusServiceUnavailable
}
