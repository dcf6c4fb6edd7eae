package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/live/feed"
	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/rows"
)

// compressFrom is the size from which a message is compressed, in bytes. Without context takeover a connection keeps no
// window in memory between two messages.
const compressFrom = 512

// accept upgrades a request. The origin is not looked at: a credential comes in the first frame and never by itself, as
// a cookie does, so a page of another site can do no more than any other program.
func accept(e *core.RequestEvent, subprotocols ...string) (*websocket.Conn, error) {
	ws, err := websocket.Accept(e.Response, e.Request, &websocket.AcceptOptions{
		Subprotocols: subprotocols, InsecureSkipVerify: true,
		CompressionMode: websocket.CompressionNoContextTakeover, CompressionThreshold: compressFrom,
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(frame.MaxBytes)
	return ws, nil
}

// wire sends frames over a WebSocket.
type wire struct {
	ws    *websocket.Conn
	limit time.Duration // for the client to accept a message, or to answer a ping
	buf   []byte
}

func (w *wire) write(ctx context.Context, raw []byte) error {
	// Not the context of the connection: a write that is cancelled would cut it without the close frame.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.limit)
	defer cancel()
	err := w.ws.Write(ctx, websocket.MessageText, raw)
	if errors.Is(err, context.DeadlineExceeded) {
		return feed.End(frame.CloseSlow, "the client does not read")
	}
	return err
}

func (w *wire) Events(ctx context.Context, items []feed.Item) error {
	for _, i := range items {
		w.buf = frame.AppendEvent(w.buf[:0], i.Sub.Name, &i.Body.Event)
		if err := w.write(ctx, w.buf); err != nil {
			return err
		}
	}
	if cap(w.buf) > frame.MaxBytes {
		w.buf = nil
	}
	return nil
}

func (w *wire) Send(ctx context.Context, m feed.Message) error { return w.write(ctx, m.Frame) }

// ping waits for the answer, which the goroutine that reads receives.
func (w *wire) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	err := w.ws.Ping(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return feed.End(frame.CloseSlow, "the client does not answer")
	}
	return err
}

func (w *wire) Cut() { _ = w.ws.CloseNow() }

func (w *wire) Close(code int, reason string) { _ = w.ws.Close(websocket.StatusCode(code), reason) }

// socket is a connection that speaks the protocol of package frame.
type socket struct {
	*feed.Conn
	hub    *Hub
	ctx    context.Context // of the connection, which outlives the request that opened it
	ws     *websocket.Conn
	tokens float64 // frames that the client may send at once
	refill time.Time

	rooms map[string]string // channel by the name of the subscription
}

// serveSocket talks to a client until one of the two has enough.
func (h *Hub) serveSocket(e *core.RequestEvent) error {
	ws, err := accept(e, frame.Subprotocol)
	if err != nil {
		return nil
	}
	defer func() { _ = ws.CloseNow() }()
	w := &wire{ws: ws, limit: h.deps.Patience.Write}
	if ws.Subprotocol() != frame.Subprotocol {
		w.Close(int(websocket.StatusPolicyViolation), "the subprotocol is "+frame.Subprotocol)
		return nil
	}
	s := &socket{hub: h, ws: ws, tokens: float64(h.burst()), refill: time.Now(), rooms: map[string]string{}}
	s.Conn, s.ctx = h.feed.NewConn(context.WithoutCancel(e.Request.Context()), e.Request, addressOf(e), false, w)
	if !h.enter(s.Conn) {
		w.Close(frame.CloseLimit, errTooMany.Error())
		return nil
	}
	defer h.exit(s.Conn)
	go func() { s.Fail(s.read(s.ctx)) }() // ends with the connection
	end := s.Talk(s.ctx)
	w.Close(end.Code, end.Reason)
	return nil
}

func (h *Hub) burst() int { return 5 * h.cfg.Frames }

// read takes what the client sends.
func (s *socket) read(ctx context.Context) error {
	due := time.AfterFunc(s.hub.deps.Patience.Auth, func() { // a read with a deadline would close the connection without a word
		if s.Who.Load() == nil {
			s.Close(frame.CloseAuth, "the first frame must be auth")
		}
	})
	defer due.Stop()
	for {
		kind, raw, err := s.ws.Read(context.WithoutCancel(ctx)) // nor may it be cancelled
		if err != nil {
			return err
		}
		due.Stop() // how long the answer takes is not the client's fault
		if !s.allowance() {
			return feed.End(frame.CloseLimit, "too many frames")
		}
		if kind != websocket.MessageText {
			return feed.End(int(websocket.StatusUnsupportedData), "frames are text")
		}
		f, err := frame.Parse(raw)
		if err != nil {
			if s.Who.Load() == nil {
				return feed.End(frame.CloseAuth, "the first frame must be auth")
			}
			s.fail(f, ErrFrame, err.Error())
			continue
		}
		if err := s.handle(ctx, f); err != nil {
			return err
		}
	}
}

// allowance counts a frame against the limit.
func (s *socket) allowance() bool {
	now := time.Now()
	s.tokens = min(s.tokens+now.Sub(s.refill).Seconds()*float64(s.hub.cfg.Frames), float64(s.hub.burst()))
	s.refill = now
	s.tokens--
	return s.tokens >= 0
}

func (s *socket) fail(f frame.In, code *extensions.Code, detail string) {
	s.Answer(feed.Message{Frame: frame.Error(f.ID, f.Sub, code, detail)})
}

func (s *socket) reply(o frame.Out) { s.Answer(feed.Message{Frame: o.Bytes()}) }

func (s *socket) handle(ctx context.Context, f frame.In) error {
	if s.Who.Load() == nil && f.Type != "auth" {
		return feed.End(frame.CloseAuth, "the first frame must be auth")
	}
	switch f.Type {
	case "auth":
		return s.authenticate(ctx, f)
	case "sub":
		if f.Channel != "" {
			s.joinChannel(f)
		} else {
			s.subscribe(ctx, f)
		}
	case "unsub":
		s.unsubscribe(f)
	case "publish", "presence":
		if s.Who.Load().ReadOnly {
			s.fail(f, feed.ErrDenied, "the session may only read")
			return nil
		}
		if f.Type == "publish" {
			s.publish(f)
			return nil
		}
		if !s.hub.rooms.State(member{s.Conn}, s.rooms[f.Sub], f.State) {
			s.fail(f, feed.ErrDenied, "there is no presence to change")
		}
	case "ping":
		s.reply(frame.Out{Type: "pong", ID: f.ID})
	}
	return nil
}

// authenticate accepts a credential, the first one or a newer one of the same account.
func (s *socket) authenticate(ctx context.Context, f frame.In) error {
	looked := s.hub.looked.Load()
	who, err := s.hub.admit(s.Opened, f.Token)
	if errors.Is(err, errRefused) {
		s.fail(f, ErrAuth, "")
		return feed.End(frame.CloseAuth, "the credential is not accepted")
	}
	if err != nil {
		s.fail(f, ErrUnavailable, "")
		return feed.End(int(websocket.StatusTryAgainLater), "the credential cannot be verified now")
	}
	was := s.Who.Load()
	if was != nil && was.Auth != nil && (who.Auth == nil || accountOf(was.Auth) != accountOf(who.Auth)) {
		return feed.End(frame.CloseAuth, "another account needs another connection")
	}
	if err := s.hub.become(s.Conn, who, looked); err != nil {
		return feed.End(frame.CloseLimit, err.Error())
	}
	at, err := s.hub.feed.Now(ctx)
	if err != nil {
		return feed.End(int(websocket.StatusTryAgainLater), "the change log cannot be read now")
	}
	out := frame.Out{Type: "ready", ID: f.ID, Connection: s.ID, Cursor: at.String()}
	if who.Auth != nil {
		out.User = &frame.User{Collection: who.Auth.Collection().Name, ID: who.Auth.Id}
	}
	if !who.Expires.IsZero() {
		out.ExpiresAt = who.Expires.UTC().Format(time.RFC3339)
	}
	s.reply(out)
	if was != nil && (was.Auth == nil) != (who.Auth == nil) {
		s.Suspend(nil, true)
	}
	return nil
}

func (s *socket) count() int { return len(s.Names()) + len(s.rooms) }

// subscribe starts a subscription, where the cursor says or now.
func (s *socket) subscribe(ctx context.Context, f frame.In) {
	if s.count() >= s.hub.cfg.Subscriptions {
		s.fail(f, ErrSubscriptions, "")
		return
	}
	if s.seated(f.Sub) {
		s.fail(f, ErrFrame, "the name is that of a channel")
		return
	}
	made, code, detail := s.define(ctx, f)
	if code != nil {
		s.fail(f, code, detail)
		return
	}
	now, err := s.hub.feed.Now(ctx)
	if err != nil {
		s.fail(f, ErrUnavailable, "")
		return
	}
	at, reason := now, ""
	if f.Cursor != "" {
		given, ok := changes.ParsePosition(f.Cursor)
		switch {
		case !ok || given.Epoch != now.Epoch:
			reason = string(changes.OtherEpoch)
		case given.Seq > now.Seq:
			reason = string(changes.Ahead)
		default:
			at = given
		}
	}
	made.At = at.Seq
	if reason == "" {
		made.Hold(f.Known, s.hub.cfg.Remember)
	}
	s.reply(frame.Out{Type: "subbed", ID: f.ID, Sub: f.Sub, Cursor: at.String()})
	if reason != "" {
		s.hub.feed.Resets.Add(1)
		s.reply(frame.Out{Type: "reset", Sub: f.Sub, Reason: reason, Cursor: at.String()})
	}
	s.Add(made)
}

// define checks what a client wants to see.
func (s *socket) define(ctx context.Context, f frame.In) (*feed.Sub, *extensions.Code, string) {
	auth := s.Who.Load().Auth
	collection, err := s.hub.app.FindCachedCollectionByNameOrId(f.Collection)
	if err != nil {
		return nil, feed.ErrGone, "there is no such collection"
	}
	if err := s.hub.feed.Captured(ctx, collection.Id); errors.Is(err, changes.ErrNotCaptured) {
		return nil, ErrNotCaptured, ""
	} else if err != nil {
		return nil, ErrUnavailable, ""
	}
	made := &feed.Sub{
		Name:       f.Sub,
		Collection: collection.Id, Record: f.Record, Filter: f.Filter, Expand: f.Expand,
		Query: map[string]string{}, Headers: map[string]string{},
	}
	if made.Fields, err = rows.ParseFields(f.Fields); err != nil {
		return nil, ErrFrame, "fields: " + err.Error()
	}
	if _, err := rows.ParseExpand(s.hub.app, collection, f.Expand); err != nil {
		return nil, ErrFrame, "expand: " + err.Error()
	}
	if err := usesRuleFields(f.Filter, auth); err != nil {
		return nil, ErrFilter, err.Error()
	}
	err = s.hub.feed.Check(made, auth)
	if _, ok := errors.AsType[*rows.FilterError](err); ok {
		return nil, ErrFilter, err.Error()
	}
	if errors.Is(err, feed.ErrNoRule) {
		return nil, feed.ErrDenied, ""
	}
	if err != nil {
		s.hub.log.Warn("a subscription cannot be evaluated", "collection", collection.Name, "error", err)
		return nil, ErrUnavailable, ""
	}
	return made, nil, ""
}

// usesRuleFields refuses what only rules may use to everybody but superusers.
func usesRuleFields(filter string, auth *core.Record) error {
	for _, field := range []string{"@collection.", "@request."} {
		if (auth == nil || !auth.IsSuperuser()) && strings.Contains(filter, field) {
			return fmt.Errorf("only superusers can use %s in a filter", field)
		}
	}
	return nil
}

func (s *socket) unsubscribe(f frame.In) {
	if s.seated(f.Sub) {
		s.hub.rooms.Leave(member{s.Conn}, s.rooms[f.Sub])
		delete(s.rooms, f.Sub)
	} else if !s.Drop(f.Sub) {
		s.fail(f, ErrFrame, "there is no such subscription")
		return
	}
	s.reply(frame.Out{Type: "unsub", ID: f.ID, Sub: f.Sub})
}

// member is a connection in a channel.
type member struct{ conn *feed.Conn }

// Broadcast queues a frame that may be lost.
func (m member) Broadcast(raw []byte) { m.conn.Broadcast(feed.Message{Frame: raw}) }

func (s *socket) self(state json.RawMessage) frame.Member {
	m := frame.Member{Connection: s.ID, State: state}
	if auth := s.Who.Load().Auth; auth != nil {
		m.User = &frame.User{Collection: auth.Collection().Name, ID: auth.Id}
	}
	return m
}

// seated reports whether a name is that of a channel, which the client has not been put out of.
func (s *socket) seated(sub string) bool {
	name, ok := s.rooms[sub]
	if !ok {
		return false
	}
	if _, in := s.hub.rooms.Seat(member{s.Conn}, name); in {
		return true
	}
	delete(s.rooms, sub)
	return false
}

func (s *socket) joinChannel(f frame.In) {
	family, values, ok := channel.Find(s.hub.families, f.Channel)
	allowed := false
	if ok {
		var err error
		if allowed, err = channel.Allowed(s.hub.app, family.Join, values, s.Who.Load().Auth); err != nil {
			s.hub.log.Warn("a channel cannot be joined", "channel", f.Channel, "error", err)
		}
	}
	if s.seated(f.Sub) || slices.Contains(s.Names(), f.Sub) {
		s.fail(f, ErrFrame, "the name is in use")
		return
	}
	if _, in := s.hub.rooms.Seat(member{s.Conn}, f.Channel); in {
		s.fail(f, ErrFrame, "the connection is in the channel already")
		return
	}
	switch {
	case !allowed:
		s.fail(f, feed.ErrDenied, "the channel cannot be joined")
	case s.count() >= s.hub.cfg.Subscriptions:
		s.fail(f, ErrSubscriptions, "")
	default:
		there, err := s.hub.rooms.Join(member{s.Conn}, f.Channel, f.Sub, family, values, s.self(f.State))
		if err != nil {
			s.fail(f, ErrSubscriptions, err.Error())
			return
		}
		s.rooms[f.Sub] = f.Channel
		s.reply(frame.Out{Type: "subbed", ID: f.ID, Sub: f.Sub, Members: there})
	}
}

// publish sends to everybody else in the channel.
func (s *socket) publish(f frame.In) {
	name := s.rooms[f.Sub]
	seat, ok := s.hub.rooms.Seat(member{s.Conn}, name)
	if !ok {
		s.fail(f, feed.ErrDenied, "there is no such channel")
		return
	}
	allowed, err := channel.Allowed(s.hub.app, seat.Channel.Publish, seat.Values, s.Who.Load().Auth)
	if err != nil {
		s.hub.log.Warn("a message cannot be judged", "channel", name, "error", err)
	}
	if !allowed {
		s.fail(f, feed.ErrDenied, "nothing can be published here")
		return
	}
	from := s.self(nil)
	s.hub.rooms.Publish(member{s.Conn}, name, &from, f.Data)
}
