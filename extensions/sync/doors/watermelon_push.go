package doors

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync/push"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// The client's own columns.
const (
	melonID      = core.FieldNameId
	melonChanged = "_changed"
)

// maxTold bounds the rows that an answer names.
const maxTold = 50

// melonTable is what the client has of one table that it has not pushed.
type melonTable struct {
	Created []map[string]jsontext.Value `json:"created"`
	Updated []map[string]jsontext.Value `json:"updated"`
	Deleted []string                    `json:"deleted"`
}

// melonPushed is pushChanges' argument, either as it is, or as the changes alone with the timestamp in the query.
type melonPushed struct {
	Changes map[string]melonTable `json:"changes"`
	Last    jsontext.Value        `json:"lastPulledAt"`
}

func readMelonPush(e *core.RequestEvent) (map[string]melonTable, int64, error) {
	query, err := url.ParseQuery(e.Request.URL.RawQuery)
	if err != nil {
		return nil, 0, api.Fail(api.ErrBadRequest, "the query string is not well-formed").Because(err)
	}
	raw, err := api.ReadBody(e)
	if err != nil {
		return nil, 0, err
	}
	var body melonPushed
	text := parameter(query, "lastPulledAt", "last_pulled_at")
	if text != "" {
		err = jsonv2.Unmarshal(raw, &body.Changes)
	} else if err = jsonv2.Unmarshal(raw, &body); err == nil {
		text = string(body.Last)
	}
	if err != nil {
		return nil, 0, api.Malformed(err)
	}
	last, err := number("lastPulledAt", text)
	if err == nil && last == 0 {
		err = api.Fail(api.ErrBadRequest, "lastPulledAt is missing: the client pulls before it pushes")
	}
	return body.Changes, last, err
}

// melonBatch is a push on its way into changes.
type melonBatch struct {
	*visit
	door     *doors
	base     string // the timestamp
	horizons map[string]int64
	rows     []melonRow
	rejected []rejection
}

// melonRow is one row of it.
type melonRow struct {
	push.Change
	c  *core.Collection
	vc view.Collection
}

// rejection tells the app of a row that was not taken as it is. The client takes it for pushed; the next pull puts it
// right.
type rejection struct {
	Collection string       `json:"collection"`
	ID         string       `json:"id"`
	Op         string       `json:"op"`
	Status     string       `json:"status"`
	Fields     []string     `json:"fields,omitempty"`
	Reason     *push.Reason `json:"reason,omitempty"`
}

func (d *doors) melonPush(e *core.RequestEvent) error {
	tables, last, err := readMelonPush(e)
	if err != nil {
		return err
	}
	v, err := d.enter(e, melonChannel)
	if err != nil {
		return err
	}
	defer v.close()
	b := &melonBatch{visit: v, door: d, base: strconv.FormatInt(last, 10), horizons: map[string]int64{}, rejected: []rejection{}}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		if err := b.table(name, tables[name], d.cursor(v, last)); err != nil {
			return err
		}
	}
	if len(b.rows) > maxRows {
		return api.Fail(api.ErrBodyTooLarge, fmt.Sprintf("at most %d rows fit into a request", maxRows))
	}
	if err := b.check(); err != nil {
		return err
	}
	list, err := b.changes()
	if err != nil {
		return err
	}
	results, err := d.sync.Push(e, v.caller, v.device, v.src, list)
	if err != nil {
		return err
	}
	for i, r := range results {
		switch {
		case d.mustWait(v, list[i], r):
			return again()
		case r.Status == push.Applied, r.Status == push.Duplicate && r.Original == push.Applied:
			continue
		}
		b.reject(list[i], r.Status, r.Fields, r.Reason)
	}
	if err := b.settled(); err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{"rejected": b.rejected})
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return answer(e, body)
}

// settled lets the next pull remove what the client takes for pushed and what is not there.
func (b *melonBatch) settled() error {
	return b.byTable(func(first melonRow, ids []string) error { return b.device.Settled(b.ctx, first.vc, ids...) })
}

func (b *melonBatch) reject(c push.Change, status string, fields []string, reason *push.Reason) {
	b.rejected = append(b.rejected, rejection{Collection: c.Collection, ID: c.ID, Op: c.Op, Status: status, Fields: fields, Reason: reason})
}

