// Package feed evaluates the change log for connections and feeds them what they may see.
//
// A [Hub] serves subscriptions that are up to date, in groups that get the same records; a [Conn] reads the log by itself
// for those that are behind. Rules are evaluated by package judge. What a connection speaks is its [Transport]'s business.
package feed

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

// Log is what the hub needs of the change log.
type Log interface {
	Horizon(ctx context.Context) (changes.Position, error)
	Since(ctx context.Context, from changes.Position, limit int) ([]changes.Change, changes.Position, error)
	Changed() <-chan struct{}
	Collection(ctx context.Context, idOrName string) (changes.Collection, error)
}

// Codes of subscriptions that end.
var (
	ErrDenied = &extensions.Code{Name: "live.denied", Status: http.StatusForbidden, Title: "The rules do not allow this"}
	ErrGone   = &extensions.Code{Name: "live.collection_unknown", Status: http.StatusNotFound, Title: "There is no such collection"}
)

// Config bounds what a connection may keep.
type Config struct {
	Queue    int // bytes of events that wait for one connection
	Remember int // records for each subscription whose leaving is noticed

	PingEvery time.Duration // how often a silent connection is tried
}

// Counters are for metrics.
type Counters struct {
	Deliveries, Resets, Lags, Dropped atomic.Uint64

	Subscriptions atomic.Int64
	Behind        atomic.Int64 // changes that the last reading of the log found
}

// Hub serves the connections. It is safe for concurrent use once it is bound to an application.
//
// One goroutine reads the change log, evaluates each stretch once for every group of subscriptions that get the same
// records, and puts the outcome into the queues of the connections. It waits for no client. A connection whose queue is
// full reads the log by itself, as one does that has just come back.
//
// The hub's lock is taken before that of a connection, and neither is held while the database is asked.
type Hub struct {
	Counters

	// Redefined is called when a collection was.
	Redefined func(collection string)

	cfg     Config
	app     core.App
	log     *slog.Logger
	changes Log

	deleted  judge.Graves
	before   judge.Graves // how records were that others depend on
	classes  judge.Classes
	rules    judge.Rules
	catching chan struct{} // bounds how many connections read the log at once

	mu     sync.RWMutex
	topics map[string]*topic
	uses   judge.Uses
	live   int              // subscriptions in topics
	at     changes.Position // what the hub has begun to send, or sent
	conns  map[*Conn]struct{}

	shifts  chan struct{} // wakes who compares
	kick    chan struct{} // wakes the loop when there is something to send for
	done    atomic.Int64  // everything up to here is in the queues
	epochOf atomic.Pointer[string]
}

// wokenAtOnce is how many connections get their turn to send before others do, requests that write among them: a thousand
// at once would keep those waiting for all.
const wokenAtOnce = 8

// gather is how long the hub waits for more once something has happened. The request that wrote it is answered meanwhile.
const gather = 2 * time.Millisecond

// catchingAtOnce is how many connections read the log by themselves at the same time.
const catchingAtOnce = 8

// New makes the hub.
func New(cfg Config, log Log) *Hub {
	return &Hub{
		cfg: cfg, changes: log, Redefined: func(string) {}, topics: map[string]*topic{}, conns: map[*Conn]struct{}{},
		shifts: make(chan struct{}, 1), kick: make(chan struct{}, 1), catching: make(chan struct{}, catchingAtOnce),
	}
}

// Bind lends the hub the application, whose deletes it watches.
func (h *Hub) Bind(app core.App, log *slog.Logger) {
	h.app, h.log = app, log
	app.OnRecordDelete().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelLive", Priority: outermost, Func: func(e *core.RecordEvent) error {
		if h.watched(e.Record.Collection().Id) {
			h.deleted.Put(e.Record)
		}
		h.keep(e.Record)
		return e.Next()
	}})
	app.OnRecordUpdate().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelLive", Priority: outermost, Func: func(e *core.RecordEvent) error {
		h.keep(e.Record)
		return e.Next()
	}})
	app.OnRecordAfterDeleteError().BindFunc(func(e *core.RecordErrorEvent) error {
		h.deleted.Drop(e.Record.Collection().Id, e.Record.Id)
		return e.Next()
	})
}

// outermost sees a record before other hooks can change it.
const outermost = -1 << 30

// Now is the position behind the last change. The hub knows of its epoch afterwards.
func (h *Hub) Now(ctx context.Context) (changes.Position, error) {
	now, err := h.changes.Horizon(ctx)
	if err == nil {
		h.Adopt(now)
	}
	return now, err
}

