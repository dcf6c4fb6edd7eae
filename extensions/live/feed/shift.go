package feed

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

const (
	// compareEvery is how often it is compared, for one class, what viewers saw before and after other records changed. What
	// happens in between is compared together.
	compareEvery = 500 * time.Millisecond

	// compareWithin bounds one comparison. Beyond it, all are told to list anew.
	compareWithin = 2 * time.Second

	// comparePause is how many times its own duration a comparison waits for the next one of its class. One takes at most a
	// twentieth of one core, all together a half.
	comparePause = 20

	// recheckPairs is how many viewers and records one question is about; a pair takes some microseconds.
	recheckPairs = 2000
)

// keep remembers how a record was that others depend on. It runs in the writer.
func (h *Hub) keep(r *core.Record) {
	if h.uses.Needs(r.Collection().Id) {
		h.before.Keep(r)
	}
}

// depend notes for which classes something has changed that their rules read.
func (h *Hub) depend(what map[string][]judge.Happened) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, list := range what {
		if !h.uses.Needs(id) {
			continue
		}
		images := make([]*core.Record, len(list))
		for i, k := range list {
			images[i] = h.before.Take(id, k.Record)
		}
		for k := range h.uses.All() {
			if slices.Contains(k.Watches, id) {
				for i := range list {
					k.Shift(list[i].Change, images[i])
				}
			}
		}
	}
	select {
	case h.shifts <- struct{}{}:
	default:
	}
}

// compare tells viewers what other records have changed for them, until ctx ends.
func (h *Hub) compare(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.shifts:
		}
		for more := true; more; {
			start := time.Now()
			more = h.compareDue(ctx)
			if !pause(ctx, max(compareEvery, time.Since(start))) {
				return
			}
		}
	}
}

// compareDue looks at the classes whose turn it is, and reports whether there will be more to do.
func (h *Hub) compareDue(ctx context.Context) bool {
	now := time.Now()
	more := false
	due := map[*judge.Class][]*judge.Shifts{}
	h.mu.Lock()
	for k := range h.uses.All() {
		switch {
		case len(k.Shifted) == 0:
		case now.Before(k.Next):
			more = true
		default:
			due[k] = k.Shifted
			k.Comparing, k.Shifted = k.Shifted, nil
		}
	}
	h.mu.Unlock()
	for k, list := range due {
		var took time.Duration
		for _, s := range list {
			spent, err := h.compareClass(ctx, k, s)
			if took += spent; ctx.Err() != nil {
				return false
			}
			if err != nil {
				h.log.Warn("what other records change for clients cannot be told; they are told to list anew", "collection", h.name(k.Key.Collection), "error", err)
			}
		}
		h.mu.Lock()
		k.Comparing, k.Next = nil, now.Add(max(compareEvery, comparePause*took))
		h.mu.Unlock()
	}
	return more || len(due) > 0
}

// audience is the live subscriptions of a class, by viewer.
func (h *Hub) audience(k *judge.Class) map[string][]*Sub {
	out := map[string][]*Sub{}
	h.mu.RLock()
	defer h.mu.RUnlock()
	t := h.topics[k.Key.Collection]
	if t == nil {
		return nil
	}
	for _, groups := range append(slices.Collect(maps.Values(t.byRecord)), t.all) {
		for _, g := range groups {
			if g.class != k {
				continue
			}
			for _, v := range *g.views.Load() {
				out[g.viewer] = append(out[g.viewer], *v.subs.Load()...)
			}
		}
	}
	return out
}

// compareClass returns how long the comparison took. Whatever cannot be told in time is told to all as a reset.
func (h *Hub) compareClass(ctx context.Context, k *judge.Class, s *judge.Shifts) (time.Duration, error) {
	audience := h.audience(k)
	viewers := slices.Collect(maps.Keys(audience))
	start := time.Now()
	limit, cancel := context.WithTimeout(ctx, compareWithin)
	defer cancel()
	turns, err := k.Turned(limit, h.app, s, viewers)
	took := time.Since(start)
	for i, viewer := range viewers {
		turn := judge.Turn{Gained: true, Many: true}
		if err == nil {
			turn = turns[i]
		}
		if !turn.Gained && !turn.Many && len(turn.Lost) == 0 && !s.Blind {
			delete(audience, viewer)
			continue
		}
		for _, sub := range audience[viewer] {
			if turn.Gained || turn.Many || slices.ContainsFunc(turn.Lost, func(id string) bool { return !sub.holds(id) }) {
				sub.conn.unsettle(sub, s.Seq)
			}
		}
	}
	if errors.Is(err, judge.ErrUntold) {
		err = nil
	}
	return took, errors.Join(err, h.recheck(ctx, k, audience))
}

// holds reports whether a lost record needs no word, or a leave only.
func (s *Sub) holds(id string) bool { return s.Record != "" && s.Record != id || s.held.Told(id) }

// recheck takes from viewers what they hold and may no longer see.
func (h *Hub) recheck(ctx context.Context, k *judge.Class, audience map[string][]*Sub) error {
	type holder struct {
		sub *Sub
		id  string
	}
	h.mu.RLock()
	at := h.at.Seq
	h.mu.RUnlock()
	var holders []holder
	var pairs []judge.Pair
	for viewer, subs := range audience {
		for _, s := range subs {
			for _, id := range s.held.List() {
				holders, pairs = append(holders, holder{s, id}), append(pairs, judge.Pair{viewer, id})
			}
		}
	}
	for start := 0; start < len(pairs); start += recheckPairs {
		end := min(start+recheckPairs, len(pairs))
		seen, err := k.Question.Ask(ctx, pairs[start:end])
		if err != nil {
			return err
		}
		left := map[*Conn][]Item{}
		for i, ok := range seen {
			if w := holders[start+i]; !ok {
				event := frame.Event{Collection: h.name(w.sub.Collection), ID: w.id, Version: at}
				left[w.sub.conn] = append(left[w.sub.conn], Item{Sub: w.sub, Body: &Body{Event: event}})
			}
		}
		for c, items := range left {
			c.enqueueLeaves(items, at)
		}
	}
	return nil
}

// unsettle tells the client of a live subscription to list anew, because of something up to a number.
func (c *Conn) unsettle(s *Sub, seq int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.group != nil && !s.ended && s.At < seq {
		s.toldTo = seq
		c.relist(s)
	}
}

// relist tells the client to list anew. The stock contract has no word for that. The lock is held.
func (c *Conn) relist(s *Sub) {
	s.held.Relist()
	if c.Stock || s.told {
		return
	}
	s.told = true
	c.hub.Resets.Add(1)
	c.answers = append(c.answers, Message{Frame: frame.Out{Type: "reset", Sub: s.Name, Reason: "visibility", Cursor: c.cursor().String()}.Bytes(), sub: s})
	c.poke()
}