// table takes the rows of one table. What the server cannot sync stays on the device: the client pushes all its tables.
func (b *melonBatch) table(name string, t melonTable, cursor view.Cursor) error {
	if len(t.Created)+len(t.Updated)+len(t.Deleted) == 0 {
		return nil
	}
	vc, err := b.src.Collection(b.ctx, name)
	if err != nil && !errors.Is(err, view.ErrGone) {
		return err
	}
	c, missing := b.App.FindCachedCollectionByNameOrId(name)
	if err != nil || missing != nil || b.door.sync.Supported(b.RequestEvent, name) != nil {
		b.reject(push.Change{Collection: name}, push.Gone, nil, &push.Reason{Code: push.ErrGone.Name, Detail: "there is no such collection to sync"})
		return nil //nolint:nilerr // that is told in the answer
	}
	horizon, known, err := b.device.Horizon(b.ctx, b.src, vc, cursor)
	if err != nil {
		return err
	}
	if !known {
		held, end, err := b.device.Held(b.ctx, b.src, cursor)
		if err != nil {
			return err
		}
		if held == nil || !end { // a collection that the app has begun to pull comes when all of that is there
			return api.Fail(ErrPullFirst, "the server does not know what the device has")
		}
		b.reject(push.Change{Collection: name}, push.Gone, nil, &push.Reason{Code: push.ErrGone.Name, Detail: "the device does not pull this collection"})
		return nil
	}
	b.horizons[name] = horizon
	add := func(op, id string, set map[string]jsontext.Value) {
		if id == "" || len(id) > maxID {
			b.reject(push.Change{Collection: name, Op: op}, push.Invalid, nil, &push.Reason{Code: push.ErrChange.Name, Detail: "the row has no id"})
			return
		}
		b.rows = append(b.rows, melonRow{Collection: name, Op: op, ID: id, Set: set, c: c, vc: vc})
	}
	for _, row := range t.Created {
		add(push.Create, textOf(row[melonID]), columns(c, row, ""))
	}
	for _, row := range t.Updated {
		if edited := textOf(row[melonChanged]); edited != "" {
			add(push.Update, textOf(row[melonID]), columns(c, row, edited))
		}
	}
	for _, id := range t.Deleted {
		add(push.Delete, id, nil)
	}
	return nil
}

func textOf(value jsontext.Value) string {
	var text string
	_ = jsonv2.Unmarshal(value, &text) // what is not text is no id
	return text
}

// columns are the values of a row for the server: of the columns that were edited, or of all.
func columns(c *core.Collection, row map[string]jsontext.Value, edited string) map[string]jsontext.Value {
	out := map[string]jsontext.Value{}
	only := strings.Split(edited, ",")
	for name, value := range row {
		if edited != "" && !slices.Contains(only, name) {
			continue
		}
		if converted, ok := fromColumn(c, name, value); ok {
			out[name] = converted
		}
	}
	return out
}

// byTable calls fn with the ids of each table.
func (b *melonBatch) byTable(fn func(first melonRow, ids []string) error) error {
	ids, firsts := map[string][]string{}, map[string]melonRow{}
	for _, r := range b.rows {
		if len(ids[r.Collection]) == 0 {
			firsts[r.Collection] = r
		}
		ids[r.Collection] = append(ids[r.Collection], r.ID)
	}
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		if err := fn(firsts[name], ids[name]); err != nil {
			return err
		}
	}
	return nil
}

