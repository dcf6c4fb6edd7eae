package live

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

const (
	// writeTimeout is how long a client may take to accept one message.
	writeTimeout = 10 * time.Second

	// pingEvery is how often a silent connection is tried. It also keeps proxies from closing it, which most do after 60 s.
	pingEvery = 25 * time.Second

	// maxAnswers and maxMessages bound what waits for a client beside events: answers, which must not be lost, and what is
	// broadcast, of which the oldest is dropped.
	maxAnswers  = 1024
	maxMessages = 64

	// batch is how much of the log is read at once.
	batch = 500

	retryAfter = time.Second
	maxRetries = 5
)

// identity is who a connection acts for.
type identity struct {
	auth    *core.Record // nil for a guest
	token   string
	session string // id, empty for a token without one
	expires time.Time
}

// message is one that is no event: a frame, or a message of the stock contract.
type message struct {
	frame []byte
	stock *subscriptions.Message
}

// transport is the way to one client. One goroutine uses it at a time, but for close.
type transport interface {
	events(ctx context.Context, items []item) error
	send(ctx context.Context, m message) error
	ping(ctx context.Context) error
	close(code int, reason string)
	cut() // without a word, from any goroutine
}

// unit is what the hub has for a connection out of one stretch of the log.
type unit struct {
	items []item
	to    int64
}

// conn is one connection, whatever it speaks. Its pump alone writes to the client.
type conn struct {
	id      string
	hub     *Hub
	stock   bool   // speaks the stock contract
	address string // of the client, for the limit on guests
	opened  *http.Request
	out     transport
	wake    chan struct{} // with room for one
	who     atomic.Pointer[identity]
	lagging atomic.Bool

	// checking keeps two looks at one credential apart.
	checking atomic.Bool

	mu       sync.Mutex
	subs     map[string]*sub
	pending  []*sub
	queue    []unit
	bytes    int // in queue
	lagAt    int64
	sent     int64 // live subscriptions were sent everything up to here
	told     changes.Position
	answers  []message
	messages []message

	cancel context.CancelCauseFunc
}

// closing is why a connection ends.
type closing struct {
	code   int
	reason string
}

func (c closing) Error() string { return c.reason }

func (c *conn) close(code int, reason string) { c.cancel(closing{code, reason}) }

