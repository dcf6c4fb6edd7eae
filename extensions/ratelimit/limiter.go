package ratelimit

import (
	"cmp"
	"net/netip"
	"sync/atomic"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/gcra"
	"github.com/satchelbase/satchel/extensions/internal/quota"
)

// sessionKey is where the access token's middleware leaves the id of the session.
const sessionKey = "satchelSession"

// limiter applies the quotas to requests. It is safe for concurrent use.
type limiter struct {
	policies
	table     *gcra.Table
	superuser int
	known     KnownDevice
	cost      Cost
	refused   atomic.Int64
}

// charge is what a request costs the key.
func charge(p gcra.Policy, key []byte, cost int) quota.Charge {
	return quota.Charge{Policy: p, Key: key, Cost: cost}
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
	if e.Auth == nil && quota.IsOwn(e) {
		l.giveBack(e)
		return e.Next()
	}
	var v quota.Verdict
	charges := l.charges(e, r)
	if r.class == batch {
		v = quota.Judge(charges, l.table.Peek)
	} else {
		v = l.admit(charges)
	}
	if err := l.answer(e, v); err != nil {
		return err
	}
	if e.HasSuperuserAuth() {
		l.giveBack(e)
	}
	return e.Next()
}

// giveBack returns what stage 1 has charged the address of somebody whose own quota is what counts: with that of the
// address above it, a larger one would mean nothing.
func (l *limiter) giveBack(e *core.RequestEvent) {
	for _, c := range byAddress(nil, e, l.ip, 1) {
		l.table.Give(c.Key, c.Policy, c.Cost)
	}
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
func (l *limiter) charges(e *core.RequestEvent, r route) []quota.Charge {
	var charges []quota.Charge
	switch r.class {
	case signIn:
		charges = byAddress(nil, e, l.auth, 1)
		// An address that is held back cannot make the server read its bodies.
		if quota.Judge(charges, l.table.Peek).Allowed {
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
func byAddress(charges []quota.Charge, e *core.RequestEvent, p gcra.Policy, cost int) []quota.Charge {
	addr, err := netip.ParseAddr(e.RemoteIP())
	if err != nil {
		return append(charges, quota.Charge{Policy: p, Cost: cost})
	}
	addr = addr.Unmap()
	if addr.Is4() {
		return append(charges, charge(p, addr.AsSlice(), cost))
	}
	bytes := addr.AsSlice()
	network := p.Times(networkFactor)
	network.Name += "-network"
	return append(charges, charge(p, bytes[:64/8], cost), charge(network, bytes[:48/8], cost))
}

// byIdentity charges the signed-in user and the session. A guest is known by the address alone, which stage 1 has
// charged one unit.
func (l *limiter) byIdentity(charges []quota.Charge, e *core.RequestEvent, cost int) []quota.Charge {
	if e.Auth == nil {
		if cost > 1 {
			return byAddress(charges, e, l.ip, cost-1)
		}
		return charges
	}
	charges = append(charges, charge(l.scaled(e, l.user), userKey(e.Auth), cost))
	if id, _ := e.Get(sessionKey).(string); id != "" {
		charges = append(charges, charge(l.scaled(e, l.session), []byte(id), cost))
	}
	return charges
}

// byHolder charges a token refresh to the session, or whoever else is known to ask. A refresh token is not verified here,
// so its session counts for each address apart: nobody uses up the quota of somebody else's phone, and phones behind one
// address do not share a quota.
func (l *limiter) byHolder(charges []quota.Charge, e *core.RequestEvent, field string) []quota.Charge {
	if id, _ := e.Get(sessionKey).(string); id != "" {
		return append(charges, charge(l.scaled(e, l.refresh), []byte("session\x00"+id), 1))
	}
	if e.Auth != nil {
		return append(charges, charge(l.scaled(e, l.refresh), userKey(e.Auth), 1))
	}
	if id := tokenSession(e, field); id != "" {
		return append(charges, charge(l.refresh, []byte("refresh\x00"+id+"\x00"+e.RemoteIP()), 1))
	}
	return byAddress(charges, e, l.refresh, 1)
}

// byAccount charges the account that a sign-in names. The quota of an account that is used up does not count for a device
// that the account knows.
func (l *limiter) byAccount(charges []quota.Charge, e *core.RequestEvent, field string) []quota.Charge {
	switch {
	case field != "":
		account, key := accountOf(e, field)
		if l.known != nil && account != "" && !l.table.Peek(key, l.account, 1).Allowed && l.known(e, account) {
			return charges
		}
		return append(charges, charge(l.account, key, 1))
	case e.Auth != nil:
		return append(charges, charge(l.account, userKey(e.Auth), 1))
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

// admit charges all or nothing, see [quota.Admit].
func (l *limiter) admit(charges []quota.Charge) quota.Verdict { return quota.Admit(l.table, charges) }

// answer sets the headers and turns a refusal into a problem.
func (l *limiter) answer(e *core.RequestEvent, v quota.Verdict) error {
	err := quota.Answer(e, v, ErrExceeded)
	if err != nil {
		l.refused.Add(1)
	}
	return err
}
