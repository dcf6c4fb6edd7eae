// Package sessions gives every sign-in a session that can be seen, refreshed over a bad network, and ended at once.
//
// A session is a row. Its refresh token is a MAC over the session and a generation, so nothing token-like is stored
// ([refresh]); its access tokens are short-lived JWTs that any service can verify through the JWKS ([signing]).
// PocketBase's own tokens stay in use for its SDKs and the dashboard, bound to the session and to the master key. Whether
// a session still lives is decided at every request.
//
// A presented token that fails is 401 below /api/v1, and so is an access token, or one of an ended session, everywhere.
// PocketBase would treat it as no token, and a phone with an old one would see an empty list and delete its copy.
//
// Settings: SATCHEL_SESSIONS_*. Tables: sessions_logins, sessions_ended, sessions_keys. Routes: /api/v1/auth/*.
// Commands: auth.
package sessions

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
	"github.com/satchelbase/satchel/extensions/sessions/stock"
)

// Codes of credentials that fail, and of what a session may not do.
var (
	ErrTokenExpired   = &extensions.Code{Name: "sessions.token_expired", Status: http.StatusUnauthorized, Title: "The token has expired"}
	ErrTokenInvalid   = &extensions.Code{Name: "sessions.token_invalid", Status: http.StatusUnauthorized, Title: "The token is not valid"}
	ErrTokenRevoked   = &extensions.Code{Name: "sessions.token_revoked", Status: http.StatusUnauthorized, Title: "The session has ended"}
	ErrRefreshInvalid = &extensions.Code{Name: "sessions.refresh_invalid", Status: http.StatusUnauthorized, Title: "The refresh token is not valid"}
	ErrRefreshReused  = &extensions.Code{Name: "sessions.refresh_reused", Status: http.StatusUnauthorized, Title: "The refresh token was used before, so the session was ended"}
	ErrRecentAuth     = &extensions.Code{Name: "sessions.recent_auth_required", Status: http.StatusForbidden, Title: "Sign in again to do this"}
	ErrWrongPassword  = &extensions.Code{Name: "sessions.reauthentication_failed", Status: http.StatusUnauthorized, Title: "The password or code is wrong"}
	ErrEmailTaken     = &extensions.Code{Name: "sessions.email_taken", Status: http.StatusConflict, Title: "There is an account with this e-mail already"}
)

// Deps is what the feature is lent.
type Deps struct {
	Vault *secret.Vault

	// Audit writes an entry in the transaction of tx.
	Audit func(tx core.App, e audit.Entry) error

	// Version names the state of a table, as the store's TableVersion does.
	Version func(table string) uint64

	// PublicURL is where apps reach the server; empty takes the address it listens on.
	PublicURL string

	// Password checks the password of an account; nil leaves that to PocketBase.
	Password func(e *core.RequestEvent, collection *core.Collection, account *core.Record, password string) (bool, error)

	// SecondFactor reports whether an account needs more than one credential to sign in; nil means none does.
	SecondFactor func(app core.App, account *core.Record) (bool, error)
}

// Sessions is the feature. It is safe for concurrent use once it is bound to an application.
type Sessions struct {
	cfg  Config
	deps Deps
	now  func() time.Time

	app    core.App
	logger *slog.Logger
	ring   *signing.Ring
	issuer string

	refreshKey func() []byte
	seals      stock.Sealer
	tokens     stock.Tokens

	cancel context.CancelFunc
	tended chan struct{} // closed when the regular work has ended

	// signIns are the sign-ins under way, for the notice about new devices.
	signIns sync.Map // *core.Record -> *login.Login
}

// New returns the feature. [Sessions.Verify] is for the auth cache; [Sessions.Extension] goes into the list.
func New(cfg Config, deps Deps) *Sessions {
	s := &Sessions{
		cfg: cfg, deps: deps, now: time.Now,
		refreshKey: sync.OnceValue(func() []byte { return deps.Vault.Key("sessions.refresh") }),
		seals:      sync.OnceValue(func() []byte { return deps.Vault.Key("sessions.stock") }),
	}
	s.tokens = s.stockTokens()
	return s
}

// Extension is the feature as the program lists it.
func (s *Sessions) Extension() extensions.Extension {
	return extensions.Extension{
		Name:     "sessions",
		Group:    "auth",
		Settings: s.cfg,
		Codes: []*extensions.Code{
			ErrTokenExpired, ErrTokenInvalid, ErrTokenRevoked, ErrRefreshInvalid, ErrRefreshReused, ErrRecentAuth, ErrWrongPassword,
			ErrEmailTaken,
		},
		Tables: []string{login.Table, login.Ended, signing.Table},
		Migrations: []extensions.Migration{
			extensions.Tables(1795350000, "create", slices.Concat(login.Schema(), signing.Schema()), login.Table, login.Ended, signing.Table), login.IndexActors(1795460010),
		},
		Bind: s.bind,
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			{Id: "satchelCredentials", Priority: strictPriority, Func: s.judge},
		},
		Routes:   s.routes,
		Serve:    s.serve,
		Start:    s.start,
		Stop:     s.stop,
		Commands: func(*extensions.Host) []*cobra.Command { return []*cobra.Command{s.command()} },
		Checks:   []extensions.Check{{Name: "signing keys", Ready: true, Run: s.check}},
	}
}

