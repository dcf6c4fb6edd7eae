package view

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
)

// errNet is what a client sees of a bad network.
var errNet = errors.New("network")

// network loses requests and answers, doubles requests, and delivers some only after the client has given up, in any order.
type network struct {
	r       *rand.Rand
	calm    bool
	hostile float64 // how much of what can go wrong does
	late    []func()
}

func (n *network) call(do func()) error {
	if n.calm {
		do()
		return nil
	}
	switch x := n.r.Float64() / n.hostile; {
	case x < .12: // the request is lost
		return errNet
	case x < .24: // the answer is lost
		do()
		return errNet
	case x < .30: // a proxy sends it twice
		do()
		do()
	case x < .38: // it arrives after the client has given up
		n.late = append(n.late, do)
		return errNet
	default:
		do()
	}
	return nil
}

func (n *network) deliver() {
	if len(n.late) > 0 {
		i := n.r.IntN(len(n.late))
		do := n.late[i]
		n.late = slices.Delete(n.late, i, i+1)
		do()
	}
}

// device is a simulated client.
type device interface {
	name() string
	owner() string
	net() *network
	all() map[string]map[string]string
	create(id string, fields map[string]string)
	update(id, field, value string)
	increment(id string) // only native clients can
	remove(id string)
	sync(w *world) bool
	quiet() bool
	last() *Check
}

type common struct {
	key, user string
	network   *network
	check     *Check
}

func (c *common) name() string     { return c.key }
func (c *common) owner() string    { return c.user }
func (c *common) net() *network    { return c.network }
func (c *common) last() *Check     { return c.check }
func (c *common) increment(string) {}

func (c *common) lost(w *world, cursor Cursor) {
	if cursor.Run != 0 {
		w.reset(c.key, cursor)
	}
}

// native keeps rows as they were pulled apart from its changes.
type native struct {
	common
	rows   map[string]map[string]string
	queue  []change
	cursor Cursor
	sweep  map[string]bool // ids that a running snapshot has mentioned; stored with the cursor
	count  int
	done   []acked
}

type acked struct {
	change
	status string
}

func (d *native) all() map[string]map[string]string {
	out := map[string]map[string]string{}
	for id, row := range d.rows {
		out[id] = maps.Clone(row)
	}
	for _, c := range d.queue {
		switch row := out[c.ID]; {
		case c.Op == "create":
			out[c.ID] = maps.Clone(c.Set)
		case c.Op == "delete":
			delete(out, c.ID)
		case row != nil:
			maps.Copy(row, c.Set)
			n, _ := strconv.Atoi(row["n"])
			row["n"] = strconv.Itoa(n + c.Add)
		}
	}
	return out
}

func (d *native) push(c change) {
	d.count++
	c.CID = strconv.Itoa(d.count)
	d.queue = append(d.queue, c)
}

func (d *native) create(id string, fields map[string]string) {
	d.push(change{Op: "create", ID: id, Set: fields})
}

func (d *native) update(id, field, value string) {
	d.push(change{Op: "update", ID: id, Set: map[string]string{field: value}})
}
func (d *native) increment(id string) { d.push(change{Op: "update", ID: id, Add: 1}) }
func (d *native) remove(id string)    { d.push(change{Op: "delete", ID: id}) }
func (d *native) quiet() bool         { return len(d.queue) == 0 }

