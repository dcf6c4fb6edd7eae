package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	readBuffer = 64 << 10

	// stuck is how long an answer may take beyond the end of a slice before the connection is given up.
	stuck = 30 * time.Second

	// failureLength is how much of the first unexpected answer is kept to explain it.
	failureLength = 300
)

// Tally is what a loop has seen. An operation with an unexpected status counts as an operation and as a failure.
type Tally struct {
	Ops, Failures int
	Bytes         int64 // of bodies
	Failure       string
	Latency       Histogram
}

func (t *Tally) merge(other *Tally) {
	t.Ops += other.Ops
	t.Failures += other.Failures
	t.Bytes += other.Bytes
	if t.Failure == "" {
		t.Failure = other.Failure
	}
	t.Latency.Merge(other.Latency)
}

func (t *Tally) fail(text string) {
	t.Failures++
	if t.Failure == "" {
		t.Failure = text
	}
}

// Loop keeps a fixed number of connections to one server, each with one request under way. It is used by one goroutine
// at a time.
type Loop struct {
	addr    string
	pool    []Request
	follow  Follow
	accept  []int
	clients []*client
}

// Follow builds the next request of a client from the body of the answer to its last one.
type Follow func(body []byte) (Request, error)

// client is one connection of a loop.
type client struct {
	conn  net.Conn
	r     *bufio.Reader
	next  int     // in the pool
	link  Request // of a chain: the next one
	tally Tally
}

// NewLoop connects. The clients walk through pool in turn, each from another place; an answer whose status is not in
// accept is a failure.
func NewLoop(ctx context.Context, addr string, connections int, pool []Request, accept ...int) (*Loop, error) {
	l := &Loop{addr: addr, pool: pool, accept: accept}
	for i := range connections {
		c := &client{next: i * len(pool) / connections}
		if err := c.connect(ctx, addr); err != nil {
			l.Close()
			return nil, err
		}
		l.clients = append(l.clients, c)
	}
	return l, nil
}

// NewChains connects one client for each first request. What a client sends next follows from the answer; after one that
// is not accepted it sends the same again.
func NewChains(ctx context.Context, addr string, first []Request, follow Follow, accept ...int) (*Loop, error) {
	l, err := NewLoop(ctx, addr, len(first), first, accept...)
	if err != nil {
		return nil, err
	}
	l.follow = follow
	for i, c := range l.clients {
		c.link = first[i]
	}
	return l, nil
}

// Close ends the connections.
func (l *Loop) Close() {
	for _, c := range l.clients {
		if c.conn != nil {
			_ = c.conn.Close() // nothing is left to lose
		}
	}
}

// Run sends requests for about d, until every client has the answer to its last one.
func (l *Loop) Run(ctx context.Context, d time.Duration) {
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for _, c := range l.clients {
		wg.Go(func() { c.run(ctx, l, end) })
	}
	wg.Wait()
}

// Forget clears what was counted, to leave out a warm-up.
func (l *Loop) Forget() {
	for _, c := range l.clients {
		c.tally = Tally{}
	}
}

// Tally is the sum over all clients since the last Forget.
func (l *Loop) Tally() Tally {
	var sum Tally
	for _, c := range l.clients {
		sum.merge(&c.tally)
	}
	return sum
}

func (c *client) connect(ctx context.Context, addr string) error {
	conn, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	c.conn, c.r = conn, bufio.NewReaderSize(conn, readBuffer)
	return nil
}

// run loops until end. A broken connection is a failure and is replaced, so that the number of clients stays.
func (c *client) run(ctx context.Context, l *Loop, end time.Time) {
	for ctx.Err() == nil {
		if c.conn == nil {
			if err := c.connect(ctx, l.addr); err != nil {
				c.tally.fail(err.Error())
				return
			}
		}
		if err := c.conn.SetDeadline(end.Add(stuck)); err != nil {
			c.tally.fail(err.Error())
			return
		}
		err := c.requests(ctx, l, end)
		if err == nil {
			return
		}
		c.tally.Ops++
		c.tally.fail(err.Error())
		_ = c.conn.Close() // it is broken already
		c.conn = nil
		if !time.Now().Before(end) {
			return
		}
	}
}

func (c *client) requests(ctx context.Context, l *Loop, end time.Time) error {
	for start := time.Now(); start.Before(end) && ctx.Err() == nil; start = time.Now() {
		if _, err := c.conn.Write(c.request(l)); err != nil {
			return fmt.Errorf("send request: %w", err)
		}
		status, size, body, err := c.answer(l)
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		c.tally.Ops++
		c.tally.Bytes += int64(size)
		c.tally.Latency.Record(time.Since(start))
		if !slices.Contains(l.accept, status) {
			c.tally.Failures++
			continue
		}
		if l.follow != nil {
			next, err := l.follow(body)
			if err != nil {
				return fmt.Errorf("follow answer: %w", err)
			}
			c.link = next
		}
	}
	return nil
}

// request is the next one to send.
func (c *client) request(l *Loop) Request {
	if l.follow != nil {
		return c.link
	}
	r := l.pool[c.next]
	c.next = (c.next + 1) % len(l.pool)
	return r
}

// answer reads one response; the first unexpected one is kept as text, and the body of one to follow.
func (c *client) answer(l *Loop) (status, size int, body []byte, err error) {
	if status, err = readStatus(c.r); err != nil {
		return 0, 0, nil, err
	}
	unexpected := c.tally.Failure == "" && !slices.Contains(l.accept, status)
	var keep *bytes.Buffer
	if unexpected || l.follow != nil {
		keep = &bytes.Buffer{}
	}
	if size, err = readRest(c.r, status, keep); err != nil {
		return 0, 0, nil, err
	}
	if keep != nil {
		body = keep.Bytes()
	}
	if unexpected {
		c.tally.Failure = fmt.Sprintf("status %d: %s", status, body[:min(len(body), failureLength)])
	}
	return status, size, body, nil
}
