package view

import (
	"context"
	"strconv"
)

// change is what a native client pushes.
type change struct {
	CID, Op, ID string
	Set         map[string]string
	Add         int // to the counter
}

type result struct {
	CID, Status string
}

// pushNative is the native door.
func (w *world) pushNative(device, user string, changes []change) []result {
	var out []result
	for _, c := range changes {
		key := device + "|" + c.CID
		if r, ok := w.applied[key]; ok && !w.noDedupe {
			w.mark(device, c.ID)
			out = append(out, r)
			continue
		}
		w.mark(device, c.ID)
		r := result{c.CID, w.apply(user, c)}
		w.applied[key] = r
		out = append(out, r)
	}
	return out
}

func (w *world) apply(user string, c change) string {
	n, exists := w.rows[c.ID]
	h, known := w.heads[c.ID]
	switch {
	case c.Op == "create" && known && h.deleted:
		return "gone"
	case c.Op == "create" && exists:
		return "conflict"
	case c.Op != "create" && !exists:
		return "gone"
	case exists && !w.sees(user, n), c.Op == "delete" && n.Owner != user:
		return "denied"
	case c.Op == "delete":
		w.remove(c.ID)
		return "applied"
	}
	before := n
	for f, v := range c.Set {
		n.set(f, v)
	}
	n.N += c.Add
	if c.Op == "create" && !w.sees(user, n) {
		return "denied"
	}
	w.counts[c.ID] += c.Add
	if !exists || n != before {
		w.put(c.ID, n)
	}
	return "applied"
}

// wmRow is a row as WatermelonDB pushes it: whole.
type wmRow struct {
	ID      string
	Fields  map[string]string
	Deleted bool
}

// pushWM is the WatermelonDB door: the whole batch is refused when any row has changed since the client's last pull.
// Rows that may not be written are taken as read; the late list puts them right.
func (w *world) pushWM(device, user string, cursor Cursor, rows []wmRow) (ok bool) {
	ctx := context.Background()
	d, err := w.engine.Open(ctx, device)
	if err != nil {
		panic(err)
	}
	horizon, known, err := d.Horizon(ctx, sight{w, user}, notes(w), cursor)
	if err != nil {
		panic(err)
	}
	d.Close()
	if !known {
		return false
	}
	for _, r := range rows {
		if h, ok := w.heads[r.ID]; ok && h.seq > horizon && !w.laxPush {
			return false
		}
	}
	for _, r := range rows {
		w.mark(device, r.ID)
		if w.dying {
			return false
		}
		w.judged[r.ID] = true
		w.settle(device, r.ID)
		n, exists := w.rows[r.ID]
		h, known := w.heads[r.ID]
		switch {
		case r.Deleted:
			if exists && n.Owner == user {
				w.remove(r.ID)
			}
			continue
		case !exists && known && h.deleted:
			continue
		}
		before := n
		for f, v := range r.Fields {
			n.set(f, v)
		}
		if exists && !w.sees(user, before) || !exists && !w.sees(user, n) {
			continue
		}
		if !exists || n != before {
			w.trace(device, r.ID, before, n)
			w.put(r.ID, n)
		}
	}
	return true
}

// rxDoc is a document as RxDB sees it; v is the version that came with it.
type rxDoc struct {
	ID      string
	Fields  map[string]string
	V       int64
	Deleted bool
}

type rxRow struct {
	New     rxDoc
	Assumed *rxDoc
}

func (w *world) canonical(user, id string) rxDoc {
	n, ok := w.rows[id]
	if !ok || !w.sees(user, n) {
		return rxDoc{ID: id, Deleted: true}
	}
	return rxDoc{ID: id, Fields: n.fields(id, w.schema), V: w.heads[id].seq}
}

// pushRX is the RxDB door: a three-way merge with the base that the client sends; what collides is handed back.
func (w *world) pushRX(device, user string, rows []rxRow) []rxDoc {
	var out []rxDoc
	for _, row := range rows {
		doc, base := row.New, row.Assumed
		w.settle(device, doc.ID)
		n, exists := w.rows[doc.ID]
		h, known := w.heads[doc.ID]
		switch {
		case doc.Deleted:
			if exists && n.Owner == user {
				w.remove(doc.ID)
			} else if exists {
				out = append(out, w.canonical(user, doc.ID))
			}
			continue
		case base != nil && base.V != doc.V, !exists && (known && h.deleted || base != nil), exists && base == nil,
			exists && !w.sees(user, n):
			out = append(out, w.canonical(user, doc.ID))
			continue
		case !exists:
			for f, v := range doc.Fields {
				n.set(f, v)
			}
			if !w.sees(user, n) {
				out = append(out, w.canonical(user, doc.ID))
				continue
			}
			w.put(doc.ID, n)
			continue
		}
		before, now := n, n.fields(doc.ID, w.schema)
		for _, f := range []string{"title", "body", "owner", "team", "n"} {
			v, was, is := value(doc.Fields, f), value(base.Fields, f), value(now, f)
			if v != was && v != is && (w.lastWrite || is == was) {
				n.set(f, v)
			}
		}
		if n != before {
			w.trace(device, doc.ID, before, n)
			w.put(doc.ID, n)
		}
		if c := w.canonical(user, doc.ID); c.Deleted || !sameFields(c.Fields, doc.Fields) {
			out = append(out, c)
		}
	}
	return out
}

func sameFields(a, b map[string]string) bool {
	for _, f := range []string{"title", "body", "text", "owner", "team", "n"} {
		if a[f] != b[f] {
			return false
		}
	}
	return true
}

// trace notices a device that overwrites a value of its own with an older one: a request that was given up came late.
// Values end in the number of the step that made them.
func (w *world) trace(device, id string, before, after note) {
	for field, values := range map[string][2]string{"title": {before.Title, after.Title}, "body": {before.Body, after.Body}} {
		if values[0] == values[1] || values[1] == "" {
			continue
		}
		step, _ := strconv.Atoi(values[1][1:])
		key := device + "|" + id + "|" + field
		if step < w.steps[key] {
			w.regressions = append(w.regressions, key+" "+values[1])
		}
		w.steps[key] = max(w.steps[key], step)
	}
}
