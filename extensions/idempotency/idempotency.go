// Package idempotency makes it safe to send a write again. A phone that got no answer cannot know whether its request was
// carried out; with a key that stays the same it repeats the request and gets the first answer, whatever happened to the
// connection, the server or the phone in between.
//
// The header is Idempotency-Key, on POST, PUT, PATCH and DELETE: PocketBase's generated API (/api/collections/x and
// /api/v1/collections/x are one), batches, uploads, and the routes of features and hooks. The whole handler runs in one
// transaction with the row that keeps the answer, so there is no moment at which the one exists without the other; the
// answer leaves after the commit. A key belongs to its caller, and a repeat must be the same request. Answers below 400
// are kept; any other rolls everything back, and the key may be used again. Who repeats must still be signed in, but what
// the caller may do is not decided again: the answer is what the same caller got before.
//
// The following take no part, and ignore the header: sign-in, tokens and everything else below /api/v1/auth, because
// their answers hold secrets; streams, offline sync and resumable uploads, which have means of their own; changes of collections, whose
// hooks write migration files; backups, SQL, crons and settings, which take long or call others. A handler runs while nobody else can write, so it must not wait
// for the network; a route that calls other services is [Policy.Phased] and takes its steps by [Steps].
//
// A hook that writes through another app than its event's would wait for its own transaction. Such a write fails after a
// fifth of a second, and the request with it, see [ErrHookOuterApp].
//
// Settings: SATCHEL_IDEMPOTENCY_*. Table: idempotency_keys; a row lives for the retention and goes with its user. Routes:
// none. Failure modes: after a restore of a backup, later keys are unknown, as are the records that they made. A handler
// that swallows the error of a write keeps what the write had done before it failed.
package idempotency

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// Codes of what is refused.
var (
	ErrKeyRequired = &extensions.Code{Name: "idempotency.key_required", Status: http.StatusBadRequest, Title: "The request needs an Idempotency-Key"}
	ErrKeyInvalid  = &extensions.Code{Name: "idempotency.key_invalid", Status: http.StatusBadRequest, Title: "The Idempotency-Key is not valid"}
	ErrInFlight    = &extensions.Code{Name: "idempotency.in_flight", Status: http.StatusConflict, Title: "A request with this key is being answered"}
	ErrKeyReused   = &extensions.Code{Name: "idempotency.key_reused", Status: http.StatusUnprocessableEntity, Title: "The key was used for another request"}
	ErrTooManyKeys = &extensions.Code{Name: "idempotency.too_many_keys", Status: http.StatusTooManyRequests, Title: "The caller has too many keys in use"}

	// ErrUnfinished: an operation has begun and waits for its next attempt with the same key.
	ErrUnfinished = &extensions.Code{Name: "idempotency.unfinished", Status: http.StatusServiceUnavailable, Title: "The operation is not finished; repeat the request"}

	// ErrHookOuterApp: a hook wrote through another app than its event's, and so waited for itself.
	ErrHookOuterApp = &extensions.Code{Name: "idempotency.hook_outer_app", Status: http.StatusInternalServerError, Title: "A hook of the server waited for itself"}
)

const (
	// Header carries the key.
	Header = "Idempotency-Key"

	// Replayed is "true" in an answer that is repeated.
	Replayed = "Idempotency-Replayed"

	// priority is after tokens (-1021), limits (-999) and the body limit (-990), and outside the app-version gate (-960): an
	// old app still gets its answer.
	priority = -980

	// maxBody is the longest body of a request with a key, and maxStored the longest answer that is kept.
	maxBody   = 8 << 20
	maxStored = 256 << 10

	// maxAnswer is the longest answer that is held back until the commit.
	maxAnswer = 32 << 20
)

