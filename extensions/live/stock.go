package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/subscriptions"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/live/feed"
	"github.com/satchelbase/satchel/extensions/rows"
)

// Hooks may unsubscribe a client and subscribe it anew right after, as PocketBase does; what stays must not be interrupted.
const settleAfter = 50 * time.Millisecond

// client is a connection of the stock contract as PocketBase and hooks know it. It is registered with PocketBase's broker
// only while it has topics that are no records', or while a request of its own looks for it there.
type client struct {
	*subscriptions.DefaultClient
	conn *feed.Conn
	out  feed.Transport
	hub  *Hub

	settling sync.Mutex // held while the subscriptions are compared, or one of two would begin anew, and later
	left     bool       // guarded by settling

	mu        sync.Mutex
	pins      int  // requests that look for it
	custom    bool // has topics that are no records'
	listed    bool // in the broker
	unlisting bool
	gone      bool
}

// Subscriptions hides the topics of records from PocketBase's broadcast, which always asks by prefix.
func (c *client) Subscriptions(prefixes ...string) map[string]subscriptions.SubscriptionOptions {
	c.mu.Lock()
	custom := c.custom
	c.mu.Unlock()
	if len(prefixes) > 0 && !custom {
		return nil
	}
	found := c.DefaultClient.Subscriptions(prefixes...)
	if len(prefixes) > 0 {
		for topic := range found {
			if c.hub.isRecordTopic(topic) {
				delete(found, topic)
			}
		}
	}
	return found
}

// Subscribe adds topics.
func (c *client) Subscribe(topics ...string) {
	c.DefaultClient.Subscribe(topics...)
	c.settle()
}

// Unsubscribe removes topics, all without arguments.
func (c *client) Unsubscribe(topics ...string) {
	c.DefaultClient.Unsubscribe(topics...)
	if len(topics) > 0 {
		c.settle()
		return
	}
	time.AfterFunc(settleAfter, c.settle)
}

// Send queues a message of a hook, or of the sign-in by OAuth2.
func (c *client) Send(m subscriptions.Message) {
	if !c.IsDiscarded() {
		c.conn.Answer(feed.Message{Stock: &m})
	}
}

// Discard ends the connection, unless the client only leaves the broker.
func (c *client) Discard() {
	c.mu.Lock()
	unlisting := c.unlisting
	c.mu.Unlock()
	if unlisting {
		return
	}
	c.DefaultClient.Discard()
	c.conn.Close(0, "discarded")
}

// settle makes the subscriptions of the connection those of the client. What was there stays as it is.
func (c *client) settle() {
	c.settling.Lock()
	defer c.settling.Unlock()
	if c.left {
		return // the database may be closed already
	}
	h := c.hub
	topics := c.DefaultClient.Subscriptions()
	custom := false
	have := map[string]bool{}
	for _, name := range c.conn.Names() {
		have[name] = true
	}
	var fresh []*feed.Sub
	for topic, options := range topics {
		switch s, ok := h.stockSub(c.conn, topic, options); {
		case !ok:
			custom = true
		case have[topic]:
			delete(have, topic)
		case s != nil:
			fresh = append(fresh, s)
		}
	}
	for name := range have {
		c.conn.Drop(name)
	}
	c.begin(fresh)
	c.mu.Lock()
	c.custom = custom
	c.mu.Unlock()
	c.list(0)
}

// begin starts subscriptions from now on.
func (c *client) begin(fresh []*feed.Sub) {
	if len(fresh) == 0 {
		return
	}
	h := c.hub
	now, err := h.feed.Now(context.Background())
	if err != nil {
		h.log.Warn("a subscription cannot begin", "error", err)
		c.conn.Close(0, "the change log cannot be read")
		return
	}
	for _, s := range fresh {
		s.At = now.Seq
		c.conn.Add(s)
	}
}

// list registers the client with the broker or takes it out; pin counts requests.
func (c *client) list(pin int) {
	broker := c.hub.app.SubscriptionsBroker()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pins += pin
	want := !c.gone && (c.custom || c.pins > 0)
	switch {
	case want && !c.listed:
		broker.Register(c)
	case !want && c.listed:
		c.unlisting = true
		c.mu.Unlock()
		broker.Unregister(c.Id())
		c.mu.Lock()
		c.unlisting = false
	}
	c.listed = want
}

// leave takes the client out for good. Nothing of it asks the database afterwards.
func (c *client) leave() {
	c.settling.Lock()
	c.left = true
	c.settling.Unlock()
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.DefaultClient.Discard()
	c.list(0)
}

// collectionOf splits the topic of a record or a collection.
func (h *Hub) collectionOf(topic string) (collection *core.Collection, record string, ok bool) {
	path, _, _ := strings.Cut(topic, "?")
	name, record, nested := strings.Cut(path, "/")
	if nested && record == "" {
		return nil, "", false
	}
	c, err := h.app.FindCachedCollectionByNameOrId(name)
	if err != nil || name != c.Name && name != c.Id {
		return nil, "", false
	}
	if record == "*" {
		record = ""
	}
	return c, record, true
}

func (h *Hub) isRecordTopic(topic string) bool {
	_, _, ok := h.collectionOf(topic)
	return ok
}

