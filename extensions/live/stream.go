package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"

	"github.com/satchelbase/satchel/extensions/live/feed"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

// stockSubprotocol carries the stock contract over a WebSocket, for clients without EventSource.
const stockSubprotocol = "satchel.sse.v1"

// shimKey is where such a request keeps its transport.
const shimKey = "satchelLiveShim"

// errGone: the stream of the client has ended.
var errGone = errors.New("the stream has ended")

// stockData is the data of a record's message in the stock contract.
func stockData(b *feed.Body) []byte {
	record := b.Record
	if record == nil {
		record = b.Last
	}
	out := make([]byte, 0, len(record)+32)
	out = append(append(append(out, `{"action":"`...), b.Action...), `","record":`...)
	return append(append(out, record...), '}')
}

// told reports whether the stock contract has a word for an event. It has none for a record that leaves.
func told(b *feed.Body) bool { return b.Action != "" }

// stream sends server-sent events.
type stream struct {
	event  *core.RequestEvent
	client *client
}

func (s *stream) Events(ctx context.Context, items []feed.Item) error {
	for _, i := range items {
		if !told(i.Body) {
			continue
		}
		if err := s.Send(ctx, feed.Message{Stock: &subscriptions.Message{Name: i.Sub.Name, Data: stockData(i.Body)}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) Send(_ context.Context, m feed.Message) error {
	return sendStock(s.event, s.client, m.Stock, func(e *core.RequestEvent, m *subscriptions.Message) error {
		return s.limited(func() error {
			if err := m.WriteSSE(e.Response, s.client.Id()); err != nil {
				return err
			}
			return e.Flush()
		})
	})
}

// sendStock passes a message by the hooks, which may change it.
func sendStock(e *core.RequestEvent, c *client, m *subscriptions.Message, write func(*core.RequestEvent, *subscriptions.Message) error) error {
	if e.App.OnRealtimeMessageSend().Length() == 0 {
		return write(e, m)
	}
	event := &core.RealtimeMessageEvent{RequestEvent: e, Client: c, Message: m}
	return e.App.OnRealtimeMessageSend().Trigger(event, func(e *core.RealtimeMessageEvent) error { return write(e.RequestEvent, e.Message) })
}

// limited bounds how long a client may take to accept what fn writes.
func (s *stream) limited(fn func() error) error {
	control := http.NewResponseController(s.event.Response)
	if err := control.SetWriteDeadline(time.Now().Add(s.client.hub.deps.Patience.Write)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if err := fn(); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return feed.End(frame.CloseSlow, "the client does not read")
		}
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// ping is a comment, which clients ignore.
func (s *stream) Ping(context.Context) error {
	return s.limited(func() error {
		if _, err := s.event.Response.Write([]byte(":\n\n")); err != nil {
			return err
		}
		return s.event.Flush()
	})
}

// cut ends a write that waits for the client.
func (s *stream) Cut() {
	_ = http.NewResponseController(s.event.Response).SetWriteDeadline(time.Now())
}

// close lets the request end, which ends the stream.
func (s *stream) Close(int, string) {}

// shim sends the messages of the stock contract over a WebSocket: {"event","id","data"} each.
type shim struct {
	wire
	event *core.RequestEvent
	owner func() *client
}

func (s *shim) Events(ctx context.Context, items []feed.Item) error {
	for _, i := range items {
		if !told(i.Body) {
			continue
		}
		if err := s.Send(ctx, feed.Message{Stock: &subscriptions.Message{Name: i.Sub.Name, Data: stockData(i.Body)}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *shim) Send(ctx context.Context, m feed.Message) error {
	c := s.owner()
	return sendStock(s.event, c, m.Stock, func(_ *core.RequestEvent, m *subscriptions.Message) error {
		raw, err := json.Marshal(map[string]string{"event": m.Name, "id": c.Id(), "data": string(m.Data)})
		if err != nil {
			return err
		}
		return s.write(ctx, raw)
	})
}

func (s *shim) Close(code int, reason string) {
	if code == 0 {
		code = int(websocket.StatusNormalClosure)
	}
	s.wire.Close(code, reason)
}

// serveShim serves the stock contract over a WebSocket. The hooks of a realtime connection run as for a stream.
func (h *Hub) serveShim(e *core.RequestEvent) error {
	ws, err := accept(e, stockSubprotocol)
	if err != nil {
		return nil
	}
	defer func() { _ = ws.CloseNow() }()
	event := &core.RealtimeConnectRequestEvent{RequestEvent: e, MaxTimeout: stockLife, IdleTimeout: stockLife}
	out := &shim{ws: ws, limit: h.deps.Patience.Write, event: e}
	out.owner = func() *client {
		c, _ := event.Client.(*client)
		return c
	}
	e.Set(shimKey, feed.Transport(out))
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.Request.Context()))
	defer cancel()
	e.Request = e.Request.WithContext(ctx)
	go func() { // the client sends nothing, but its answers to pings and its close must be read
		defer cancel()
		_, _, _ = ws.Read(context.WithoutCancel(ctx))
	}()
	if err := h.app.OnRealtimeConnectRequest().Trigger(event, func(*core.RealtimeConnectRequestEvent) error { return nil }); err != nil {
		out.Close(int(websocket.StatusTryAgainLater), "the connection is refused")
	}
	return nil
}

// stockLife is how long PocketBase lets a realtime connection live; SDKs then connect anew.
const stockLife = 30 * time.Minute

func isUpgrade(r *http.Request) bool { return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") }

func asksFor(r *http.Request, subprotocol string) bool {
	for _, line := range r.Header.Values("Sec-Websocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(name), subprotocol) {
				return true
			}
		}
	}
	return false
}

// multipartValue reads one value of a form.
func multipartValue(body []byte, boundary, name string) string {
	form, err := multipart.NewReader(bytes.NewReader(body), boundary).ReadForm(int64(len(body)))
	if err != nil {
		return ""
	}
	defer func() { _ = form.RemoveAll() }()
	if values := form.Value[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}