// check refuses the whole batch when the client has not seen the present state of one of its rows: it pulls, puts its
// edits on top, and comes again. Merging here would let a request that arrives long after the client gave it up overwrite
// what the same client has pushed since.
func (b *melonBatch) check() error {
	var mistakes []api.FieldError
	err := b.byTable(func(first melonRow, ids []string) error {
		heads, err := b.src.Heads(b.ctx, first.vc, ids)
		if err != nil {
			return err
		}
		mine, err := b.mine(first.vc, heads)
		if err != nil {
			return err
		}
		for i, r := range b.rows {
			if r.Collection != first.Collection {
				continue
			}
			h := heads[r.ID]
			if mine[r.ID] && !b.door.faults.merge {
				mistakes = append(mistakes, api.Invalid(r.Collection+"."+r.ID, ErrPullFirst, "the record has changed since"))
			}
			b.rows[i].Base = &push.Base{V: h.Version}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(mistakes) > 0 {
		return &api.Problem{Code: ErrPullFirst, Errors: mistakes[:min(len(mistakes), maxTold)]}
	}
	return nil
}

// mine are those of the rows that have changed since the pull and that the client holds or sees. Of others it must not learn
// that they are there: pushed, they are gone.
func (b *melonBatch) mine(vc view.Collection, heads map[string]view.Head) (map[string]bool, error) {
	out := map[string]bool{}
	var unknown []string
	held := b.device.MayHold(vc)
	for id, h := range heads {
		switch {
		case h.Version <= b.horizons[vc.Name]:
		case held.Contains(h.Number):
			out[id] = true
		default:
			unknown = append(unknown, id)
		}
	}
	err := b.src.Bodies(b.ctx, vc.Name, unknown, func(id string, _ []byte) { out[id] = true })
	return out, err
}

// changes makes changes of the rows, in an order in which references find what they refer to: new records behind those
// that they need, then edits, then deletions the other way round. Values that a record has already are left out, so that
// a batch whose answer was lost writes nothing when it comes again.
func (b *melonBatch) changes() ([]push.Change, error) {
	stored := map[string]map[string]state{}
	err := b.byTable(func(first melonRow, ids []string) error {
		if err := b.device.Mark(b.ctx, first.vc, ids...); err != nil {
			return err
		}
		var err error
		stored[first.Collection], err = b.look(first.c, first.vc, ids)
		return err
	})
	if err != nil {
		return nil, err
	}
	var creates, edits, deletes []melonRow
	for _, r := range b.rows {
		s := stored[r.Collection][r.ID]
		switch {
		case r.Op == push.Delete:
			deletes = append(deletes, r)
			continue
		case s.sees(): // nobody else may find out what a record holds
			r.Op = push.Update // a row that was edited while it was pushed for the first time comes as a new one again
			for name, value := range r.Set {
				same, err := has(s.record, s.shown, name, value)
				if err != nil {
					return nil, err
				}
				if same {
					delete(r.Set, name)
				}
			}
			if len(r.Set) == 0 {
				continue
			}
		case r.Op == push.Create:
			creates = append(creates, r)
			continue
		}
		edits = append(edits, r)
	}
	list := slices.Concat(ordered(creates), edits, unordered(deletes, stored))
	out := make([]push.Change, len(list))
	for i, r := range list {
		if r.CID, err = b.cid(r.Change, b.base); err != nil {
			return nil, err
		}
		out[i] = r.Change
	}
	return out, nil
}

// needs returns which rows each row refers to, by a relation whose values of function returns.
func needs(rows []melonRow, values func(r melonRow, field string) []string) func(i int) []int {
	places := map[string]int{}
	for i, r := range rows {
		places[r.c.Id+"/"+r.ID] = i
	}
	return func(i int) (out []int) {
		for _, f := range relations(rows[i].c) {
			for _, id := range values(rows[i], f.Name) {
				if place, ok := places[f.CollectionId+"/"+id]; ok {
					out = append(out, place)
				}
			}
		}
		return out
	}
}

// ordered sorts new rows. What refers to each other in a circle is created without one of the references, which follows.
func ordered(creates []melonRow) []melonRow {
	values := func(r melonRow, field string) []string { return related(r.c.Fields.GetByName(field), r.Set[field]) }
	sorted, circular := order(len(creates), needs(creates, values))
	var out, later []melonRow
	for _, i := range sorted {
		r := creates[i]
		for _, to := range circular[i] {
			target := creates[to]
			set := map[string]jsontext.Value{}
			for _, f := range relations(r.c) {
				if f.CollectionId == target.c.Id && slices.Contains(values(r, f.Name), target.ID) {
					set[f.Name] = r.Set[f.Name]
				}
			}
			for name := range set {
				delete(r.Set, name)
			}
			if len(set) > 0 {
				second := r
				second.Op, second.Set, second.Base = push.Update, set, nil
				later = append(later, second)
			}
		}
		out = append(out, r)
	}
	return append(out, later...)
}

// unordered sorts deletions: a record that is referred to goes last.
func unordered(deletes []melonRow, stored map[string]map[string]state) []melonRow {
	sorted, _ := order(len(deletes), needs(deletes, func(r melonRow, field string) []string {
		if record := stored[r.Collection][r.ID].record; record != nil {
			return record.GetStringSlice(field)
		}
		return nil
	}))
	out := make([]melonRow, len(sorted))
	for i, at := range sorted {
		out[len(out)-1-i] = deletes[at]
	}
	return out
}
