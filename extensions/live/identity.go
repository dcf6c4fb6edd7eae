package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/live/feed"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

const (
	// sessionKey is where sessions leave the id of the request's.
	sessionKey = "satchelSession"

	// tendEvery is how often connections are compared with the sessions that have ended and the accounts that have changed.
	tendEvery = 200 * time.Millisecond

	verifyTimeout = 10 * time.Second
)

// errRefused: the credential is not good.
var errRefused = errors.New("the credential is not accepted")

// probe is a request that only asks who somebody is.
type probe struct {
	who  feed.Identity
	done bool
}

type probeKey struct{}

func probeOf(ctx context.Context) *probe {
	p, _ := ctx.Value(probeKey{}).(*probe)
	return p
}

// verify finds out whom a token stands for, by a request to the program itself: whatever the Authorization header takes
// is taken here, under the same limits. like is the request that opened the connection. Any error but errRefused means
// that it is not known.
func (h *Hub) verify(like *http.Request, token string) (*feed.Identity, error) {
	if token == "" {
		return &feed.Identity{}, nil
	}
	p := &probe{}
	ctx, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(like.Context()), probeKey{}, p), verifyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, route, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.RemoteAddr, req.Host, req.TLS = like.RemoteAddr, like.Host, like.TLS
	for _, name := range []string{"User-Agent", "X-App-Version", "X-Platform"} {
		if value := like.Header.Get(name); value != "" {
			req.Header.Set(name, value)
		}
	}
	req.Header.Set("Authorization", token)
	answer := &answer{header: http.Header{}}
	h.router.ServeHTTP(answer, req)
	switch {
	case p.done && p.who.Auth != nil:
		who := p.who
		who.Token, who.Expires = token, expiryOf(token)
		return &who, nil
	case p.done, answer.status == http.StatusUnauthorized, answer.status == http.StatusForbidden:
		return nil, errRefused
	}
	return nil, errors.New("the credential cannot be verified now: " + http.StatusText(answer.status))
}

// admit is verify for those who come: a few at a time, so that ten thousand who come back at once leave the machine to
// others as well.
func (h *Hub) admit(like *http.Request, token string) (*feed.Identity, error) {
	h.admitting <- struct{}{}
	defer func() { <-h.admitting }()
	return h.verify(like, token)
}

// admittedAtOnce keeps a few cores busy.
const admittedAtOnce = 8

// answer is where the router writes what nobody reads.
type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return len(b), nil
}

// identify answers a probe.
func (h *Hub) identify(e *core.RequestEvent, p *probe) error {
	p.who.Auth, p.done = e.Auth, true
	p.who.ReadOnly = h.deps.ReadOnly != nil && h.deps.ReadOnly(e)
	p.who.Session, _ = e.Get(sessionKey).(string)
	return e.NoContent(http.StatusNoContent)
}

// expiryOf reads the claim exp of a token that was verified; the zero time is none, as of an API key.
func expiryOf(token string) time.Time {
	claims := jwt.RegisteredClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(bearer(token), &claims); err != nil || claims.ExpiresAt == nil {
		return time.Time{}
	}
	return claims.ExpiresAt.Time
}

// bearer is the token in an Authorization header, which may lack the scheme.
func bearer(header string) string {
	if len(header) > 7 && strings.EqualFold(header[:7], "Bearer ") {
		return header[7:]
	}
	return header
}

func accountOf(record *core.Record) string { return record.Collection().Id + "/" + record.Id }

// addressOf is what guests are counted by: the address, or with IPv6 the network, which is the least that anybody has.
func addressOf(e *core.RequestEvent) string {
	addr, err := netip.ParseAddr(e.RealIP())
	if err != nil || addr.Unmap().Is4() {
		return e.RealIP()
	}
	network, err := addr.Prefix(64)
	if err != nil { // there are so many bits
		return e.RealIP()
	}
	return network.String()
}

// key is what the limit of connections counts by.
func keyOf(c *feed.Conn, who *feed.Identity) string {
	if who == nil { // has not said yet
		return "new " + c.Address
	}
	if who.Auth == nil {
		return "guest " + c.Address
	}
	return accountOf(who.Auth)
}

// errTooMany: the account, the address or the server has as many connections as it may have.
var errTooMany = errors.New("too many connections")

// become makes a connection act for somebody, within the limits. looked is from before the credential was verified: what has
// ended between the two was looked for among others only.
func (h *Hub) become(c *feed.Conn, who *feed.Identity, looked uint64) error {
	if err := h.account(c, who); err != nil {
		return err
	}
	if who.Auth != nil && h.looked.Load() != looked {
		h.verifyAgain(c, who)
	}
	return nil
}

func (h *Hub) account(c *feed.Conn, who *feed.Identity) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	limit := h.cfg.UserConnections
	if who.Auth == nil {
		limit = h.cfg.GuestConnections
	}
	key, old := keyOf(c, who), keyOf(c, c.Who.Load())
	if key != old {
		if len(h.users[key]) >= limit {
			return errTooMany
		}
		h.forget(c, old)
		h.remember(c, key)
	}
	c.Who.Store(who)
	return nil
}

// remember counts a connection for a key. The lock is held.
func (h *Hub) remember(c *feed.Conn, key string) {
	if h.users[key] == nil {
		h.users[key] = map[*feed.Conn]struct{}{}
	}
	h.users[key][c] = struct{}{}
}

// forget takes a connection out of the count of a key. The lock is held.
func (h *Hub) forget(c *feed.Conn, key string) {
	if same := h.users[key]; same != nil {
		delete(same, c)
		if len(same) == 0 {
			delete(h.users, key)
		}
	}
}

