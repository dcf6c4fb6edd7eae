package ratelimit

import (
	"cmp"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

const (
	// sessionKey is where the access token's middleware leaves the id of the session.
	sessionKey = "satchelSession"

	// verdictKey is where stage 1 leaves its verdict for stage 2.
	verdictKey = "satchelRateLimitVerdict"
)

// limiter applies the quotas to requests. It is safe for concurrent use.
type limiter struct {
	policies
	table     *gcra.Table
	superuser int
	known     KnownDevice
	cost      Cost
	refused   atomic.Int64
}

// charge is what a request costs one key.
type charge struct {
	policy gcra.Policy
	key    []byte
	cost   int
}

// verdict is the answer of several quotas: the one that refuses for longest, or else the one that is nearest to its end.
type verdict struct {
	gcra.Decision
	policy   gcra.Policy
	violated []string
}

// guard is stage 1.
func (l *limiter) guard(e *core.RequestEvent) error {
	if err := l.answer(e, l.admit(byAddress(nil, e, l.ip, 1))); err != nil {
		return err
	}
	return e.Next()
}

// limit is stage 2.
func (l *limiter) limit(e *core.RequestEvent) error {
	r := routeOf(e.Request)
	if r.class == outside {
		return e.Next()
	}
	var v verdict
	charges := l.charges(e, r)
	if r.class == batch {
		v = l.judge(charges, l.table.Peek)
	} else {
		v = l.admit(charges)
	}
	if err := l.answer(e, v); err != nil {
		return err
	}
	if e.HasSuperuserAuth() {
		// Their own quota bounds superusers; with that of the address above it, a larger one would mean nothing.
		for _, c := range byAddress(nil, e, l.ip, 1) {
			l.table.Give(c.key, c.policy, c.cost)
		}
	}
	return e.Next()
}

// batch charges a batch once it is parsed and known to be within the limits of batches. Its items do not pass the
// middlewares again.
func (l *limiter) batch(e *core.BatchRequestEvent) error {
	if err := l.answer(e.RequestEvent, l.admit(l.byIdentity(nil, e.RequestEvent, writeCost*len(e.Batch)))); err != nil {
		return err
	}
	return e.Next()
}

// charges are those of stage 2. A batch is checked for its first item only: one that cannot pass is refused before its
// body is read.
func (l *limiter) charges(e *core.RequestEvent, r route) []charge {
	var charges []charge
	switch r.class {
	case signIn:
		charges = byAddress(nil, e, l.auth, 1)
		// An address that is held back cannot make the server read its bodies.
		if l.judge(charges, l.table.Peek).Allowed {
			charges = l.byAccount(charges, e, r.account)
		}
	case refresh:
		charges = l.byHolder(charges, e, r.account)
	case outside, general, batch:
	}
	cost := 0
	if l.cost != nil {
		cost = l.cost(e.Request)
	}
	return l.byIdentity(charges, e, cmp.Or(cost, r.cost(e.Request)))
}

// byAddress charges the client's address. An address that cannot be told, as on a unix socket, counts as one client.
func byAddress(charges []charge, e *core.RequestEvent, p gcra.Policy, cost int) []charge {
	addr, err := netip.ParseAddr(e.RemoteIP())
	if err != nil {
		return append(charges, charge{policy: p, cost: cost})
	}
	addr = addr.Unmap()
	if addr.Is4() {
		return append(charges, charge{p, addr.AsSlice(), cost})
	}
	bytes := addr.AsSlice()
	network := p.Times(networkFactor)
	network.Name += "-network"
	return append(charges, charge{p, bytes[:64/8], cost}, charge{network, bytes[:48/8], cost})
}

// byIdentity charges the signed-in user and the session. A guest is known by the address alone, which stage 1 has
// charged one unit.
func (l *limiter) byIdentity(charges []charge, e *core.RequestEvent, cost int) []charge {
	if e.Auth == nil {
		if cost > 1 {
			return byAddress(charges, e, l.ip, cost-1)
		}
		return charges
	}
	charges = append(charges, charge{l.scaled(e, l.user), userKey(e.Auth), cost})
	if id, _ := e.Get(sessionKey).(string); id != "" {
		charges = append(charges, charge{l.scaled(e, l.session), []byte(id), cost})
	}
	return charges
}

// byHolder charges a token refresh to the session, or whoever else is known to ask. A refresh token is not verified here,
// so its session counts for each address apart: nobody uses up the quota of somebody else's phone, and phones behind one
// address do not share a quota.
func (l *limiter) byHolder(charges []charge, e *core.RequestEvent, field string) []charge {
	if id, _ := e.Get(sessionKey).(string); id != "" {
		return append(charges, charge{l.scaled(e, l.refresh), []byte("session\x00" + id), 1})
	}
	if e.Auth != nil {
		return append(charges, charge{l.scaled(e, l.refresh), userKey(e.Auth), 1})
	}
	if id := tokenSession(e, field); id != "" {
		return append(charges, charge{l.refresh, []byte("refresh\x00" + id + "\x00" + e.RemoteIP()), 1})
	}
	return byAddress(charges, e, l.refresh, 1)
}

// byAccount charges the account that a sign-in names. The quota of an account that is used up does not count for a device
// that the account knows.
func (l *limiter) byAccount(charges []charge, e *core.RequestEvent, field string) []charge {
	switch {
	case field != "":
		account, key := accountOf(e, field)
		if l.known != nil && account != "" && !l.table.Peek(key, l.account, 1).Allowed && l.known(e, account) {
			return charges
		}
		return append(charges, charge{l.account, key, 1})
	case e.Auth != nil:
		return append(charges, charge{l.account, userKey(e.Auth), 1})
	}
	return charges
}

func (l *limiter) scaled(e *core.RequestEvent, p gcra.Policy) gcra.Policy {
	if e.HasSuperuserAuth() {
		return p.Times(l.superuser)
	}
	return p
}

func userKey(r *core.Record) []byte {
	return []byte("user\x00" + r.Collection().Id + "\x00" + r.Id)
}

// admit charges all or nothing, except that requests at the same moment may each be charged by some quotas and refused
// by another.
func (l *limiter) admit(charges []charge) verdict {
	if v := l.judge(charges, l.table.Peek); !v.Allowed {
		return v
	}
	return l.judge(charges, l.table.Take)
}

func (l *limiter) judge(charges []charge, ask func([]byte, gcra.Policy, int) gcra.Decision) verdict {
	var tightest verdict
	var violated []string
	for i, c := range charges {
		v := verdict{Decision: ask(c.key, c.policy, c.cost), policy: c.policy}
		if !v.Allowed {
			violated = append(violated, c.policy.Name)
		}
		if i == 0 || v.tighterThan(tightest) {
			tightest = v
		}
	}
	tightest.Allowed, tightest.violated = len(violated) == 0, violated
	return tightest
}

func (v verdict) tighterThan(other verdict) bool {
	switch {
	case v.Allowed != other.Allowed:
		return !v.Allowed
	case !v.Allowed:
		return v.RetryAfter > other.RetryAfter
	case v.Remaining != other.Remaining:
		return v.Remaining < other.Remaining
	}
	return v.Reset > other.Reset
}

// answer sets the headers for the tightest verdict on this request so far, and turns a refusal into a problem.
func (l *limiter) answer(e *core.RequestEvent, v verdict) error {
	if v.policy.Name == "" {
		return nil
	}
	if earlier, ok := e.Get(verdictKey).(verdict); ok && !v.tighterThan(earlier) {
		return nil
	}
	e.Set(verdictKey, v)
	v.setHeaders(e.Response.Header())
	if v.Allowed {
		return nil
	}
	l.refused.Add(1)
	p := api.Fail(ErrExceeded, "over the quota of: "+strings.Join(v.violated, ", "))
	p.RetryAfter = retryAfter(v.RetryAfter, rand.IntN)
	return p
}

// setHeaders writes structured fields (RFC 9651). t is when the request would pass, if it was refused, and else when the
// quota is whole again. The names of policies are constants without a quote or backslash.
func (v verdict) setHeaders(h http.Header) {
	wait := v.Reset
	if !v.Allowed {
		wait = v.RetryAfter
	}
	h.Set("RateLimit-Policy", `"`+v.policy.Name+`";q=`+strconv.Itoa(v.policy.Limit)+`;w=`+strconv.Itoa(seconds(v.policy.Window)))
	h.Set("RateLimit", `"`+v.policy.Name+`";r=`+strconv.Itoa(v.Remaining)+`;t=`+strconv.Itoa(seconds(wait)))
}

// retryAfter adds up to a fifth, so that clients that were refused together do not return together. It is whole seconds
// and never less than t in the RateLimit header.
func retryAfter(wait time.Duration, random func(n int) int) time.Duration {
	t := seconds(wait)
	return time.Duration(t+random(t/5+1)) * time.Second
}

// seconds rounds up.
func seconds(d time.Duration) int {
	return int((d + time.Second - 1) / time.Second)
}
