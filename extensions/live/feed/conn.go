package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

const (
	// maxAnswers and maxMessages bound what waits for a client beside events: answers, which must not be lost, and what is
	// broadcast, of which the oldest is dropped.
	maxAnswers  = 1024
	maxMessages = 64

	// batch is how much of the log is read at once.
	batch = 500

	retryAfter = time.Second
	maxRetries = 5
)

// Identity is who a connection acts for.
type Identity struct {
	Auth    *core.Record // nil for a guest
	Token   string
	Session string // id, empty for a token without one
	Expires time.Time

	ReadOnly bool // it may say nothing
}

// Message is one that is no event: a frame, or a message of the stock contract.
type Message struct {
	Frame []byte
	Stock *subscriptions.Message
	sub   *Sub // which it tells to list anew
}

// Transport is the way to one client. One goroutine uses it at a time, but for Cut.
type Transport interface {
	Events(ctx context.Context, items []Item) error
	Send(ctx context.Context, m Message) error
	Ping(ctx context.Context) error
	Close(code int, reason string)
	Cut() // without a word, from any goroutine
}

// unit is what the hub has for a connection out of one stretch of the log.
type unit struct {
	items []Item
	to    int64
}

// Conn is one connection, whatever it speaks. Its pump alone writes to the client.
type Conn struct {
	ID      string
	Stock   bool          // speaks the stock contract
	Address string        // of the client, as it is counted
	Opened  *http.Request // which opened it

	Who      atomic.Pointer[Identity] // nil before the client has said
	Checking atomic.Bool              // its credential is being looked at

	hub     *Hub
	out     Transport
	wake    chan struct{} // with room for one
	lagging atomic.Bool
	stretch int // changes that it reads at once; for the pump only

	mu       sync.Mutex
	subs     map[string]*Sub
	pending  []*Sub
	queue    []unit
	bytes    int // in queue
	lagAt    int64
	sent     int64 // live subscriptions were sent everything up to here
	told     changes.Position
	answers  []Message
	messages []Message

	end context.CancelCauseFunc
}

// NewConn makes a connection, which ends with the context or by [Conn.Close].
func (h *Hub) NewConn(ctx context.Context, opened *http.Request, address string, stock bool, out Transport) (*Conn, context.Context) {
	c := &Conn{
		ID: strings.ToLower(rand.Text()), Stock: stock, Address: address, Opened: opened,
		hub: h, out: out, wake: make(chan struct{}, 1), subs: map[string]*Sub{}, stretch: batch,
	}
	ctx, c.end = context.WithCancelCause(ctx)
	return c, ctx
}

// Closing is why a connection ends.
type Closing struct {
	Code   int
	Reason string
}

// End is a [Closing].
func End(code int, reason string) Closing { return Closing{code, reason} }

func (c Closing) Error() string { return c.Reason }

// Close ends the connection, for a reason that the client is told.
func (c *Conn) Close(code int, reason string) { c.end(Closing{code, reason}) }

// Fail ends the connection with an error, which may be a [Closing].
func (c *Conn) Fail(err error) { c.end(err) }

// cutAfter is how long a connection that is closed may take to say so.
const cutAfter = 700 * time.Millisecond

// Talk pumps until the context ends and returns why. Clients that hinder the end are cut a moment later.
func (c *Conn) Talk(ctx context.Context) Closing {
	context.AfterFunc(ctx, func() { time.AfterFunc(cutAfter, c.out.Cut) })
	err := c.pump(ctx)
	if _, ok := errors.AsType[Closing](err); !ok && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	c.end(err)
	if end, ok := errors.AsType[Closing](err); ok {
		return end
	}
	return Closing{closeNormal, ""}
}

// Names are those of the subscriptions.
func (c *Conn) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.subs))
}

