package outbound

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// A breaker opens after so many failures in a row, or when half of at least so many calls in the window failed. It then
// refuses calls for a while and lets single ones try. The window is longer than any call takes: one that began before it
// would not count.
const (
	breakerFailures = 10
	breakerCalls    = 20
	breakerWindow   = 2 * time.Minute
	breakerPause    = 30 * time.Second

	// maxBreakers bounds the memory for hosts that clients name. Above it, those without recent failures are forgotten.
	maxBreakers = 4096
)

// Breakers has one circuit breaker for each key, such as a host. It is safe for concurrent use.
type Breakers struct {
	mu    sync.Mutex
	pause time.Duration
	kept  map[string]*breaker
}

type breaker struct {
	*gobreaker.TwoStepCircuitBreaker[struct{}]

	mu     sync.Mutex
	opened time.Time
}

// NewBreakers returns breakers that are all closed: calls pass. pause is how long an open one refuses; zero is 30 s.
func NewBreakers(pause time.Duration) *Breakers {
	if pause == 0 {
		pause = breakerPause
	}
	return &Breakers{pause: pause, kept: map[string]*breaker{}}
}

// Allow asks for one call. A nil done is a refusal, and wait says for how long there is no use in asking again. Otherwise
// the caller must call done once: with nil when the host was well, which an answer that blames the caller shows, too; with
// context.Canceled when nothing was learned; with another error when it was not.
func (b *Breakers) Allow(key string) (done func(err error), wait time.Duration) {
	br := b.get(key)
	report, err := br.Allow()
	if err != nil {
		br.mu.Lock()
		defer br.mu.Unlock()
		return nil, max(time.Second, b.pause-time.Since(br.opened))
	}
	return report, 0
}

func (b *Breakers) get(key string) *breaker {
	b.mu.Lock()
	defer b.mu.Unlock()
	if br, ok := b.kept[key]; ok {
		return br
	}
	if len(b.kept) >= maxBreakers {
		b.forget()
	}
	br := &breaker{}
	br.TwoStepCircuitBreaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Interval: breakerWindow, BucketPeriod: breakerWindow / 10, Timeout: b.pause,
		IsExcluded: func(err error) bool { return errors.Is(err, context.Canceled) },
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.ConsecutiveFailures >= breakerFailures || c.Requests >= breakerCalls && 2*c.TotalFailures >= c.Requests
		},
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				br.mu.Lock()
				br.opened = time.Now()
				br.mu.Unlock()
			}
		},
	})
	b.kept[key] = br
	return br
}

// forget makes room: first the breakers that have nothing to remember, and if there are none, all of them.
func (b *Breakers) forget() {
	for key, br := range b.kept {
		if br.State() == gobreaker.StateClosed && br.Counts().TotalFailures == 0 {
			delete(b.kept, key)
		}
	}
	if len(b.kept) >= maxBreakers {
		clear(b.kept)
	}
}
