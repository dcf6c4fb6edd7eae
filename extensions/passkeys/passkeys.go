// Package passkeys lets users sign in with a passkey (WebAuthn level 3) instead of a password, from browsers and from
// native apps. A passkey here always verifies its user, by a fingerprint, a face or a PIN, so it is two factors at once:
// PocketBase's MFA and other second steps are satisfied by it.
//
// Registration needs a fresh proof of who the user is; sign-in names no account (discoverable credentials), so that it
// tells nobody which accounts exist. A challenge is random, works once and for five minutes, and is kept in the
// database. The user handle in the authenticator is random and says nothing about the account. An unknown credential, a
// bad signature and a signature counter that went backwards (a sign of a copied key) have one answer; the audit tells
// them apart. A counter that stays 0, as that of synced passkeys does, is fine.
//
// Which apps may use the passkeys of the domain is told to Apple and Google below /.well-known, unless the public folder
// has such a file. Without a public address that is a domain, the routes answer passkeys.not_configured.
//
// Settings: SATCHEL_PASSKEYS_*. Tables: passkeys_users, passkeys_credentials, passkeys_challenges. Rows go with their
// user or collection, and when an account whose address was not verified comes to the owner of the address.
package passkeys

import (
	"context"
	"io/fs"
	"net/http"

	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// Method is the name of sign-in by passkey among the methods of authentication.
const Method = "passkey"

// Codes of passkeys.
var (
	ErrNotConfigured = &extensions.Code{Name: "passkeys.not_configured", Status: http.StatusNotImplemented, Title: "This server is not set up for passkeys"}
	ErrChallenge     = &extensions.Code{Name: "passkeys.challenge_invalid", Status: http.StatusBadRequest, Title: "The challenge has expired or was used; get a new one"}
	ErrCredential    = &extensions.Code{Name: "passkeys.credential_invalid", Status: http.StatusBadRequest, Title: "The passkey was not accepted"}
	ErrLimit         = &extensions.Code{Name: "passkeys.too_many", Status: http.StatusConflict, Title: "The account has as many passkeys as it can have"}
	ErrRegistered    = &extensions.Code{Name: "passkeys.registered", Status: http.StatusConflict, Title: "This passkey is registered already"}
	ErrLastWayIn     = &extensions.Code{Name: "passkeys.last_way_in", Status: http.StatusConflict, Title: "Without this passkey the account could not be entered any more"}
	ErrNameLong      = &extensions.Code{Name: "passkeys.name_too_long", Status: http.StatusBadRequest, Title: "The name has more than 64 characters"}
	ErrCollection    = &extensions.Code{Name: "passkeys.collection_unsupported", Status: http.StatusForbidden, Title: "These accounts cannot use passkeys"}
)

// Deps are what the extension takes from others. None is needed.
type Deps struct {
	// PublicURL is where apps reach the server.
	PublicURL string

	// Recent lets only requests pass whose user has proved who they are a short while ago. Without it none does.
	Recent *hook.Handler[*core.RequestEvent]

	// Audit records what was done, in the transaction of app. e is nil when an account comes to another owner.
	Audit func(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

	// LastWayIn reports that the user could not sign in any more without the method. It is asked within the transaction
	// that removes the last passkey.
	LastWayIn func(app core.App, record *core.Record, removing string) (bool, error)

	// Public has the static files of the site.
	Public fs.FS
}

// Outcomes of audited actions.
const (
	success = "success"
	denied  = "denied"
)

// keeper serves the routes. It is safe for concurrent use.
type keeper struct {
	cfg  Config
	deps Deps
	rp   *webauthn.WebAuthn
	off  error // why there is no rp
}

// New returns the extension.
func New(cfg Config, deps Deps) extensions.Extension {
	if deps.Recent == nil {
		deps.Recent = &hook.Handler[*core.RequestEvent]{Func: func(*core.RequestEvent) error {
			return api.Fail(api.ErrForbidden, "this server cannot tell how recent the sign-in was")
		}}
	}
	k := &keeper{cfg: cfg, deps: deps}
	k.rp, k.off = cfg.relyingParty(deps.PublicURL)
	return extensions.Extension{
		Name:       "passkeys",
		Group:      "auth",
		Settings:   cfg,
		Codes:      []*extensions.Code{ErrNotConfigured, ErrChallenge, ErrCredential, ErrLimit, ErrRegistered, ErrLastWayIn, ErrNameLong, ErrCollection},
		Tables:     []string{usersTable, credentialsTable, challengesTable},
		Migrations: migrations(),
		Bind: func(h *extensions.Host) error {
			k.bindOwners(h.App)
			return nil
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			all := g.Group("/passkeys")
			all.BindFunc(k.requireConfigured)
			all.POST("/options/sign-in", k.beginSignIn)
			all.POST("/sign-in", k.finishSignIn)
			own := all.Group("")
			own.Bind(apis.RequireAuth()).BindFunc(requireSupported)
			own.GET("", k.list)
			own.PATCH("/{id}", k.rename)
			own.DELETE("/{id}", k.remove).Bind(deps.Recent)
			own.POST("/options/register", k.beginRegistration).Bind(deps.Recent)
			own.POST("", k.finishRegistration).Bind(deps.Recent)
		},
		Serve:  k.serveWellKnown,
		Checks: []extensions.Check{{Name: "passkeys", Offline: true, Run: k.check}},
	}
}

func (k *keeper) requireConfigured(e *core.RequestEvent) error {
	if k.off != nil {
		return api.Fail(ErrNotConfigured, "")
	}
	return e.Next()
}

// requireSupported refuses superusers: the dashboard has no such sign-in, and a domain's passkeys are for its app.
func requireSupported(e *core.RequestEvent) error {
	if e.Auth.IsSuperuser() {
		return api.Fail(ErrCollection, "superusers sign in to the dashboard")
	}
	return e.Next()
}

func (k *keeper) check(context.Context, *extensions.Host) extensions.Result {
	switch {
	case k.off == nil:
		return extensions.Result{Level: extensions.OK, Message: "passkeys belong to " + k.rp.Config.RPID}
	case k.cfg.RPID != "" || len(k.cfg.Origins) > 0:
		return extensions.Result{Level: extensions.Fail, Message: k.off.Error(), Next: "set SATCHEL_PASSKEYS_RP_ID and SATCHEL_PASSKEYS_ORIGINS"}
	}
	return extensions.Result{Level: extensions.Info, Message: "off: " + k.off.Error(), Next: "set SATCHEL_PUBLIC_URL"}
}

func (k *keeper) audit(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error {
	if k.deps.Audit == nil {
		return nil
	}
	return k.deps.Audit(app, e, action, outcome, subject, details)
}
