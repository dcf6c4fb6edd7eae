package live

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/frame"
	"github.com/satchelbase/satchel/extensions/rows"
)

const (
	// authWithin is how long a client may take to say who it is.
	authWithin = 10 * time.Second

	// cutAfter is how long a connection that is closed may take to say so.
	cutAfter = 700 * time.Millisecond

	// compressFrom is the size from which a message is compressed, in bytes. Without context takeover a connection keeps no
	// window in memory between two messages.
	compressFrom = 512
)

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
	ws  *websocket.Conn
	buf []byte
}

func (w *wire) write(ctx context.Context, raw []byte) error {
	// Not the context of the connection: a write that is cancelled would cut it without the close frame.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	err := w.ws.Write(ctx, websocket.MessageText, raw)
	if errors.Is(err, context.DeadlineExceeded) {
		return closing{frame.CloseSlow, "the client does not read"}
	}
	return err
}

func (w *wire) events(ctx context.Context, items []item) error {
	for _, i := range items {
		w.buf = frame.AppendEvent(w.buf[:0], i.sub.name, &i.body.Event)
		if err := w.write(ctx, w.buf); err != nil {
			return err
		}
	}
	if cap(w.buf) > frame.MaxBytes {
		w.buf = nil
	}
	return nil
}

func (w *wire) send(ctx context.Context, m message) error { return w.write(ctx, m.frame) }

// ping waits for the answer, which the goroutine that reads receives.
func (w *wire) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := w.ws.Ping(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return closing{frame.CloseSlow, "the client does not answer"}
	}
	return err
}

func (w *wire) cut() { _ = w.ws.CloseNow() }

func (w *wire) close(code int, reason string) { _ = w.ws.Close(websocket.StatusCode(code), reason) }

// socket is a connection that speaks the protocol of package frame.
type socket struct {
	*conn
	ws     *websocket.Conn
	tokens float64 // frames that the client may send at once
	refill time.Time

	rooms map[string]string // channel by the name of the subscription
}

func (h *Hub) newConn(e *core.RequestEvent, stock bool, out transport) *conn {
	return &conn{
		id: strings.ToLower(rand.Text()), hub: h, stock: stock, address: e.RealIP(), opened: e.Request, out: out,
		wake: make(chan struct{}, 1), subs: map[string]*sub{},
	}
}

// serveSocket talks to a client until one of the two has enough.
func (h *Hub) serveSocket(e *core.RequestEvent) error {
	ws, err := accept(e, frame.Subprotocol)
	if err != nil {
		return nil //nolint:nilerr // the client has its answer
	}
	defer func() { _ = ws.CloseNow() }()
	w := &wire{ws: ws}
	if ws.Subprotocol() != frame.Subprotocol {
		w.close(int(websocket.StatusPolicyViolation), "the subprotocol is "+frame.Subprotocol)
		return nil
	}
	s := &socket{conn: h.newConn(e, false, w), ws: ws, refill: time.Now(), rooms: map[string]string{}}
	s.tokens = float64(h.burst())
	if !h.enter(s.conn) {
		w.close(frame.CloseLimit, errTooMany.Error())
		return nil
	}
	defer h.exit(s.conn)
	end := s.run(context.WithoutCancel(e.Request.Context()))
	w.close(end.code, end.reason)
	return nil
}

func (h *Hub) burst() int { return 5 * h.cfg.Frames }

// run serves both directions and returns why they have ended.
func (s *socket) run(ctx context.Context) closing {
	ctx, s.cancel = context.WithCancelCause(ctx)
	go func() { s.cancel(s.read(ctx)) }() // ends with the connection
	return s.talk(ctx)
}

// talk pumps until the context ends and returns why. Clients that hinder the end are cut a moment later.
func (c *conn) talk(ctx context.Context) closing {
	context.AfterFunc(ctx, func() { time.AfterFunc(cutAfter, c.out.cut) })
	err := c.pump(ctx)
	if _, ok := errors.AsType[closing](err); !ok && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	c.cancel(err)
	if end, ok := errors.AsType[closing](err); ok {
		return end
	}
	return closing{int(websocket.StatusNormalClosure), ""}
}