func (s *Sessions) bind(h *extensions.Host) error {
	s.app, s.logger = h.App, h.Logger
	s.ring = signing.NewRing(h.App, s.deps.Vault, s.deps.Version, s.cfg.Algorithm, s.cfg.AccessLifetime.Longest())
	h.App.OnRecordAuthRequest().Bind(&hook.Handler[*core.RecordAuthRequestEvent]{Id: "satchelSessions", Priority: 999, Func: s.onAuth})
	s.tokens.Bind(h.App)
	s.bindEnds(h.App)
	s.bindRealtime(h.App)
	s.bindNotice(h.App)
	return nil
}

// serve learns the issuer.
func (s *Sessions) serve(_ *extensions.Host, e *core.ServeEvent) error {
	s.issuer = issuerOf(s.deps.PublicURL, e.Server.Addr)
	return nil
}

func (s *Sessions) start(ctx context.Context, _ *extensions.Host) error {
	if err := s.ring.Maintain(); err != nil {
		return err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.tended = make(chan struct{})
	go s.tend(ctx)
	return nil
}

// stop waits for the regular work, which must not meet a database that is closed under it.
func (s *Sessions) stop(ctx context.Context) error {
	if s.cancel == nil { // it never came to start
		return nil
	}
	s.cancel()
	select {
	case <-s.tended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Sessions) check(context.Context, *extensions.Host) extensions.Result {
	keys, err := s.ring.List()
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: err.Error(), Next: "satchel secrets check"}
	}
	for _, k := range keys {
		if k.State == signing.Active {
			return extensions.Result{Message: "key " + k.ID + " signs since " + k.Activated.Format(time.DateOnly)}
		}
	}
	return extensions.Result{Level: extensions.Fail, Message: "no key is active", Next: "satchel auth keys rotate --now"}
}

// record audits what has happened to a session or an account; the event may be nil.
func (s *Sessions) record(tx core.App, e *core.RequestEvent, action, outcome string, subject audit.Party, session string, details map[string]any) error {
	var entry audit.Entry
	if e != nil {
		entry = audit.From(e)
	}
	entry.Action, entry.Outcome, entry.Subject, entry.Session, entry.Details = action, outcome, subject, session, details
	return s.deps.Audit(tx, entry)
}

// party names the user of a session for the audit.
func party(app core.App, l *login.Login) audit.Party {
	out := audit.Party{Kind: audit.User, Collection: l.Collection, ID: l.Record}
	if c, err := app.FindCachedCollectionByNameOrId(l.Collection); err == nil {
		out.Collection = c.Name
		if c.Name == core.CollectionNameSuperusers {
			out.Kind = audit.Superuser
		}
	}
	return out
}

// begin is a new session of a user, not stored yet.
func (s *Sessions) begin(record *core.Record, d login.Device, method string) *login.Login {
	return login.New(record, d, method, s.now(), login.Lives{Idle: s.cfg.IdleLifetime.Of(d.Platform), Max: s.cfg.MaxLifetime.Of(d.Platform)})
}

// Grant is what an app gets when it signs in or refreshes.
type Grant struct {
	AccessToken  string `json:"accessToken"`
	RefreshToken string `json:"refreshToken,omitempty"`
	TokenType    string `json:"tokenType"`
	ExpiresIn    int    `json:"expiresIn"` // seconds
	SessionID    string `json:"sessionId"`
}

// noStore keeps tokens out of caches (RFC 6749 section 5.1).
func noStore(e *core.RequestEvent) { e.Response.Header().Set("Cache-Control", "no-store") }

func (s *Sessions) routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.POST("/refresh", s.handleRefresh)
	g.POST("/logout", s.handleLogout)
	g.POST("/logout-all", s.handleLogoutAll).BindFunc(requireUser)
	g.POST("/reauthenticate", s.handleReauthenticate).BindFunc(requireUser)
	g.GET("/sessions", s.handleList).BindFunc(requireUser)
	g.PATCH("/sessions/{id}", s.handleRename).BindFunc(requireUser)
	g.DELETE("/sessions/{id}", s.handleEnd).BindFunc(requireUser)
	g.POST("/sessions/revoke-others", s.handleEndOthers).BindFunc(requireUser)
}

func requireUser(e *core.RequestEvent) error {
	noStore(e)
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	return e.Next()
}
