package live_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

// narrow makes connections whose reader can be paused, with little room in the kernel.
func narrow() *http.Client {
	dialer := &net.Dialer{}
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(4096)
		}
		return conn, err
	}}}
}

// A client that does not read costs no more than its queue, and gets everything when it reads again.
func TestSlowClientIsServedFromTheLog(t *testing.T) {
	s := start(t, func(c *live.Config, _ *live.Deps) { c.Queue = 16 << 10 })
	ctx := context.Background()
	ws, _, err := websocket.Dial(ctx, s.addr+"/api/v1/live", &websocket.DialOptions{Subprotocols: []string{frame.Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(8 << 20)
	p := &phone{t: t, ws: ws, frames: make(chan got, 100_000), closed: make(chan struct{})}
	defer func() { _ = ws.CloseNow() }()
	p.raw(`{"type":"auth"}`)
	p.raw(`{"type":"sub","sub":"p","collection":"posts"}`)
	for range 2 { // ready and subbed
		if _, _, err := ws.Read(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]bool{}
	posts, err := s.FindCollectionByNameOrId("posts")
	if err != nil {
		t.Fatal(err)
	}
	err = s.RunInTransaction(func(tx core.App) error {
		for i := range 700 {
			post := core.NewRecord(posts)
			post.Set("title", strings.Repeat(fmt.Sprint(i%10), 4000))
			if err := tx.Save(post); err != nil {
				return err
			}
			want[post.Id] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	go p.read()
	var last int64
	for len(want) > 0 {
		g := p.next("event")
		if g.Version <= last {
			t.Fatalf("version %d after %d", g.Version, last)
		}
		last = g.Version
		delete(want, g.ID)
	}
	if lags := s.metric(t, "satchel_live_lags_total"); lags == 0 {
		t.Error("everything fit into the queue")
	}
}

func (s *server) metric(t testing.TB, name string) float64 {
	t.Helper()
	for _, m := range s.hub.Extension().Metrics {
		if m.Name == name {
			return m.Read()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// Clients that never read are closed. Until then each costs its queue and no more, while thirty times that is written.
func TestPausedClientIsBounded(t *testing.T) {
	const clients, queue = 10, 64 << 10
	s := start(t, func(c *live.Config, d *live.Deps) { c.Queue, d.Patience.Write = queue, 20*time.Second })
	ctx := context.Background()
	for range clients {
		ws, _, err := websocket.Dial(ctx, s.addr+"/api/v1/live", &websocket.DialOptions{Subprotocols: []string{frame.Subprotocol}, HTTPClient: narrow()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ws.CloseNow() }()
		for _, text := range []string{`{"type":"auth"}`, `{"type":"sub","sub":"p","collection":"posts"}`} {
			if err := ws.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := ws.Read(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	reads := s.connect("")
	reads.sub("p", map[string]any{"collection": "posts", "fields": "id"})
	before := heap()
	const events = 3000
	s.flood(t, events)
	for range events { // who reads is not held up by the others
		reads.next("event")
	}
	// What the kernel holds is not in the heap. A frame or two more may be on their way for each, and what is read from the
	// log takes memory for a moment.
	limit := int64(clients*(queue+32<<10) + 2<<20)
	for {
		grown := heap() - before
		if s.metric(t, "satchel_live_connections_count") <= clients {
			t.Fatalf("clients were closed with %d KB more in memory, want at most %d KB of %d KB that nobody read", grown>>10, limit>>10, clients*events*5)
		}
		if grown <= limit {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if s.metric(t, "satchel_live_lags_total") == 0 {
		t.Error("the clients have read everything")
	}
	_ = reads.ws.CloseNow()
	s.empty(t)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
