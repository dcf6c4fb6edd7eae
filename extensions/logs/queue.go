package logs

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// queueSize bounds what waits: at 1 to 2 KB each at most some 8 MB, and four seconds of a thousand requests a second.
	queueSize = 4096

	// successLimit leaves the last quarter of the queue to failures.
	successLimit = queueSize / 4 * 3
)

// queue passes entries to the one goroutine that handles them. It is safe for concurrent use.
type queue struct {
	entries chan *entry
	dropped atomic.Uint64

	once    sync.Once
	stop    chan struct{}
	done    chan struct{}
	abandon atomic.Bool
}

func newQueue() *queue {
	return &queue{entries: make(chan *entry, queueSize), stop: make(chan struct{}), done: make(chan struct{})}
}

// push never waits. It reports whether the entry now belongs to the queue.
func (q *queue) push(x *entry) bool {
	if len(q.entries) < successLimit || x.failed() {
		select {
		case q.entries <- x:
			return true
		default:
		}
	}
	q.dropped.Add(1)
	return false
}

// run handles entries, and calls tick at the interval, until close is called and the queue is empty; then it calls tick
// for the last time.
func (q *queue) run(interval time.Duration, do func(*entry), tick func()) {
	defer close(q.done)
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case x := <-q.entries:
			q.handle(do, x)
		case <-t.C:
			tick()
		case <-q.stop:
			for !q.abandon.Load() {
				select {
				case x := <-q.entries:
					q.handle(do, x)
				default:
					tick()
					return
				}
			}
			return
		}
	}
}

// handle drops an entry that cannot be described: its error or its metadata come from any handler, and a panic in their
// methods would end the process here.
func (q *queue) handle(do func(*entry), x *entry) {
	defer func() {
		if recover() != nil {
			q.dropped.Add(1)
		}
	}()
	do(x)
}

// close waits until what is left has been handled, as long as ctx allows; the rest is given up.
func (q *queue) close(ctx context.Context) error {
	q.once.Do(func() { close(q.stop) })
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		q.abandon.Store(true)
		return fmt.Errorf("%d requests were not logged: %w", len(q.entries), ctx.Err())
	}
}
