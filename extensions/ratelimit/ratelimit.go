// Package ratelimit bounds what one client may ask for. It is always on.
//
// A request passes two stages and must fit every quota that applies to it. Stage 1 runs before any token is checked and
// counts requests by address: IPv4 by /32, IPv6 by /64 and, eightfold, by /48. Stage 2 knows who asks. It counts units
// of cost (a read is 1, a list 1 more for every 100 records asked for, a write 5, a batch the sum of its items) by user
// and by session; a guest's costs count for the address. Ways to sign in and everything that sends or takes a code by
// mail are counted by address and by the account they name, known or not; token refreshes by session. The quota of an
// account does not hold back a device that has signed in to it before, so that a stranger cannot lock its owner out.
// Superusers have ten times the quota of users. Static files, the dashboard and health checks see stage 1 alone.
//
// Answers carry RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers) for the quota that is nearest to
// its end. A request too many is answered 429 ratelimit.exceeded with Retry-After, and charged to no quota of its stage.
// /api/collections/x and /api/v1/collections/x share their quotas, because the canonical route counts.
//
// Quotas live in a [gcra.Table] of fixed size in memory; a restart forgets them, and several machines count apart. Under a
// flood of addresses hardly used keys are forgotten first, so a client may get more than its quota then, but one that is
// held back stays so. An account with two names, such as e-mail and user name, has a quota for each. Behind a reverse
// proxy that is not in SATCHEL_API_TRUSTED_PROXIES, all clients share the proxy's address.
//
// PocketBase's own limiter, which keeps an entry for every address it ever saw, is kept off.
//
// Settings: SATCHEL_RATELIMIT_*. Tables and routes: none. Metrics: satchel_ratelimit_refused_total, satchel_ratelimit_keys.
package ratelimit

import (
	"context"
	"fmt"
	"net/http"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Codes of refused requests.
var (
	ErrExceeded     = &extensions.Code{Name: "ratelimit.exceeded", Status: http.StatusTooManyRequests, Title: "Too many requests"}
	ErrStockLimiter = &extensions.Code{Name: "ratelimit.stock_limiter", Status: http.StatusBadRequest, Title: "PocketBase's own rate limiter cannot be used"}
)

// Priorities of the middlewares. Stage 1 runs after the recovery from panics (-1030) and before the first look at a
// token (-1021); stage 2 where PocketBase's own limiter stands (-1000), after tokens and before the body limit (-990).
const (
	guardPriority = -1025
	limitPriority = -999
)

// KnownDevice reports whether the request comes from a device that has signed in to the account before. It must take as
// long for accounts that do not exist.
type KnownDevice func(e *core.RequestEvent, account string) bool

// Cost is what a request takes from the quota of its caller, 0 when it is a request like others.
type Cost func(r *http.Request) int

// New returns the extension. cfg must be valid. known and cost may be nil: no device is known and all requests are alike.
func New(cfg Config, known KnownDevice, cost Cost) extensions.Extension {
	l := &limiter{table: gcra.NewTable(cfg.TableSize), policies: cfg.policies(), superuser: cfg.SuperuserFactor, known: known, cost: cost}
	return extensions.Extension{
		Name:     "ratelimit",
		Settings: cfg,
		Codes:    []*extensions.Code{ErrExceeded, ErrStockLimiter},
		Bind: func(h *extensions.Host) error {
			disableStockLimiter(h.App)
			h.App.OnBatchRequest().BindFunc(l.batch)
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			{Id: "satchelIPGuard", Priority: guardPriority, Func: l.guard},
			{Id: "satchelRateLimit", Priority: limitPriority, Func: l.limit},
		},
		Checks: []extensions.Check{
			{Name: "rate limits", Offline: true, Run: l.check},
			{Name: "stock rate limiter", Run: checkStockLimiter},
		},
		Metrics: []extensions.Metric{
			{
				Name: "satchel_ratelimit_refused_total", Help: "Requests refused with 429.", Counter: true,
				Read: func() float64 { return float64(l.refused.Load()) },
			},
			{
				Name: "satchel_ratelimit_keys", Help: "Addresses, users, sessions and accounts that have used some of their quota.",
				Read: func() float64 { return float64(l.table.Keys()) },
			},
		},
	}
}

// check shows the quotas in force.
func (l *limiter) check(context.Context, *extensions.Host) extensions.Result {
	return extensions.Result{
		Level: extensions.OK,
		Message: fmt.Sprintf("address %s, user %s, session %s, sign-in %s by address and account, refresh %s, superusers %d-fold; table %.1f MiB",
			l.ip, l.user, l.session, l.auth, l.refresh, l.superuser, float64(l.table.Bytes())/(1<<20)),
	}
}