// Config is read from SATCHEL_IDEMPOTENCY_*.
type Config struct {
	Retention time.Duration `env:"RETENTION" default:"24h" help:"how long an answer is kept for repeats of its request"`
	MaxKeys   int           `env:"MAX_KEYS" default:"10000" help:"keys that one caller may have in use; a further one gets 429"`
	Lease     time.Duration `env:"LEASE" default:"60s" help:"how long one attempt at an operation with calls to other services may take a step, and how long a crash keeps the next attempt waiting"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	switch {
	case c.Retention < time.Hour || c.Retention > 30*24*time.Hour:
		return errors.New("RETENTION: must be between 1h and 720h")
	case c.MaxKeys < 10:
		return errors.New("MAX_KEYS: must be at least 10")
	case c.Lease < 2*time.Second || c.Lease > time.Hour:
		return errors.New("LEASE: must be between 2s and 1h")
	}
	return nil
}

// Policy is what a route wants of keys. The zero value takes one when it is there.
type Policy struct {
	// Required refuses a request without a key.
	Required bool

	// Guests lets callers without a token use keys. Such a key must have 128 bits, because it is all that keeps the answer
	// from others, and the answer must hold no secret.
	Guests bool

	// Phased leaves the transactions to the handler, which calls other services and takes its steps by [Steps]. It needs a
	// key.
	Phased bool

	// Off ignores keys, for answers that are streams.
	Off bool
}

// Deps is what the extension needs of others. The zero value works.
type Deps struct {
	// Key returns the id of the API key that makes the request, empty if none does.
	Key func(e *core.RequestEvent) string

	// Route returns the policy of the route with the method and the pattern, "/api/v1/orders/{id}". It is asked on every
	// write, also without a key.
	Route func(method, pattern string) Policy

	// Before judges a request by all that needs no transaction, once it is known that it is no repeat of one that was
	// answered: a body that is wrong must not wait for the only writer. It may be nil.
	Before func(e *core.RequestEvent) error

	// SuspectWaits takes the function that is asked by writers that wait; see the store's function of that name. Without it
	// a hook that waits for itself fails when the database gives up.
	SuspectWaits func(ask func() error)

	// Healthy returns why what was committed may not be durable. An answer is not repeated then.
	Healthy func() error

	// Unavailable reports errors of the database that are no fault of the request.
	Unavailable func(err error) bool
}

// keeper is the feature at work.
type keeper struct {
	cfg    Config
	deps   Deps
	logger *slog.Logger
	now    func() time.Time
	owner  string // of leases: this process

	flights flights
	waits   waits
	quotas  quotas

	replays, conflicts, live atomic.Int64

	stop context.CancelFunc
	done chan struct{}
}

// New returns the extension. cfg must be valid.
func New(cfg Config, deps Deps) extensions.Extension { return newKeeper(cfg, deps).extension() }

func (k *keeper) extension() extensions.Extension {
	return extensions.Extension{
		Name:     "idempotency",
		Settings: k.cfg,
		Codes:    []*extensions.Code{ErrKeyRequired, ErrKeyInvalid, ErrInFlight, ErrKeyReused, ErrTooManyKeys, ErrUnfinished, ErrHookOuterApp},
		Tables:   []string{Table},
		Migrations: []extensions.Migration{
			extensions.Tables(1795400000, "create_keys", schema(), Table),
		},
		Bind: func(h *extensions.Host) error {
			k.logger = h.Logger
			forgetUsers(h.App)
			if k.deps.SuspectWaits != nil {
				k.deps.SuspectWaits(k.waits.suspect)
			}
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "satchelIdempotency", Priority: priority, Func: k.serve}},
		Start: func(ctx context.Context, h *extensions.Host) error {
			k.start(ctx, h.App)
			return nil
		},
		Stop:   k.end,
		Checks: []extensions.Check{{Name: "unfinished operations", Run: checkUnfinished}},
		Metrics: []extensions.Metric{
			counter("replays_total", "Requests that were answered with a kept answer.", &k.replays),
			counter("conflicts_total", "Requests refused because their key was in flight or belonged to another request.", &k.conflicts),
			{Name: "satchel_idempotency_live_keys", Help: "Kept answers and unfinished operations.", Read: func() float64 { return float64(k.live.Load()) }},
		},
	}
}

func counter(name, help string, n *atomic.Int64) extensions.Metric {
	return extensions.Metric{
		Name: "satchel_idempotency_" + name, Help: help, Counter: true,
		Read: func() float64 { return float64(n.Load()) },
	}
}

// AfterCommit runs fn when the outermost transaction of app has been committed, at once if there is none, and never if it
// is rolled back. It is for hooks and handlers that tell others what has happened. Unlike app.TxInfo().OnComplete it
// works in a request with a key, whose transaction is hidden. fn must not fail: the commit cannot be taken back.
func AfterCommit(app core.App, fn func()) { pb.AfterCommit(app, fn) }
