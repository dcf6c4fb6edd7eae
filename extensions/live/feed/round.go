package feed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

// Body is an event as all subscribers of a view get it.
type Body struct {
	frame.Event
	Last []byte // JSON of a deleted record, for the stock contract
}

// Item is an event for one subscription.
type Item struct {
	Sub  *Sub
	Body *Body
	hold bool // the client now has the record, and may have to be told that it leaves
}

func (i Item) size() int { return len(i.Body.Record) + len(i.Body.Last) + itemOverhead }

// itemOverhead is about what an event takes beside the record, in bytes.
const itemOverhead = 160

// round evaluates one stretch of the log for some groups. It belongs to one goroutine.
type round struct {
	hub    *Hub
	ctx    context.Context
	items  map[*Conn][]Item
	failed map[*Conn]error // what could not be evaluated must be tried again for these
	bodies map[bodyKey]*Body
}

type bodyKey struct {
	view viewKey
	id   string
	gone bool
}

func newRound(ctx context.Context, h *Hub) *round {
	return &round{hub: h, ctx: ctx, items: map[*Conn][]Item{}, failed: map[*Conn]error{}, bodies: map[bodyKey]*Body{}}
}

// run evaluates what happened in one collection. A group of one record gets only what concerns it.
func (r *round) run(collection string, list []judge.Happened, groups []*group) {
	c, err := r.hub.app.FindCachedCollectionByNameOrId(collection)
	if err != nil || len(groups) == 0 {
		return // it is gone, which the log says too
	}
	if err := r.load(c, list); err != nil {
		r.fail(groups, err)
		return
	}
	asked := map[*judge.Class][]*group{}
	for _, g := range groups {
		if g.class != nil {
			asked[g.class] = append(asked[g.class], g)
			continue
		}
		for i := range list {
			h := &list[i]
			if g.key.record != "" && g.key.record != h.Record {
				continue
			}
			r.tell(g, h, g.always() || h.Row != nil && g.test.Match(h.Row))
		}
	}
	for k, groups := range asked {
		if err := r.ask(k, list, groups); err != nil {
			r.fail(groups, err)
		}
	}
}

// load reads the records as they are now, and looks up what those that are gone were.
func (r *round) load(c *core.Collection, list []judge.Happened) error {
	var ids []string
	for i := range list {
		if list[i].Gone {
			list[i].Row = r.hub.deleted.Find(c.Id, list[i].Record)
		} else {
			ids = append(ids, list[i].Record)
		}
	}
	found, err := r.hub.find(r.ctx, c, ids)
	if err != nil {
		return err
	}
	for i := range list {
		if !list[i].Gone {
			list[i].Row = found[list[i].Record]
		}
	}
	return nil
}

// find reads records by their ids.
func (h *Hub) find(ctx context.Context, c *core.Collection, ids []string) (map[string]*core.Record, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	raw, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	var records []*core.Record
	err = h.app.RecordQuery(c).WithContext(ctx).
		AndWhere(dbx.NewExp("[["+c.Name+".id]] IN (SELECT value FROM json_each({:ids}))", dbx.Params{"ids": string(raw)})).All(&records)
	if err != nil {
		return nil, fmt.Errorf("read records of %s: %w", c.Name, err)
	}
	out := make(map[string]*core.Record, len(records))
	for _, record := range records {
		out[record.Id] = record
	}
	return out, nil
}

// ask is one question, or two if records are gone, for all groups of a class.
func (r *round) ask(k *judge.Class, list []judge.Happened, groups []*group) error {
	type place struct {
		group *group
		what  *judge.Happened
	}
	var present, gone []place
	var presentPairs, gonePairs []judge.Pair
	var records []*core.Record
	for i := range list {
		h := &list[i]
		if h.Row != nil && h.Gone {
			records = append(records, h.Row)
		}
		for _, g := range groups {
			switch {
			case g.key.record != "" && g.key.record != h.Record:
			case h.Row == nil:
				r.tell(g, h, false)
			case h.Gone:
				gone, gonePairs = append(gone, place{g, h}), append(gonePairs, judge.Pair{g.viewer, h.Record})
			default:
				present, presentPairs = append(present, place{g, h}), append(presentPairs, judge.Pair{g.viewer, h.Record})
			}
		}
	}
	if len(present) > 0 {
		seen, err := k.Question.Ask(r.ctx, presentPairs)
		if err != nil {
			return err
		}
		for i, p := range present {
			r.tell(p.group, p.what, seen[i])
		}
	}
	if len(gone) > 0 {
		seen, err := k.Question.AskGone(r.ctx, records, gonePairs)
		if err != nil { // what the rule reads may be gone as well
			r.hub.log.Debug("the rule of deleted records cannot be evaluated", "error", err)
			seen = make([]bool, len(gone))
		}
		for i, p := range gone {
			r.tell(p.group, p.what, seen[i])
		}
	}
	return nil
}

