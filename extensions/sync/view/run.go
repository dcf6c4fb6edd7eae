package view

import (
	"hash/fnv"
	"slices"
)

// run is one plan and how far it was served.
type run struct {
	id    int64
	base  int64 // the run from whose end it was made, 0 for a new beginning
	epoch string
	parts []*part

	// What follows changes while the run is served.
	used    bool     // its cursor has come back
	served  int      // the highest position that was given out
	dropped []string // keys of collections that the client has stopped asking for in its middle

	fresh, moved bool // must be stored: all of it, or what changes
}

// part is the plan for one collection.
type part struct {
	Collection
	full   bool // a snapshot: the client has nothing, or forgets what is not mentioned
	have   *Set // held by the client when it began
	queue  *Set
	ghosts []string // behind the queue: ids that no row ever had, which the client has pushed
	rc     *Set     // rows of the queue that the client may hold although have does not say so
	may    *Set     // other rows that it may hold, but not those in have
	xor    uint32   // of the ids in have

	h      int64 // the horizon that the client is at behind the queue
	up     *Set  // outcomes of what was served last: sent,
	rm     *Set  // removed,
	skip   *Set  // or not mentioned
	late   *Set  // to be queued in the next run
	doubt  *Set  // sent by runs that were made from this one and replaced before anybody used them
	pushed []string
	change uint32 // xor of the ids by which the outcomes change have
}

func newPart(c Collection, h int64, full bool) *part {
	return &part{
		Collection: c, full: full, h: h, have: &Set{}, queue: &Set{}, rc: &Set{}, may: &Set{},
		up: &Set{}, rm: &Set{}, skip: &Set{}, late: &Set{}, doubt: &Set{},
	}
}

func set(sets ...*Set) *Set {
	out := &Set{}
	for _, s := range sets {
		out.Or(s)
	}
	return out
}

func (p *part) length() int { return int(p.queue.GetCardinality()) + len(p.ghosts) }

func (r *run) length() int {
	n := 0
	for _, p := range r.parts {
		n += p.length()
	}
	return n
}

// stale reports a run from which deletions may have been forgotten.
func (r *run) stale(now Position) bool {
	return slices.ContainsFunc(r.parts, func(p *part) bool { return p.h < now.Floor })
}

func (r *run) part(key string) *part {
	i := slices.IndexFunc(r.parts, func(p *part) bool { return p.Key == key })
	if i < 0 {
		return nil
	}
	return r.parts[i]
}

// sent are the rows that answers from this run have told of.
func (p *part) sent() *Set { return set(p.up, p.rm) }

// held is what the client holds behind the queue.
func (p *part) held() *Set {
	s := set(p.have, p.up)
	s.AndNot(p.rm)
	s.AndNot(p.skip)
	return s
}

// outcome is what an answer says of a row.
type outcome int

const (
	skipped outcome = iota
	sentRow
	removed
)

// record notes the outcome. A row that was served before with another one may have reached the client in either state:
// the answers may overtake each other.
func (p *part) record(f faults, number uint64, id string, o outcome) {
	before, known := p.outcome(number)
	if known && before == o {
		return
	}
	if known {
		if !f.noFlip {
			p.late.Add(number)
		}
		p.change ^= p.effect(number, id, before)
		for _, s := range []*Set{p.up, p.rm, p.skip} {
			s.Remove(number)
		}
	}
	p.change ^= p.effect(number, id, o)
	switch o {
	case sentRow:
		p.up.Add(number)
	case removed:
		p.rm.Add(number)
	case skipped:
		p.skip.Add(number)
	}
}

func (p *part) outcome(number uint64) (outcome, bool) {
	switch {
	case p.up.Contains(number):
		return sentRow, true
	case p.rm.Contains(number):
		return removed, true
	}
	return skipped, p.skip.Contains(number)
}

// effect is what the outcome does to the xor of the ids that are held.
func (p *part) effect(number uint64, id string, o outcome) uint32 {
	if p.have.Contains(number) != (o == sentRow) {
		return Hash(id)
	}
	return 0
}

// Hash is the hash of an id in a [Check].
func Hash(id string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return h.Sum32()
}

// check is what the client holds behind the queue.
func (p *part) check() Check { return Check{Count: p.held().GetCardinality(), XOR: p.xor ^ p.change} }
