package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/satchelbase/satchel/extensions"
)

const (
	// fresh is how long results are repeated: a probe cannot be used to keep the disk busy.
	fresh = time.Second

	// checkTimeout is below the usual patience of load balancers, which is five seconds or more.
	checkTimeout = 2 * time.Second
)

// named is the result of one check.
type named struct {
	name string
	extensions.Result
}

// failed lists the names of the checks that failed.
func failed(results []named) []string {
	var names []string
	for _, r := range results {
		if r.Level == extensions.Fail {
			names = append(names, r.name)
		}
	}
	return names
}

// probe runs checks and remembers what they said. It is safe for concurrent use.
type probe struct {
	host   *extensions.Host
	checks func() []extensions.Check

	mu     sync.Mutex
	last   []named
	at     time.Time
	flight chan struct{} // closed when the run that is under way has ended; nil when none is
	busy   map[int]bool  // positions of checks whose last run has not returned yet
}

func newProbe(h *extensions.Host, checks func() []extensions.Check) *probe {
	return &probe{host: h, checks: checks, busy: map[int]bool{}}
}

// results returns results that are at most a second old. All who ask at the same time share one run. When ctx ends
// first, the results of the run before are returned; before the first run has ended, there are none and that is a
// failure.
func (p *probe) results(ctx context.Context) []named {
	p.mu.Lock()
	if p.last != nil && time.Since(p.at) < fresh {
		defer p.mu.Unlock()
		return p.last
	}
	if p.flight == nil {
		p.flight = make(chan struct{})
		go p.run(p.flight) //nolint:gosec // the run is shared, so it must outlive the request that began it
	}
	done := p.flight
	p.mu.Unlock()

	select {
	case <-done:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		return []named{{"checks", extensions.Result{Level: extensions.Fail, Message: "have not run yet"}}}
	}
	return p.last
}

// run asks all checks at once and waits for the slowest, within the timeout.
func (p *probe) run(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	checks := p.checks()
	answers := make([]chan extensions.Result, len(checks))
	for i, c := range checks {
		answers[i] = p.ask(ctx, i, c)
	}
	results := make([]named, len(checks))
	for i, c := range checks {
		results[i] = named{c.Name, extensions.Result{
			Level: extensions.Fail, Message: fmt.Sprintf("no answer within %s", checkTimeout),
		}}
		select {
		case results[i].Result = <-answers[i]:
		case <-ctx.Done():
			select { // it may have answered while another was waited for
			case results[i].Result = <-answers[i]:
			default:
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.at, p.flight = results, time.Now(), nil
	close(done)
}

// ask starts a check, unless its last run still hangs: hanging checks must not pile up.
func (p *probe) ask(ctx context.Context, i int, c extensions.Check) chan extensions.Result {
	answer := make(chan extensions.Result, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[i] {
		return answer
	}
	p.busy[i] = true
	go func() {
		result := p.call(ctx, c)
		p.mu.Lock()
		delete(p.busy, i)
		p.mu.Unlock()
		answer <- result
	}()
	return answer
}

// call turns a panic into a failure, because it happens outside any request and would end the process.
func (p *probe) call(ctx context.Context, c extensions.Check) (result extensions.Result) {
	defer func() {
		if r := recover(); r != nil {
			result = extensions.Result{Level: extensions.Fail, Message: fmt.Sprintf("the check panicked: %v", r)}
		}
	}()
	return c.Run(ctx, p.host)
}
