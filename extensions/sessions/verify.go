package sessions

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
	"github.com/satchelbase/satchel/extensions/sessions/stock"
)

// What a request carries once its credential has been looked at.
const (
	sessionIDKey  = "satchelSession" // id, also for the rate limits
	credentialKey = "satchelCredential"
	failureKey    = "satchelCredentialFailure"
)

// strictPriority is right after PocketBase has loaded the token.
const strictPriority = apis.DefaultLoadAuthTokenMiddlewarePriority + 1

// Credential is what a request has proved. It is shared between requests and never changed.
type Credential struct {
	SessionID string // empty for a token that no session is behind
	AccessToken,
	ReadOnly bool
	Expires time.Time
	Actor   *signing.Actor // who acts for the user

	login *login.Login // the session as it was when the credential was verified
}

// Current returns the credential of the request, nil if it has none.
func Current(e *core.RequestEvent) *Credential {
	c, _ := e.Get(credentialKey).(*Credential)
	return c
}

// failure is why a credential was refused.
type failure struct {
	code *extensions.Code

	// everywhere is set for what is 401 on PocketBase's own routes too: an access token, whose holder knows how to
	// refresh it, and any token of a session that has ended.
	everywhere bool
}

func refuse(e *core.RequestEvent, code *extensions.Code, everywhere bool, cause error) (authcache.Verified, error) {
	e.Set(failureKey, failure{code, everywhere})
	if cause == nil {
		cause = code
	}
	return authcache.Verified{}, cause
}

// Verify is the [authcache.Verifier] of access tokens and of PocketBase's own.
func (s *Sessions) Verify(e *core.RequestEvent, token string, watch func(table string)) (authcache.Verified, error) {
	if signing.IsAccessToken(token) {
		return s.verifyAccess(e, token, watch)
	}
	return s.verifyStock(e, token, watch)
}

func (s *Sessions) verifyAccess(e *core.RequestEvent, token string, watch func(table string)) (authcache.Verified, error) {
	watch(signing.Table)
	claims, err := s.ring.Verify(token, s.issuer, s.audience())
	switch {
	case errors.Is(err, signing.ErrExpired):
		return refuse(e, ErrTokenExpired, true, err)
	case errors.Is(err, signing.ErrInvalid):
		return refuse(e, ErrTokenInvalid, true, err)
	case err != nil:
		return refuse(e, api.ErrUnavailable, true, err)
	}
	l, err := s.living(e, claims.Session, watch)
	if err != nil {
		return refuse(e, codeOf(err), true, err)
	}
	if l.Collection != claims.Collection || l.Record != claims.Subject {
		return refuse(e, ErrTokenRevoked, true, nil)
	}
	collection, err := e.App.FindCachedCollectionByNameOrId(claims.Collection)
	if err != nil {
		return refuse(e, ErrTokenRevoked, true, err)
	}
	watch(collection.Name)
	record, err := e.App.FindRecordById(collection, claims.Subject)
	if err != nil || !collection.IsAuth() {
		return refuse(e, ErrTokenRevoked, true, err)
	}
	if err := l.Confirm(e.App, claims.Generation); err != nil { // the next verification tries again
		s.logger.Warn("a refresh could not be confirmed", "error", err)
	}
	c := &Credential{SessionID: l.ID, AccessToken: true, ReadOnly: l.ReadOnly, Expires: claims.ExpiresAt.Time, Actor: actorOf(l), login: l}
	return verified(record, c, l), nil
}

// living returns the session if it still counts. The table of ends is watched from before it is read.
func (s *Sessions) living(e *core.RequestEvent, id string, watch func(table string)) (*login.Login, error) {
	watch(login.Ended)
	l, err := login.Find(e.App.ConcurrentDB(), id)
	if err == nil && !l.Alive(s.now()) {
		err = ErrTokenRevoked
	}
	return l, err
}

// codeOf tells a session that has gone from a database that does not answer.
func codeOf(err error) *extensions.Code {
	if errors.Is(err, login.ErrNone) || errors.Is(err, ErrTokenRevoked) {
		return ErrTokenRevoked
	}
	return api.ErrUnavailable
}

func verified(record *core.Record, c *Credential, l *login.Login) authcache.Verified {
	v := authcache.Verified{Record: record, Key: c.SessionID, Until: c.Expires}
	if l != nil && l.Until().Before(v.Until) {
		v.Until = l.Until()
	}
	var session any = c.SessionID // as the event takes it, so that no request allocates it again
	v.Present = func(e *core.RequestEvent) {
		e.Set(credentialKey, c)
		if c.SessionID != "" {
			e.Set(sessionIDKey, session)
		}
		if c.Actor != nil {
			e.Set(audit.ActorKey, party(e.App, &login.Login{Collection: c.Actor.Collection, Record: c.Actor.Subject}))
		}
	}
	return v
}