func (c *Conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Answer queues a message that must arrive. A client that lets too many pile up is closed.
func (c *Conn) Answer(m Message) {
	c.mu.Lock()
	full := len(c.answers) >= maxAnswers
	if !full {
		c.answers = append(c.answers, m)
	}
	c.mu.Unlock()
	if full {
		c.Close(frame.CloseSlow, "the client does not read")
		return
	}
	c.poke()
}

// Broadcast queues a message that may be lost.
func (c *Conn) Broadcast(m Message) {
	c.mu.Lock()
	if len(c.messages) >= maxMessages {
		c.messages = slices.Delete(c.messages, 0, 1)
		c.hub.Dropped.Add(1)
	}
	c.messages = append(c.messages, m)
	c.mu.Unlock()
	c.poke()
}

// enqueue takes what happened up to a number. If it does not fit, the connection lags: it will read the log from before
// this stretch, once it has sent what waits.
func (c *Conn) enqueue(items []Item, before, to int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lagging.Load() {
		return
	}
	kept := items[:0]
	size := 0
	for _, i := range items {
		if i.Sub.group != nil && !i.Sub.ended && i.Body.Version > i.Sub.At {
			kept = append(kept, i)
			size += i.size()
		}
	}
	if len(kept) == 0 {
		return
	}
	if c.bytes+size > c.hub.cfg.Queue {
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
func (c *Conn) enqueueLeaves(items []Item, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	items = slices.DeleteFunc(items, func(i Item) bool { return i.Sub.group == nil || i.Sub.ended || !i.Sub.held.Until(i.Body.ID, at) })
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

func (i Item) note(limit int) {
	switch {
	case i.hold:
		i.Sub.held.Add(i.Body.ID, i.Body.Version, limit)
	case i.Body.Record == nil:
		i.Sub.held.Remove(i.Body.ID)
	}
}

// lag makes the pump read the log after the number. The lock is held.
func (c *Conn) lag(at int64) {
	if !c.lagging.Swap(true) {
		c.lagAt = at
		c.hub.Lags.Add(1)
	}
	c.poke()
}

// pump sends everything, until the client has gone or the connection is closed.
func (c *Conn) pump(ctx context.Context) error {
	ticker := time.NewTicker(c.hub.cfg.PingEvery)
	defer ticker.Stop()
	failures := 0
	for {
		worked, err := c.step(ctx)
		if errors.Is(err, errEvaluate) {
			if failures++; failures > maxRetries {
				return Closing{closeInternal, "the rules cannot be evaluated"}
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

// Codes of RFC 6455.
const (
	closeNormal   = 1000
	closeInternal = 1011 // a fault of the server
)

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
func (c *Conn) step(ctx context.Context) (bool, error) {
	c.mu.Lock()
	switch {
	case len(c.answers) > 0:
		m := c.answers[0]
		if c.answers = slices.Delete(c.answers, 0, 1); m.sub != nil {
			m.sub.told = false
		}
		c.mu.Unlock()
		return true, c.out.Send(ctx, m)
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
		return true, c.out.Send(ctx, m)
	case c.lagging.Load():
		c.mu.Unlock()
		c.Suspend(nil, false)
		return true, nil
	case len(c.pending) > 0:
		c.mu.Unlock()
		return true, c.catchUp(ctx)
	}
	c.mu.Unlock()
	return false, nil
}

func (c *Conn) deliver(ctx context.Context, u unit) error {
	if err := c.write(ctx, u.items); err != nil {
		return err
	}
	c.mu.Lock()
	c.sent = max(c.sent, u.to)
	c.mu.Unlock()
	return c.tellCursor(ctx)
}

// write sends events, but for those of subscriptions that have ended meanwhile.
func (c *Conn) write(ctx context.Context, items []Item) error {
	c.mu.Lock()
	items = slices.DeleteFunc(items, func(i Item) bool { return i.Sub.ended })
	c.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	c.hub.Deliveries.Add(uint64(len(items)))
	return c.out.Events(ctx, items)
}

// cursor is how far the client has everything.
func (c *Conn) cursor() changes.Position {
	at := changes.Position{Epoch: c.hub.epoch(), Seq: -1}
	lower := func(n int64) {
		if at.Seq < 0 || n < at.Seq {
			at.Seq = n
		}
	}
	for _, s := range c.subs {
		if s.group == nil {
			lower(s.At)
		} else {
			lower(c.sent)
		}
	}
	return at
}

// tellCursor sends the cursor if it has moved.
func (c *Conn) tellCursor(ctx context.Context) error {
	if c.Stock {
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
	return c.out.Send(ctx, Message{Frame: frame.Cursor(at)})
}

// idle moves the cursor on over what did not concern the client, and tries whether the client is still there.
func (c *Conn) idle(ctx context.Context) error {
	done := c.hub.done.Load()
	c.mu.Lock()
	if len(c.queue) == 0 && !c.lagging.Load() {
		c.sent = max(c.sent, done)
	}
	c.mu.Unlock()
	if err := c.tellCursor(ctx); err != nil {
		return err
	}
	return c.out.Ping(ctx)
}

// Suspend makes live subscriptions pending, all if which is nil. What is in the queue for them is sent nevertheless, so it
// is called with an empty queue, or continues behind the queue.
func (c *Conn) Suspend(which func(*Sub) bool, doubt bool) {
	done := c.hub.done.Load()
	c.mu.Lock()
	var moved []*Sub
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
	c.hub.leave(moved, func(s *Sub) {
		s.At = max(s.At, at)
		s.doubt = s.doubt || doubt || lagging
		c.pending = append(c.pending, s)
	})
	if lagging {
		c.lagging.Store(false)
	}
	c.poke()
}

// Add makes a subscription pending, from where it stands. It replaces one of the same name.
func (c *Conn) Add(s *Sub) {
	c.Drop(s.Name)
	s.conn = c
	c.mu.Lock()
	c.subs[s.Name] = s
	c.pending = append(c.pending, s)
	c.mu.Unlock()
	c.hub.Subscriptions.Add(1)
	c.poke()
}

// Drop ends a subscription and reports whether there was one.
func (c *Conn) Drop(name string) bool {
	c.mu.Lock()
	s := c.subs[name]
	if s == nil {
		c.mu.Unlock()
		return false
	}
	delete(c.subs, name)
	s.ended = true
	c.pending = slices.DeleteFunc(c.pending, func(p *Sub) bool { return p == s })
	live := s.group != nil
	c.mu.Unlock()
	c.hub.Subscriptions.Add(-1)
	if live {
		c.hub.leave([]*Sub{s}, nil)
	}
	return true
}
