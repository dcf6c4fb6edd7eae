package view

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
)

// note is a row of the world. Fields are title, body, owner, team and the counter n.
type note struct {
	Title, Body, Owner, Team string
	N                        int
}

// value is a field of a row as clients have it, by the name that it had first.
func value(row map[string]string, field string) string {
	if v, ok := row["text"]; ok && field == "body" {
		return v
	}
	return row[field]
}

// States of the schema.
const (
	renamed = 1 << iota // the body is called text
	added               // there is one field more, with a default
)

// fields returns the row as clients see it in a state of the schema.
func (n note) fields(id string, schema int) map[string]string {
	out := map[string]string{"id": id, "title": n.Title, "owner": n.Owner, "team": n.Team, "n": strconv.Itoa(n.N)}
	if schema&renamed != 0 {
		out["text"] = n.Body
	} else {
		out["body"] = n.Body
	}
	if schema&added != 0 {
		out["extra"] = "none"
	}
	return out
}

func (n *note) set(field, value string) {
	switch field {
	case "title":
		n.Title = value
	case "body", "text":
		n.Body = value
	case "owner":
		n.Owner = value
	case "team":
		n.Team = value
	case "n":
		n.N, _ = strconv.Atoi(value)
	}
}

type head struct {
	number  uint64
	seq     int64
	deleted bool
}

// data is what a backup holds.
type data struct {
	seq, deps int64
	number    uint64 // of the last head
	rows      map[string]note
	heads     map[string]head
	ids       map[uint64]string
	members   map[string]bool
	applied   map[string]result
	counts    map[string]int // increments that were applied, by row
	rule      int            // 0: owner or member of the team, 1: owner alone
	schema    int
	floor     int64
}

func (d data) clone() data {
	d.rows, d.heads, d.ids = maps.Clone(d.rows), maps.Clone(d.heads), maps.Clone(d.ids)
	d.members, d.applied, d.counts = maps.Clone(d.members), maps.Clone(d.applied), maps.Clone(d.counts)
	return d
}

// world is a server: the data, and the rule of who sees it.
type world struct {
	data
	epoch  int
	engine *Engine
	store  *memory
	told   map[string]map[string]bool // ids that answers to a device have named, or that it has named itself
	leaks  []string
	resets []string

	steps       map[string]int
	runs        map[string][]int64 // by device
	regressions []string

	noDedupe, laxPush, lastWrite bool // faults of the doors
}

func newWorld() *world {
	w := &world{store: &memory{kept: map[string]Stored{}, nonce: 1}, told: map[string]map[string]bool{}, steps: map[string]int{}, runs: map[string][]int64{}}
	w.data = data{
		seq: 10, rows: map[string]note{}, heads: map[string]head{}, ids: map[uint64]string{}, members: map[string]bool{},
		applied: map[string]result{}, counts: map[string]int{},
	}
	w.engine = New(w.store)
	return w
}

func (w *world) touch(id string, deleted bool) {
	w.seq++
	h, ok := w.heads[id]
	if !ok {
		w.number++
		h.number = w.number
		w.ids[h.number] = id
	}
	h.seq, h.deleted = w.seq, deleted
	w.heads[id] = h
}

func (w *world) put(id string, n note) {
	w.rows[id] = n
	w.touch(id, false)
}

func (w *world) remove(id string) {
	if _, ok := w.rows[id]; ok {
		delete(w.rows, id)
		w.touch(id, true)
	}
}

func (w *world) setMember(user, team string, on bool) {
	w.seq++
	w.deps = w.seq
	if on {
		w.members[user+"/"+team] = true
	} else {
		delete(w.members, user+"/"+team)
	}
}

// purge forgets deletions.
func (w *world) purge() {
	w.floor = w.seq
	for id, h := range w.heads {
		if h.deleted {
			delete(w.heads, id)
			delete(w.ids, h.number)
		}
	}
}

func (w *world) restore(d data) {
	w.data = d.clone()
	w.epoch++
}

func (w *world) sees(user string, n note) bool {
	return n.Owner == user || w.rule == 0 && w.members[user+"/"+n.Team]
}

func (w *world) visible(user string) map[string]note {
	out := map[string]note{}
	for id, n := range w.rows {
		if w.sees(user, n) {
			out[id] = n
		}
	}
	return out
}

// sight is what a user sees of the world.
type sight struct {
	*world
	user string
}

func (s sight) Now(context.Context) (Position, error) {
	return Position{Epoch: "e" + strconv.Itoa(s.epoch), Seq: s.seq, Floor: s.floor}, nil
}

func (s sight) Collection(_ context.Context, name string) (Collection, error) {
	if name != "notes" {
		return Collection{}, ErrGone
	}
	return notes(s.world), nil
}

func notes(w *world) Collection {
	return Collection{Name: "notes", Key: "1/notes", Schema: strconv.Itoa(w.schema)}
}

func (s sight) Exact(_ context.Context, _ Collection, after int64) (bool, error) {
	return s.deps <= after, nil
}

func (s sight) Visible(_ context.Context, _ Collection, fn func(uint64, int64)) error {
	for id := range s.visible(s.user) {
		fn(s.heads[id].number, s.heads[id].seq)
	}
	return nil
}

