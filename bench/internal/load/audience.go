package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Audience is many subscribers of one topic on one server. They speak PocketBase's realtime
// protocol: a stream of server-sent events, and a request that says what the stream is about.
type Audience struct {
	addr, topic string
	conns       []net.Conn
	readers     sync.WaitGroup

	mu      sync.Mutex
	sent    time.Time
	missing int
	all     chan struct{} // closed when nobody is missing
	latency Histogram
}

// NewAudience is empty; subscribers Join it.
func NewAudience(addr, topic string) *Audience { return &Audience{addr: addr, topic: topic} }

// Join connects one subscriber.
func (a *Audience) Join(ctx context.Context, auth Header) error {
	conn, err := dial(ctx, a.addr)
	if err != nil {
		return err
	}
	a.conns = append(a.conns, conn)
	if _, err := conn.Write(NewRequest(http.MethodGet, a.addr, "/api/realtime", nil)); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil) // listen closes the body
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	lines := bufio.NewReader(resp.Body)
	id, err := clientID(lines)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{"clientId": id, "subscriptions": []string{a.topic}})
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	answer, err := Fetch(ctx, a.addr, NewRequest(http.MethodPost, a.addr, "/api/realtime", body, auth))
	if err != nil {
		return err
	}
	if answer.Status != http.StatusNoContent {
		return fmt.Errorf("set subscriptions: status %d: %s", answer.Status, answer.Body)
	}
	a.readers.Go(func() { a.listen(lines, resp.Body) })
	return nil
}

// clientID reads the first event of a stream.
func clientID(lines *bufio.Reader) (string, error) {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("read stream: %w", err)
		}
		if data, ok := strings.CutPrefix(line, "data:"); ok {
			var event struct{ ClientID string }
			if err := json.Unmarshal([]byte(data), &event); err != nil || event.ClientID == "" {
				return "", fmt.Errorf("the stream begins with %q", line)
			}
			return event.ClientID, nil
		}
	}
}

// listen counts deliveries until the connection is closed.
func (a *Audience) listen(lines *bufio.Reader, stream io.Closer) {
	defer func() { _ = stream.Close() }() // the connection has ended already
	event := []byte("event:" + a.topic)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		if bytes.HasPrefix(line, event) {
			a.arrived()
		}
	}
}

// Expect prepares for the next message, which a number of subscribers will get; the channel is closed when they have it.
// Latencies count from now.
func (a *Audience) Expect(subscribers int) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent, a.missing, a.all = time.Now(), subscribers, make(chan struct{})
	if a.missing == 0 {
		close(a.all)
	}
	return a.all
}

func (a *Audience) arrived() {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.missing == 0 {
		return // nobody expects it
	}
	a.latency.Record(now.Sub(a.sent))
	if a.missing--; a.missing == 0 {
		close(a.all)
	}
}

// Latency is from Expect to each delivery, since the last Forget.
func (a *Audience) Latency() Histogram {
	a.mu.Lock()
	defer a.mu.Unlock()
	var h Histogram
	h.Merge(a.latency)
	return h
}

// Forget clears the latencies, to leave out a warm-up.
func (a *Audience) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.latency = Histogram{}
}

// Close ends all subscriptions.
func (a *Audience) Close() {
	for _, c := range a.conns {
		_ = c.Close() // its reader ends by it
	}
	a.readers.Wait()
}