// tell sends a group what happened, as far as it concerns it: seen says that its viewers may see the record, or could
// before it was deleted.
func (r *round) tell(g *group, h *judge.Happened, seen bool) {
	if h.Row == nil && !h.Gone {
		return // deleted since, which is still to come in the log
	}
	for _, v := range *g.views.Load() {
		subs := *v.subs.Load()
		if seen {
			b := r.body(v, h, subs)
			if b == nil {
				continue
			}
			for _, s := range subs {
				r.items[s.conn] = append(r.items[s.conn], Item{s, b, !h.Gone && !g.always()})
			}
			continue
		}
		for _, s := range subs {
			if s.held.Has(h.Record) {
				r.items[s.conn] = append(r.items[s.conn], Item{Sub: s, Body: r.leaving(h)})
			}
		}
	}
}

// leaving tells those who hold a record that it is deleted, or that they may no longer see it, and nothing else.
func (r *round) leaving(h *judge.Happened) *Body {
	b := &Body{Collection: r.hub.name(h.Collection), ID: h.Record, Version: h.Seq}
	if h.Gone {
		b.Action = changes.Delete.String()
		b.Last = fmt.Appendf(nil, `{"collectionId":%q,"collectionName":%q,"id":%q}`, h.Collection, b.Collection, h.Record)
	}
	return b
}

// body is the event for a view, written once.
func (r *round) body(v *view, h *judge.Happened, subs []*Sub) *Body {
	if h.Gone && h.Row == nil {
		return r.leaving(h)
	}
	stock := h.Gone && slices.ContainsFunc(subs, func(s *Sub) bool { return s.conn.Stock })
	key := bodyKey{v.key, h.Record, stock}
	if b := r.bodies[key]; b != nil && b.Version == h.Seq {
		return b
	}
	b := &Body{Collection: h.Row.Collection().Name, ID: h.Record, Action: h.Action.String(), Version: h.Seq}
	if !h.Gone || stock {
		raw, err := v.encode(r.hub.app, h.Row)
		if err != nil {
			r.hub.log.Warn("a record cannot be sent", "collection", b.Collection, "record", h.Record, "error", err)
			return nil
		}
		if h.Gone {
			b.Last = raw
		} else {
			b.Record = raw
		}
	}
	r.bodies[key] = b
	return b
}

func (r *round) fail(groups []*group, err error) {
	if !errors.Is(err, context.Canceled) {
		r.hub.log.Warn("rules of live subscriptions cannot be evaluated; it is tried again", "error", err)
	}
	for _, g := range groups {
		for _, v := range *g.views.Load() {
			for _, s := range *v.subs.Load() {
				r.failed[s.conn] = err
			}
		}
	}
}

// sorted are the items of a connection in the order of the log.
func (r *round) sorted(c *Conn) []Item {
	items := r.items[c]
	slices.SortStableFunc(items, func(a, b Item) int { return int(a.Body.Version - b.Body.Version) })
	return items
}

// visible returns which of the records a subscription's viewer may see now.
func (h *Hub) visible(ctx context.Context, p placement, collection string, ids []string) (map[string]bool, error) {
	c, err := h.app.FindCachedCollectionByNameOrId(collection)
	if err != nil {
		return nil, fmt.Errorf("find collection: %w", err)
	}
	out := map[string]bool{}
	if p.group.test != nil {
		found, err := h.find(ctx, c, ids)
		for id, record := range found {
			out[id] = p.group.test.Match(record)
		}
		return out, err
	}
	pairs := make([]judge.Pair, len(ids))
	for i, id := range ids {
		pairs[i] = judge.Pair{p.group.viewer, id}
	}
	seen, err := p.group.class.Question.Ask(ctx, pairs)
	for i := range seen {
		out[ids[i]] = seen[i]
	}
	return out, err
}
