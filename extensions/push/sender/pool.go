package sender

import (
	"context"
	"errors"
	"net/http/httptrace"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

const (
	// warmFor is how long after a call a host's connection is taken to be open. Idle ones are closed after 90 s.
	warmFor = 60 * time.Second

	// warmWait is the longest that calls wait for the first one.
	warmWait = 2 * time.Second

	// startWait is how long a call that is being made may keep others from it.
	startWait = 100 * time.Millisecond

	// maxHosts bounds the memory for hosts that clients name.
	maxHosts = 4096
)

// Pool makes the calls of one sender: a bounded number at once, over all who send, each with a deadline and behind a
// breaker of its host. The first call to a host that was quiet goes alone, because it opens the connection that the others
// share; together they would open one each. The memory is that of the calls in flight.
type Pool struct {
	slots    chan struct{}
	perHost  int
	breakers *outbound.Breakers

	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	slots   chan struct{}
	start   chan struct{} // calls that are being made and not yet on their way: one for each processor
	last    time.Time     // when a call ended well
	leading chan struct{} // closed when the first call has ended; nil when there is none
}

// NewPool returns a pool of size calls at once, of which at most perHost go to one host, so that a slow one cannot take
// them all.
func NewPool(size, perHost int, breakers *outbound.Breakers) *Pool {
	return &Pool{slots: make(chan struct{}, size), perHost: min(size, perHost), breakers: breakers, hosts: map[string]*host{}}
}

// Each calls f for 0 to n-1 and returns the results in that order. key is the host of a call.
func (p *Pool) Each(ctx context.Context, n int, key func(i int) string, f func(ctx context.Context, i int) Result) []Result {
	results := make([]Result, n)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(n, cap(p.slots)) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				results[i] = p.One(ctx, key(i), func(ctx context.Context) Result { return f(ctx, i) })
			}
		})
	}
	workers.Wait()
	return results
}

type timedKey struct{}

// Timed returns a context with which the pools tell how long each call has taken.
func Timed(ctx context.Context, observe func(took time.Duration)) context.Context {
	return context.WithValue(ctx, timedKey{}, observe)
}

// One makes a single call. An empty key is for what is refused before any call.
func (p *Pool) One(ctx context.Context, key string, f func(ctx context.Context) Result) Result {
	if key == "" {
		return f(ctx)
	}
	h := p.host(key)
	if !take(ctx, h.slots) {
		return Result{Outcome: Retry, Code: CodeCanceled}
	}
	defer func() { <-h.slots }()
	if !take(ctx, p.slots) {
		return Result{Outcome: Retry, Code: CodeCanceled}
	}
	defer func() { <-p.slots }()
	done, wait := p.breakers.Allow(key)
	if done == nil {
		return Result{Outcome: Retry, Code: CodeBreaker, Detail: "the provider does not work; calls wait", After: wait}
	}
	first := p.warm(ctx, h)
	r := h.call(ctx, f)
	well := r.Outcome != Retry || (r.Status > 0 && r.Status < 500)
	p.ended(h, well, first)
	switch {
	case well:
		done(nil)
	case ctx.Err() != nil:
		done(context.Canceled)
		r = Result{Outcome: Retry, Code: CodeCanceled}
	default:
		done(errors.New(r.Code))
	}
	return r
}

// call makes a call within its time. Few are made at once, until their requests are on their way: while hundreds are ready
// to run, everybody else who wants a processor waits behind them, such as one who writes a record.
func (h *host) call(ctx context.Context, f func(ctx context.Context) Result) Result {
	if !take(ctx, h.start) {
		return Result{Outcome: Retry, Code: CodeCanceled}
	}
	away := sync.OnceFunc(func() { <-h.start })
	defer away()
	timer := time.AfterFunc(startWait, away)
	defer timer.Stop()
	if observe, timed := ctx.Value(timedKey{}).(func(time.Duration)); timed {
		begun := time.Now()
		defer func() { observe(time.Since(begun)) }()
	}
	ctx, cancel := context.WithTimeout(ctx, outbound.Timeout)
	defer cancel()
	return f(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { away() }}))
}

// take waits for room in a semaphore, unless the caller has given up.
func take(ctx context.Context, slots chan struct{}) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *Pool) host(key string) *host {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[key]
	if h == nil {
		if len(p.hosts) >= maxHosts {
			clear(p.hosts) // calls in flight keep theirs
		}
		h = &host{slots: make(chan struct{}, p.perHost), start: make(chan struct{}, runtime.GOMAXPROCS(0))}
		p.hosts[key] = h
	}
	return h
}

// warm makes the first caller of a quiet host the leader and lets the others wait for it.
func (p *Pool) warm(ctx context.Context, h *host) (leader bool) {
	p.mu.Lock()
	if time.Since(h.last) < warmFor {
		p.mu.Unlock()
		return false
	}
	leading := h.leading
	if leading == nil {
		h.leading = make(chan struct{})
	}
	p.mu.Unlock()
	if leading == nil {
		return true
	}
	timer := time.NewTimer(warmWait)
	defer timer.Stop()
	select {
	case <-leading:
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (p *Pool) ended(h *host, well, leader bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if well {
		h.last = time.Now()
	}
	if leader {
		close(h.leading)
		h.leading = nil
	}
}
