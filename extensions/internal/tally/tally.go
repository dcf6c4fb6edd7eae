// Package tally counts what metrics show. Counting takes some nanoseconds and no lock; reading takes no more than an
// operator's patience.
package tally

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/satchelbase/satchel/extensions"
)

// Histogram counts durations by how long they were. The zero value has no bounds; [NewHistogram] makes one. It is safe for
// concurrent use.
type Histogram struct {
	bounds []time.Duration
	counts []atomic.Uint64 // one more than bounds, each for itself
	sum    atomic.Int64    // in nanoseconds
}

// NewHistogram returns one with upper bounds, which grow.
func NewHistogram(bounds ...time.Duration) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts a duration; a negative one, as after the clock was set, is zero.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	at := 0
	for at < len(h.bounds) && d > h.bounds[at] {
		at++
	}
	h.counts[at].Add(1)
	h.sum.Add(int64(d))
}

// Read returns what was counted, in seconds.
func (h *Histogram) Read() *extensions.Distribution {
	d := &extensions.Distribution{Buckets: make(map[float64]uint64, len(h.bounds)), Sum: time.Duration(h.sum.Load()).Seconds()}
	for i := range h.counts {
		d.Count += h.counts[i].Load()
		if i < len(h.bounds) {
			d.Buckets[h.bounds[i].Seconds()] = d.Count
		}
	}
	return d
}

const (
	// restful is how many times as long as reading something took it is not read again: reading costs at most a twentieth of a core,
	// however much there is to count and however often somebody asks.
	restful = 20

	// leastRest keeps several metrics of one page from reading the same again.
	leastRest = time.Second
)

// Kept remembers what is expensive to read. The zero value is ready. It is safe for concurrent use.
type Kept[T any] struct {
	mu    sync.Mutex
	value T
	until time.Time
}

// Get returns what read has returned, now or lately. When it fails, what is known stays.
func (k *Kept[T]) Get(read func() (T, error)) T {
	k.mu.Lock()
	defer k.mu.Unlock()
	begun := time.Now()
	if begun.Before(k.until) {
		return k.value
	}
	if value, err := read(); err == nil { // a metric has nobody to tell an error to
		k.value = value
	}
	took := min(time.Since(begun), math.MaxInt64/restful)
	k.until = time.Now().Add(max(took*restful, leastRest))
	return k.value
}