// enter registers a connection, if there is room.
func (h *Hub) enter(c *feed.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := keyOf(c, nil)
	if h.draining || h.count >= h.cfg.Connections || len(h.users[key]) >= max(h.cfg.GuestConnections, 1) {
		return false
	}
	h.remember(c, key)
	h.count++
	h.feed.Enter(c)
	h.connected.Add(1)
	return true
}

func (h *Hub) exit(c *feed.Conn) {
	h.feed.Exit(c)
	h.rooms.LeaveAll(member{c})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count--
	h.forget(c, keyOf(c, c.Who.Load()))
	h.connected.Done()
}

// accounts collects which accounts may have changed. Hooks add to it, and must not wait.
type accounts struct {
	mu          sync.Mutex
	ids         map[string]struct{}
	collections []string
}

func (a *accounts) record(r *core.Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ids == nil {
		a.ids = map[string]struct{}{}
	}
	a.ids[accountOf(r)] = struct{}{}
}

func (a *accounts) collection(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.collections, id) {
		a.collections = append(a.collections, id)
	}
}

func (a *accounts) take() (ids map[string]struct{}, collections []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids, collections = a.ids, a.collections
	a.ids, a.collections = nil, nil
	return ids, collections
}

// tend drops connections whose credential has ended, until ctx ends.
func (h *Hub) tend(ctx context.Context) {
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	var seen uint64
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if h.deps.Sessions != nil {
				if version := h.deps.Sessions.Version(); version != seen {
					h.looked.Add(1)
					if h.dropEnded() {
						seen = version
					}
				}
			}
			h.dropExpired(now)
			if ids, collections := h.touched.take(); len(ids)+len(collections) > 0 {
				h.looked.Add(1)
				h.lookAgain(ids, collections)
			}
		}
	}
}

// dropEnded closes the connections of sessions that have ended: one query for all. It reports whether it could.
func (h *Hub) dropEnded() bool {
	bySession := map[string][]*feed.Conn{}
	for _, c := range h.feed.Conns() {
		if who := c.Who.Load(); who != nil && who.Session != "" {
			bySession[who.Session] = append(bySession[who.Session], c)
		}
	}
	if len(bySession) == 0 {
		return true
	}
	ids := make([]string, 0, len(bySession))
	for id := range bySession {
		ids = append(ids, id)
	}
	ended, err := h.deps.Sessions.Ended(ids)
	if err != nil {
		h.log.Warn("ended sessions cannot be read", "error", err)
		return false
	}
	for _, id := range ended {
		for _, c := range bySession[id] {
			c.Close(frame.CloseAuth, "the session has ended")
		}
	}
	return true
}

func (h *Hub) dropExpired(now time.Time) {
	for _, c := range h.feed.Conns() {
		who := c.Who.Load()
		if who == nil || who.Expires.IsZero() {
			continue
		}
		end := who.Expires
		if c.Stock {
			end = end.Add(h.deps.Patience.Renew)
		}
		if now.After(end) {
			c.Close(frame.CloseAuth, "the token has expired")
		}
	}
}

// lookAgain verifies the credentials of those whose account has changed: the password, the address, a role, or all of it.
func (h *Hub) lookAgain(ids map[string]struct{}, collections []string) {
	for _, c := range h.feed.Conns() {
		who := c.Who.Load()
		if who == nil || who.Auth == nil {
			continue
		}
		if _, touched := ids[accountOf(who.Auth)]; !touched && !slices.Contains(collections, who.Auth.Collection().Id) {
			continue
		}
		h.verifyAgain(c, who)
	}
}

func (h *Hub) verifyAgain(c *feed.Conn, who *feed.Identity) {
	if c.Checking.Swap(true) {
		h.touched.record(who.Auth) // one is under way, which may have looked too early
		return
	}
	go h.recheckCredential(c, who)
}

func (h *Hub) recheckCredential(c *feed.Conn, who *feed.Identity) {
	defer c.Checking.Store(false)
	now, err := h.verify(c.Opened, who.Token)
	switch {
	case errors.Is(err, errRefused):
		c.Close(frame.CloseAuth, "the credential has ended")
	case err != nil:
		time.Sleep(tendEvery)
		h.touched.record(who.Auth)
	case c.Who.CompareAndSwap(who, now):
		if !sameForRules(who.Auth, now.Auth) {
			h.feed.Reach(context.WithoutCancel(c.Opened.Context())) // or the change would be told twice, or be passed by
			c.Suspend(nil, true)
		}
		h.reviewSeats(c)
	}
}

// reviewEvery is how often it is asked whether those in channels may still join them.
const reviewEvery = 30 * time.Second

// review puts those out of channels who may not join them any more, until ctx ends.
func (h *Hub) review(ctx context.Context) {
	ticker := time.NewTicker(reviewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.reviewSeats(nil)
		}
	}
}

// reviewSeats looks at the channels of one connection, or of all.
func (h *Hub) reviewSeats(only *feed.Conn) {
	for name, seats := range h.rooms.Seats() {
		for m, seat := range seats {
			own, ok := m.(member)
			if !ok || only != nil && own.conn != only {
				continue
			}
			c, who := own.conn, own.conn.Who.Load()
			allowed, err := channel.Allowed(h.app, seat.Channel.Join, seat.Values, who.Auth)
			if err != nil {
				h.log.Warn("a member of a channel cannot be judged", "channel", name, "error", err)
			} else if !allowed {
				h.rooms.Leave(m, name)
				c.Answer(feed.Message{Frame: frame.Error("", seat.Name(), feed.ErrDenied, "the channel may not be joined any more")})
			}
		}
	}
}

// sameForRules reports whether the account reads the same in every rule.
func sameForRules(a, b *core.Record) bool {
	x, errX := json.Marshal(a.FieldsData())
	y, errY := json.Marshal(b.FieldsData())
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
