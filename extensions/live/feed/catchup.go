package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

// catchUp takes the pending subscriptions that are furthest behind one stretch of the log further, or hands them to the
// hub when they have reached it.
func (c *Conn) catchUp(ctx context.Context) error {
	set, next := c.hindmost()
	if len(set) == 0 {
		return nil
	}
	auth := c.Who.Load().Auth
	placed := make(map[*Sub]placement, len(set))
	for _, s := range slices.Clone(set) {
		p, err := c.hub.place(s, auth)
		if err != nil {
			c.refuse(s, err)
			set = slices.DeleteFunc(set, func(o *Sub) bool { return o == s })
			continue
		}
		placed[s] = p
	}
	if len(set) == 0 {
		return nil
	}
	// A thousand clients that come back at once must not read the database all at the same time. Nobody keeps others from
	// it while its client is written to.
	select {
	case c.hub.catching <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	release := sync.OnceFunc(func() { <-c.hub.catching })
	defer release()
	at := set[0].At
	for _, s := range set {
		if s.claim {
			s.claim = false
			if err := c.settle(ctx, s, placed[s]); err != nil {
				s.claim = true
				return err
			}
		}
	}
	reached, err := c.hub.reached(ctx, at)
	if err != nil {
		return fmt.Errorf("%w: %w", errEvaluate, err)
	}
	if !reached {
		return c.readLog(ctx, set, placed, at, next, release)
	}
	for _, s := range set {
		c.hub.rules.Moved(c.hub.app, s.Collection, false)
		c.review(ctx, s, placed[s])
		if s.doubt {
			if err := c.settle(ctx, s, placed[s]); err != nil {
				return err
			}
			s.doubt = false
		}
		if placed[s].group.always() {
			s.held.Clear()
		}
	}
	if !c.hub.join(c, set, placed, at) {
		return nil // the hub has gone on meanwhile
	}
	return c.tellCursor(ctx)
}

// review tells the client to list anew if what it may see has become another set while it was not live: by other rules, by
// another account, or by other records.
func (c *Conn) review(ctx context.Context, s *Sub, p placement) {
	c.hub.mu.RLock()
	for _, o := range s.owed {
		s.missed.Merge(o)
	}
	s.owed = nil
	c.hub.mu.RUnlock()
	moved := s.was != groupKey{} && s.was != p.group.key || s.redefined
	if !moved && !s.missed.Empty() {
		ctx, cancel := context.WithTimeout(ctx, compareWithin)
		defer cancel()
		turns, err := p.group.class.Turned(ctx, c.hub.app, &s.missed, []string{p.group.viewer})
		moved = err != nil || turns[0].Gained || turns[0].Many || slices.ContainsFunc(turns[0].Lost, func(id string) bool { return !s.holds(id) })
	}
	s.doubt = s.doubt || moved || !s.missed.Empty()
	s.was, s.missed, s.redefined = p.group.key, judge.Shifts{}, false
	if moved {
		c.mu.Lock()
		c.relist(s)
		c.mu.Unlock()
	}
}

// miss notes what a subscription that is behind passes by.
func (s *Sub) miss(p placement, happenings map[string][]judge.Happened, list []changes.Change) {
	if p.group.class != nil {
		for _, id := range p.group.class.Watches {
			for _, h := range happenings[id] {
				s.missed.Add(h.Change, nil)
			}
		}
	}
	for _, k := range list {
		s.redefined = s.redefined || k.Action == changes.Schema && k.Collection == s.Collection && s.was == groupKey{}
	}
}

// hindmost are the pending subscriptions with the lowest number, and the next higher number among the others, 0 for none.
func (c *Conn) hindmost() (set []*Sub, next int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.pending {
		switch {
		case len(set) == 0 || s.At == set[0].At:
			set = append(set, s)
		case s.At < set[0].At:
			next, set = set[0].At, []*Sub{s}
		case next == 0 || s.At < next:
			next = s.At
		}
	}
	return set, next
}

// readLog sends what happened after at, for subscriptions that all stand there, up to next or one stretch further. It
// releases the database before it writes.
func (c *Conn) readLog(ctx context.Context, set []*Sub, placed map[*Sub]placement, at, next int64, release func()) error {
	list, to, err := c.hub.changes.Since(ctx, changes.Position{Epoch: c.hub.epoch(), Seq: at}, c.stretch)
	if reset, ok := errors.AsType[*changes.ResetError](err); ok {
		if c.hub.Adopt(reset.Now); reset.Now.Epoch != c.hub.epoch() {
			return errEvaluate // the hub is about to learn of it
		}
		return c.reset(set, string(reset.Reason), reset.Now)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errEvaluate, err)
	}
	if next > 0 && to.Seq > next {
		to.Seq = next
		list = list[:slices.IndexFunc(list, func(k changes.Change) bool { return k.Seq > next })]
	}
	r := newRound(ctx, c.hub)
	happenings := judge.Coalesce(list)
	for _, s := range set {
		s.miss(placed[s], happenings, list)
	}
	for id, what := range happenings {
		t := &topic{all: map[groupKey]*group{}, byRecord: map[string]map[groupKey]*group{}}
		var groups []*group
		for _, s := range set {
			if s.Collection != id {
				continue
			}
			p := placed[s]
			fresh := &group{key: p.group.key, test: p.group.test, class: p.group.class, viewer: p.group.viewer}
			if g := t.add(s, placement{fresh, p.view.copy()}); !slices.Contains(groups, g) {
				groups = append(groups, g)
			}
		}
		r.run(id, what, groups)
	}
	if err := r.failed[c]; err != nil {
		return fmt.Errorf("%w: %w", errEvaluate, err)
	}
	items := c.fitting(r.sorted(c), &to)
	release()
	for _, i := range items {
		i.note(c.hub.cfg.Remember)
	}
	if err := c.write(ctx, items); err != nil {
		return err
	}
	c.mu.Lock()
	for _, s := range set {
		s.At = max(s.At, to.Seq)
	}
	c.mu.Unlock()
	if resets := judge.Resets(list, to.Seq); len(resets) > 0 {
		var hit []*Sub
		for _, s := range set {
			if _, ok := resets[s.Collection]; ok {
				hit = append(hit, s)
			}
		}
		if err := c.reset(hit, "collection", to); err != nil {
			return err
		}
	}
	return c.tellCursor(ctx)
}

