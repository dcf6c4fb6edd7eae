package feed

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

const (
	// recheckEvery is how often the records that clients hold are looked at when something changes that a rule depends on.
	recheckEvery = 500 * time.Millisecond

	// recheckPairs is how many viewers and records one question is about; a pair takes some microseconds.
	recheckPairs = 2000
)

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
		sub *Sub
		id  string
	}
	var holders []holder
	var pairs []judge.Pair
	h.mu.RLock()
	if t := h.topics[k.key.collection]; t != nil {
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

func (h *Hub) allGroups(t *topic) []*group {
	out := slices.Collect(maps.Values(t.all))
	for _, groups := range t.byRecord {
		out = slices.AppendSeq(out, maps.Values(groups))
	}
	return out
}