func (d *native) sync(w *world) bool {
	for range 200 {
		batch, cursor := slices.Clone(d.queue[:min(5, len(d.queue))]), d.cursor
		var results []result
		var a answer
		if d.network.call(func() {
			results = w.pushNative(d.key, d.user, batch)
			a = w.pull(d.key, d.user, cursor, 4, "")
		}) != nil {
			return false
		}
		for _, r := range results {
			if i := slices.IndexFunc(d.queue, func(c change) bool { return c.CID == r.CID }); i >= 0 {
				d.done = append(d.done, acked{d.queue[i], r.Status})
				d.queue = slices.Delete(d.queue, i, i+1)
			}
		}
		sweep := maps.Clone(d.sweep)
		if a.Reset {
			sweep = map[string]bool{}
			d.lost(w, cursor)
		}
		for _, row := range a.Upserts {
			d.rows[row["id"]] = row
			if sweep != nil {
				sweep[row["id"]] = true
			}
		}
		for _, id := range a.Removes {
			delete(d.rows, id)
			delete(sweep, id)
		}
		if !d.network.calm && d.network.r.Float64() < .2 {
			return false // the app dies between storing rows and cursor
		}
		d.cursor, d.sweep = a.Cursor, sweep
		if a.More {
			continue
		}
		if d.sweep != nil {
			for id := range d.rows {
				if !d.sweep[id] {
					delete(d.rows, id)
				}
			}
			d.sweep = nil
		}
		d.check = a.Check
		if len(d.queue) == 0 {
			return true
		}
	}
	return false
}

// melon is a client like WatermelonDB: one table of rows with marks for what is dirty.
type melon struct {
	common
	rows   map[string]*melonRow
	cursor Cursor
}

type melonRow struct {
	fields           map[string]string
	changed          map[string]bool
	created, deleted bool
}

func (r *melonRow) dirty() bool { return r.created || r.deleted || len(r.changed) > 0 }

func (d *melon) all() map[string]map[string]string {
	out := map[string]map[string]string{}
	for id, r := range d.rows {
		if !r.deleted {
			out[id] = r.fields
		}
	}
	return out
}

func (d *melon) create(id string, fields map[string]string) {
	d.rows[id] = &melonRow{fields: fields, created: true, changed: map[string]bool{}}
}

func (d *melon) update(id, field, value string) {
	r := d.rows[id]
	r.fields = maps.Clone(r.fields)
	r.fields[field], r.changed[field] = value, true
}

func (d *melon) remove(id string) { d.rows[id].deleted = true }

func (d *melon) quiet() bool {
	for _, r := range d.rows {
		if r.dirty() {
			return false
		}
	}
	return true
}

func (d *melon) sync(w *world) bool {
	if d.once(w) {
		return true
	}
	return d.once(w)
}

func (d *melon) once(w *world) bool {
	cursor := d.cursor
	var a answer
	if d.network.call(func() { a = w.pull(d.key, d.user, cursor, 1<<20, "") }) != nil {
		return false
	}
	if a.Reset { // a replacement
		d.lost(w, cursor)
		sent := map[string]bool{}
		for _, row := range a.Upserts {
			sent[row["id"]] = true
		}
		for id, r := range d.rows {
			if !sent[id] && !r.created {
				delete(d.rows, id)
			}
		}
	}
	for _, row := range a.Upserts {
		d.merge(row)
	}
	for _, id := range a.Removes {
		delete(d.rows, id)
	}
	if !d.network.calm && d.network.r.Float64() < .1 {
		return false
	}
	d.cursor, d.check = a.Cursor, a.Check
	var batch []wmRow
	for _, id := range slices.Sorted(maps.Keys(d.rows)) {
		if r := d.rows[id]; r.dirty() {
			batch = append(batch, wmRow{ID: id, Fields: maps.Clone(r.fields), Deleted: r.deleted})
		}
	}
	if len(batch) == 0 {
		return true
	}
	cursor = d.cursor
	var ok bool
	if d.network.call(func() { ok = w.pushWM(d.key, d.user, cursor, batch) }) != nil || !ok {
		return false
	}
	for _, b := range batch {
		if b.Deleted {
			delete(d.rows, b.ID)
			continue
		}
		r := d.rows[b.ID]
		r.created, r.changed = false, map[string]bool{}
	}
	return true
}

func (d *melon) merge(row map[string]string) {
	r := d.rows[row["id"]]
	switch {
	case r == nil:
		d.rows[row["id"]] = &melonRow{fields: row, changed: map[string]bool{}}
	case r.deleted:
	default:
		for field := range r.changed {
			row[field] = r.fields[field]
		}
		r.fields = row
	}
}

