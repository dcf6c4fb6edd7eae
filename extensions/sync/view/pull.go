package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pull is one call of Pull.
type pull struct {
	d    *Device
	src  Source
	q    Request
	now  Position
	want []Collection
	page Page
	rows map[string]map[uint64]Row // that were read for the queue already, by collection
	dark map[string]*Set           // looked at with them and not seen

	looked map[string]bool // collections whose rows had to be looked at
}

// Pull makes the next page for the device. It is stored before it returns.
func (d *Device) Pull(ctx context.Context, src Source, q Request) (*Page, error) {
	now, err := src.Now(ctx)
	if err != nil {
		return nil, fmt.Errorf("read position: %w", err)
	}
	p := &pull{d: d, src: src, q: q, now: now, rows: map[string]map[uint64]Row{}, dark: map[string]*Set{}, looked: map[string]bool{}}
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	for _, x := range slices.Clone(d.runs) {
		if x.epoch != now.Epoch && !d.engine.faults.noEpoch {
			d.drop(x) // its numbers may stand for other rows by now
		}
	}
	r := d.find(q.Cursor)
	if r != nil && r.stale(now) {
		r = nil
	}
	at := q.Cursor.At
	if r != nil {
		d.present(r)
	}
	for last := false; !last; {
		if last = r == nil || at >= r.length(); last {
			if r, at, err = p.next(ctx, r, at); err != nil {
				return nil, err
			}
		} else {
			p.narrow(r)
		}
		at, err = p.serve(ctx, r, at)
		if errors.Is(err, errForgotten) { // the device must find out by a snapshot what is not there
			d.drop(r)
			p.page = Page{Gone: p.page.Gone}
			if r, at, err = p.next(ctx, nil, 0); err == nil {
				at, err = p.serve(ctx, r, at)
			}
			last = true
		}
		if err != nil {
			return nil, err
		}
		// An empty page is said to be the end by clients that do not store its cursor, so it must be.
		last = last || len(p.page.Deltas) > 0
	}
	p.page.Cursor = Cursor{Epoch: r.epoch, Nonce: d.engine.store.Nonce(), Run: r.id, At: at}
	p.finish(r, at)
	if err := d.save(ctx); err != nil {
		return nil, err
	}
	return &p.page, nil
}

// resolve finds the collections that are asked for.
func (p *pull) resolve(ctx context.Context) error {
	for _, name := range p.q.Collections {
		c, err := p.src.Collection(ctx, name)
		if errors.Is(err, ErrGone) {
			p.page.Gone = append(p.page.Gone, name)
			continue
		}
		if err != nil {
			return fmt.Errorf("find collection: %w", err)
		}
		c.Schema += "/" + p.q.Schema
		if !p.wants(c.Key) {
			p.want = append(p.want, c)
		}
	}
	return nil
}

// present notes that a cursor of the run has come back, so the client has stored what led to it.
func (d *Device) present(r *run) {
	if !r.used {
		r.used, r.moved = true, true
	}
	for _, part := range r.parts {
		if !d.known[part.Key] || len(d.recheck[part.Key]) > 0 {
			if d.known == nil {
				d.known = map[string]bool{}
			}
			d.known[part.Key], d.dirty = true, true
			delete(d.recheck, part.Key)
		}
	}
}

// narrow notes collections of the run that the client does not ask for any more: it does not get what is queued for them
// now, so it must start over with them if it asks again.
func (p *pull) narrow(r *run) {
	for _, part := range r.parts {
		if !p.wants(part.Key) && !slices.Contains(r.dropped, part.Key) {
			r.dropped, r.moved = append(r.dropped, part.Key), true
		}
	}
}

func (p *pull) wants(key string) bool { return p.index(key) >= 0 }

func (p *pull) index(key string) int {
	return slices.IndexFunc(p.want, func(c Collection) bool { return c.Key == key })
}

// next makes the run that follows the end of another one, or the first one, and returns it with the position to serve
// from. When there is nothing new it is the old one.
func (p *pull) next(ctx context.Context, old *run, at int) (*run, int, error) {
	if old != nil {
		p.d.newer(old)
	}
	r := &run{epoch: p.now.Epoch}
	same := old != nil && len(old.parts) == len(p.want)
	for _, c := range p.want {
		var before *part
		if old != nil && !slices.Contains(old.dropped, c.Key) {
			before = old.part(c.Key)
		}
		var part *part
		var err error
		if before == nil {
			part, err = p.snapshot(ctx, c)
			p.page.Reset = append(p.page.Reset, c.Name)
		} else {
			part, err = p.advance(ctx, before, c)
		}
		if err != nil {
			return nil, 0, err
		}
		r.parts = append(r.parts, part)
		same = same && before != nil && part.length() == 0
	}
	if same {
		p.stay(old, r)
		return old, at, nil
	}
	p.d.add(r, old)
	return r, 0, nil
}

// stay moves the old run's horizon to the present, because nothing has happened between them that concerns the device. It
// is stored only if that spares work.
func (p *pull) stay(old, r *run) {
	for i, part := range r.parts {
		own := old.parts[i]
		if own.Key != part.Key {
			own = old.part(part.Key)
		}
		if own.Schema != part.Schema || part.h > own.h && p.looked[part.Key] || part.h-own.h > sizeOfDelta {
			old.moved = true
		}
		own.Collection, own.h = part.Collection, part.h
	}
}