// read takes what the client sends.
func (s *socket) read(ctx context.Context) error {
	first, cancel := context.WithTimeout(context.WithoutCancel(ctx), authWithin)
	defer cancel()
	for {
		limit := context.WithoutCancel(ctx) // a cancelled read would close the connection without a word
		if s.who.Load() == nil {
			limit = first
		}
		kind, raw, err := s.ws.Read(limit)
		if errors.Is(err, context.DeadlineExceeded) {
			return closing{frame.CloseAuth, "the first frame must be auth"}
		}
		if err != nil {
			return err
		}
		if !s.allowance() {
			return closing{frame.CloseLimit, "too many frames"}
		}
		if kind != websocket.MessageText {
			return closing{int(websocket.StatusUnsupportedData), "frames are text"}
		}
		f, err := frame.Parse(raw)
		if err != nil {
			if s.who.Load() == nil {
				return closing{frame.CloseAuth, "the first frame must be auth"}
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
	s.answer(message{frame: frame.Error(f.ID, f.Sub, code, detail)})
}

func (s *socket) reply(o frame.Out) { s.answer(message{frame: o.Bytes()}) }

func (s *socket) handle(ctx context.Context, f frame.In) error {
	if s.who.Load() == nil && f.Type != "auth" {
		return closing{frame.CloseAuth, "the first frame must be auth"}
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
	case "publish":
		s.publish(f)
	case "presence":
		if !s.hub.rooms.state(s.conn, s.rooms[f.Sub], json.RawMessage(f.State)) {
			s.fail(f, ErrDenied, "there is no presence to change")
		}
	case "ping":
		s.reply(frame.Out{Type: "pong", ID: f.ID})
	}
	return nil
}

// authenticate accepts a credential, the first one or a newer one of the same account.
func (s *socket) authenticate(ctx context.Context, f frame.In) error {
	who, err := s.hub.verify(s.opened, f.Token)
	if errors.Is(err, errRefused) {
		s.fail(f, ErrAuth, "")
		return closing{frame.CloseAuth, "the credential is not accepted"}
	}
	if err != nil {
		s.fail(f, ErrUnavailable, "")
		return closing{int(websocket.StatusTryAgainLater), "the credential cannot be verified now"}
	}
	was := s.who.Load()
	if was != nil && was.auth != nil && (who.auth == nil || accountOf(was.auth) != accountOf(who.auth)) {
		return closing{frame.CloseAuth, "another account needs another connection"}
	}
	if err := s.hub.become(s.conn, who); err != nil {
		return closing{frame.CloseLimit, err.Error()}
	}
	at, err := s.hub.changes.Horizon(ctx)
	if err != nil {
		return closing{int(websocket.StatusTryAgainLater), "the change log cannot be read now"}
	}
	out := frame.Out{Type: "ready", ID: f.ID, Connection: s.id, Cursor: at.String()}
	if who.auth != nil {
		out.User = &frame.User{Collection: who.auth.Collection().Name, ID: who.auth.Id}
	}
	if !who.expires.IsZero() {
		out.ExpiresAt = who.expires.UTC().Format(time.RFC3339)
	}
	s.reply(out)
	if was != nil && (was.auth == nil) != (who.auth == nil) {
		s.suspend(nil, true)
	}
	return nil
}

func (s *socket) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subs) + len(s.rooms)
}

// subscribe starts a subscription, where the cursor says or now.
func (s *socket) subscribe(ctx context.Context, f frame.In) {
	if s.count() >= s.hub.cfg.Subscriptions {
		s.fail(f, ErrSubscriptions, "")
		return
	}
	if _, taken := s.rooms[f.Sub]; taken {
		s.fail(f, ErrFrame, "the name is that of a channel")
		return
	}
	made, code, detail := s.define(ctx, f)
	if code != nil {
		s.fail(f, code, detail)
		return
	}
	now, err := s.hub.changes.Horizon(ctx)
	if err != nil {
		s.fail(f, ErrUnavailable, "")
		return
	}
	s.hub.adopt(now)
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
	made.at = at.Seq
	if reason == "" {
		for _, id := range f.Known {
			made.held.add(id, max(s.hub.cfg.Remember, len(f.Known)))
		}
		made.doubt, made.claim = len(f.Known) > 0, len(f.Known) > 0
	}
	s.reply(frame.Out{Type: "subbed", ID: f.ID, Sub: f.Sub, Cursor: at.String()})
	if reason != "" {
		s.hub.resets.Add(1)
		s.reply(frame.Out{Type: "reset", Sub: f.Sub, Reason: reason, Cursor: at.String()})
	}
	s.add(made)
}

// define checks what a client wants to see.
func (s *socket) define(ctx context.Context, f frame.In) (*sub, *extensions.Code, string) {
	auth := s.who.Load().auth
	collection, err := s.hub.app.FindCachedCollectionByNameOrId(f.Collection)
	if err != nil {
		return nil, ErrGone, "there is no such collection"
	}
	if _, err := s.hub.changes.Collection(ctx, collection.Id); errors.Is(err, changes.ErrNotCaptured) {
		return nil, ErrNotCaptured, ""
	} else if err != nil {
		return nil, ErrUnavailable, ""
	}
	made := &sub{
		conn: s.conn, name: f.Sub, collection: collection.Id, record: f.Record, filter: f.Filter, expand: f.Expand,
		query: map[string]string{}, headers: map[string]string{},
	}
	if made.fields, err = rows.ParseFields(f.Fields); err != nil {
		return nil, ErrFrame, "fields: " + err.Error()
	}
	if _, err := rows.ParseExpand(s.hub.app, collection, f.Expand); err != nil {
		return nil, ErrFrame, "expand: " + err.Error()
	}
	if err := s.hub.checkFilter(made, collection, auth); err != nil {
		return nil, ErrFilter, err.Error()
	}
	if _, err := s.hub.place(made, auth); errors.Is(err, errDenied) {
		return nil, ErrDenied, ""
	} else if err != nil {
		s.hub.log.Warn("a subscription cannot be evaluated", "collection", collection.Name, "error", err)
		return nil, ErrUnavailable, ""
	}
	return made, nil, ""
}

// checkFilter builds a client's filter once, so that a mistake is told at once.
func (h *Hub) checkFilter(s *sub, collection *core.Collection, auth *core.Record) error {
	if s.filter == "" {
		return nil
	}
	superuser := auth != nil && auth.IsSuperuser()
	for _, field := range []string{"@collection.", "@request."} {
		if !superuser && strings.Contains(s.filter, field) {
			return fmt.Errorf("only superusers can use %s in a filter", field)
		}
	}
	empty := ""
	return rows.Where(h.app.RecordQuery(collection), h.app, collection, s.info(auth), &empty, s.filter)
}

func (s *socket) unsubscribe(f frame.In) {
	if channel, ok := s.rooms[f.Sub]; ok {
		delete(s.rooms, f.Sub)
		s.hub.rooms.leave(s.conn, channel)
	} else if !s.drop(f.Sub) {
		s.fail(f, ErrFrame, "there is no such subscription")
		return
	}
	s.reply(frame.Out{Type: "unsub", ID: f.ID, Sub: f.Sub})
}

func (s *socket) member(state json.RawMessage) frame.Member {
	m := frame.Member{Connection: s.id, State: state}
	if auth := s.who.Load().auth; auth != nil {
		m.User = &frame.User{Collection: auth.Collection().Name, ID: auth.Id}
	}
	return m
}

func (s *socket) joinChannel(f frame.In) {
	channel, values, ok := s.hub.channelOf(f.Channel)
	allowed := false
	if ok {
		var err error
		if allowed, err = s.hub.allowed(channel.Join, values, s.who.Load().auth); err != nil {
			s.hub.log.Warn("a channel cannot be joined", "channel", f.Channel, "error", err)
		}
	}
	s.mu.Lock()
	taken := s.subs[f.Sub] != nil
	s.mu.Unlock()
	if _, has := s.rooms[f.Sub]; has || taken {
		s.fail(f, ErrFrame, "the name is in use")
		return
	}
	if _, _, in := s.hub.rooms.seat(s.conn, f.Channel); in {
		s.fail(f, ErrFrame, "the connection is in the channel already")
		return
	}
	switch {
	case !allowed:
		s.fail(f, ErrDenied, "the channel cannot be joined")
	case s.count() >= s.hub.cfg.Subscriptions:
		s.fail(f, ErrSubscriptions, "")
	default:
		there, err := s.hub.rooms.join(s.conn, f.Channel, f.Sub, channel, values, s.member(json.RawMessage(f.State)))
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
	channel, seat, ok := s.hub.rooms.seat(s.conn, name)
	if !ok {
		s.fail(f, ErrDenied, "there is no such channel")
		return
	}
	allowed, err := s.hub.allowed(channel.Publish, seat.values, s.who.Load().auth)
	if err != nil {
		s.hub.log.Warn("a message cannot be judged", "channel", name, "error", err)
	}
	if !allowed {
		s.fail(f, ErrDenied, "nothing can be published here")
		return
	}
	from := s.member(nil)
	s.hub.rooms.publish(s.conn, name, &from, json.RawMessage(f.Data))
}
