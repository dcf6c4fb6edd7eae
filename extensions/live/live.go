// Package live tells connected clients what happens to records, within the rules of the collections, without anything
// running in a writer.
//
//   - GET /api/v1/live is a WebSocket with the subprotocol satchel.rt.v1: see docs/live.md and package frame. A client that
//     was away goes on from its cursor, also after a restart of the server.
//   - /api/realtime keeps PocketBase's contract for its SDKs, over server-sent events or, for React Native, over the same
//     WebSocket route with the subprotocol satchel.sse.v1.
//
// The only source of events is the change log. Package feed evaluates each stretch of it once for every group of
// subscriptions that get the same records; a group is in memory where the form of the rule allows it, and else all groups
// of one rule share one query. Several changes of one record in a stretch are sent as one, with the last state.
//
// A connection has a bounded queue. When that is full, the connection reads the log by itself, as fast as its client
// reads; when the log is no longer kept, the client is told to list anew. Broadcast channels have queues of their own and
// lose the oldest message.
//
// PocketBase's own broadcast does nothing, because no client with the topic of a record is registered with its broker;
// only those with other topics are, for the sign-in by OAuth2 and for messages of hooks.
//
// Settings: SATCHEL_LIVE_*. Tables: none. Failure modes: without the change log nothing is sent; a rule that cannot be
// evaluated keeps its subscriptions waiting, and closes them when it stays so.
package live

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/live/feed"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

// route is the path of the WebSocket.
const route = api.Prefix + "/live"

// Codes of error frames, and of connections that are refused.
var (
	ErrFrame         = &extensions.Code{Name: "live.frame_invalid", Status: http.StatusBadRequest, Title: "The frame is not valid"}
	ErrFilter        = &extensions.Code{Name: "live.filter_invalid", Status: http.StatusBadRequest, Title: "The filter is not valid"}
	ErrAuth          = &extensions.Code{Name: "live.auth_failed", Status: http.StatusUnauthorized, Title: "The credential is not accepted"}
	ErrNotCaptured   = &extensions.Code{Name: "live.not_captured", Status: http.StatusBadRequest, Title: "The changes of this collection are not recorded"}
	ErrSubscriptions = &extensions.Code{Name: "live.too_many_subscriptions", Status: http.StatusTooManyRequests, Title: "There are too many subscriptions"}
	ErrConnections   = &extensions.Code{Name: "live.too_many_connections", Status: http.StatusTooManyRequests, Title: "There are too many connections"}
	ErrUnavailable   = &extensions.Code{Name: "live.unavailable", Status: http.StatusServiceUnavailable, Title: "This cannot be done now; try again"}
	ErrUpgrade       = &extensions.Code{Name: "live.upgrade_required", Status: http.StatusUpgradeRequired, Title: "This is a WebSocket"}
)

// Sessions tells which sessions end.
type Sessions interface {
	// Version changes when sessions have ended.
	Version() uint64

	// Ended returns those of the sessions, by their ids, that have ended.
	Ended(ids []string) ([]string, error)
}

// Deps is what the feature is lent. Without Sessions, those that end close no connections.
type Deps struct {
	Sessions Sessions

	// ReadOnly reports that the credential of a request may change nothing, nil that none is so: who uses it says nothing in
	// channels.
	ReadOnly func(e *core.RequestEvent) bool

	// Channels are declared beside those of the settings.
	Channels []channel.Channel

	// Patience is the usual one where it is zero.
	Patience Patience
}

// Patience is how long clients are waited for.
type Patience struct {
	Auth  time.Duration // to say who they are
	Write time.Duration // to accept a message, or to answer a ping
	Ping  time.Duration // in silence, until they are asked whether they are there
	Renew time.Duration // to subscribe with a newer token in the stock contract, once theirs has expired
}

// usual is for clients on slow networks. The pings also keep proxies from closing a silent connection, which most do after
// 60 s. A client of the stock contract cannot renew its token but by subscribing anew.
func (p Patience) usual() Patience {
	return Patience{
		Auth: cmp.Or(p.Auth, 10*time.Second), Write: cmp.Or(p.Write, 10*time.Second),
		Ping: cmp.Or(p.Ping, 25*time.Second), Renew: cmp.Or(p.Renew, time.Minute),
	}
}