// fitting is as much of a stretch as may wait in memory for one connection, and ends the stretch there. The next one is
// shorter then.
func (c *Conn) fitting(items []Item, to *changes.Position) []Item {
	size := 0
	for n, i := range items {
		if size += i.size(); size > c.hub.cfg.Queue && n > 0 && i.Body.Version > items[n-1].Body.Version {
			to.Seq = items[n-1].Body.Version
			c.stretch = max(n, 1)
			return slices.Clone(items[:n]) // or the rest would stay in memory
		}
	}
	c.stretch = min(2*c.stretch, batch)
	return items
}

// copy is the view without its subscribers.
func (v *view) copy() *view { return &view{key: v.key, like: v.like, auth: v.auth, enrich: v.enrich} }

// reset tells the client that it must list anew. The stock contract has no word for that but a new connection.
func (c *Conn) reset(set []*Sub, reason string, now changes.Position) error {
	if len(set) == 0 {
		return nil
	}
	c.hub.Resets.Add(1)
	if c.Stock {
		return Closing{frame.CloseRestart, "events were missed"}
	}
	c.mu.Lock()
	for _, s := range set {
		s.At = now.Seq
		s.held.Clear()
		c.answers = append(c.answers, Message{Frame: frame.Out{Type: "reset", Sub: s.Name, Reason: reason, Cursor: now.String()}.Bytes()})
	}
	c.told = changes.Position{}
	c.mu.Unlock()
	return nil
}

// settle looks at what the client holds, where that is in doubt.
func (c *Conn) settle(ctx context.Context, s *Sub, p placement) error {
	ids := s.held.List()
	if len(ids) == 0 {
		return nil
	}
	seen, err := c.hub.visible(ctx, p, s.Collection, ids)
	if err != nil {
		return fmt.Errorf("%w: %w", errEvaluate, err)
	}
	return c.write(ctx, c.leaves(s, p, ids, seen, s.At))
}

// leaves takes from the client what it may no longer see.
func (c *Conn) leaves(s *Sub, p placement, ids []string, seen map[string]bool, version int64) []Item {
	var items []Item
	slices.Sort(ids)
	for _, id := range ids {
		if seen[id] || p.group.key.record != "" && p.group.key.record != id {
			continue
		}
		s.held.Remove(id)
		items = append(items, Item{Sub: s, Body: &Body{Collection: c.hub.name(s.Collection), ID: id, Version: version}})
	}
	return items
}

// refuse ends a subscription that its viewer may not have, or not any more.
func (c *Conn) refuse(s *Sub, err error) {
	c.Drop(s.Name)
	if c.Stock {
		return
	}
	code := ErrDenied
	if !errors.Is(err, ErrNoRule) {
		code = ErrGone
	}
	c.Answer(Message{Frame: frame.Error("", s.Name, code, "")})
}