// newer puts what was served by later runs on the late list: the client has come back to an earlier one, and nobody knows
// what of it it has kept.
func (d *Device) newer(old *run) {
	if d.engine.faults.noDoubt {
		return
	}
	for _, x := range d.runs {
		if x.id <= old.id {
			continue
		}
		for _, part := range x.parts {
			if own := old.part(part.Key); own != nil {
				own.late.Or(part.sent())
				own.late.Or(part.late)
				old.moved = true
			}
		}
	}
}

// snapshot plans for a client that has nothing of the collection. What it has pushed before is in it too, for clients that
// put their rows into the local table before they have pulled it.
func (p *pull) snapshot(ctx context.Context, c Collection) (*part, error) {
	part := newPart(c, p.now.Seq, true)
	if err := p.recheck(ctx, part, p.d.recheck[c.Key]); err != nil {
		return nil, err
	}
	err := p.src.Visible(ctx, c, func(number uint64, _ int64) { part.queue.Add(number) })
	if err != nil {
		return nil, fmt.Errorf("read visible rows: %w", err)
	}
	part.may = p.d.maybe(c.Key)
	part.queue.Or(part.may) // it may have stored rows and no cursor
	delete(p.d.known, c.Key)
	p.d.dirty = true
	return part, nil
}

// recheck queues rows by their ids.
func (p *pull) recheck(ctx context.Context, part *part, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = strings.TrimPrefix(id, settledPrefix)
	}
	numbers, err := p.src.Numbers(ctx, part.Collection, names)
	if err != nil {
		return fmt.Errorf("find pushed rows: %w", err)
	}
	for i, id := range names {
		if n, ok := numbers[id]; ok {
			part.rc.Add(n)
			part.queue.Add(n)
		} else if ids[i] != id || p.d.engine.faults.allGhosts {
			part.ghosts = append(part.ghosts, id)
		}
	}
	return nil
}

// advance plans for a client that is at the end of old.
func (p *pull) advance(ctx context.Context, old *part, c Collection) (*part, error) {
	f := p.d.engine.faults
	part := newPart(c, p.now.Seq, false)
	part.have, part.xor = old.held(), old.xor^old.change
	part.rc.Or(old.late)
	part.queue.Or(old.late)
	if err := p.recheck(ctx, part, old.pushed); err != nil {
		return nil, err
	}
	maybe := p.d.maybe(c.Key)
	part.may = set(maybe)
	part.may.AndNot(part.have)
	if f.noMaybe {
		maybe = &Set{}
	}
	again := c.Schema != old.Schema && !f.noSchema
	exact := !again
	if exact && !f.noDeps {
		var err error
		if exact, err = p.src.Exact(ctx, c, old.h); err != nil {
			return nil, fmt.Errorf("judge rule: %w", err)
		}
	}
	if exact {
		done, err := p.delta(ctx, part, old.h, maybe)
		if err != nil || done {
			return part, err
		}
	}
	wanted, err := p.compare(ctx, part, old.h, again)
	if err != nil {
		return nil, err
	}
	part.queue.Or(wanted)
	return part, nil
}

// delta queues what has changed after the number and concerns the client. It reports false when there is so much that the
// set is better compared.
func (p *pull) delta(ctx context.Context, part *part, after int64, maybe *Set) (bool, error) {
	most := max(sizeOfDelta, 2*int(part.have.GetCardinality()))
	heads, err := p.src.Changed(ctx, part.Collection, after, most+1)
	if err != nil {
		return false, fmt.Errorf("read changes: %w", err)
	}
	if len(heads) > most {
		return false, nil
	}
	f := p.d.engine.faults
	wanted := &Set{}
	p.looked[part.Key] = len(heads) > 0
	for chunk := range slices.Chunk(heads, chunkSize) {
		numbers := make([]uint64, len(chunk))
		for i, h := range chunk {
			numbers[i] = h.Number
		}
		seen, err := p.read(ctx, part, numbers)
		if err != nil {
			return false, err
		}
		for _, h := range chunk {
			_, sees := seen[h.Number]
			if sees || (part.have.Contains(h.Number) || maybe.Contains(h.Number)) && (h.Deleted || !f.tombstones) {
				wanted.Add(h.Number)
			}
		}
	}

	part.queue.Or(wanted)
	if verify := p.d.engine.verify; verify != nil && !f.noDeps {
		all, err := p.compare(ctx, part, after, false)
		if err != nil {
			return false, err
		}
		if err := verify(part.Collection, wanted, all); err != nil {
			return false, err
		}
	}
	return true, nil
}

// read reads rows and remembers them for the page.
func (p *pull) read(ctx context.Context, part *part, numbers []uint64) (map[uint64]Row, error) {
	rows, err := p.src.Rows(ctx, part.Collection, numbers)
	if err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	known, dark := p.rows[part.Key], p.dark[part.Key]
	if known == nil {
		known, dark = map[uint64]Row{}, &Set{}
		p.rows[part.Key], p.dark[part.Key] = known, dark
	}
	dark.AddMany(numbers)
	for _, row := range rows {
		known[row.Number] = row
		dark.Remove(row.Number)
	}
	return known, nil
}

// compare returns what must be queued according to the set of all visible rows. What the client may hold without have
// saying so is not looked at: all of that is late.
func (p *pull) compare(ctx context.Context, part *part, after int64, again bool) (*Set, error) {
	p.looked[part.Key] = true
	wanted, now := &Set{}, &Set{}
	err := p.src.Visible(ctx, part.Collection, func(number uint64, version int64) {
		now.Add(number)
		if again || version > after || !part.have.Contains(number) {
			wanted.Add(number)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read visible rows: %w", err)
	}
	lost := set(part.have)
	lost.AndNot(now)
	wanted.Or(lost)
	return wanted, nil
}
