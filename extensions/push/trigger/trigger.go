// Package trigger does something when records change: it sends a push, asks for a job, or calls an operation. It follows
// the change log with a position of its own in the database, so that no writer waits for it and no change is missed,
// whoever made it and whatever died in between.
//
// For each change that a trigger is for, one job is asked for in the transaction that moves the position on, and the job
// does what the trigger says in a transaction that also remembers that it is done. So the effect, as far as it is in that
// transaction, happens once for each change: a push or a job that it asks for exists once.
//
// The record is what it is when the job runs, a moment after the change: it may have changed again, or be gone.
package trigger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/jobs"
)

// Event is a kind of change.
type Event string

// The events.
const (
	Created Event = "created"
	Updated Event = "updated"
	Deleted Event = "deleted"
)

// Trigger is what to do after a change.
type Trigger struct {
	// Name is known to nobody else, and stays the same: what has been done is known by it.
	Name string

	Collection string
	On         []Event // nil is Created

	// If is a condition in PocketBase's rule language that the record must fulfil when the job runs. Records that are gone
	// do not fulfil one.
	If string

	// Do does it. All that must happen once goes through the transaction c.App. An error is tried again, and rolls it back.
	Do func(c *Change) error
}

// Change is one that happened.
type Change struct {
	App    core.App        // the transaction
	Ctx    context.Context //nolint:containedctx // of the attempt that gets the change
	Event  Event
	ID     string       // of the record
	Record *core.Record // as it is now; nil if it is gone

	// Key names this change for this trigger, for whatever takes idempotency keys.
	Key string
}

// Deps is what the package needs of others.
type Deps struct {
	Jobs *jobs.Jobs
	Log  *changes.Log

	// Leader reports whether this process follows the changes. Nil is yes.
	Leader func() bool
}

const (
	kind  = "push.trigger"
	queue = "triggers"

	// reader is the name of the position in the change log.
	reader = "push.triggers"
)

// Triggers is the feature. Without declared triggers it does nothing.
type Triggers struct {
	deps   Deps
	byName map[string]*Trigger
	err    error

	app  core.App
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}
}

var namePattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,99}$`)

// New returns the feature with the triggers.
func New(deps Deps, list []Trigger) *Triggers {
	t := &Triggers{deps: deps, byName: map[string]*Trigger{}}
	for _, one := range list {
		switch {
		case !namePattern.MatchString(one.Name) || t.byName[one.Name] != nil:
			t.err = errors.Join(t.err, fmt.Errorf("trigger %q: the name must be letters, digits and . _ -, and its own", one.Name))
		case one.Collection == "" || one.Do == nil:
			t.err = errors.Join(t.err, fmt.Errorf("trigger %s needs a Collection and a Do", one.Name))
		}
		if one.On == nil {
			one.On = []Event{Created}
		}
		t.byName[one.Name] = &one
	}
	if len(list) > 0 {
		deps.Jobs.Add(jobs.Define(jobs.Spec[task]{Kind: kind, Queue: queue, Priority: 4, Attempts: 20, FirstWait: time.Second, Work: t.work}))
	}
	return t
}

// Bind tells it its application. Declarations with mistakes stop the program.
func (t *Triggers) Bind(h *extensions.Host) error {
	t.app, t.log = h.App, h.Logger
	return t.err
}

// Start begins to follow the changes.
func (t *Triggers) Start(ctx context.Context, _ *extensions.Host) error {
	if len(t.byName) == 0 {
		return nil
	}
	// The position exists before the server answers its first request, so that no change after that is missed.
	if _, err := t.deps.Log.Reader(reader).Position(ctx); err != nil {
		return fmt.Errorf("begin to follow changes: %w", err)
	}
	ctx, t.stop = context.WithCancel(context.Background())
	t.done = make(chan struct{})
	go func() {
		defer close(t.done)
		(&follower{Triggers: t, reader: t.deps.Log.Reader(reader)}).follow(ctx)
	}()
	return nil
}

// Stop ends it.
func (t *Triggers) Stop(ctx context.Context) error {
	if t.stop == nil {
		return nil
	}
	t.stop()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// task is what a job is given.
type task struct {
	Trigger string `json:"trigger"`
	Epoch   string `json:"epoch"`
	Seq     int64  `json:"seq"`
	Event   Event  `json:"event"`
	Record  string `json:"record"`
}

// key is another one for each change and trigger, also when a restored database gives numbers out again.
func (t task) key() string {
	return "trigger/" + t.Trigger + "/" + t.Epoch + "/" + strconv.FormatInt(t.Seq, 36)
}

// tasks finds who is interested in the changes.
func (t *Triggers) tasks(epoch string, list []changes.Change) (out []task, err error) {
	byCollection := map[string][]*Trigger{}
	for _, one := range t.byName {
		c, err := t.app.FindCachedCollectionByNameOrId(one.Collection)
		if errors.Is(err, sql.ErrNoRows) {
			continue // such as a demo that is not loaded
		}
		if err != nil {
			return nil, fmt.Errorf("find collection of trigger %s: %w", one.Name, err)
		}
		byCollection[c.Id] = append(byCollection[c.Id], one)
	}
	for _, c := range list {
		event, ok := map[changes.Action]Event{changes.Create: Created, changes.Update: Updated, changes.Delete: Deleted}[c.Action]
		if !ok || c.Record == "" {
			continue
		}
		for _, one := range byCollection[c.Collection] {
			if slices.Contains(one.On, event) {
				out = append(out, task{one.Name, epoch, c.Seq, event, c.Record})
			}
		}
	}
	return out, nil
}

// work does what a trigger says, once.
func (t *Triggers) work(ctx context.Context, job *jobs.Job, in task) error {
	one := t.byName[in.Trigger]
	if one == nil {
		return nil // it was removed from the program
	}
	return job.Once(t.app, "done", func(tx core.App) error {
		c := &Change{App: tx, Ctx: ctx, Event: in.Event, ID: in.Record, Key: in.key()}
		record, err := tx.FindRecordById(one.Collection, in.Record)
		switch {
		case errors.Is(err, sql.ErrNoRows) && in.Event != Deleted:
			return nil // it is gone, and so is what there was to tell
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("find record: %w", err)
		case err == nil:
			c.Record = record
		}
		if one.If != "" {
			if c.Record == nil {
				return nil
			}
			ok, err := tx.CanAccessRecord(c.Record, &core.RequestInfo{Context: core.RequestInfoContextDefault}, &one.If)
			if err != nil {
				return jobs.Permanent(fmt.Errorf("judge the condition of trigger %s: %w", one.Name, err))
			}
			if !ok {
				return nil
			}
		}
		return one.Do(c)
	})
}
