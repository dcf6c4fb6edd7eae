package sessions

import (
	"errors"
	"fmt"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/refresh"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
)

// authentic finds the session of a refresh token that was minted here, of whatever generation.
func (s *Sessions) authentic(app core.App, text string) (*login.Login, error) {
	token, err := refresh.Parse(text)
	if err != nil {
		return nil, login.ErrNone
	}
	l, err := login.Find(app.ConcurrentDB(), token.Session)
	if err != nil {
		return nil, err
	}
	if !token.Authentic(s.refreshKey(), l.Salt) {
		return nil, login.ErrNone
	}
	return l, nil
}

// sessionOf finds the session of a refresh or an access token, expired ones included.
func (s *Sessions) sessionOf(app core.App, text string) (*login.Login, error) {
	if !signing.IsAccessToken(text) {
		return s.authentic(app, text)
	}
	claims, err := s.ring.Verify(text, s.issuer, s.audience())
	if err != nil {
		if errors.Is(err, signing.ErrInvalid) || errors.Is(err, signing.ErrExpired) {
			return nil, login.ErrNone
		}
		return nil, err
	}
	return login.Find(app.ConcurrentDB(), claims.Session)
}

// Revoke ends the session of a refresh or an access token. A token that is not valid is no error.
func (s *Sessions) Revoke(e *core.RequestEvent, token string) error {
	l, err := s.sessionOf(e.App, token)
	if err == nil {
		err = s.endOne(e, l, reasonRevoked)
	}
	if errors.Is(err, login.ErrNone) {
		return nil
	}
	return err
}

// Introspect describes a token that is good at this moment, with the members of RFC 7662, and says no more of any other
// than that it is not.
func (s *Sessions) Introspect(e *core.RequestEvent, text string) (map[string]any, error) {
	inactive := map[string]any{"active": false}
	if token, err := refresh.Parse(text); err == nil {
		l, err := s.authentic(e.App, text)
		switch {
		case errors.Is(err, login.ErrNone):
			return inactive, nil
		case err != nil:
			return nil, err
		case !l.Alive(s.now()) || l.Actor != "" || refresh.Judge(l.State(), token.Generation, s.now()) == refresh.Reuse:
			return inactive, nil
		}
		return map[string]any{
			"active": true, "token_type": "refresh_token", "client_id": clientID, "sub": l.Record, "iss": s.issuer,
			"exp": l.Until().Unix(), "iat": l.RotatedAt / 1000, "sid": l.ID, "col": l.Collection,
		}, nil
	}
	// The verifier leaves its findings on an event; the request's own credential is not touched.
	probe := &core.RequestEvent{App: e.App}
	probe.Request, probe.Response = e.Request, e.Response
	v, err := s.Verify(probe, text, func(string) {})
	if err != nil {
		if f, ok := probe.Get(failureKey).(failure); ok && f.code == api.ErrUnavailable {
			return nil, err
		}
		return inactive, nil
	}
	return s.describe(v, text)
}

func (s *Sessions) describe(v authcache.Verified, text string) (map[string]any, error) {
	claims, err := security.ParseUnverifiedJWT(text) // verified a moment ago
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	out := map[string]any{
		"active": true, "token_type": "Bearer", "client_id": clientID, "iss": s.issuer, "sub": v.Record.Id, "col": v.Record.Collection().Id,
	}
	for _, name := range []string{"exp", "iat", "aud", "jti", "sid", "device_id", "amr", "auth_time", "act"} {
		if value, ok := claims[name]; ok {
			out[name] = value
		}
	}
	return out, nil
}

// Issuer is the claim "iss" of access tokens: where apps reach the server.
func (s *Sessions) Issuer() string { return s.issuer }

// JWKS is the document with the public keys (RFC 7517 section 5).
func (s *Sessions) JWKS() ([]byte, error) { return s.ring.JWKS() }

// KeysAge is how long verifiers may keep the public keys.
const KeysAge = signing.CacheAge

// Algorithms are those that access tokens may be signed with.
func Algorithms() []string { return []string{signing.ES256, signing.EdDSA} }