// Hub is the feature. It is safe for concurrent use once it is bound to an application.
type Hub struct {
	cfg      Config
	deps     Deps
	feed     *feed.Hub
	families []channel.Channel
	rooms    channel.Rooms

	app    core.App
	log    *slog.Logger
	router http.Handler // what this extension's handler wraps

	mu        sync.RWMutex
	count     int                                // connections
	users     map[string]map[*feed.Conn]struct{} // by account, or by address for guests
	clients   map[string]*client                 // of the stock contract
	draining  bool
	connected sync.WaitGroup

	admitting chan struct{} // bounds how many credentials are verified at once
	touched   accounts
	looked    atomic.Uint64 // grows before connections are compared with what has ended

	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// New makes the hub. cfg must be valid.
func New(cfg Config, log feed.Log, deps Deps) *Hub {
	deps.Patience = deps.Patience.usual()
	h := &Hub{
		cfg: cfg, deps: deps, families: deps.Channels,
		feed:  feed.New(feed.Config{Queue: int(cfg.Queue), Remember: cfg.Remember, PingEvery: deps.Patience.Ping}, log),
		users: map[string]map[*feed.Conn]struct{}{}, clients: map[string]*client{},
		admitting: make(chan struct{}, admittedAtOnce),
	}
	h.feed.Redefined = h.touched.collection
	for _, text := range cfg.Channels {
		if c, err := channel.Parse(text); err == nil { // it was validated
			h.families = append(h.families, c)
		}
	}
	return h
}

// Publish sends data to everybody in a channel, as the server, and returns to how many. No rule is asked.
func (h *Hub) Publish(name string, data any) (int, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return 0, fmt.Errorf("encode message: %w", err)
	}
	return h.rooms.Publish(nil, name, nil, raw), nil
}

// Extension makes the hub a feature.
func (h *Hub) Extension() extensions.Extension {
	return extensions.Extension{
		Name:     "live",
		Settings: h.cfg,
		Codes: []*extensions.Code{
			ErrFrame, ErrFilter, ErrAuth, feed.ErrDenied, feed.ErrGone, ErrNotCaptured, ErrSubscriptions, ErrConnections, ErrUnavailable, ErrUpgrade,
		},
		Bind: h.bind,
		Handler: func(next http.Handler) http.Handler {
			h.router = next
			return h.lend(next)
		},
		Routes:  func(g *router.RouterGroup[*core.RequestEvent]) { g.GET("", h.serve) },
		Start:   h.start,
		Stop:    h.end,
		Checks:  []extensions.Check{{Name: "live", Run: h.check}},
		Metrics: h.metrics(),
	}
}

// Priorities of hooks.
const (
	outermost = -1 << 30
	innermost = 1 << 30

	// drainPriority is before that of package api, which waits for the requests in flight, streams among them.
	drainPriority = -10001
)

func (h *Hub) bind(host *extensions.Host) error {
	h.app, h.log = host.App, host.Logger
	h.feed.Bind(host.App, host.Logger)
	h.bindStock(host.App)
	host.App.OnTerminate().Bind(&hook.Handler[*core.TerminateEvent]{Id: "satchelLiveDrain", Priority: drainPriority, Func: func(e *core.TerminateEvent) error {
		h.drain()
		return e.Next()
	}})
	account := func(e *core.RecordEvent) error {
		if e.Record.Collection().IsAuth() {
			h.touched.record(e.Record)
		}
		return e.Next()
	}
	host.App.OnRecordAfterUpdateSuccess().BindFunc(account)
	host.App.OnRecordAfterDeleteSuccess().BindFunc(account)
	collection := func(e *core.CollectionEvent) error {
		if e.Collection.IsAuth() {
			h.touched.collection(e.Collection.Id)
		}
		return e.Next()
	}
	host.App.OnCollectionAfterUpdateSuccess().BindFunc(collection)
	host.App.OnCollectionAfterDeleteSuccess().BindFunc(collection)
	return nil
}

