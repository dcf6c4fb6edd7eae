package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// chunkSize is how many rows are read at a time.
const chunkSize = 500

// serve fills the page with what is queued from the position on and returns the position behind it.
func (p *pull) serve(ctx context.Context, r *run, at int) (int, error) {
	left, bytes, skip := p.q.Limit, p.q.Bytes, at
	for _, part := range r.parts {
		n := part.length()
		if skip >= n {
			skip -= n
			continue
		}
		if !p.wants(part.Key) {
			at += n - skip
			skip = 0
			continue
		}
		if c := p.want[p.index(part.Key)]; c.Schema != part.Schema && !p.d.engine.faults.noSchema {
			part.Schema, r.moved = "", true // rows of both states: it is none of them
		}
		s := &served{pull: p, part: part, delta: Delta{Name: part.Name, Key: part.Key}, left: left, bytes: bytes}
		done, err := s.run(ctx, skip)
		if err != nil {
			return at, err
		}
		skip, left, bytes, at = 0, s.left, s.bytes, at+done
		r.moved = r.moved || done > 0
		if len(s.delta.Upserts) > 0 || len(s.delta.Removes) > 0 {
			p.page.Deltas = append(p.page.Deltas, s.delta)
		}
		if s.full {
			break
		}
	}
	if at > r.served {
		r.served, r.moved = at, true
	}
	return at, nil
}

// served is one collection in a page.
type served struct {
	*pull
	part        *part
	delta       Delta
	left, bytes int
	full        bool
	maybe       *Set
}

// run serves from the position within the part and returns how many entries it has dealt with.
func (s *served) run(ctx context.Context, from int) (int, error) {
	if s.maybe = s.d.maybe(s.part.Key); s.d.engine.faults.noMaybe {
		s.maybe = &Set{}
	}
	total, done := int(s.part.queue.GetCardinality()), 0
	for from < total && !s.full {
		numbers, err := entries(s.part.queue, from, min(total-from, chunkSize, max(s.left, 1)))
		if err != nil {
			return done, err
		}
		n, err := s.chunk(ctx, numbers)
		done += n
		from += n
		if err != nil {
			return done, err
		}
	}
	for ; !s.full && from-total < len(s.part.ghosts); from, done = from+1, done+1 {
		if s.full = s.left == 0; s.full {
			return done, nil
		}
		s.delta.Removes = append(s.delta.Removes, s.part.ghosts[from-total])
		s.left--
	}
	return done, nil
}

func entries(queue *Set, from, n int) ([]uint64, error) {
	first, err := queue.Select(uint64(from))
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	out := make([]uint64, 0, n)
	it := queue.Iterator()
	it.AdvanceIfNeeded(first)
	for len(out) < n && it.HasNext() {
		out = append(out, it.Next())
	}
	return out, nil
}

// errForgotten reports a removal that was queued before the deletion was forgotten: nobody knows the id any more.
var errForgotten = errors.New("a deletion that is queued was forgotten")

// chunk serves rows and returns how many it has dealt with before the page was full.
func (s *served) chunk(ctx context.Context, numbers []uint64) (int, error) {
	rows, names, err := s.look(ctx, numbers)
	if err != nil {
		return 0, err
	}
	f := s.d.engine.faults
	for i, n := range numbers {
		row, sees := rows[n]
		if s.full = s.left == 0 || sees && s.bytes < len(row.Body) && s.bytes < s.q.Bytes; s.full {
			return i, nil
		}
		name, named := names[n]
		switch {
		case sees:
			s.delta.Upserts = append(s.delta.Upserts, row)
			s.part.record(f, n, row.ID, sentRow)
			s.left--
			s.bytes -= len(row.Body)
		case named && s.holds(n):
			s.delta.Removes = append(s.delta.Removes, name)
			s.part.record(f, n, name, removed)
			s.left--
		case !named && s.part.have.Contains(n):
			return i, errForgotten
		default:
			s.part.record(f, n, name, skipped)
		}
	}
	return len(numbers), nil
}

// look reads the rows that the viewer sees, and the names of the others that the device may hold.
func (s *served) look(ctx context.Context, numbers []uint64) (map[uint64]Row, map[uint64]string, error) {
	var unread, unseen []uint64
	dark := s.dark[s.part.Key]
	for _, n := range numbers {
		if _, ok := s.rows[s.part.Key][n]; !ok && (dark == nil || !dark.Contains(n)) {
			unread = append(unread, n)
		}
	}
	if len(unread) > 0 {
		if _, err := s.read(ctx, s.part, unread); err != nil {
			return nil, nil, err
		}
	}
	rows := s.rows[s.part.Key]
	for _, n := range numbers {
		if _, sees := rows[n]; !sees && s.holds(n) {
			unseen = append(unseen, n)
		}
	}
	if len(unseen) == 0 {
		return rows, nil, nil
	}
	names, err := s.src.Names(ctx, s.part.Collection, unseen)
	if err != nil {
		return nil, nil, fmt.Errorf("name rows: %w", err)
	}
	return rows, names, nil
}

// holds reports whether the device may hold the row.
func (s *served) holds(n uint64) bool {
	p := s.part
	if p.have.Contains(n) {
		return true
	}
	for _, set := range []*Set{p.rc, p.late, p.may, s.maybe} {
		if set.Contains(n) {
			return true
		}
	}
	return false
}

// finish fills in what belongs to the end of the page.
func (p *pull) finish(r *run, at int) {
	p.page.More = at < r.length()
	for _, c := range p.want {
		if r.part(c.Key) == nil || slices.Contains(r.dropped, c.Key) {
			p.page.More = true // asked for in the middle of a run: the next one begins with it
		}
	}
	for _, part := range r.parts {
		if part.h < p.now.Seq && p.wants(part.Key) {
			p.page.More = true // something has happened since the run was made, and a client stops when there is no more
		}
	}
	if p.page.More {
		return
	}
	p.page.Check = map[string]Check{}
	for _, part := range r.parts {
		if p.wants(part.Key) {
			p.page.Check[part.Name] = part.check()
		}
	}
}
