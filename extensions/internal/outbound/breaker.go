package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
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

// OpenError says that a host is not called because it does not work.
type OpenError struct {
	Host string
	Wait time.Duration // until there is use in asking again
}

// Error implements error.
func (e *OpenError) Error() string {
	return fmt.Sprintf("%s does not work and is not called for %s", e.Host, e.Wait.Round(time.Second))
}

// roundTrip makes a call if the host is well, and tells how it went once the body has ended: a peer that answers at once
// and then lets the caller wait does not work, either. A host whose answers are errors of its own is not well.
func (b *Breakers) roundTrip(next http.RoundTripper, r *http.Request) (*http.Response, error) {
	done, wait := b.Allow(r.URL.Host)
	if done == nil {
		if r.Body != nil {
			_ = r.Body.Close() // the contract of a RoundTripper
		}
		return nil, &OpenError{r.URL.Host, wait}
	}
	resp, err := next.RoundTrip(r)
	switch {
	case err != nil:
		done(err)
	case resp.StatusCode >= http.StatusInternalServerError:
		done(errors.New(resp.Status))
	default:
		resp.Body = &watched{ReadCloser: resp.Body, done: done}
	}
	return resp, err
}

// watched is a body that tells how it has ended, once.
type watched struct {
	io.ReadCloser
	done  func(error)
	ended atomic.Bool
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		w.end(nil)
	} else if err != nil {
		w.end(err)
	}
	return n, err
}

// Close implements io.Closer. A caller who has read enough has nothing against the host.
func (w *watched) Close() error {
	w.end(nil)
	return w.ReadCloser.Close()
}

func (w *watched) end(err error) {
	if !w.ended.Swap(true) {
		w.done(err)
	}
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