func (h *Hub) serve(e *core.RequestEvent) error {
	if p := probeOf(e.Request.Context()); p != nil {
		return h.identify(e, p)
	}
	if !isUpgrade(e.Request) {
		e.Response.Header().Set("Upgrade", "websocket")
		return api.Fail(ErrUpgrade, "connect with the subprotocol "+frame.Subprotocol)
	}
	if h.isDraining() {
		return &api.Problem{Code: api.ErrUnavailable, Detail: "the server is stopping", RetryAfter: time.Second}
	}
	if asksFor(e.Request, stockSubprotocol) {
		return h.serveShim(e)
	}
	return h.serveSocket(e)
}

func (h *Hub) start(ctx context.Context, _ *extensions.Host) error {
	if _, err := h.feed.Now(ctx); err != nil {
		return fmt.Errorf("read change log: %w", err)
	}
	ctx, h.stop = context.WithCancel(ctx)
	h.stopped.Go(func() { h.feed.Run(ctx) })
	h.stopped.Go(func() { h.tend(ctx) })
	h.stopped.Go(func() { h.review(ctx) })
	return nil
}

// drain closes all connections, so that their clients come back elsewhere or later.
func (h *Hub) drain() {
	h.mu.Lock()
	h.draining = true
	h.mu.Unlock()
	for _, c := range h.feed.Conns() {
		c.Close(frame.CloseRestart, "the server restarts")
	}
	done := make(chan struct{})
	go func() {
		h.connected.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainWithin):
	}
}

// farBehind is a number of changes that the hub has in a moment's work only when it cannot keep up.
const farBehind = 500

// drainWithin is how long clients get to acknowledge that the connection closes.
const drainWithin = 2 * time.Second

func (h *Hub) isDraining() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.draining
}

func (h *Hub) end(ctx context.Context) error {
	if h.stop == nil {
		return nil
	}
	h.stop()
	done := make(chan struct{})
	go func() {
		h.stopped.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *Hub) check(context.Context, *extensions.Host) extensions.Result {
	n, limit := len(h.feed.Conns()), h.cfg.Connections
	message := fmt.Sprintf("%d of %d connections", n, limit)
	if n*10 > limit*9 {
		return extensions.Result{Level: extensions.Warn, Message: message, Next: "raise SATCHEL_LIVE_CONNECTIONS"}
	}
	if behind := h.feed.Behind.Load(); behind >= farBehind {
		return extensions.Result{Level: extensions.Warn, Message: fmt.Sprintf("%s; events are at least %d changes behind", message, behind), Next: "see satchel_live_behind_count"}
	}
	return extensions.Result{Message: message}
}

func (h *Hub) metrics() []extensions.Metric {
	counter := func(n *atomic.Uint64) func() float64 { return func() float64 { return float64(n.Load()) } }
	return []extensions.Metric{
		{Name: "satchel_live_connections_count", Help: "Clients that are connected.", Read: func() float64 { return float64(len(h.feed.Conns())) }},
		{Name: "satchel_live_subscriptions_count", Help: "Subscriptions to records.", Read: func() float64 { return float64(h.feed.Subscriptions.Load()) }},
		{Name: "satchel_live_behind_count", Help: "Changes that the last reading of the log found.", Read: func() float64 { return float64(h.feed.Behind.Load()) }},
		{Name: "satchel_live_deliveries_total", Help: "Events sent to clients.", Counter: true, Read: counter(&h.feed.Deliveries)},
		{Name: "satchel_live_lags_total", Help: "Times that a client was too slow for its queue.", Counter: true, Read: counter(&h.feed.Lags)},
		{Name: "satchel_live_resets_total", Help: "Times that a client was told to list anew.", Counter: true, Read: counter(&h.feed.Resets)},
		{Name: "satchel_live_dropped_total", Help: "Messages of channels that a slow client has missed.", Counter: true, Read: counter(&h.feed.Dropped)},
	}
}