// docs is a client like RxDB: documents beside the state of the server that they are taken to be based on.
type docs struct {
	common
	rows       map[string]*doc
	checkpoint Cursor
}

type doc struct {
	now, master rxDoc
	based       bool // master is known
	dirty       bool
}

func (d *docs) all() map[string]map[string]string {
	out := map[string]map[string]string{}
	for id, r := range d.rows {
		if !r.now.Deleted {
			out[id] = r.now.Fields
		}
	}
	return out
}

func (d *docs) create(id string, fields map[string]string) {
	d.rows[id] = &doc{now: rxDoc{ID: id, Fields: fields}, dirty: true}
}

func (d *docs) update(id, field, value string) {
	r := d.rows[id]
	r.now.Fields = maps.Clone(r.now.Fields)
	r.now.Fields[field], r.dirty = value, true
}

func (d *docs) remove(id string) { d.rows[id].now.Deleted, d.rows[id].dirty = true, true }

func (d *docs) quiet() bool {
	for _, r := range d.rows {
		if r.dirty {
			return false
		}
	}
	return true
}

const docsPage = 4

func (d *docs) sync(w *world) bool {
	for range 200 {
		cursor := d.checkpoint
		var a answer
		if d.network.call(func() { a = w.pull(d.key, d.user, cursor, docsPage, "") }) != nil {
			return false
		}
		if a.Reset && cursor.Run != 0 { // the door answers 410 and the app starts over
			d.lost(w, cursor)
			d.rows, d.checkpoint = map[string]*doc{}, Cursor{}
			continue
		}
		for _, row := range a.Upserts {
			d.take(rxDoc{ID: row["id"], Fields: row, V: a.Version[row["id"]]})
		}
		for _, id := range a.Removes {
			d.take(rxDoc{ID: id, Deleted: true})
		}
		if !d.network.calm && cursor.Run != 0 && d.network.r.Float64() < .1 {
			return false // without a first checkpoint and without the view nobody could tell what it has
		}
		if n := len(a.Upserts) + len(a.Removes); n > 0 {
			d.checkpoint = a.Cursor // without a document it is not stored
		} else if a.More {
			d.checkpoint = a.Cursor // the door fills its pages
		}
		if !a.More {
			break
		}
	}
	return d.push(w)
}

// take stores a document of the server, unless the local one has changes: these meet it when they are pushed.
func (d *docs) take(in rxDoc) {
	r := d.rows[in.ID]
	switch {
	case r == nil && in.Deleted:
	case r == nil:
		d.rows[in.ID] = &doc{now: in, master: in, based: true}
	case !r.dirty && in.Deleted:
		delete(d.rows, in.ID)
	case !r.dirty:
		r.now, r.master, r.based = in, in, true
	}
}

func (d *docs) push(w *world) bool {
	ids := slices.Sorted(maps.Keys(d.rows))
	var dirty []string
	for _, id := range ids {
		if d.rows[id].dirty {
			dirty = append(dirty, id)
		}
	}
	for batch := range slices.Chunk(dirty, docsPage) {
		var rows []rxRow
		for _, id := range batch {
			r := d.rows[id]
			row := rxRow{New: r.now}
			if r.based {
				master := r.master
				row.Assumed = &master
			}
			rows = append(rows, row)
		}
		var conflicts []rxDoc
		if d.network.call(func() { conflicts = w.pushRX(d.key, d.user, rows) }) != nil {
			return false
		}
		for _, id := range batch {
			r := d.rows[id]
			r.dirty, r.master, r.based = false, r.now, true
			if r.now.Deleted {
				delete(d.rows, id)
			}
		}
		for _, c := range conflicts { // the default handler: the server's state wins
			delete(d.rows, c.ID)
			d.take(c)
		}
	}
	return true
}
