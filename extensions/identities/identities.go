// Package identities signs people in with the tokens of providers that they know already: Google, Apple, Clerk, Auth0,
// Firebase, Supabase, Microsoft and any OpenID Connect provider.
//
// An app gets an ID token from the provider and exchanges it for a session. A person is the provider's issuer and subject,
// never an e-mail address, which others can come to own. What a token must be, and when it leads to which account, is
// docs/identities.md; the short form: issuer and audience from the settings, younger than ten minutes, used once, and an
// existing account is entered by its own identity alone, unless the settings say more.
//
// Routes: POST /api/v1/auth/exchange (and /api/auth/sync), GET, POST and DELETE /api/v1/auth/identities. Tables:
// identities_links (who is who), identities_revocations (tokens of Apple to revoke), identities_tokens (hashes of tokens that were used, until they expire) and
// identities_passwordless (accounts whose password nobody knows). Settings: SATCHEL_IDENTITIES_*.
//
// Failure modes: a provider that cannot be reached for its keys is 503 with Retry-After, once the last keys are a day too
// old; a crash between the database and the answer leaves the token used, and the same device may send it again for a
// minute. Answers that are repeated in that minute are kept in memory, so after a restart they carry a new session.
package identities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/identities/apple"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// Codes of refused exchanges and links.
var (
	ErrProviderUnknown     = &extensions.Code{Name: "identities.provider_unknown", Status: http.StatusBadRequest, Title: "This provider is not set up"}
	ErrTokenInvalid        = &extensions.Code{Name: "identities.token_invalid", Status: http.StatusUnauthorized, Title: "The provider's token is not valid"}
	ErrTokenReused         = &extensions.Code{Name: "identities.token_reused", Status: http.StatusUnauthorized, Title: "The provider's token was used before"}
	ErrNonceInvalid        = &extensions.Code{Name: "identities.nonce_invalid", Status: http.StatusUnauthorized, Title: "The nonce does not belong to the token"}
	ErrAccountExists       = &extensions.Code{Name: "identities.account_exists", Status: http.StatusConflict, Title: "There is an account with this e-mail address"}
	ErrLastWayIn           = &extensions.Code{Name: "identities.last_way_in", Status: http.StatusConflict, Title: "This is the only way to sign in"}
	ErrLinkTaken           = &extensions.Code{Name: "identities.link_taken", Status: http.StatusConflict, Title: "This identity belongs to another account"}
	ErrProviderUnavailable = &extensions.Code{Name: "identities.provider_unavailable", Status: http.StatusServiceUnavailable, Title: "The provider cannot be reached"}
)

// ActorKey is where an exchange leaves, in the request's event, who acts in the person's name when the token says so
// (RFC 8693 section 4.1). Deps.SignIn may read it.
const ActorKey = "identitiesActor"

// Deps are what other features do for this one. Fields may be nil, with the consequences told.
type Deps struct {
	// SignIn runs PocketBase's whole auth response (auth rule, hooks, MFA, session) and returns what it answered. When MFA
	// is wanted the 401 {mfaId} is written already and the error must be returned unchanged. Nil: [StockSignIn].
	SignIn func(e *core.RequestEvent, record *core.Record, method string) (session, user json.RawMessage, err error)

	// Recent lets requests pass whose user has signed in recently. Nil: nobody has, so nothing can be linked or unlinked.
	Recent *hook.Handler[*core.RequestEvent]

	// RevokeSessions ends all sessions of a record. Nil: only what a new token key ends.
	RevokeSessions func(app core.App, record *core.Record, reason string) error

	// Audit records who did what. Nil: nobody does.
	Audit func(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

	// Seal and Open keep Apple's refresh tokens secret; aad ties a text to its row. Nil: they are not kept, and nothing is
	// revoked at Apple.
	Seal func(aad string, plain []byte) (string, error)
	Open func(aad, sealed string) ([]byte, error)

	// Passkeys reports whether a record can sign in with a passkey. Nil: none can.
	Passkeys func(app core.App, record *core.Record) (bool, error)

	// Upgraded is told, in the transaction, that a record can be signed in to with one more identity. Nil: nobody is.
	Upgraded func(app core.App, record *core.Record) error
}

// service is the extension at work. It is safe for concurrent use once the server listens.
type service struct {
	cfg       Config
	deps      Deps
	providers []*provider
	verifiers map[string]*verifier
	answers   *answers
	logger    *slog.Logger
	apple     *apple.Client // nil when its key is not set
	appleURL  string
	revoked   *apple.Queue
	worker    sync.WaitGroup
	cancel    context.CancelFunc
}

// New returns the extension. cfg must be valid.
func New(cfg Config, deps Deps) extensions.Extension {
	return newService(cfg, deps, cfg.providers()).extension()
}

func newService(cfg Config, deps Deps, providers []*provider) *service {
	if deps.SignIn == nil {
		deps.SignIn = StockSignIn
	}
	if deps.Recent == nil {
		deps.Recent = &hook.Handler[*core.RequestEvent]{Func: func(*core.RequestEvent) error {
			return api.Fail(api.ErrForbidden, "this server cannot tell how recent the sign-in was")
		}}
	}
	return &service{cfg: cfg, deps: deps, providers: providers, answers: newAnswers(), appleURL: apple.URL, logger: slog.New(slog.DiscardHandler), revoked: apple.NewQueue(revocationsTable)}
}

func (s *service) extension() extensions.Extension {
	return extensions.Extension{
		Name:     "identities",
		Group:    "auth",
		Settings: s.cfg,
		Codes: []*extensions.Code{
			ErrProviderUnknown, ErrTokenInvalid, ErrTokenReused, ErrNonceInvalid,
			ErrAccountExists, ErrLastWayIn, ErrLinkTaken, ErrProviderUnavailable,
		},
		Tables:     []string{linksTable, tokensTable, revocationsTable, passwordlessTable},
		Migrations: migrations(),
		Bind: func(h *extensions.Host) error {
			s.logger = h.Logger
			s.bind(h.App)
			return nil
		},
		Serve: s.serve,
		Start: func(ctx context.Context, h *extensions.Host) error {
			ctx, s.cancel = context.WithCancel(ctx)
			if s.apple != nil && s.deps.Open != nil {
				s.revoked.Client, s.revoked.Logger = s.apple, h.Logger
				s.revoked.Open = func(id, sealed string) ([]byte, error) { return s.deps.Open(revocationAAD(id), sealed) }
				s.worker.Go(func() { s.revoked.Run(ctx, h.App) })
			}
			return nil
		},
		Stop: func(context.Context) error {
			if s.cancel != nil { // nil when another feature could not start
				s.cancel()
			}
			s.worker.Wait()
			return nil
		},
		Routes: s.routes,
		Checks: []extensions.Check{{Name: "identity providers", Run: s.check}},
	}
}

func (s *service) routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.POST("/exchange", s.exchange).BindFunc(noStore)
	own := g.Group("/identities")
	own.BindFunc(noStore)
	own.Bind(apis.RequireAuth())
	own.GET("", s.list)
	own.POST("", s.link).Bind(s.recent())
	own.DELETE("/{id}", s.unlink).Bind(s.recent())
}

