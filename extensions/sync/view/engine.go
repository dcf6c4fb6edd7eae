package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// keepRuns is how far back a client may go. RxDB falls back further than two when pages are lost.
	keepRuns = 8

	// maxPushed bounds the ids that a device pushed and that wait to be queued, per run and collection.
	maxPushed = 10_000

	// sizeOfDelta is how many changed rows are looked at one by one, at least, before the set is compared instead.
	sizeOfDelta = 2000
)

// epochOfRuns is when runs began to be numbered by seconds. A device that has lost its view gets a higher number than all
// that it had before, unless it made more than a run a second on average.
const epochOfRuns = 1735689600 // 2025-01-01

// faults break the engine in the ways that were found to break sync. They are for tests.
type faults struct {
	noPushed   bool // pushed ids are not queued again
	noRecheck  bool // they are forgotten with the view, although no cursor has come back yet
	lastOnly   bool // only the newest cursor is known
	noDoubt    bool // what was served from a cursor that was then not used is forgotten
	noMaybe    bool // and is no reason to send a removal
	noFlip     bool // a row that was served twice with different outcomes is left at that
	noDeps     bool // changes of other rows are no reason to look at the set
	tombstones bool // only deleted rows are removed
	noEpoch    bool // a view from before a restored backup is continued
	noServed   bool // a position that was never given out is believed
	noSchema   bool // changed fields are no reason to send rows again
	loseNonce  bool // a lost file is not noticed
	allGhosts  bool // pushed ids that do not exist are removed, although they may be on their way
}

// Engine makes pages. It is safe for concurrent use; one device is served at a time.
type Engine struct {
	store  Store
	now    func() time.Time
	faults faults
	verify func(c Collection, delta, wanted *Set) error // compares the two ways, in tests

	mu    sync.Mutex
	locks map[string]*lock
}

type lock struct {
	held  chan struct{}
	users int
}

// New makes an engine over a store.
func New(store Store) *Engine {
	return &Engine{store: store, now: time.Now, locks: map[string]*lock{}}
}

// Device is one device, locked for its holder until Close. It is not safe for concurrent use.
type Device struct {
	engine  *Engine
	key     string
	runs    []*run              // newest first
	last    int64               // the highest number of a run ever
	recheck map[string][]string // pushed, by collection, before a cursor of that collection came back
	known   map[string]bool     // collections of which one did
	against map[int64]int64     // the run that have of a stored run is coded against
	dirty   bool
	removed []int64
}

// Open waits for the device, which key names: whoever knows the key holds what the device holds.
func (e *Engine) Open(ctx context.Context, key string) (*Device, error) {
	e.mu.Lock()
	l := e.locks[key]
	if l == nil {
		l = &lock{held: make(chan struct{}, 1)}
		e.locks[key] = l
	}
	l.users++
	e.mu.Unlock()
	select {
	case l.held <- struct{}{}:
	case <-ctx.Done():
		e.leave(key, l)
		return nil, ctx.Err()
	}
	d := &Device{engine: e, key: key}
	stored, err := e.store.Load(ctx, key)
	if err == nil {
		if err = d.decode(stored); err != nil { // it is a cache
			*d = Device{engine: e, key: key, dirty: true}
			for id := range stored.Runs {
				d.removed = append(d.removed, id)
			}
			err = nil
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("load view: %w", err)
	}
	return d, nil
}

func (e *Engine) leave(key string, l *lock) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(e.locks, key)
	}
}

// Close lets others have the device.
func (d *Device) Close() {
	e := d.engine
	e.mu.Lock()
	l := e.locks[d.key]
	e.mu.Unlock()
	<-l.held
	e.leave(d.key, l)
}

// Mark notes that the device pushes these rows, whatever comes of it: the next run tells it how they are. It must be
// called before the push, so that a crash between the two does no harm.
func (d *Device) Mark(ctx context.Context, c Collection, ids ...string) error {
	return d.mark(ctx, c, ids)
}

// settledPrefix stands before the ids of [Device.Settled] where pushed ids are kept.
const settledPrefix = "\x00"

// Settled notes after the push which rows were judged: those that do not exist when the next run is made are removed. A
// row that was only marked may still be on its way then, and a client that keeps what it has not pushed among its rows
// would lose it. For other clients it may be called instead of Mark.
func (d *Device) Settled(ctx context.Context, c Collection, ids ...string) error {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = settledPrefix + id
	}
	return d.mark(ctx, c, list)
}

func (d *Device) mark(ctx context.Context, c Collection, ids []string) error {
	f := d.engine.faults
	if len(ids) == 0 || f.noPushed {
		return nil
	}
	if !d.known[c.Key] && !f.noRecheck {
		if d.recheck == nil {
			d.recheck = map[string][]string{}
		}
		d.recheck[c.Key] = union(d.recheck[c.Key], ids)
		if n := len(d.recheck[c.Key]); n > maxPushed {
			d.recheck[c.Key] = d.recheck[c.Key][n-maxPushed:] // the snapshot does without them, unless it is applied to rows
		}
		d.dirty = true
	}
	for _, r := range slices.Clone(d.runs) {
		p := r.part(c.Key)
		if p == nil {
			continue
		}
		if p.pushed = union(p.pushed, ids); len(p.pushed) > maxPushed {
			d.drop(r)
			continue
		}
		r.moved = true
	}
	return d.save(ctx)
}

