package quota

import (
	"testing"
	"time"
)

func TestRetryAfterJitter(t *testing.T) {
	least, most := func(int) int { return 0 }, func(n int) int { return n - 1 }
	for _, c := range []struct{ wait, low, high time.Duration }{
		{1, time.Second, time.Second},
		{time.Second, time.Second, time.Second},
		{time.Second + 1, 2 * time.Second, 2 * time.Second},
		{9500 * time.Millisecond, 10 * time.Second, 12 * time.Second},
		{90 * time.Second, 90 * time.Second, 108 * time.Second},
	} {
		if low, high := retryAfter(c.wait, least), retryAfter(c.wait, most); low != c.low || high != c.high {
			t.Errorf("%s: between %s and %s, want %s and %s", c.wait, low, high, c.low, c.high)
		}
	}
}
