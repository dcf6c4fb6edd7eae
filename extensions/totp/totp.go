// Package totp adds time-based codes (RFC 6238) and recovery codes as a second factor for the users of every auth
// collection. The first step of a sign-in then answers as PocketBase's own multi-factor step does, 401 {"mfaId"}, so
// that the flow in the stock SDK's documentation works, and makes neither a token nor a session; POST
// /api/v1/auth/totp/verify finishes it with the stock answer.
//
// PocketBase's own step needs two of its built-in methods, so this is a gate of its own before it. Both can be on: a
// code from here is a second factor to PocketBase, too. The gate asks whatever the method of the first step was, even
// if that was PocketBase's second step: whoever reads the user's mail must not get around the code.
//
// Secrets are sealed, recovery codes are kept as keyed hashes. A code works once, also across the clock's tolerance of
// one step; five wrong tries burn an mfaId; five wrong codes in a row close the account's second factor for five minutes,
// then twice as long each time, up to a day, also across restarts. Recovery codes cannot be guessed and work meanwhile,
// so that this is no way to lock somebody out.
//
// Superusers cannot enrol: the dashboard's sign-in knows no such step (PocketBase's MFA by mail protects it).
//
// Settings: SATCHEL_TOTP_*. Tables: totp_secrets, totp_codes, totp_tries. Rows go with their user or collection, and when
// an account whose address was not verified comes to the owner of the address (pb.TakenOver).
package totp

import (
	"net/http"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// Method is the name of the second step among the methods of authentication.
const Method = "totp"

// Codes of the second factor.
var (
	ErrCode       = &extensions.Code{Name: "totp.code_invalid", Status: http.StatusBadRequest, Title: "The code is wrong or was used before"}
	ErrMFA        = &extensions.Code{Name: "totp.mfa_invalid", Status: http.StatusBadRequest, Title: "The sign-in has expired or failed too often; begin it again"}
	ErrLocked     = &extensions.Code{Name: "totp.locked", Status: http.StatusTooManyRequests, Title: "Too many wrong codes; wait, or use a recovery code"}
	ErrEnabled    = &extensions.Code{Name: "totp.already_enabled", Status: http.StatusConflict, Title: "The second factor is on already"}
	ErrNotEnabled = &extensions.Code{Name: "totp.not_enabled", Status: http.StatusConflict, Title: "The second factor is not on"}
	ErrNotBegun   = &extensions.Code{Name: "totp.not_begun", Status: http.StatusConflict, Title: "No enrolment is under way; begin it again"}
	ErrCollection = &extensions.Code{Name: "totp.collection_unsupported", Status: http.StatusForbidden, Title: "These accounts cannot use this second factor"}
)

// Config is read from SATCHEL_TOTP_*.
type Config struct {
	Issuer string `env:"ISSUER" default:"" help:"name that authenticator apps show; empty is the name of the app in PocketBase's settings"`
}

// Vault seals secrets with a key that is kept outside the database.
type Vault interface {
	Seal(aad string, plain []byte) (string, error)
	Open(aad, sealed string) ([]byte, error)
	Key(purpose string) []byte
}

// Deps are what the extension takes from others. Only Vault is needed.
type Deps struct {
	Vault Vault

	// Recent lets only requests pass whose user has proved who they are a short while ago. Without it none does.
	Recent *hook.Handler[*core.RequestEvent]

	// Audit records what was done, in the transaction of app. e is nil where no request is
	// known: for commands, and when an account comes to another owner.
	Audit func(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

	// Exempt lists methods of authentication that are two factors by themselves.
	Exempt []string
}

// Outcomes of audited actions.
const (
	success = "success"
	denied  = "denied"
)

type factor struct {
	cfg  Config
	deps Deps
}

// New returns the extension.
func New(cfg Config, deps Deps) extensions.Extension {
	if deps.Recent == nil {
		deps.Recent = &hook.Handler[*core.RequestEvent]{Func: func(*core.RequestEvent) error {
			return api.Fail(api.ErrForbidden, "this server cannot tell how recent the sign-in was")
		}}
	}
	f := &factor{cfg: cfg, deps: deps}
	return extensions.Extension{
		Name:       "totp",
		Group:      "auth",
		Settings:   cfg,
		Codes:      []*extensions.Code{ErrCode, ErrMFA, ErrLocked, ErrEnabled, ErrNotEnabled, ErrNotBegun, ErrCollection},
		Tables:     []string{secretsTable, codesTable, triesTable},
		Migrations: migrations(),
		Bind: func(h *extensions.Host) error {
			h.App.OnRecordAuthRequest().Bind(&hook.Handler[*core.RecordAuthRequestEvent]{Id: "satchelTOTP", Priority: gatePriority, Func: f.gate})
			f.bindOwners(h.App)
			return nil
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.POST("/totp/verify", f.verify)
			own := g.Group("/totp")
			own.Bind(apis.RequireAuth()).BindFunc(requireSupported)
			own.GET("", f.status)
			own.POST("/confirm", f.confirm)
			own.POST("", f.begin).Bind(deps.Recent)
			own.DELETE("", f.disable).Bind(deps.Recent)
			own.POST("/recovery-codes", f.renew).Bind(deps.Recent)
		},
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{f.command(h)} },
	}
}

func (f *factor) audit(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error {
	if f.deps.Audit == nil {
		return nil
	}
	return f.deps.Audit(app, e, action, outcome, subject, details)
}