// Reach waits until what has happened is in the queues, for a moment at most.
func (h *Hub) Reach(ctx context.Context) {
	now, err := h.changes.Horizon(ctx)
	for tries := 0; err == nil && tries < 100; tries++ {
		h.mu.RLock()
		idle := h.live == 0
		h.mu.RUnlock()
		if idle || h.done.Load() >= now.Seq || !pause(ctx, 10*time.Millisecond) {
			return
		}
	}
}

// Captured reports ErrNotCaptured for collections whose changes are not recorded.
func (h *Hub) Captured(ctx context.Context, collection string) error {
	_, err := h.changes.Collection(ctx, collection)
	return err
}

// Enter registers a connection, and Exit takes it out with all of its subscriptions.
func (h *Hub) Enter(c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[c] = struct{}{}
}

// Exit is the end of a connection.
func (h *Hub) Exit(c *Conn) {
	for _, name := range c.Names() {
		c.Drop(name)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
}

func (h *Hub) epoch() string {
	if e := h.epochOf.Load(); e != nil {
		return *e
	}
	return ""
}

// reached reports whether a subscription that stands at a number has caught up: with the hub, or with the log while the
// hub serves nobody. The hub itself must not read what did not fit into a queue.
func (h *Hub) reached(ctx context.Context, at int64) (bool, error) {
	h.mu.RLock()
	idle, reached := h.live == 0, at >= h.at.Seq
	h.mu.RUnlock()
	if !idle {
		return reached, nil
	}
	now, err := h.changes.Horizon(ctx)
	return at >= now.Seq, err
}

// join makes subscriptions live that stand at a number, unless the hub has gone on.
func (h *Hub) join(c *Conn, set []*Sub, placed map[*Sub]placement, at int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live == 0 {
		h.at = changes.Position{Epoch: h.epoch(), Seq: at}
		h.done.Store(at)
	} else if at < h.at.Seq {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.ContainsFunc(slices.Collect(maps.Values(c.subs)), func(s *Sub) bool { return s.group != nil }) {
		c.sent = at
	}
	for _, s := range set {
		i := slices.Index(c.pending, s)
		if i < 0 || s.ended {
			continue
		}
		c.pending = slices.Delete(c.pending, i, i+1)
		t := h.topics[s.Collection]
		if t == nil {
			t = &topic{all: map[groupKey]*group{}, byRecord: map[string]map[groupKey]*group{}}
			h.topics[s.Collection] = t
		}
		s.group = t.add(s, placed[s])
		s.was, s.missed = s.group.key, judge.Shifts{}
		h.uses.Come(s.group.class)
		h.live++
	}
	select {
	case h.kick <- struct{}{}:
	default:
	}
	return true
}

// leave takes live subscriptions out of the hub; then is called for each with the connection's lock.
func (h *Hub) leave(set []*Sub, then func(*Sub)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range set {
		s.conn.mu.Lock()
		g := s.group
		s.group = nil
		if g != nil && then != nil && !s.ended {
			then(s)
			s.owe(g.class)
		}
		s.conn.mu.Unlock()
		t := h.topics[s.Collection]
		if g == nil || t == nil {
			continue
		}
		t.remove(s, g)
		h.uses.Go(g.class)
		h.live--
		if len(t.all) == 0 && len(t.byRecord) == 0 {
			delete(h.topics, s.Collection)
		}
	}
}

// watched reports whether anybody subscribes to a collection.
func (h *Hub) watched(collection string) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.topics[collection] != nil
}

// name is the name of a collection.
func (h *Hub) name(collection string) string {
	if c, err := h.app.FindCachedCollectionByNameOrId(collection); err == nil {
		return c.Name
	}
	return collection
}

// Run reads the log until ctx ends. While nobody subscribes it does nothing.
func (h *Hub) Run(ctx context.Context) {
	var comparing sync.WaitGroup
	comparing.Go(func() { h.compare(ctx) })
	defer comparing.Wait()
	for ctx.Err() == nil {
		h.mu.RLock()
		from, idle := h.at, h.live == 0
		h.mu.RUnlock()
		if idle {
			select {
			case <-h.kick:
			case <-ctx.Done():
			}
			continue
		}
		changed := h.changes.Changed()
		list, to, err := h.changes.Since(ctx, from, batch)
		if reset, ok := errors.AsType[*changes.ResetError](err); ok {
			h.resetAll(reset)
			continue
		}
		if err != nil {
			if ctx.Err() == nil {
				h.log.Warn("the change log cannot be read; it is tried again", "error", err)
			}
			pause(ctx, retryAfter)
			continue
		}
		if len(list) > 0 {
			h.send(ctx, list, from, to)
			continue
		}
		h.Behind.Store(0)
		select {
		case <-changed:
			pause(ctx, gather)
		case <-h.kick:
		case <-ctx.Done():
		}
	}
}

// send evaluates one stretch of the log and queues the outcome.
func (h *Hub) send(ctx context.Context, list []changes.Change, from, to changes.Position) {
	happenings := judge.Coalesce(list)
	h.mu.Lock()
	if h.at != from { // everybody had left, and others came
		h.mu.Unlock()
		return
	}
	h.at = to
	groups := map[string][]*group{}
	for id, what := range happenings {
		groups[id] = h.concerned(id, what)
	}
	h.mu.Unlock()
	h.Behind.Store(int64(len(list)))
	r := newRound(ctx, h)
	for id, what := range happenings {
		if len(groups[id]) > 0 {
			r.run(id, what, groups[id])
		}
	}
	woken := 0
	for c := range r.items {
		if r.failed[c] == nil {
			c.enqueue(r.sorted(c), from.Seq, to.Seq)
			if woken++; woken%wokenAtOnce == 0 {
				runtime.Gosched()
			}
		}
	}
	for c := range r.failed {
		c.mu.Lock()
		c.lag(from.Seq)
		c.mu.Unlock()
	}
	h.depend(happenings)
	h.done.Store(to.Seq)
	for _, k := range list {
		switch {
		case k.Action == changes.Create:
			h.deleted.Drop(k.Collection, k.Record)
		case k.Record == "":
			h.redefined(k)
		}
	}
}

// concerned are the groups that may be told of what happened in a collection. The lock is held.
func (h *Hub) concerned(id string, what []judge.Happened) []*group {
	t := h.topics[id]
	if t == nil {
		return nil
	}
	out := slices.AppendSeq(make([]*group, 0, len(t.all)), maps.Values(t.all))
	if len(t.byRecord) == 0 {
		return out
	}
	for _, w := range what {
		out = slices.AppendSeq(out, maps.Values(t.byRecord[w.Record]))
	}
	return out
}

// redefined follows a change of a collection: its rules, its fields, or all of it. Questions may read it, too.
func (h *Hub) redefined(k changes.Change) {
	h.classes.Clear()
	moved := h.rules.Moved(h.app, k.Collection, true)
	for _, c := range h.Conns() {
		var hit []*Sub
		c.mu.Lock()
		for _, s := range c.subs {
			if moved && s.Collection == k.Collection && s.group != nil && s.At < k.Seq {
				s.redefined = true // it may have begun with the new rules already
			}
			if s.Collection == k.Collection && k.Action != changes.Schema && s.group != nil && s.At < k.Seq {
				hit = append(hit, s)
			}
		}
		c.mu.Unlock()
		c.Suspend(func(s *Sub) bool { return s.Collection == k.Collection || s.group.class != nil }, true)
		if err := c.reset(hit, "collection", changes.Position{Epoch: h.epoch(), Seq: k.Seq}); err != nil {
			c.Fail(err)
		}
		c.poke()
	}
	h.Redefined(k.Collection)
}

// resetAll follows a log that cannot be continued: the data has gone back in time, or the hub was asleep for too long.
func (h *Hub) resetAll(reset *changes.ResetError) {
	h.mu.Lock()
	h.at = reset.Now
	h.epochOf.Store(&reset.Now.Epoch)
	h.done.Store(reset.Now.Seq)
	h.mu.Unlock()
	for _, c := range h.Conns() {
		c.mu.Lock()
		c.queue, c.bytes, c.sent = nil, 0, reset.Now.Seq
		c.mu.Unlock()
		c.Suspend(nil, false)
		c.mu.Lock()
		subs := slices.Collect(maps.Values(c.subs))
		c.mu.Unlock()
		if err := c.reset(subs, string(reset.Reason), reset.Now); err != nil {
			c.Fail(err)
		}
		c.poke()
	}
}

// Adopt takes the epoch of the log when nobody subscribes; otherwise the loop does.
func (h *Hub) Adopt(now changes.Position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live == 0 {
		h.at = now
		h.epochOf.Store(&now.Epoch)
		h.done.Store(now.Seq)
	}
}

// Conns are all connections.
func (h *Hub) Conns() []*Conn {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Keys(h.conns))
}