func union(list, more []string) []string {
	known := make(map[string]struct{}, len(list)+len(more))
	for _, s := range list {
		known[s] = struct{}{}
	}
	for _, s := range more {
		if _, ok := known[s]; !ok {
			known[s] = struct{}{}
			list = append(list, s)
		}
	}
	return list
}

// MayHold are the rows of a collection that the device may hold, by their numbers.
func (d *Device) MayHold(c Collection) *Set { return d.maybe(c.Key) }

// Horizon is the number of the change that the device is at with the cursor, for callers that must know whether a row has
// changed since. ok is false for a cursor that cannot be continued, or not for this collection.
func (d *Device) Horizon(ctx context.Context, src Source, c Collection, cursor Cursor) (seq int64, ok bool, err error) {
	now, err := src.Now(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("read position: %w", err)
	}
	r := d.find(cursor)
	if r == nil || r.epoch != now.Epoch || r.stale(now) {
		return 0, false, nil
	}
	p := r.part(c.Key)
	if p == nil {
		return 0, false, nil
	}
	return p.h, true, nil
}

// Known reports whether the cursor can be continued: otherwise the next page begins anew.
func (d *Device) Known(ctx context.Context, src Source, cursor Cursor) (bool, error) {
	now, err := src.Now(ctx)
	if err != nil {
		return false, fmt.Errorf("read position: %w", err)
	}
	r := d.find(cursor)
	return r != nil && r.epoch == now.Epoch && !r.stale(now), nil
}

// Held tells what the device has at the cursor: under which state of its fields each collection was sent, by its key, empty
// for one whose rows are of several states, and whether all that the run had queued was served. It is nil for a cursor that
// cannot be continued.
func (d *Device) Held(ctx context.Context, src Source, cursor Cursor) (schemas map[string]string, end bool, err error) {
	known, err := d.Known(ctx, src, cursor)
	if err != nil || !known {
		return nil, false, err
	}
	r := d.find(cursor)
	schemas = make(map[string]string, len(r.parts))
	for _, p := range r.parts {
		if !slices.Contains(r.dropped, p.Key) {
			schemas[p.Key] = p.Schema
		}
	}
	return schemas, cursor.At >= r.length(), nil
}

// Forget drops what is known of the device.
func (d *Device) Forget(ctx context.Context) error {
	for _, r := range slices.Clone(d.runs) {
		d.drop(r)
	}
	d.known, d.dirty = nil, true
	return d.save(ctx)
}

// find is the run of a cursor that was given out.
func (d *Device) find(c Cursor) *run {
	f := d.engine.faults
	if c.Run == 0 || c.Nonce != d.engine.store.Nonce() && !f.loseNonce {
		return nil
	}
	i := slices.IndexFunc(d.runs, func(r *run) bool { return r.id == c.Run })
	if i < 0 || f.lastOnly && (i > 0 || c.At < d.runs[i].served) {
		return nil
	}
	r := d.runs[i]
	if r.epoch != c.Epoch && !f.noEpoch || c.At > r.served && !f.noServed || c.At > r.length() {
		return nil
	}
	return r
}

func (d *Device) drop(r *run) {
	d.runs = slices.DeleteFunc(d.runs, func(x *run) bool { return x == r })
	if !r.fresh {
		d.removed = append(d.removed, r.id)
	}
	r.fresh = true // never to be stored
}

// maybe are the rows that the device may hold according to anything that is known of it. It decides on removals, never on
// leaving something out.
func (d *Device) maybe(key string) *Set {
	out := &Set{}
	for _, r := range d.runs {
		if p := r.part(key); p != nil {
			for _, s := range []*Set{p.have, p.up, p.rm, p.doubt} {
				out.Or(s)
			}
		}
	}
	return out
}

// add makes a run the newest one.
func (d *Device) add(r *run, base *run) {
	r.id = max(d.last+1, d.engine.now().Unix()-epochOfRuns)
	d.last, d.dirty, r.fresh = r.id, true, true
	r.base = base.number()
	d.runs = append([]*run{r}, d.runs...)
	for len(d.runs) > keepRuns {
		d.evict()
	}
}

// evict drops the run that the client is least likely to come back to: one that has never come back and was made twice
// more from the same end, because a request was repeated, otherwise the oldest.
func (d *Device) evict() {
	victim := d.runs[len(d.runs)-1]
	for i, x := range slices.Backward(d.runs) {
		again := 0
		for _, y := range d.runs[:i] {
			if y.base == x.base {
				again++
			}
		}
		if x.base != 0 && !x.used && again > 1 {
			victim = x
			break
		}
	}
	if i := slices.IndexFunc(d.runs, func(x *run) bool { return x.id == victim.base }); i >= 0 {
		base := d.runs[i]
		for _, p := range victim.parts {
			if own := base.part(p.Key); own != nil {
				own.doubt.Or(p.sent())
				own.doubt.Or(p.doubt)
				own.late.Or(p.sent())
				own.late.Or(p.late)
			}
		}
		base.moved = true
	}
	d.drop(victim)
}

// errCorrupt reports a blob that cannot be read.
var errCorrupt = errors.New("the stored view is corrupt")
