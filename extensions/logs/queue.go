package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/tools/logger"

	"github.com/satchelbase/satchel/extensions"
)

const (
	// queueSize bounds what waits: at 1 to 2 KB each at most some 8 MB, and four seconds of a thousand requests a second.
	queueSize = 4096

	// dropReportInterval spaces the warnings about dropped lines.
	dropReportInterval = 10 * time.Second
)

// pipeline takes a finished request to standard error and from there to PocketBase's log. Each step has its own queue,
// so that a busy database does not hold up the lines.
type pipeline struct {
	cfg     Config
	lines   *queue
	records *queue
}

func newPipeline(cfg Config) *pipeline {
	return &pipeline{cfg: cfg, lines: newQueue(), records: newQueue()}
}

func (p *pipeline) dropped() uint64 { return p.lines.dropped.Load() + p.records.dropped.Load() }

func (p *pipeline) start(h *extensions.Host) {
	var reported uint64
	var reportedAt time.Time
	go p.lines.run(func(x *entry) {
		x.redact()
		if x.wanted(p.cfg) {
			handle(context.Background(), h.Logger, x.record())
		}
		p.records.push(x)
		if n := p.dropped(); n != reported && time.Since(reportedAt) >= dropReportInterval {
			h.Logger.Warn("request lines were dropped", slog.Uint64("count", n-reported))
			reported, reportedAt = n, time.Now()
		}
	})
	// PocketBase collects records and would write each batch in a goroutine of its own. Here the queue waits for the
	// database instead: that bounds the memory, and nothing is still being written when the database is closed.
	ctx := context.WithValue(context.Background(), logger.BlockKey, true)
	go p.records.run(func(x *entry) { toStock(ctx, h.App, x) })
}

// stop writes what is left, as long as ctx allows.
func (p *pipeline) stop(ctx context.Context) error {
	return errors.Join(p.lines.close(ctx), p.records.close(ctx))
}

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

// push never waits.
func (q *queue) push(x *entry) {
	select {
	case q.entries <- x:
	default:
		q.dropped.Add(1)
	}
}

// run handles entries until close is called and the queue is empty.
func (q *queue) run(do func(*entry)) {
	defer close(q.done)
	for {
		select {
		case x := <-q.entries:
			do(x)
		case <-q.stop:
			for !q.abandon.Load() {
				select {
				case x := <-q.entries:
					do(x)
				default:
					return
				}
			}
			return
		}
	}
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
