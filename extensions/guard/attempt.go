package guard

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// charge is one failure that a key pays for.
type charge struct {
	policy gcra.Policy
	key    []byte
}

// attempt is a sign-in that has been charged as a failure before its outcome is known, so that many at once cannot pass
// before the first has failed. A success gets its charges back.
type attempt struct {
	guard   *guard
	charges []charge
}

// begin charges the attempt to its address, to the account and to both together, or refuses it and charges nothing. An
// empty account is not counted. subject is the account's record, if there is one.
//
// The account is known by what the client typed, never by the record: an account with two names would otherwise show, by
// its shared counter, that both are its own. So it has a quota for each.
func (g *guard) begin(e *core.RequestEvent, c *core.Collection, account string, subject *core.Record) (*attempt, error) {
	a := &attempt{guard: g}
	charges := g.chargesOf(e, c, account)
	for _, ch := range charges {
		d := g.table.Take(ch.key, ch.policy, 1)
		if !d.Allowed && ch.policy.Name == g.account.Name {
			device := g.KnownDevice.of(e, c, subject)
			if device == "" {
				g.noteLockout(e, ch, subject)
			} else {
				ch = charge{g.device, slices.Concat(ch.key, []byte(device))}
				d = g.table.Take(ch.key, ch.policy, 1)
			}
		}
		if !d.Allowed {
			a.forgive()
			g.refused.Add(1)
			p := api.Fail(ErrTooManyFailures, "too many failed attempts; try again later")
			p.RetryAfter = d.RetryAfter
			return nil, p
		}
		a.charges = append(a.charges, ch)
	}
	return a, nil
}

// forgive gives back what was charged.
func (a *attempt) forgive() {
	for _, c := range a.charges {
		a.guard.table.Give(c.key, c.policy, 1)
	}
}

// chargesOf lists the account last: the address refuses before anybody looks for a known device.
func (g *guard) chargesOf(e *core.RequestEvent, c *core.Collection, account string) []charge {
	address, network := networks(e.RemoteIP())
	charges := []charge{{g.address, address}}
	if network != nil {
		charges = append(charges, charge{g.network, network})
	}
	if account == "" {
		return charges
	}
	key := digest(c.Id, normal(account))
	return append(charges, charge{g.pair, slices.Concat(address, key)}, charge{g.account, key})
}

// normal is an account's name without what nobody means to type.
func normal(account string) string { return strings.ToLower(strings.TrimSpace(account)) }

// networks returns the bytes of the IPv4 /32 or IPv6 /64 of the address, and of the /48 if it has one. An address that
// cannot be told, as on a unix socket, counts as one client.
func networks(ip string) (address, network []byte) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return []byte{}, nil
	}
	addr = addr.Unmap()
	bytes := addr.AsSlice()
	if addr.Is4() {
		return bytes, nil
	}
	return bytes[:64/8], bytes[:48/8]
}

// KnownDevice reports whether the device, an id that the client made up, has signed in to the account before. It is asked
// about records that do not exist too, and must do the same work for them.
type KnownDevice func(app core.App, record *core.Record, deviceID string) (bool, error)

// of returns the device's id if the account knows it. An account that does not exist is looked up like one that does,
// because the time would tell. A device that cannot be looked up counts as unknown.
func (known KnownDevice) of(e *core.RequestEvent, c *core.Collection, record *core.Record) string {
	id := api.DeviceID(e.Request)
	if known == nil || id == "" {
		return ""
	}
	subject := record
	if subject == nil {
		subject = core.NewRecord(c)
		subject.Id = core.GenerateDefaultRandomId()
	}
	ok, err := known(e.App, subject, id)
	if err != nil {
		e.App.Logger().ErrorContext(e.Request.Context(), "a device could not be looked up and counts as unknown", "error", err)
	}
	if err != nil || !ok || record == nil {
		return ""
	}
	return id
}

// Familiar answers the same question for a feature that knows only the name that was typed, such as the rate limiter.
func Familiar(known KnownDevice) func(e *core.RequestEvent, account string) bool {
	return func(e *core.RequestEvent, account string) bool {
		c, err := e.App.FindCachedCollectionByNameOrId(e.Request.PathValue("collection"))
		if err != nil || !c.IsAuth() || api.DeviceID(e.Request) == "" {
			return false
		}
		return known.of(e, c, accountByName(e.App, c, account)) != ""
	}
}

// accountByName returns the record that a client means, nil if there is none.
func accountByName(app core.App, c *core.Collection, account string) *core.Record {
	if record, err := app.FindAuthRecordByEmail(c, account); err == nil {
		return record
	}
	for _, field := range c.PasswordAuth.IdentityFields {
		if record, err := app.FindFirstRecordByData(c, field, account); err == nil {
			return record
		}
	}
	return nil
}

// Actions of audit entries.
const (
	actionSignIn  = "guard.sign_in"
	actionLockout = "guard.lockout"
	actionBurned  = "guard.code_burned"
	actionHidden  = "guard.taken_address"
)

// noteLockout stores, once in each window, that an account is closed to unknown devices.
func (g *guard) noteLockout(e *core.RequestEvent, ch charge, subject *core.Record) {
	if g.table.Take(ch.key, g.locked, 1).Allowed {
		g.audit(e, actionLockout, "began", subject, map[string]any{"failures": ch.policy.Limit})
	}
}

// audit stores an event about a failure, as long as there are not too many.
func (g *guard) audit(e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) {
	if g.Audit != nil && g.table.Take(nil, g.events, 1).Allowed {
		g.store(e, action, outcome, subject, details)
	}
}

// store logs what cannot be stored: the answer does not depend on it.
func (g *guard) store(e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) {
	if g.Audit == nil {
		return
	}
	if err := g.Audit(e.App, e, action, outcome, subject, details); err != nil {
		g.host.Logger.ErrorContext(e.Request.Context(), "an audit entry was not stored", "action", action, "error", err)
	}
}
