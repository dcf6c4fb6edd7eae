// Package apikeys gives keys to other servers, such as a resource server that asks whether a token is still good. A key
// is "sk_<id>_<secret>": the id names a row, the secret has 256 bits and only its SHA-256 is stored, so that a leaked
// database opens nothing. A fast hash is enough, because a secret of that length cannot be guessed.
//
// A key may do what its scopes say and nothing else; it is never a user and never a superuser: no request with a key has
// an account. Keys are taken on the routes that the program names; there the middleware judges the key once, takes it out
// of the request, and leaves what is known of it for [Current] and [May]. Everywhere else a key is a bad token.
//
// Each key has a quota of its own, in place of that of the address. A key that is used all the time is read from the
// database when something about keys has changed and costs no query otherwise: one that was revoked is refused from the
// next request on.
//
// Settings: SATCHEL_APIKEYS_*. Tables: apikeys_keys; apikeys_uses, apart because a use must not look like a change of
// the key. Routes: /api/v1/admin/apikeys. Commands: apikeys. Metrics: satchel_apikeys_*. Failure modes: when the time of
// the last use cannot be written, the key works all the same and the log says so.
package apikeys

import (
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Codes of keys that are refused. A key that is unknown, revoked or past its time is invalid, without a difference.
var (
	ErrInvalid      = &extensions.Code{Name: "apikeys.invalid", Status: http.StatusUnauthorized, Title: "The API key is not valid"}
	ErrScopeMissing = &extensions.Code{Name: "apikeys.scope_missing", Status: http.StatusForbidden, Title: "The API key lacks the scope"}
	ErrNetwork      = &extensions.Code{Name: "apikeys.network_not_allowed", Status: http.StatusForbidden, Title: "The API key is not good from this address"}
	ErrRateExceeded = &extensions.Code{Name: "apikeys.rate_exceeded", Status: http.StatusTooManyRequests, Title: "Too many requests with this API key"}
)

// Bounds of the requests a minute of a key.
const (
	minRate = 1
	maxRate = 1_000_000
)

// Config is read from SATCHEL_APIKEYS_*.
type Config struct {
	Rate int `env:"RATE" default:"300" help:"requests a minute with one API key, unless the key has a number of its own"`
}

// Validate reports a number that cannot work.
func (c Config) Validate() error {
	if c.Rate < minRate || c.Rate > maxRate {
		return errors.New("RATE: must be from 1 to 1000000")
	}
	return nil
}

// Deps is what the feature is lent.
type Deps struct {
	// Scopes lists what keys may be allowed to do, besides [ScopeIntrospect]: scopes such as "operations:refund", or
	// families of them, "operations:*", whose members may be granted one by one.
	Scopes []string

	// Routes lists paths where keys are taken; one that ends in a slash stands for all below it. The introspection of
	// tokens is always among them.
	Routes []string

	// Version names the state of a table, as the store's TableVersion does. Without it every use reads the table.
	Version func(table string) uint64

	// Audit stores an entry, in the transaction of tx if it is one.
	Audit func(tx core.App, e audit.Entry) error

	// May is nil if whoever makes the request has the role, or else the problem to answer. Recent refuses requests whose
	// user has not signed in lately. Without both there are no routes for admins.
	May    func(e *core.RequestEvent, role string) error
	Recent *hook.Handler[*core.RequestEvent]
}

// priority is right before access tokens and PocketBase's own, which then find nothing to look at.
const priority = apis.DefaultLoadAuthTokenMiddlewarePriority - 1

// quotaSlots is the number of keys whose use is counted at the same time, in 70 KB.
const quotaSlots = 1 << 12

// service is safe for concurrent use.
type service struct {
	cfg    Config
	deps   Deps
	known  known
	quotas *gcra.Table
	now    func() time.Time

	accepted, refused atomic.Int64
}

// New returns the extension. cfg must be valid.
func New(cfg Config, deps Deps) extensions.Extension { return newService(cfg, deps).extension() }

func newService(cfg Config, deps Deps) *service {
	return &service{cfg: cfg, deps: deps, quotas: gcra.NewTable(quotaSlots), now: time.Now}
}

func (s *service) extension() extensions.Extension {
	x := extensions.Extension{
		Name:     "apikeys",
		Group:    "admin",
		Settings: s.cfg,
		Codes:    []*extensions.Code{ErrInvalid, ErrScopeMissing, ErrNetwork, ErrRateExceeded},
		Tables:   []string{table, Uses},
		Migrations: []extensions.Migration{
			{Unix: 1795310010, What: "create_keys", Up: createKeys, Down: dropKeys},
			{Unix: 1795460020, What: "add_rates_and_networks", Up: extendKeys, Down: reduceKeys},
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "satchelAPIKeys", Priority: priority, Func: s.load}},
		Commands:    func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{s.command(h)} },
		Metrics: []extensions.Metric{
			counter("satchel_apikeys_accepted_total", "Requests with a good API key.", &s.accepted),
			counter("satchel_apikeys_refused_total", "Requests with an API key that was refused, whatever for.", &s.refused),
		},
	}
	if s.deps.May != nil && s.deps.Recent != nil {
		x.Routes = func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("/apikeys", s.handleList).BindFunc(s.require("operator"))
			g.POST("/apikeys", s.handleCreate).BindFunc(s.require("owner")).Bind(s.deps.Recent)
			g.DELETE("/apikeys/{id}", s.handleRevoke).BindFunc(s.require("owner")).Bind(s.deps.Recent)
		}
	}
	return x
}

func counter(name, help string, n *atomic.Int64) extensions.Metric {
	return extensions.Metric{Name: name, Help: help, Counter: true, Read: func() float64 { return float64(n.Load()) }}
}