func (c *conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// answer queues a message that must arrive. A client that lets too many pile up is closed.
func (c *conn) answer(m message) {
	c.mu.Lock()
	full := len(c.answers) >= maxAnswers
	if !full {
		c.answers = append(c.answers, m)
	}
	c.mu.Unlock()
	if full {
		c.close(frame.CloseSlow, "the client does not read")
		return
	}
	c.poke()
}

// broadcast queues a message that may be lost.
func (c *conn) broadcast(m message) {
	c.mu.Lock()
	if len(c.messages) >= maxMessages {
		c.messages = slices.Delete(c.messages, 0, 1)
		c.hub.dropped.Add(1)
	}
	c.messages = append(c.messages, m)
	c.mu.Unlock()
	c.poke()
}

// enqueue takes what happened up to a number. If it does not fit, the connection lags: it will read the log from before
// this stretch, once it has sent what waits.
func (c *conn) enqueue(items []item, before, to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lagging.Load() {
		return
	}
	kept := items[:0]
	size := 0
	for _, i := range items {
		if i.sub.group != nil && !i.sub.ended && i.body.Version > i.sub.at {
			kept = append(kept, i)
			size += i.size()
		}
	}
	if len(kept) == 0 {
		return
	}
	if c.bytes+size > int(c.hub.cfg.Queue) {
		c.lag(before)
		return
	}
	for _, i := range kept {
		i.note(c.hub.cfg.Remember)
	}
	c.queue = append(c.queue, unit{kept, to})
	c.bytes += size
	c.poke()
}

// enqueueLeaves takes from the client what it may no longer see although the records have not changed. They are in no
// stretch of the log, so a connection that lags looks at all it holds when it has caught up.
func (c *conn) enqueueLeaves(items []item, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	items = slices.DeleteFunc(items, func(i item) bool { return i.sub.group == nil || i.sub.ended || !i.sub.held.has(i.body.ID) })
	if c.lagging.Load() || len(items) == 0 {
		return
	}
	for _, i := range items {
		i.note(0)
		c.bytes += i.size()
	}
	c.queue = append(c.queue, unit{items, max(c.sent, at)})
	c.poke()
}

func (i item) note(limit int) {
	switch {
	case i.hold:
		i.sub.held.add(i.body.ID, limit)
	case i.body.Record == nil:
		i.sub.held.remove(i.body.ID)
	}
}

// lag makes the pump read the log after the number. The lock is held.
func (c *conn) lag(at int64) {
	if !c.lagging.Swap(true) {
		c.lagAt = at
		c.hub.lags.Add(1)
	}
	c.poke()
}

// pump sends everything, until the client has gone or the connection is closed.
func (c *conn) pump(ctx context.Context) error {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	failures := 0
	for {
		worked, err := c.step(ctx)
		if errors.Is(err, errEvaluate) {
			if failures++; failures > maxRetries {
				return closing{websocketInternal, "the rules cannot be evaluated"}
			}
			if !pause(ctx, retryAfter) {
				return context.Cause(ctx)
			}
			continue
		}
		if err != nil {
			return err
		}
		if failures = 0; worked {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.wake:
		case <-ticker.C:
			if err := c.idle(ctx); err != nil {
				return err
			}
		}
	}
}

// websocketInternal is RFC 6455's code for a fault of the server.
const websocketInternal = 1011

// errEvaluate: the database did not answer, and is asked again.
var errEvaluate = errors.New("rules cannot be evaluated")

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// step does the most urgent thing and reports whether there was one.
func (c *conn) step(ctx context.Context) (bool, error) {
	c.mu.Lock()
	switch {
	case len(c.answers) > 0:
		m := c.answers[0]
		c.answers = slices.Delete(c.answers, 0, 1)
		c.mu.Unlock()
		return true, c.out.send(ctx, m)
	case len(c.queue) > 0:
		u := c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		for _, i := range u.items {
			c.bytes -= i.size()
		}
		c.mu.Unlock()
		return true, c.deliver(ctx, u)
	case len(c.messages) > 0:
		m := c.messages[0]
		c.messages = slices.Delete(c.messages, 0, 1)
		c.mu.Unlock()
		return true, c.out.send(ctx, m)
	case c.lagging.Load():
		c.mu.Unlock()
		c.suspend(nil, false)
		return true, nil
	case len(c.pending) > 0:
		c.mu.Unlock()
		return true, c.catchUp(ctx)
	}
	c.mu.Unlock()
	return false, nil
}

func (c *conn) deliver(ctx context.Context, u unit) error {
	if err := c.write(ctx, u.items); err != nil {
		return err
	}
	c.mu.Lock()
	c.sent = max(c.sent, u.to)
	c.mu.Unlock()
	return c.tellCursor(ctx)
}

// write sends events, but for those of subscriptions that have ended meanwhile.
func (c *conn) write(ctx context.Context, items []item) error {
	c.mu.Lock()
	items = slices.DeleteFunc(items, func(i item) bool { return i.sub.ended })
	c.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	c.hub.deliveries.Add(uint64(len(items)))
	return c.out.events(ctx, items)
}

// cursor is how far the client has everything.
func (c *conn) cursor() changes.Position {
	at := changes.Position{Epoch: c.hub.epoch(), Seq: -1}
	lower := func(n int64) {
		if at.Seq < 0 || n < at.Seq {
			at.Seq = n
		}
	}
	for _, s := range c.subs {
		if s.group == nil {
			lower(s.at)
		} else {
			lower(c.sent)
		}
	}
	return at
}

// tellCursor sends the cursor if it has moved.
func (c *conn) tellCursor(ctx context.Context) error {
	if c.stock {
		return nil
	}
	c.mu.Lock()
	at := c.cursor()
	news := at.Seq >= 0 && (at.Epoch != c.told.Epoch || at.Seq > c.told.Seq)
	if news {
		c.told = at
	}
	c.mu.Unlock()
	if !news {
		return nil
	}
	return c.out.send(ctx, message{frame: frame.Cursor(at)})
}

// idle moves the cursor on over what did not concern the client, and tries whether the client is still there.
func (c *conn) idle(ctx context.Context) error {
	done := c.hub.done.Load()
	c.mu.Lock()
	if len(c.queue) == 0 && !c.lagging.Load() {
		c.sent = max(c.sent, done)
	}
	c.mu.Unlock()
	if err := c.tellCursor(ctx); err != nil {
		return err
	}
	return c.out.ping(ctx)
}

// suspend makes live subscriptions pending, all if which is nil. What is in the queue for them is sent nevertheless, so it
// is called with an empty queue, or continues behind the queue.
func (c *conn) suspend(which func(*sub) bool, doubt bool) {
	done := c.hub.done.Load()
	c.mu.Lock()
	var moved []*sub
	lagging := c.lagging.Load()
	at := max(c.sent, done)
	switch {
	case lagging:
		at, which = c.lagAt, nil
	case len(c.queue) > 0:
		at = c.queue[len(c.queue)-1].to
	}
	for _, s := range c.subs {
		if s.group != nil && (which == nil || which(s)) {
			moved = append(moved, s)
		}
	}
	c.mu.Unlock()
	c.hub.leave(moved, func(s *sub) {
		s.at = max(s.at, at)
		s.doubt = s.doubt || doubt || lagging
		c.pending = append(c.pending, s)
	})
	if lagging {
		c.lagging.Store(false)
	}
	c.poke()
}

// add makes a subscription pending, from where it stands. It replaces one of the same name.
func (c *conn) add(s *sub) {
	c.drop(s.name)
	c.mu.Lock()
	c.subs[s.name] = s
	c.pending = append(c.pending, s)
	c.mu.Unlock()
	c.hub.subscriptions.Add(1)
	c.poke()
}

// drop ends a subscription and reports whether there was one.
func (c *conn) drop(name string) bool {
	c.mu.Lock()
	s := c.subs[name]
	if s == nil {
		c.mu.Unlock()
		return false
	}
	delete(c.subs, name)
	s.ended = true
	c.pending = slices.DeleteFunc(c.pending, func(p *sub) bool { return p == s })
	live := s.group != nil
	c.mu.Unlock()
	c.hub.subscriptions.Add(-1)
	if live {
		c.hub.leave([]*sub{s}, nil)
	}
	return true
}

// leaveAll ends all subscriptions.
func (c *conn) leaveAll() {
	c.mu.Lock()
	names := make([]string, 0, len(c.subs))
	for name := range c.subs {
		names = append(names, name)
	}
	c.mu.Unlock()
	for _, name := range names {
		c.drop(name)
	}
}
