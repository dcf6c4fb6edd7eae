package live

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

const (
	// recheckEvery is how often the records that clients hold are looked at when something changes that a rule depends on.
	recheckEvery = 500 * time.Millisecond

	// recheckPairs is how many viewers and records one question is about; a pair takes some microseconds.
	recheckPairs = 2000
)

// Log is what the hub needs of the change log.
type Log interface {
	Horizon(ctx context.Context) (changes.Position, error)
	Since(ctx context.Context, from changes.Position, limit int) ([]changes.Change, changes.Position, error)
	Changed() <-chan struct{}
	Collection(ctx context.Context, idOrName string) (changes.Collection, error)
}

// Hub is the feature. It is safe for concurrent use once it is bound to an application.
//
// One goroutine reads the change log, evaluates each stretch once for every group of subscriptions that get the same
// records, and puts the outcome into the queues of the connections. It waits for no client. A connection whose queue is
// full reads the log by itself, as one does that has just come back.
//
// The hub's lock is taken before that of a connection, and neither is held while the database is asked.
type Hub struct {
	cfg      Config
	deps     Deps
	channels []Channel
	rooms    rooms

	app     core.App
	log     *slog.Logger
	changes Log
	router  http.Handler // what this extension's handler wraps

	deleted  graves
	classes  classes
	catching chan struct{} // bounds how many connections read the log at once

	mu        sync.RWMutex
	topics    map[string]*topic
	live      int              // subscriptions in topics
	at        changes.Position // what the hub has begun to send, or sent
	conns     map[*conn]struct{}
	users     map[string]map[*conn]struct{} // by account, or by address for guests
	clients   map[string]*client            // of the stock contract
	draining  bool
	connected sync.WaitGroup

	kick    chan struct{} // wakes the loop when there is something to send for
	done    atomic.Int64  // everything up to here is in the queues
	epochOf atomic.Pointer[string]
	touched accounts

	// Counters for the metrics.
	deliveries, resets, lags, dropped atomic.Uint64
	subscriptions                     atomic.Int64
	behind                            atomic.Int64 // changes that the hub has before it

	stop    context.CancelFunc
	stopped sync.WaitGroup
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
func (h *Hub) join(c *conn, set []*sub, placed map[*sub]placement, at int64) bool {
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
	if !slices.ContainsFunc(slices.Collect(maps.Values(c.subs)), func(s *sub) bool { return s.group != nil }) {
		c.sent = at
	}
	for _, s := range set {
		i := slices.Index(c.pending, s)
		if i < 0 || s.ended {
			continue
		}
		c.pending = slices.Delete(c.pending, i, i+1)
		t := h.topics[s.collection]
		if t == nil {
			t = &topic{all: map[groupKey]*group{}, byRecord: map[string]map[groupKey]*group{}}
			h.topics[s.collection] = t
		}
		s.group = t.add(s, placed[s])
		h.live++
	}
	select {
	case h.kick <- struct{}{}:
	default:
	}
	return true
}

// leave takes live subscriptions out of the hub; then is called for each with the connection's lock.
func (h *Hub) leave(set []*sub, then func(*sub)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range set {
		s.conn.mu.Lock()
		g := s.group
		s.group = nil
		if g != nil && then != nil && !s.ended {
			then(s)
		}
		s.conn.mu.Unlock()
		t := h.topics[s.collection]
		if g == nil || t == nil {
			continue
		}
		t.remove(s, g)
		h.live--
		if len(t.all) == 0 && len(t.byRecord) == 0 {
			delete(h.topics, s.collection)
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

// run reads the log until ctx ends. While nobody subscribes it does nothing.
func (h *Hub) run(ctx context.Context) {
	timer := time.NewTimer(recheckEvery)
	defer timer.Stop()
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
		h.behind.Store(0)
		wait := recheckEvery
		if h.recheck(ctx) {
			wait = recheckEvery / 10
		}
		timer.Reset(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-h.kick:
		case <-ctx.Done():
		}
	}
}

// send evaluates one stretch of the log and queues the outcome.
func (h *Hub) send(ctx context.Context, list []changes.Change, from, to changes.Position) {
	happenings := coalesce(list)
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
	h.behind.Store(int64(len(list)))
	r := newRound(ctx, h)
	for id, what := range happenings {
		if len(groups[id]) > 0 {
			r.run(id, what, groups[id])
		}
	}
	for c := range r.items {
		if r.failed[c] == nil {
			c.enqueue(r.sorted(c), from.Seq, to.Seq)
		}
	}
	for c := range r.failed {
		c.mu.Lock()
		c.lag(from.Seq)
		c.mu.Unlock()
	}
	h.done.Store(to.Seq)
	h.depend(happenings)
	for _, k := range list {
		switch {
		case k.Action == changes.Create:
			h.deleted.drop(k.Collection, k.Record)
		case k.Record == "":
			h.redefined(k)
		}
	}
}

// concerned are the groups that may be told of what happened in a collection. The lock is held.
func (h *Hub) concerned(id string, what []happened) []*group {
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
	h.classes.clear()
	for _, c := range h.all() {
		var hit []*sub
		c.mu.Lock()
		for _, s := range c.subs {
			if s.collection == k.Collection && k.Action != changes.Schema && s.group != nil && s.at < k.Seq {
				hit = append(hit, s)
			}
		}
		c.mu.Unlock()
		c.suspend(func(s *sub) bool { return s.collection == k.Collection || s.group.class != nil }, true)
		if err := c.reset(hit, "collection", changes.Position{Epoch: h.epoch(), Seq: k.Seq}); err != nil {
			c.cancel(err)
		}
		c.poke()
	}
	h.touched.collection(k.Collection)
}

// resetAll follows a log that cannot be continued: the data has gone back in time, or the hub was asleep for too long.
func (h *Hub) resetAll(reset *changes.ResetError) {
	h.mu.Lock()
	h.at = reset.Now
	h.epochOf.Store(&reset.Now.Epoch)
	h.done.Store(reset.Now.Seq)
	h.mu.Unlock()
	for _, c := range h.all() {
		c.mu.Lock()
		c.queue, c.bytes, c.sent = nil, 0, reset.Now.Seq
		c.mu.Unlock()
		c.suspend(nil, false)
		c.mu.Lock()
		subs := slices.Collect(maps.Values(c.subs))
		c.mu.Unlock()
		if err := c.reset(subs, string(reset.Reason), reset.Now); err != nil {
			c.cancel(err)
		}
		c.poke()
	}
}

// adopt takes the epoch of the log when nobody subscribes; otherwise the loop does.
func (h *Hub) adopt(now changes.Position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live == 0 {
		h.at = now
		h.epochOf.Store(&now.Epoch)
		h.done.Store(now.Seq)
	}
}

func (h *Hub) all() []*conn {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Keys(h.conns))
}

// depend notes which classes must look again at what clients hold, because something changed that their rules read.
func (h *Hub) depend(what map[string][]happened) {
	h.classes.mu.Lock()
	defer h.classes.mu.Unlock()
	for _, k := range h.classes.kept {
		for _, id := range k.watches {
			if len(what[id]) > 0 {
				k.dirty = true
			}
		}
	}
}

// recheck looks at what clients hold under the rules of one class, and reports whether there is more to do.
func (h *Hub) recheck(ctx context.Context) bool {
	now := time.Now()
	var due *class
	more := false
	h.classes.mu.Lock()
	for _, k := range h.classes.kept {
		if !k.dirty {
			continue
		}
		if due == nil && now.Sub(k.checked) >= recheckEvery {
			due = k
			continue
		}
		more = true
	}
	h.classes.mu.Unlock()
	if due == nil {
		return more
	}
	due.dirty, due.checked = false, now
	if err := h.recheckClass(ctx, due); err != nil {
		h.log.Warn("what clients hold cannot be checked; it is tried again", "error", err)
		due.dirty = true
	}
	return true
}

func (h *Hub) recheckClass(ctx context.Context, k *class) error {
	type holder struct {
		sub *sub
		id  string
	}
	var holders []holder
	var pairs []judge.Pair
	h.mu.RLock()
	t := h.topics[k.key.collection]
	if t != nil {
		for _, g := range h.allGroups(t) {
			if g.class != k {
				continue
			}
			for _, v := range *g.views.Load() {
				for _, s := range *v.subs.Load() {
					for _, id := range s.held.list() {
						holders, pairs = append(holders, holder{s, id}), append(pairs, judge.Pair{g.viewer, id})
					}
				}
			}
		}
	}
	at := h.at.Seq
	h.mu.RUnlock()
	for start := 0; start < len(pairs); start += recheckPairs {
		end := min(start+recheckPairs, len(pairs))
		seen, err := k.question.Ask(ctx, pairs[start:end])
		if err != nil {
			return err
		}
		left := map[*conn][]item{}
		for i, ok := range seen {
			if w := holders[start+i]; !ok {
				event := frame.Event{Collection: h.name(w.sub.collection), ID: w.id, Version: at}
				left[w.sub.conn] = append(left[w.sub.conn], item{sub: w.sub, body: &body{Event: event}})
			}
		}
		for c, items := range left {
			c.enqueueLeaves(items, at)
		}
	}
	return nil
}

func (h *Hub) allGroups(t *topic) []*group {
	out := slices.Collect(maps.Values(t.all))
	for _, groups := range t.byRecord {
		out = slices.AppendSeq(out, maps.Values(groups))
	}
	return out
}