func (s sight) Changed(_ context.Context, _ Collection, after int64, limit int) ([]Head, error) {
	var out []Head
	for id, h := range s.heads {
		if h.seq > after {
			out = append(out, Head{Number: h.number, ID: id, Version: h.seq, Deleted: h.deleted})
		}
	}
	slices.SortFunc(out, func(a, b Head) int { return int(a.Version - b.Version) })
	return out[:min(len(out), limit)], nil
}

func (s sight) Rows(_ context.Context, _ Collection, numbers []uint64) ([]Row, error) {
	var out []Row
	for _, n := range numbers {
		id := s.ids[n]
		row, ok := s.rows[id]
		if !ok || !s.sees(s.user, row) {
			continue
		}
		body, err := json.Marshal(row.fields(id, s.schema))
		if err != nil {
			return nil, err
		}
		out = append(out, Row{Number: n, ID: id, Version: s.heads[id].seq, Body: body})
	}
	return out, nil
}

func (s sight) Names(_ context.Context, _ Collection, numbers []uint64) (map[uint64]string, error) {
	out := map[uint64]string{}
	for _, n := range numbers {
		if id, ok := s.ids[n]; ok {
			out[n] = id
		}
	}
	return out, nil
}

func (s sight) Numbers(_ context.Context, _ Collection, ids []string) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, id := range ids {
		if h, ok := s.heads[id]; ok {
			out[id] = h.number
		}
	}
	return out, nil
}

// memory is a store whose content can be lost or go back.
type memory struct {
	mu    sync.Mutex
	nonce int
	kept  map[string]Stored
}

func (m *memory) Nonce() string { return "n" + strconv.Itoa(m.nonce) }

func (m *memory) Load(_ context.Context, device string) (Stored, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copyStored(m.kept[device]), nil
}

func copyStored(s Stored) Stored {
	s.Runs = maps.Clone(s.Runs)
	return s
}

func (m *memory) Save(_ context.Context, device string, changed Stored, removed []int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := copyStored(m.kept[device])
	if s.Runs == nil {
		s.Runs = map[int64]StoredRun{}
	}
	if changed.State != nil {
		s.State = changed.State
	}
	for _, id := range removed {
		delete(s.Runs, id)
	}
	for id, r := range changed.Runs {
		kept := s.Runs[id]
		if r.Fixed != nil {
			kept.Fixed = r.Fixed
		}
		if r.Moving != nil {
			kept.Moving = r.Moving
		}
		s.Runs[id] = kept
	}
	m.kept[device] = s
	return nil
}

// answer is a page as it travels.
type answer struct {
	Reset   bool
	Upserts []map[string]string
	Version map[string]int64
	Removes []string
	Cursor  Cursor
	More    bool
	Check   *Check
}

// pull serves a device and looks for leaks.
func (w *world) pull(device, user string, cursor Cursor, limit int, schema string) answer {
	ctx := context.Background()
	d, err := w.engine.Open(ctx, device)
	if err != nil {
		panic(err)
	}
	defer d.Close()
	page, err := d.Pull(ctx, sight{w, user}, Request{Cursor: cursor, Collections: []string{"notes"}, Limit: limit, Bytes: 1 << 20, Schema: schema})
	if err != nil {
		panic(err)
	}
	a := answer{Reset: len(page.Reset) > 0, Cursor: page.Cursor, More: page.More, Version: map[string]int64{}}
	if c, ok := page.Check["notes"]; ok {
		a.Check = &c
	}
	if !slices.Contains(w.runs[device], page.Cursor.Run) {
		w.runs[device] = append(w.runs[device], page.Cursor.Run)
	}
	told := w.told[device]
	if told == nil {
		told = map[string]bool{}
		w.told[device] = told
	}
	for _, delta := range page.Deltas {
		for _, row := range delta.Upserts {
			var fields map[string]string
			if err := json.Unmarshal(row.Body, &fields); err != nil {
				panic(err)
			}
			if n, ok := w.rows[row.ID]; !ok || !w.sees(user, n) {
				w.leaks = append(w.leaks, "row "+row.ID)
			}
			a.Upserts = append(a.Upserts, fields)
			a.Version[row.ID] = row.Version
			told[row.ID] = true
		}
		for _, id := range delta.Removes {
			if !told[id] {
				w.leaks = append(w.leaks, fmt.Sprintf("id %s to %s", id, device))
			}
			a.Removes = append(a.Removes, id)
		}
	}
	return a
}

// reset notes that a device was told to start over although it had a cursor. That is right when many repeated requests
// have made many runs since.
func (w *world) reset(device string, cursor Cursor) {
	if later := slices.DeleteFunc(slices.Clone(w.runs[device]), func(run int64) bool { return run <= cursor.Run }); len(later) < 3 {
		w.resets = append(w.resets, fmt.Sprintf("%s at %s", device, cursor))
	}
}

// mark notes a push, as the doors must.
func (w *world) mark(device, id string) {
	ctx := context.Background()
	if w.told[device] == nil {
		w.told[device] = map[string]bool{}
	}
	w.told[device][id] = true
	d, err := w.engine.Open(ctx, device)
	if err != nil {
		panic(err)
	}
	defer d.Close()
	if err := d.Mark(ctx, notes(w), id); err != nil {
		panic(err)
	}
}
