// Package serial makes numbers for rows that come in the order of time, and writes them as ids for the outside.
package serial

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"
)

// Counter makes numbers that grow: 41 bits of milliseconds, good until 2039 with the sign bit free until 2109, and 21 bits
// that begin anywhere in the lower half and count. Two processes meet once in a million milliseconds that both use, and
// then try again. It is safe for concurrent use.
type Counter struct{ last atomic.Int64 }

// Next is a number that is larger than those before.
func (c *Counter) Next(now time.Time) int64 {
	fresh := now.UnixMilli()<<21 | rand.Int64N(1<<20) //nolint:gosec // nobody gains by guessing it: what it names is guarded by rules or a signature
	for {
		last := c.last.Load()
		id := max(fresh, last+1)
		if c.last.CompareAndSwap(last, id) {
			return id
		}
	}
}

// ErrForm says that a text is no id.
var ErrForm = errors.New("this is no id")

// Format is a number as the outside sees it.
func Format(id int64) string { return strconv.FormatInt(id, 36) }

// Parse is the reverse. The error is [ErrForm].
func Parse(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 36, 64)
	if err != nil || id <= 0 || Format(id) != text {
		return 0, ErrForm
	}
	return id, nil
}
