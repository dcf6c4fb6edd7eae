package view

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
)

// codecVersion is the first byte of every blob.
const codecVersion = 1

// writer builds a blob: numbers as varints, texts and sets with their length before them.
type writer struct{ b []byte }

func (w *writer) number(n uint64) { w.b = binary.AppendUvarint(w.b, n) }

func (w *writer) flag(v bool) {
	n := uint64(0)
	if v {
		n = 1
	}
	w.number(n)
}

func (w *writer) text(s string) {
	w.number(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) texts(list []string) {
	w.number(uint64(len(list)))
	for _, s := range list {
		w.text(s)
	}
}

func (w *writer) set(s *Set) error {
	if s.IsEmpty() {
		w.number(0)
		return nil
	}
	s.RunOptimize()
	var buf bytes.Buffer
	if _, err := s.WriteTo(&buf); err != nil {
		return fmt.Errorf("encode set: %w", err)
	}
	w.number(uint64(buf.Len()))
	w.b = append(w.b, buf.Bytes()...)
	return nil
}

// reader reads a blob. After the first mistake everything is zero.
type reader struct {
	b   []byte
	bad bool
}

func read(b []byte) *reader {
	if len(b) == 0 || b[0] != codecVersion {
		return &reader{bad: true}
	}
	return &reader{b: b[1:]}
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) flag() bool { return r.number() == 1 }

func (r *reader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string { return string(r.bytes()) }

func (r *reader) texts() []string {
	var out []string
	for n := r.number(); n > 0 && !r.bad; n-- {
		out = append(out, r.text())
	}
	return out
}

func (r *reader) set() *Set {
	s := &Set{}
	b := r.bytes()
	if len(b) == 0 {
		return s
	}
	if _, err := s.ReadFrom(bytes.NewReader(b)); err != nil {
		r.bad = true
		return &Set{}
	}
	return s
}

func (d *Device) encodeState() []byte {
	w := &writer{b: []byte{codecVersion}}
	w.number(uint64(d.last))
	w.number(uint64(len(d.known)))
	for key := range d.known {
		w.text(key)
	}
	w.number(uint64(len(d.recheck)))
	for key, ids := range d.recheck {
		w.text(key)
		w.texts(ids)
	}
	return w.b
}

// encodeFixed writes what does not change. have is written as the difference to that of an older run, because it differs
// in little and may be large.
func (r *run) encodeFixed(against *run) ([]byte, error) {
	w := &writer{b: []byte{codecVersion}}
	w.number(uint64(r.base))
	w.text(r.epoch)
	w.number(uint64(against.number()))
	w.number(uint64(len(r.parts)))
	for _, p := range r.parts {
		w.text(p.Key)
		w.flag(p.full)
		w.texts(p.ghosts)
		w.number(uint64(p.xor))
		have := p.have
		if against != nil {
			if other := against.part(p.Key); other != nil {
				have = set(p.have)
				have.Xor(other.have)
			}
		}
		for _, s := range []*Set{have, p.queue, p.rc, p.may} {
			if err := w.set(s); err != nil {
				return nil, err
			}
		}
	}
	return w.b, nil
}

func (r *run) number() int64 {
	if r == nil {
		return 0
	}
	return r.id
}

func (r *run) encodeMoving() ([]byte, error) {
	w := &writer{b: []byte{codecVersion}}
	w.flag(r.used)
	w.number(uint64(r.served))
	w.texts(r.dropped)
	for _, p := range r.parts {
		w.text(p.Name)
		w.text(p.Schema)
		w.number(uint64(p.h))
		w.texts(p.pushed)
		w.number(uint64(p.change))
		for _, s := range []*Set{p.up, p.rm, p.skip, p.late, p.doubt} {
			if err := w.set(s); err != nil {
				return nil, err
			}
		}
	}
	return w.b, nil
}

func decodeRun(id int64, stored StoredRun) (r *run, against int64, err error) {
	in := read(stored.Fixed)
	r = &run{id: id, base: int64(in.number()), epoch: in.text()}
	against = int64(in.number())
	for n := in.number(); n > 0 && !in.bad; n-- {
		p := &part{}
		p.Key = in.text()
		p.full, p.ghosts, p.xor = in.flag(), in.texts(), uint32(in.number())
		p.have, p.queue, p.rc, p.may = in.set(), in.set(), in.set(), in.set()
		r.parts = append(r.parts, p)
	}
	bad := in.bad
	in = read(stored.Moving)
	r.used, r.served, r.dropped = in.flag(), int(in.number()), in.texts()
	for _, p := range r.parts {
		p.Name, p.Schema = in.text(), in.text()
		p.h, p.pushed, p.change = int64(in.number()), in.texts(), uint32(in.number())
		p.up, p.rm, p.skip, p.late, p.doubt = in.set(), in.set(), in.set(), in.set(), in.set()
	}
	if bad || in.bad {
		return nil, 0, errCorrupt
	}
	return r, against, nil
}

func (d *Device) decode(stored Stored) error {
	if stored.State == nil {
		return nil
	}
	in := read(stored.State)
	d.last = int64(in.number())
	d.known, d.recheck = map[string]bool{}, map[string][]string{}
	for n := in.number(); n > 0 && !in.bad; n-- {
		d.known[in.text()] = true
	}
	for n := in.number(); n > 0 && !in.bad; n-- {
		key := in.text()
		d.recheck[key] = in.texts()
	}
	if in.bad {
		return errCorrupt
	}
	d.against = map[int64]int64{}
	for id, blobs := range stored.Runs {
		r, against, err := decodeRun(id, blobs)
		if err != nil {
			return err
		}
		d.runs = append(d.runs, r)
		d.against[id] = against
	}
	slices.SortFunc(d.runs, func(a, b *run) int { return int(b.id - a.id) })
	for _, r := range slices.Backward(d.runs) { // a run is coded against an older one
		against := d.against[r.id]
		if against == 0 {
			continue
		}
		i := slices.IndexFunc(d.runs, func(x *run) bool { return x.id == against })
		if i < 0 {
			return errCorrupt
		}
		for _, p := range r.parts {
			if other := d.runs[i].part(p.Key); other != nil {
				p.have.Xor(other.have)
			}
		}
	}
	return nil
}

// save stores what has changed.
func (d *Device) save(ctx context.Context) error {
	out := Stored{Runs: map[int64]StoredRun{}}
	if d.dirty {
		out.State = d.encodeState()
	}
	for i, r := range d.runs {
		var blobs StoredRun
		var err error
		if r.fresh || slices.Contains(d.removed, d.against[r.id]) {
			var against *run
			if i+1 < len(d.runs) {
				against = d.runs[i+1]
			}
			if blobs.Fixed, err = r.encodeFixed(against); err != nil {
				return err
			}
			if d.against == nil {
				d.against = map[int64]int64{}
			}
			d.against[r.id] = against.number()
		}
		if r.fresh || r.moved {
			if blobs.Moving, err = r.encodeMoving(); err != nil {
				return err
			}
		}
		if blobs.Fixed != nil || blobs.Moving != nil {
			out.Runs[r.id] = blobs
		}
	}
	if out.State == nil && len(out.Runs) == 0 && len(d.removed) == 0 {
		return nil
	}
	if err := d.engine.store.Save(ctx, d.key, out, d.removed); err != nil {
		return fmt.Errorf("store view: %w", err)
	}
	d.dirty, d.removed = false, nil
	for _, r := range d.runs {
		r.fresh, r.moved = false, false
	}
	return nil
}