// stockSub makes a subscription of a topic. It reports false for topics that are no records', and returns nil for those
// that get nothing.
func (h *Hub) stockSub(c *feed.Conn, topic string, options subscriptions.SubscriptionOptions) (*feed.Sub, bool) {
	collection, record, ok := h.collectionOf(topic)
	if !ok {
		return nil, false
	}
	s := &feed.Sub{
		Name:       topic,
		Collection: collection.Id, Record: record, Query: options.Query, Headers: options.Headers,
		Filter: options.Query["filter"], Expand: options.Query["expand"],
	}
	if fields, err := rows.ParseFields(options.Query["fields"]); err == nil { // as before, a mistake chooses all
		s.Fields = fields
	}
	var auth *core.Record
	if who := c.Who.Load(); who != nil {
		auth = who.Auth
	}
	if usesRuleFields(s.Filter, auth) != nil || h.feed.Captured(context.Background(), collection.Id) != nil {
		return nil, true
	}
	if _, bad := errors.AsType[*rows.FilterError](h.feed.Check(s, auth)); bad {
		return nil, true
	}
	return s, true
}

func (h *Hub) bindStock(app core.App) {
	app.OnRealtimeConnectRequest().Bind(&hook.Handler[*core.RealtimeConnectRequestEvent]{Id: "satchelLiveClient", Priority: outermost, Func: h.lendClient})
	app.OnRealtimeConnectRequest().Bind(&hook.Handler[*core.RealtimeConnectRequestEvent]{Id: "satchelLive", Priority: innermost, Func: h.serveStock})
	app.OnRealtimeSubscribeRequest().Bind(&hook.Handler[*core.RealtimeSubscribeRequestEvent]{Id: "satchelLive", Priority: innermost, Func: h.subscribeStock})
}

// lendClient gives hooks the client that will be served. It does not idle out: it is pinged, and dropped when it is gone.
func (h *Hub) lendClient(e *core.RealtimeConnectRequestEvent) error {
	c := &client{DefaultClient: subscriptions.NewDefaultClient(), hub: h}
	c.Set(apis.RealtimeClientIPKey, e.RealIP())
	e.Client, e.IdleTimeout = c, e.MaxTimeout
	out, ok := e.Get(shimKey).(feed.Transport)
	if !ok {
		out = &stream{event: e.RequestEvent, client: c}
	}
	c.out = out
	var ctx context.Context
	c.conn, ctx = h.feed.NewConn(e.Request.Context(), e.Request, addressOf(e.RequestEvent), true, out)
	defer c.conn.Fail(nil)
	if !h.enter(c.conn) {
		return &api.Problem{Code: ErrConnections, RetryAfter: time.Minute}
	}
	defer h.exit(c.conn)
	if err := h.become(c.conn, &feed.Identity{}, 0); err != nil {
		return &api.Problem{Code: ErrConnections, RetryAfter: time.Minute}
	}
	e.Request = e.Request.WithContext(ctx)
	h.mu.Lock()
	h.clients[c.Id()] = c
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.clients, c.Id())
		h.mu.Unlock()
		c.leave()
	}()
	return e.Next()
}

// serveStock takes the place of PocketBase's own loop, behind all hooks.
func (h *Hub) serveStock(e *core.RealtimeConnectRequestEvent) error {
	c, ok := e.Client.(*client)
	if !ok { // a hook serves a client of its own
		return e.Next()
	}
	hello := feed.Message{Stock: &subscriptions.Message{Name: "PB_CONNECT", Data: []byte(`{"clientId":"` + c.Id() + `"}`)}}
	c.conn.Answer(hello)
	life := time.AfterFunc(e.MaxTimeout, func() { c.conn.Close(0, "the connection has reached its age") })
	defer life.Stop()
	end := c.conn.Talk(e.Request.Context())
	c.out.Close(end.Code, end.Reason)
	return nil
}

// subscribeStock remembers by which credential the topics are watched.
func (h *Hub) subscribeStock(e *core.RealtimeSubscribeRequestEvent) error {
	c, ok := e.Client.(*client)
	if !ok {
		return e.Next()
	}
	who := &feed.Identity{Auth: e.Auth}
	if e.Auth != nil {
		who.Token = e.Request.Header.Get("Authorization")
		who.Expires = expiryOf(who.Token)
		who.Session, _ = e.Get(sessionKey).(string)
	}
	was := c.conn.Who.Load()
	looked, _ := e.Request.Context().Value(lookedKey{}).(uint64)
	if err := h.become(c.conn, who, looked); err != nil {
		return &api.Problem{Code: ErrConnections, RetryAfter: time.Minute}
	}
	if was != nil && (was.Auth == nil) != (who.Auth == nil) {
		c.conn.Suspend(nil, true)
	}
	return e.Next()
}

// maxTopics bounds the body of a request that sets subscriptions, in bytes: PocketBase takes a thousand topics of 2,500
// characters each.
const maxTopics = 4 << 20

// lookedKey is where a request that sets subscriptions says when it came.
type lookedKey struct{}

// lend wraps the router: a request that sets subscriptions finds its client in PocketBase's broker, as long as it lasts.
func (h *Hub) lend(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/api/realtime" {
			next.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTopics))
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{err}))
		r = r.WithContext(context.WithValue(r.Context(), lookedKey{}, h.looked.Load()))
		if c := h.clientOf(r, body); c != nil {
			c.list(1)
			defer c.list(-1)
		}
		next.ServeHTTP(w, r)
	})
}

// failing lets the next reader find the same error as the first.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err == nil {
		return 0, io.EOF
	}
	return 0, f.err
}

// clientOf finds the client that a request is about. Nothing is decided by that.
func (h *Hub) clientOf(r *http.Request, body []byte) *client {
	var form struct {
		ClientID string `json:"clientId"`
	}
	kind, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch kind {
	case "application/x-www-form-urlencoded":
		values, _ := url.ParseQuery(string(body))
		form.ClientID = values.Get("clientId")
	case "multipart/form-data":
		form.ClientID = multipartValue(body, params["boundary"], "clientId")
	default:
		_ = json.Unmarshal(body, &form)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.clients[form.ClientID]
}
