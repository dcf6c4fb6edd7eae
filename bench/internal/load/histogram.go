package load

import (
	"math/bits"
	"time"
)

// subBuckets is the number of buckets in each power of two; it bounds the error of a quantile to 1/64.
const subBuckets = 64

// Histogram counts durations in buckets whose width grows with the value. The zero value is ready.
type Histogram struct {
	counts []uint32
	total  int
}

// Record counts one duration; negative ones count as zero.
func (h *Histogram) Record(d time.Duration) {
	i := bucket(uint64(max(d, 0)))
	if i >= len(h.counts) {
		h.counts = append(h.counts, make([]uint32, i+1-len(h.counts))...)
	}
	h.counts[i]++
	h.total++
}

// Merge adds the counts of other.
func (h *Histogram) Merge(other Histogram) {
	if len(other.counts) > len(h.counts) {
		h.counts = append(h.counts, make([]uint32, len(other.counts)-len(h.counts))...)
	}
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// Count is the number of recorded durations.
func (h *Histogram) Count() int { return h.total }

// Quantile is the smallest recorded duration, to 1/64, that a share q of all does not exceed; 0 without any.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := int(q*float64(h.total-1)) + 1
	for i, n := range h.counts {
		if rank -= int(n); rank <= 0 {
			return time.Duration(lowest(i))
		}
	}
	return 0
}

// bucket is v itself below 2*subBuckets; above, the leading bits and the number of bits cut off.
func bucket(v uint64) int {
	shift := max(bits.Len64(v)-bits.Len64(2*subBuckets-1), 0)
	return shift*subBuckets + int(v>>shift)
}

// lowest is the smallest value of a bucket.
func lowest(i int) uint64 {
	if i < 2*subBuckets {
		return uint64(i)
	}
	shift := i/subBuckets - 1
	return uint64(i-shift*subBuckets) << shift
}
