// Package guard holds up whoever guesses passwords and codes, and keeps answers from telling who has an account.
//
//   - Failed sign-ins are counted by account, by address and by the pair of both. When an account has had too many, only
//     a device that has signed in to it before may go on, so that nobody can lock its owner out. A request for a code by
//     mail counts as an attempt, because a code can be guessed.
//   - A one-time password dies with its fifth wrong try, wherever the tries come from. The count is in the database, and
//     a try is counted before it is looked at.
//   - Signing in, signing up, asking for a code and changing an address answer alike, and do the same work, whether the
//     account exists or not. With EMAIL_TAKEN=equal, a sign-up with a taken address is answered as if it had worked, and
//     the owner of the address gets a mail.
//   - Answers about accounts must not be stored by anyone on the way (Cache-Control: no-store).
//
// Counters live in memory of a fixed size: a restart forgets them, and several machines count apart. OAuth2 sign-ins are
// checked by their provider and not counted. What the defaults do and do not protect is in docs/attack-handling.md.
//
// Settings: SATCHEL_GUARD_*. Tables: guard_otps, guard_notices. Routes: none. Metrics: satchel_guard_*_total,
// satchel_guard_keys.
package guard

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Codes of refused requests.
var (
	ErrTooManyFailures = &extensions.Code{Name: "guard.too_many_failures", Status: http.StatusTooManyRequests, Title: "Too many failed attempts"}
	ErrSignUpInBatch   = &extensions.Code{Name: "guard.sign_up_in_batch", Status: http.StatusBadRequest, Title: "Signing up takes a request of its own"}
)

const (
	// outermost puts hooks around those of the app, so that these see a refused sign-up as what it is.
	outermost = -9999

	// noStorePriority is right after CORS: all other refusals come from within.
	noStorePriority = apis.DefaultCorsMiddlewarePriority + 1

	// codePriority is after the body limit (-990), because the body is read.
	codePriority = -970
)

// Deps is what the guard needs to know of other features. Every member may be nil.
type Deps struct {
	// KnownDevice reports whether a device has signed in to the account before. It is also asked about accounts that do
	// not exist. Without it no device is known.
	KnownDevice KnownDevice

	// Audit stores what happened. Without it nothing is stored.
	Audit Audit

	// EmailTaken is answered below /api/v1 to a sign-up with a taken address when the settings say tell; without it
	// PocketBase's own error is.
	EmailTaken *extensions.Code
}

// Audit stores one event. outcome is one word; subject is nil when there is no such account. It must be safe for
// concurrent use.
type Audit func(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

// guard is safe for concurrent use.
type guard struct {
	Deps
	policies
	mode  EmailTaken
	table *gcra.Table
	host  *extensions.Host

	refused, burned, hidden atomic.Int64
}

// New returns the extension. cfg must be valid.
func New(cfg Config, deps Deps) extensions.Extension {
	g := &guard{Deps: deps, policies: cfg.policies(), mode: cfg.EmailTaken, table: gcra.NewTable(cfg.TableSize)}
	return g.extension(cfg)
}

func (g *guard) extension(cfg Config) extensions.Extension {
	return extensions.Extension{
		Name:       "guard",
		Settings:   cfg,
		Codes:      []*extensions.Code{ErrTooManyFailures, ErrSignUpInBatch},
		Tables:     []string{codesTable, noticesTable},
		Migrations: []extensions.Migration{{Unix: 1795330000, What: "create", Up: createTables, Down: dropTables}},
		Bind:       g.bind,
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			{Id: "satchelNoStore", Priority: noStorePriority, Func: noStore},
			{Id: "satchelOneTimePassword", Priority: codePriority, Func: g.signInByCode},
			{Id: "satchelEmailChange", Priority: codePriority, Func: g.changeEmail},
		},
		Checks: []extensions.Check{
			{Name: "attack limits", Offline: true, Run: g.check},
			{Name: "equal answers", Run: g.checkAnswers},
		},
		Metrics: []extensions.Metric{
			counter("satchel_guard_refused_total", "Sign-ins refused for too many failures.", &g.refused),
			counter("satchel_guard_burned_total", "One-time passwords that ended with a wrong try too many.", &g.burned),
			counter("satchel_guard_hidden_total", "Sign-ups and changes to a taken address that were answered as if it were free.", &g.hidden),
			{Name: "satchel_guard_keys", Help: "Accounts, addresses and pairs with failures.", Read: func() float64 { return float64(g.table.Keys()) }},
		},
	}
}

func counter(name, help string, n *atomic.Int64) extensions.Metric {
	return extensions.Metric{Name: name, Help: help, Counter: true, Read: func() float64 { return float64(n.Load()) }}
}

func (g *guard) bind(h *extensions.Host) error {
	g.host = h
	h.App.OnRecordAuthWithPasswordRequest().Bind(outer(g.signInByPassword))
	h.App.OnRecordRequestOTPRequest().Bind(outer(g.requestCode))
	h.App.OnRecordAuthRequest().Bind(outer(g.signedIn))
	h.App.OnRecordCreateRequest().Bind(outer(g.signUp))
	if g.mode == Equal {
		h.App.OnRecordRequestEmailChangeRequest().Bind(outer(g.changeToFreeEmail))
		h.App.OnMailerRecordEmailChangeSend().Bind(outer(g.sendLater))
	}
	return h.App.Cron().Add("satchelGuardPurge", "11 * * * *", g.purge)
}

func outer[T hook.Resolver](f func(T) error) *hook.Handler[T] {
	return &hook.Handler[T]{Priority: outermost, Func: f}
}

func (g *guard) check(context.Context, *extensions.Host) extensions.Result {
	return extensions.Result{Level: extensions.OK, Message: fmt.Sprintf(
		"failed sign-ins: account %s, account and address %s, address %s; %d tries for a one-time password; a taken address: %s; table %.1f MiB",
		g.account, g.pair, g.address, maxTries, g.mode, float64(g.table.Bytes())/(1<<20))}
}

// checkAnswers looks for collections whose rules undo equal answers: when a new account may sign in at once, whoever
// signs up learns by signing in whether the address was free.
func (g *guard) checkAnswers(_ context.Context, h *extensions.Host) extensions.Result {
	if g.mode == Tell {
		return extensions.Result{Level: extensions.Info, Message: "sign-up tells that an address is taken, as SATCHEL_GUARD_EMAIL_TAKEN says"}
	}
	collections, err := h.App.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: "read the collections: " + err.Error()}
	}
	var open []string
	for _, c := range collections {
		if c.CreateRule != nil && c.AuthRule != nil && !strings.Contains(*c.AuthRule, core.FieldNameVerified) {
			open = append(open, c.Name)
		}
	}
	if len(open) > 0 {
		slices.Sort(open)
		return extensions.Result{
			Level:   extensions.Info,
			Message: "in " + strings.Join(open, ", ") + " a new account may sign in before its address is verified, which shows that the address was free",
			Next:    `set the authRule of the collection to "verified = true"`,
		}
	}
	return extensions.Result{Level: extensions.OK, Message: "a taken address is answered like a free one"}
}
