// Package trigger does something when records change: it sends a push, asks for a job, or calls an operation. It follows
// the change log with a position of its own in the database, so that no writer waits for it and no change is missed,
// whoever made it and whatever died in between.
//
// For each change that a trigger is for, one job is asked for in the transaction that moves the position on, and the job
// does what the trigger says in a transaction that also remembers that it is done. So the effect, as far as it is in that
// transaction, happens once for each change: a push or a job that it asks for exists once.
//
// A trigger sees what happens from the start of the first server that has it. The record is what it is when the job runs, a
// moment after the change: it may have changed again, or be gone. The log knows which record changed, and not which of its
// fields.
//
// Failure modes: what fails is tried again for some hours and is then a dead job, and holds up neither the other changes nor
// the other triggers. When the data has gone back in time, or the log no longer has what follows the position, the triggers
// go on at the present, and the log says so.
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

	// Do does it: [Enqueue], [Call], [Send] or something else. All that must happen once goes through the transaction c.App,
	// which holds the only writer, so it calls nobody outside. An error rolls it back and is tried again.
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

	// attempts and the waits between them, of a second to an hour, make four to eight hours.
	attempts  = 20
	firstWait = time.Second

	// reader is the name of the position in the change log.
	reader = "push.triggers"
)

// Triggers is the feature. Without declared triggers it does nothing.
type Triggers struct {
	deps   Deps
	byName map[string]*Trigger
	begun  map[string]changes.Position // where each one began, by name
	err    error

	app  core.App
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}
}

var namePattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.:-]{0,99}$`)

// New returns the feature with the triggers.
func New(deps Deps, list []Trigger) *Triggers {
	t := &Triggers{deps: deps, byName: map[string]*Trigger{}}
	for _, one := range list {
		if t.byName[one.Name] != nil {
			t.err = errors.Join(t.err, fmt.Errorf("trigger %s: another one has this name", one.Name))
		}
		t.err = errors.Join(t.err, one.mistake())
		if one.On == nil {
			one.On = []Event{Created}
		}
		t.byName[one.Name] = &one
	}
	if len(list) > 0 {
		deps.Jobs.Add(jobs.Define(jobs.Spec[task]{Kind: kind, Queue: queue, Priority: 4, Attempts: attempts, FirstWait: firstWait, Work: t.work}))
	}
	return t
}

func (t *Trigger) mistake() error {
	switch {
	case !namePattern.MatchString(t.Name):
		return fmt.Errorf("trigger %q: the name must be up to 100 letters, digits and . _ : -, beginning with a letter", t.Name)
	case t.Collection == "" || t.Do == nil:
		return fmt.Errorf("trigger %s needs a Collection and a Do", t.Name)
	}
	for _, e := range t.On {
		if e != Created && e != Updated && e != Deleted {
			return fmt.Errorf("trigger %s: %q is none of created, updated and deleted", t.Name, e)
		}
	}
	return nil
}

// Bind tells it its application. Declarations with mistakes stop the program.
func (t *Triggers) Bind(h *extensions.Host) error {
	t.app, t.log = h.App, h.Logger
	return t.err
}

// Start begins to follow the changes.
func (t *Triggers) Start(ctx context.Context, _ *extensions.Host) error {
	// Before the server answers its first request, so that no change after that is missed.
	if err := t.begin(ctx); err != nil {
		return fmt.Errorf("begin to follow changes: %w", err)
	}
	if len(t.byName) == 0 {
		return nil
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
			if begun := t.begun[one.Name]; slices.Contains(one.On, event) && (begun.Epoch != epoch || c.Seq > begun.Seq) {
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
	err := job.Once(t.app, "done", func(tx core.App) error { return one.do(ctx, tx, in) })
	if err != nil {
		return fmt.Errorf("trigger %s: %w", one.Name, err)
	}
	return nil
}

func (t *Trigger) do(ctx context.Context, tx core.App, in task) error {
	c := &Change{App: tx, Ctx: ctx, Event: in.Event, ID: in.Record, Key: in.key()}
	record, err := tx.FindRecordById(t.Collection, in.Record)
	switch {
	case errors.Is(err, sql.ErrNoRows) && in.Event != Deleted:
		return nil // it is gone, and so is what there was to tell
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("find record: %w", err)
	case err == nil:
		c.Record = record
	}
	if t.If != "" {
		if c.Record == nil {
			return nil
		}
		ok, err := tx.CanAccessRecord(c.Record, &core.RequestInfo{Context: core.RequestInfoContextDefault}, &t.If)
		if err != nil {
			return jobs.Permanent(fmt.Errorf("judge the condition: %w", err))
		}
		if !ok {
			return nil
		}
	}
	if err := t.Do(c); !errors.Is(err, ErrNothing) {
		return err
	}
	return nil
}
