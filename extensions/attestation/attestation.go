// Package attestation tells requests of the genuine app on a genuine device from those of scripts. It verifies Firebase
// App Check tokens, behind which stand App Attest and DeviceCheck on Apple's devices, Play Integrity on Android and
// reCAPTCHA on the web, in the header X-Firebase-AppCheck.
//
// Settings say, route by route, whether the token is ignored, looked at, required, or required anew for every request. It
// says which app asks, never who: it adds to authentication and replaces nothing. Superusers, the dashboard's sign-in,
// health checks and preflights need none.
//
// Tables: attestation_tokens, the ids of tokens that were used where each may be used once. Metrics:
// satchel_attestation_refused_total and satchel_attestation_missing_total. Routes: none. Failure modes: when Google's keys
// cannot be had for a day, routes that require a token answer 503; batches are judged by their strictest request.
package attestation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// Codes of refused requests.
var (
	ErrRequired = &extensions.Code{Name: "attestation.required", Status: http.StatusUnauthorized, Title: "The app must prove that it is genuine"}
	ErrInvalid  = &extensions.Code{Name: "attestation.invalid", Status: http.StatusUnauthorized, Title: "The proof that the app is genuine is not valid"}
)

// Header carries the token.
const Header = "X-Firebase-AppCheck"

const (
	// priority is behind the rate limits (-999) and the body limit (-990), before idempotency (-980).
	priority = -985

	eventKey = "satchelAttestation"
	usedKey  = "satchelAttestationUsed"
	keysURL  = "https://firebaseappcheck.googleapis.com/v1/jwks"
	issuer   = "https://firebaseappcheck.googleapis.com/"
	maxToken = 8 << 10
	leeway   = 5 * time.Second
)

// Attestation is what a good token says.
type Attestation struct {
	App       string // Firebase's id of the app, such as 1:123456789012:ios:0123456789abcdef
	ID        string // of the token, empty when it has none
	ExpiresAt time.Time
}

// Of returns the attestation of a request, if it brought a good one to a route that looks at it.
func Of(e *core.RequestEvent) (Attestation, bool) {
	a, ok := e.Get(eventKey).(Attestation)
	return a, ok
}

// Gate judges requests. It is safe for concurrent use.
type Gate struct {
	cfg      Config
	routes   []route
	fallback mode
	cache    *jwks.Cache
	parser   *jwt.Parser
	logger   *slog.Logger
	refused  atomic.Int64
	missing  atomic.Int64
}

// NewGate returns the gate of the extension. cfg must be valid.
func NewGate(cfg Config) *Gate {
	return newGate(cfg, jwks.New(outbound.NewClient(outbound.Options{Breakers: outbound.NewBreakers(0)}), jwks.Source{URL: keysURL}, nil))
}

// Require refuses a request that does not bring a good token, whatever the mode of its route. Without a project in the
// settings no token is good.
func (g *Gate) Require(e *core.RequestEvent) error {
	if _, ok := Of(e); ok {
		return nil
	}
	if g.cfg.Project == "" || len(g.cfg.Apps) == 0 {
		return api.Fail(ErrRequired, "this server knows no apps: SATCHEL_ATTESTATION_PROJECT and SATCHEL_ATTESTATION_APPS are not set")
	}
	return g.judge(e, enforce)
}

func newGate(cfg Config, cache *jwks.Cache) *Gate {
	routes, err := parseRoutes(cfg.Routes)
	if err != nil {
		panic("attestation: the configuration is not valid: " + err.Error())
	}
	return &Gate{
		cfg: cfg, routes: routes, fallback: modes()[cfg.Mode], cache: cache, logger: slog.New(slog.DiscardHandler),
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{"RS256"}), jwt.WithStrictDecoding(), jwt.WithLeeway(leeway), jwt.WithExpirationRequired(), jwt.WithIssuedAt(),
			jwt.WithIssuer(issuer+cfg.Project), jwt.WithAudience("projects/"+cfg.Project),
		),
	}
}

// Extension returns the extension.
func (g *Gate) Extension() extensions.Extension {
	return extensions.Extension{
		Name:       "attestation",
		Settings:   g.cfg,
		Codes:      []*extensions.Code{ErrRequired, ErrInvalid},
		Tables:     []string{tokensTable},
		Migrations: migrations(),
		Bind: func(h *extensions.Host) error {
			g.logger = h.Logger
			h.App.OnBatchRequest().Bind(&hook.Handler[*core.BatchRequestEvent]{Id: "satchelAttestation", Func: g.batch})
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "satchelAttestation", Priority: priority, Func: g.single}},
		Checks:      []extensions.Check{{Name: "attestation", Offline: true, Run: g.check}},
		Metrics: []extensions.Metric{
			{
				Name: "satchel_attestation_refused_total", Help: "Requests with an App Check token that was not valid.", Counter: true,
				Read: func() float64 { return float64(g.refused.Load()) },
			},
			{
				Name: "satchel_attestation_missing_total", Help: "Requests without an App Check token to routes that look for one.", Counter: true,
				Read: func() float64 { return float64(g.missing.Load()) },
			},
		},
	}
}