// verifyStock lets PocketBase verify its token, and then asks for the session and the seal that this server has put in.
func (s *Sessions) verifyStock(e *core.RequestEvent, token string, watch func(table string)) (authcache.Verified, error) {
	v, err := authcache.Stock(e, token, watch)
	if err != nil {
		code := ErrTokenInvalid
		if expired(token) {
			code = ErrTokenExpired
		}
		return refuse(e, code, false, err)
	}
	claims, err := security.ParseUnverifiedJWT(token) // verified a moment ago
	if err != nil {
		return refuse(e, ErrTokenInvalid, false, err)
	}
	if !s.accepts(v.Record, claims) {
		return refuse(e, ErrTokenInvalid, false, nil)
	}
	c := &Credential{Expires: v.Until}
	id, _ := claims[stock.ClaimSession].(string)
	if id == "" {
		return verified(v.Record, c, nil), nil
	}
	l, err := s.living(e, id, watch)
	if err != nil {
		return refuse(e, codeOf(err), true, err)
	}
	if l.Collection != v.Record.Collection().Id || l.Record != v.Record.Id {
		return refuse(e, ErrTokenRevoked, true, nil)
	}
	c.SessionID, c.ReadOnly, c.Actor, c.login = l.ID, l.ReadOnly, actorOf(l), l
	return verified(v.Record, c, l), nil
}

// judge is what follows from the credential. It is one middleware because every request pays for each.
func (s *Sessions) judge(e *core.RequestEvent) error {
	if err := requireGoodCredential(e); err != nil {
		return err
	}
	if err := s.tokens.ExchangeFileToken(e); err != nil {
		return err
	}
	return e.Next()
}

// requireGoodCredential answers 401 to a credential that was presented and refused.
func requireGoodCredential(e *core.RequestEvent) error {
	presented := e.Request.Header.Get("Authorization")
	if presented == "" || e.Auth != nil {
		return nil
	}
	f, known := e.Get(failureKey).(failure)
	if !known {
		f.code = ErrTokenInvalid // a route that loads no tokens, or a scheme of another kind
	}
	versioned := api.RequestOf(e.Request.Context()).Versioned
	if obtainsCredential(e.Request) || !versioned && !f.everywhere {
		return nil
	}
	return challenge(f.code)
}

// challenge is the refusal of a credential (RFC 6750 section 3.1).
func challenge(code *extensions.Code) error {
	p := api.Fail(code, "sign in again or refresh the token")
	switch code.Status {
	case http.StatusUnauthorized:
		p.Header = http.Header{"Www-Authenticate": {`Bearer error="invalid_token", error_description="` + code.Title + `"`}}
	default:
		p.Detail, p.RetryAfter = "", time.Second
	}
	return p
}

// expired tells a token that was once good from one that never was, as far as its own claim says; no decision but the
// choice of the code depends on it.
func expired(token string) bool {
	exp := expiryOf(token)
	return !exp.IsZero() && exp.Before(time.Now())
}

// expiryOf reads the claim exp and proves nothing; the zero time is none.
func expiryOf(token string) time.Time {
	claims := jwt.RegisteredClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil || claims.ExpiresAt == nil {
		return time.Time{}
	}
	return claims.ExpiresAt.Time
}

// obtainsCredential lists where a client with an old credential must get through: it goes there to get a new one, the
// answer is for everybody, or the route judges the credential itself. The path is the canonical one.
func obtainsCredential(r *http.Request) bool {
	path := r.URL.Path
	if own, ok := strings.CutPrefix(path, api.Prefix+"/auth/"); ok {
		switch own {
		case "refresh", "token", "revoke", "introspect", "exchange", "anonymous", "logout", "totp/verify", "passkeys/sign-in", "passkeys/options/sign-in":
			return true
		}
	}
	if strings.HasPrefix(path, api.Prefix+"/health") || path == "/api/auth/sync" || strings.HasPrefix(path, "/.well-known/") {
		return true
	}
	rest, ok := strings.CutPrefix(path, "/api/collections/")
	if !ok {
		return false
	}
	_, action, _ := strings.Cut(rest, "/")
	if action == "auth-refresh" {
		return false // it renews the presented token, which must be good
	}
	for _, prefix := range []string{"auth-", "request-", "confirm-"} {
		if strings.HasPrefix(action, prefix) {
			return true
		}
	}
	return false
}

// issuerOf is the public URL, or else the address that the server listens on, without a slash at the end.
func issuerOf(publicURL, addr string) string {
	if publicURL == "" {
		if addr == "" {
			addr = "127.0.0.1:8090"
		}
		publicURL = "http://" + addr
	}
	return strings.TrimRight(publicURL, "/")
}

func (s *Sessions) audience() string {
	if s.cfg.Audience != "" {
		return s.cfg.Audience
	}
	return s.issuer
}

func actorOf(l *login.Login) *signing.Actor {
	if l.Actor == "" {
		return nil
	}
	return &signing.Actor{Subject: l.Actor, Collection: l.ActorCollection}
}
