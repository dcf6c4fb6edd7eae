package records

import (
	"context"
	"crypto/rand"
	"math/big"
	"sync"
	"time"
)

// The numbers are PocketBase's: after three filtered lists without a result in three seconds, each further one waits a
// random time, so that how long a list takes tells less about the rows that the rule hides.
const (
	throttleWindow  = 3 * time.Second
	throttleFree    = 3
	throttleLongest = 500 * time.Millisecond

	// throttleSize bounds the memory: when so many clients are counted, all others wait too.
	throttleSize = 10_000
)

type throttleKey struct{ collection, ip string }

// throttle counts empty answers in a window of time that all clients share.
type throttle struct {
	mu     sync.Mutex
	start  time.Time
	counts map[throttleKey]int
}

// exceeded counts one more empty answer and reports whether it is one too many.
func (t *throttle) exceeded(key throttleKey, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.start) >= throttleWindow {
		t.start, t.counts = now, map[throttleKey]int{}
	}
	if _, known := t.counts[key]; !known && len(t.counts) >= throttleSize {
		return true
	}
	t.counts[key]++
	return t.counts[key] > throttleFree
}

// pause waits a random time, or until the request ends.
func (t *throttle) pause(ctx context.Context) {
	wait, err := rand.Int(rand.Reader, big.NewInt(int64(throttleLongest)))
	if err != nil {
		wait = big.NewInt(int64(throttleLongest))
	}
	timer := time.NewTimer(time.Duration(wait.Int64()))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