func (g *Gate) check(context.Context, *extensions.Host) extensions.Result {
	if !g.cfg.on() {
		return extensions.Result{Level: extensions.Skip, Message: "off"}
	}
	return extensions.Result{Level: extensions.OK, Message: fmt.Sprintf("project %s, %d apps, %d routes, elsewhere %s", g.cfg.Project, len(g.cfg.Apps), len(g.routes), g.cfg.Mode)}
}

// single judges every request; those inside a batch do not pass here.
func (g *Gate) single(e *core.RequestEvent) error {
	if err := g.judge(e, g.modeOf(e)); err != nil {
		return err
	}
	return e.Next()
}

func (g *Gate) batch(e *core.BatchRequestEvent) error {
	strictest := off
	for _, inner := range e.Batch {
		strictest = max(strictest, g.modeOfInner(e.App, inner))
	}
	if err := g.judge(e.RequestEvent, strictest); err != nil {
		return err
	}
	return e.Next()
}

// judge lets a request pass, or not, by the mode of its route. It runs twice for a batch, and a token that may be used
// once is used once for both.
func (g *Gate) judge(e *core.RequestEvent, m mode) error {
	if m == off || e.HasSuperuserAuth() || e.Request.Method == http.MethodOptions {
		return nil
	}
	text := e.Request.Header.Get(Header)
	if text == "" {
		g.missing.Add(1)
		return g.verdict(e, m, api.Fail(ErrRequired, "send an App Check token in "+Header))
	}
	a, err := g.verify(e.Request.Context(), text)
	if err == nil && m == once && e.Get(usedKey) == nil {
		if err = useUp(e.App, a); err == nil {
			e.Set(usedKey, true)
		}
	}
	var unavailable *jwks.UnavailableError
	switch {
	case err == nil:
		e.Set(eventKey, a)
		return nil
	case errors.As(err, &unavailable):
		p := api.Fail(api.ErrUnavailable, "App Check tokens cannot be verified right now").Because(err)
		p.RetryAfter = unavailable.RetryAfter
		return g.verdict(e, m, p)
	case e.Request.Context().Err() != nil:
		return e.Request.Context().Err()
	case !errors.Is(err, errBad):
		return err
	}
	g.refused.Add(1)
	return g.verdict(e, m, api.Fail(ErrInvalid, "get a new App Check token").Because(err))
}

// verdict refuses, or only notes that it would.
func (g *Gate) verdict(e *core.RequestEvent, m mode, p *api.Problem) error {
	if m == log {
		g.logger.LogAttrs(e.Request.Context(), slog.LevelWarn, "attestation would refuse a request",
			slog.String("code", p.Code.Name), slog.String("route", e.Request.Pattern), slog.Any("error", p.Cause))
		return nil
	}
	if p.Code.Status == http.StatusUnauthorized {
		p.Header = http.Header{"Www-Authenticate": {`AppCheck header="` + Header + `"`}} // RFC 9110 section 11.6.1
	}
	return p
}

// errBad marks what is wrong with a token, as opposed to with the server.
var errBad = errors.New("the token is not good")

func (g *Gate) verify(ctx context.Context, text string) (Attestation, error) {
	if len(text) > maxToken {
		return Attestation{}, fmt.Errorf("%w: too long", errBad)
	}
	claims := jwt.RegisteredClaims{}
	_, err := g.parser.ParseWithClaims(text, &claims, func(token *jwt.Token) (any, error) {
		if typ, ok := token.Header["typ"].(string); !ok || typ != "JWT" {
			return nil, errors.New("typ is not JWT")
		}
		if _, ok := token.Header["crit"]; ok {
			return nil, errors.New("crit is not understood")
		}
		kid, _ := token.Header["kid"].(string)
		return g.cache.Key(ctx, kid, token.Method.Alg())
	})
	if unavailable, ok := errors.AsType[*jwks.UnavailableError](err); ok {
		return Attestation{}, unavailable
	}
	if err != nil {
		return Attestation{}, fmt.Errorf("%w: %w", errBad, err)
	}
	if !slices.Contains(g.cfg.Apps, claims.Subject) {
		return Attestation{}, fmt.Errorf("%w: the app %q is not in the list", errBad, claims.Subject)
	}
	return Attestation{App: claims.Subject, ID: claims.ID, ExpiresAt: claims.ExpiresAt.Time}, nil
}