// recent is Deps.Recent behind the check that somebody is signed in.
func (s *service) recent() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{Id: s.deps.Recent.Id, Func: s.deps.Recent.Func, Priority: 1}
}

// requireRecent asks Deps.Recent from inside a handler.
func (s *service) requireRecent(e *core.RequestEvent) error {
	h := &hook.Hook[*core.RequestEvent]{}
	h.Bind(s.recent())
	passed := false
	err := h.Trigger(e, func(*core.RequestEvent) error {
		passed = true
		return nil
	})
	if err == nil && !passed {
		return api.Fail(api.ErrForbidden, "sign in again")
	}
	return err
}

func noStore(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	return e.Next()
}

// serve makes the verifiers, because what they may reach depends on the mode, and adds the alias.
func (s *service) serve(h *extensions.Host, e *core.ServeEvent) error {
	options := outbound.Options{AllowLoopback: s.cfg.AllowLoopback, Breakers: outbound.NewBreakers(0)}
	if h.Production && (s.cfg.AllowLoopback || s.cfg.CAFile != "") {
		return errors.New("SATCHEL_IDENTITIES_ALLOW_LOOPBACK and SATCHEL_IDENTITIES_CA_FILE are for development and refused in production")
	}
	if s.cfg.CAFile != "" {
		root, err := outbound.ReadCA(s.cfg.CAFile)
		if err != nil {
			return fmt.Errorf("SATCHEL_IDENTITIES_CA_FILE: %w", err)
		}
		options.Root = root
	}
	client := outbound.NewClient(options)
	s.verifiers = map[string]*verifier{}
	for _, p := range s.providers {
		s.verifiers[p.name] = newVerifier(p, jwks.New(client, p.keys, nil))
	}
	if s.cfg.AppleKey != "" && slices.Contains(s.cfg.Providers, "apple") {
		key, err := apple.ParseKey(s.cfg.AppleKey)
		if err != nil {
			return fmt.Errorf("SATCHEL_IDENTITIES_APPLE_KEY: %w", err)
		}
		s.apple = &apple.Client{Base: s.appleURL, Team: s.cfg.AppleTeam, Kid: s.cfg.AppleKeyID, Key: key, HTTP: client}
	}
	e.Router.POST("/api/auth/sync", s.sync).BindFunc(noStore)
	return nil
}

// check shows what is set up and finds collections that cannot take what the providers give.
func (s *service) check(_ context.Context, h *extensions.Host) extensions.Result {
	if len(s.providers) == 0 {
		return extensions.Result{Level: extensions.Skip, Message: "none is set up"}
	}
	if h.Production && (s.cfg.AllowLoopback || s.cfg.CAFile != "") {
		return extensions.Result{
			Level: extensions.Fail, Message: "settings for development are set in production",
			Next: "remove SATCHEL_IDENTITIES_ALLOW_LOOPBACK and SATCHEL_IDENTITIES_CA_FILE",
		}
	}
	for _, name := range s.cfg.Collections {
		c, err := h.App.FindCachedCollectionByNameOrId(name)
		if err != nil || !c.IsAuth() {
			return extensions.Result{Level: extensions.Fail, Message: "there is no auth collection " + name, Next: "change SATCHEL_IDENTITIES_COLLECTIONS"}
		}
		field, _ := c.Fields.GetByName(core.FieldNameEmail).(*core.EmailField)
		untrusted := slices.ContainsFunc(s.providers, func(p *provider) bool { return !p.trustEmail || p.anonymous != nil })
		if field != nil && field.Required && untrusted {
			return extensions.Result{
				Level: extensions.Warn, Message: "the collection " + name + " requires an e-mail address, so new people whose provider is not in SATCHEL_IDENTITIES_EMAIL_TRUST cannot get in",
				Next: "make the field email of " + name + " optional, or trust the provider's addresses",
			}
		}
	}
	return extensions.Result{Level: extensions.OK, Message: strings.Join(s.cfg.Providers, ", ")}
}
