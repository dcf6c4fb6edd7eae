// Package gcra counts what keys have used of their quotas, in memory of a fixed size.
package gcra

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"reflect"
	"sync"
	"time"
)

// ways is how many keys share a set. Eight slots and their lock take two cache lines and a bit.
const ways = 8

// Policy is a quota: Limit units of cost in each Window, of which Burst may come at once. Limit is at least 1, Burst between 1 and Limit;
// 0 means Limit. A key is remembered for each Name apart.
type Policy struct {
	Name   string
	Limit  int
	Window time.Duration
	Burst  int
}

// AtOnce is how much may come at once.
func (p Policy) AtOnce() int {
	if p.Burst <= 0 || p.Burst > p.Limit {
		return p.Limit
	}
	return p.Burst
}

// String is the quota as a person reads it: "300 per 1m (60 at once)".
func (p Policy) String() string {
	window := p.Window.String()
	if p.Window%time.Minute == 0 {
		window = fmt.Sprintf("%dm", p.Window/time.Minute)
	}
	if p.AtOnce() < p.Limit {
		return fmt.Sprintf("%d per %s (%d at once)", p.Limit, window, p.AtOnce())
	}
	return fmt.Sprintf("%d per %s", p.Limit, window)
}

// unit is the time in which one unit of cost grows back.
func (p Policy) unit() time.Duration {
	return max(p.Window/time.Duration(p.Limit), 1)
}

// Times is the same quota, enlarged.
func (p Policy) Times(factor int) Policy {
	p.Burst = p.AtOnce() * factor
	p.Limit *= factor
	return p
}

// Decision is the state of a key after a request. Remaining is what may still come at once. Reset is the time until the
// whole burst is there again; RetryAfter the time until the refused request would pass, 0 when it was allowed.
type Decision struct {
	Allowed    bool
	Limit      int
	Remaining  int
	Reset      time.Duration
	RetryAfter time.Duration
}

// Table remembers how much of its quota each key has used, by the generic cell rate algorithm: a key's state is one time
// (the theoretical arrival time, TAT), and the quota is used up as far as that time lies ahead of now.
//
// Its memory is fixed: 17 bytes a slot. When the eight slots of a set are taken, a new key replaces one that has expired
// or else the one that has used the smallest share of its quota. So a flood of new keys pushes out other hardly used
// keys and never one that is being held back. Keys are hashed with a random seed of the process, so that nobody outside
// can aim at a set. Methods are safe for concurrent use and do not allocate.
type Table struct {
	seed maphash.Seed
	mask uint64
	sets []set
	now  func() time.Duration
}

type set struct {
	mu    sync.Mutex
	slots [ways]slot
}

// slot holds the upper 48 bits of a key's hash and, in the lower 16, the span of its policy as a bfloat16. The zero
// slot is free: its TAT has always passed.
type slot struct {
	key uint64
	tat time.Duration
}

const spanBits = 16

// NewTable returns a table for that many keys, rounded up to a power of two.
func NewTable(slots int) *Table {
	start := time.Now()
	return NewTableWithClock(slots, func() time.Duration { return time.Since(start) })
}

// NewTableWithClock takes the clock: the time since any fixed moment that is not in the future.
func NewTableWithClock(slots int, now func() time.Duration) *Table {
	n := uint64(1) << bits.Len(uint(max(slots-1, 0)/ways))
	return &Table{seed: maphash.MakeSeed(), mask: n - 1, sets: make([]set, n), now: now}
}

// Take charges cost units to the key if its quota allows. A cost above the burst passes only when nothing is used, and
// is charged in full, up to Limit, so that later requests wait for it: a large batch is possible, but rarely.
func (t *Table) Take(key []byte, p Policy, cost int) Decision {
	return t.decide(key, p, cost, true)
}

// Peek is what Take would answer.
func (t *Table) Peek(key []byte, p Policy, cost int) Decision {
	return t.decide(key, p, cost, false)
}

// Give returns units that were taken.
func (t *Table) Give(key []byte, p Policy, cost int) {
	span := p.unit() * time.Duration(p.AtOnce())
	hash := t.hash(key, p.Name, span)
	s := t.set(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.find(hash); i >= 0 {
		s.slots[i].tat -= p.unit() * time.Duration(min(max(cost, 0), p.Limit))
	}
}

func (t *Table) decide(key []byte, p Policy, cost int, charge bool) Decision {
	unit, burst := p.unit(), p.AtOnce()
	span := unit * time.Duration(burst)
	cost = max(cost, 0)
	hash := t.hash(key, p.Name, span)
	s := t.set(hash)

	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.now()
	i := s.find(hash)
	var used time.Duration
	if i >= 0 {
		used = max(s.slots[i].tat-now, 0)
	}
	d := Decision{Allowed: true, Limit: p.Limit}
	if wait := used + unit*time.Duration(min(cost, burst)) - span; wait > 0 {
		d.Allowed, d.RetryAfter = false, wait
	} else if charge && cost > 0 {
		used += unit * time.Duration(min(cost, p.Limit))
		if i < 0 {
			i = s.victim(now)
		}
		s.slots[i] = slot{key: hash, tat: now + used}
	}
	d.Reset = used
	d.Remaining = int(max(span-used, 0) / unit)
	return d
}

// Keys counts the keys that have used some of their quota. It walks the table.
func (t *Table) Keys() int {
	n := 0
	for i := range t.sets {
		n += t.sets[i].live(t.now())
	}
	return n
}

// Bytes is the memory of the table.
func (t *Table) Bytes() int { return len(t.sets) * int(reflect.TypeFor[set]().Size()) }

func (t *Table) hash(key []byte, policy string, span time.Duration) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	_, _ = h.WriteString(policy)
	_ = h.WriteByte(0)
	_, _ = h.Write(key)
	return h.Sum64()>>spanBits<<spanBits | uint64(math.Float32bits(float32(span))>>spanBits)
}

func (t *Table) set(hash uint64) *set { return &t.sets[hash>>spanBits&t.mask] }

func (s *set) find(hash uint64) int {
	for i := range s.slots {
		if s.slots[i].key == hash {
			return i
		}
	}
	return -1
}

// victim is the slot whose key has used the smallest share of its quota; a key that has expired has used none.
func (s *set) victim(now time.Duration) int {
	least, share := 0, float32(math.Inf(1))
	for i := range s.slots {
		if used := s.slots[i].share(now); used < share {
			least, share = i, used
		}
	}
	return least
}

func (s *slot) share(now time.Duration) float32 {
	if s.tat <= now {
		return 0
	}
	return float32(s.tat-now) / math.Float32frombits(uint32(s.key)<<spanBits)
}

func (s *set) live(now time.Duration) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i := range s.slots {
		if s.slots[i].tat > now {
			n++
		}
	}
	return n
}
