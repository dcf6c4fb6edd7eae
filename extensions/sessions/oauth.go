package sessions

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/sessions/refresh"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
)

// These routes speak OAuth 2.0, so that clients and resource servers can use what they have: RFC 6749 (only the refresh
// of a token), RFC 7009 and RFC 7662. Their bodies have the shapes of those documents.

// maxForm bounds the form of these routes, in bytes.
const maxForm = 16 << 10

// form reads application/x-www-form-urlencoded as RFC 6749 section 3.2 wants it: each parameter once.
func form(e *core.RequestEvent) (map[string]string, error) {
	media, _, err := mime.ParseMediaType(e.Request.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" {
		return nil, errors.New("the body must be application/x-www-form-urlencoded")
	}
	e.Request.Body = http.MaxBytesReader(e.Response, e.Request.Body, maxForm)
	if err := e.Request.ParseForm(); err != nil {
		return nil, errors.New("the form is malformed")
	}
	out := map[string]string{}
	for name, values := range e.Request.PostForm {
		if len(values) != 1 {
			return nil, fmt.Errorf("%s is given more than once", name)
		}
		out[name] = values[0]
	}
	return out, nil
}

// oauthError answers in the form of RFC 6749 section 5.2.
func oauthError(e *core.RequestEvent, status int, code, description string) error {
	return writeOAuth(e, status, map[string]string{"error": code, "error_description": description})
}

func writeOAuth(e *core.RequestEvent, status int, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("marshal answer: %w", err)
	}
	noStore(e)
	e.Response.Header().Set("Pragma", "no-cache") // RFC 6749 section 5.1
	return e.Blob(status, "application/json", raw)
}

// handleToken is the token endpoint; it knows one grant type.
func (s *Sessions) handleToken(e *core.RequestEvent) error {
	noStore(e)
	params, err := form(e)
	switch {
	case err != nil:
		return oauthError(e, http.StatusBadRequest, "invalid_request", err.Error())
	case params["grant_type"] == "":
		return oauthError(e, http.StatusBadRequest, "invalid_request", "grant_type is missing")
	case params["grant_type"] != "refresh_token":
		return oauthError(e, http.StatusBadRequest, "unsupported_grant_type", "only refresh_token is supported")
	case params["refresh_token"] == "":
		return oauthError(e, http.StatusBadRequest, "invalid_request", "refresh_token is missing")
	}
	g, err := s.renew(e, params["refresh_token"])
	switch {
	case errors.Is(err, ErrRefreshInvalid), errors.Is(err, ErrRefreshReused), errors.Is(err, ErrTokenRevoked):
		return oauthError(e, http.StatusBadRequest, "invalid_grant", "the refresh token is expired, revoked or not valid")
	case err != nil:
		return err
	}
	return writeOAuth(e, http.StatusOK, map[string]any{
		"access_token": g.AccessToken, "refresh_token": g.RefreshToken, "token_type": g.TokenType, "expires_in": g.ExpiresIn,
	})
}

// authentic finds the session of a refresh token that was minted here, of whatever generation.
func (s *Sessions) authentic(app core.App, text string) (*login, error) {
	token, err := refresh.Parse(text)
	if err != nil {
		return nil, errNoLogin
	}
	l, err := findLogin(app.ConcurrentDB(), token.Session)
	if err != nil {
		return nil, err
	}
	if !token.Authentic(s.refreshKey(), l.Salt) {
		return nil, errNoLogin
	}
	return l, nil
}

// sessionOf finds the session of a refresh or an access token, expired ones included.
func (s *Sessions) sessionOf(app core.App, text string) (*login, error) {
	if !signing.IsAccessToken(text) {
		return s.authentic(app, text)
	}
	claims, err := s.ring.Verify(text, s.issuer, s.audience())
	if err != nil {
		if errors.Is(err, signing.ErrInvalid) || errors.Is(err, signing.ErrExpired) {
			return nil, errNoLogin
		}
		return nil, err
	}
	return findLogin(app.ConcurrentDB(), claims.Session)
}

// handleRevoke ends the session of a token. A token that is not valid is answered like one that was (RFC 7009 section
// 2.2).
func (s *Sessions) handleRevoke(e *core.RequestEvent) error {
	noStore(e)
	params, err := form(e)
	if err != nil || params["token"] == "" {
		return oauthError(e, http.StatusBadRequest, "invalid_request", "token is missing, or the form is malformed")
	}
	l, err := s.sessionOf(e.App, params["token"])
	if err == nil {
		err = s.endOne(e, l, reasonRevoked)
	}
	if err != nil && !errors.Is(err, errNoLogin) {
		return err
	}
	return e.NoContent(http.StatusOK)
}

// handleIntrospect tells a resource server what a token is worth. It needs an API key with the scope introspect, or a
// superuser.
func (s *Sessions) handleIntrospect(e *core.RequestEvent) error {
	noStore(e)
	if !e.HasSuperuserAuth() {
		if s.deps.Callers == nil {
			return api.ErrForbidden
		}
		if err := s.deps.Callers(e.Request, e.App); err != nil {
			return err
		}
	}
	params, err := form(e)
	if err != nil || params["token"] == "" {
		return oauthError(e, http.StatusBadRequest, "invalid_request", "token is missing, or the form is malformed")
	}
	answer, err := s.introspect(e, params["token"])
	if err != nil {
		return err
	}
	return writeOAuth(e, http.StatusOK, answer)
}

// introspect describes a token that is good at this moment, and says no more of any other than that it is not.
func (s *Sessions) introspect(e *core.RequestEvent, text string) (map[string]any, error) {
	inactive := map[string]any{"active": false}
	if token, err := refresh.Parse(text); err == nil {
		l, err := s.authentic(e.App, text)
		switch {
		case errors.Is(err, errNoLogin):
			return inactive, nil
		case err != nil:
			return nil, err
		case !l.alive(s.now()) || l.Actor != "" || refresh.Judge(l.state(), token.Generation, s.now()) == refresh.Reuse:
			return inactive, nil
		}
		return map[string]any{
			"active": true, "token_type": "refresh_token", "client_id": clientID, "sub": l.Record, "iss": s.issuer,
			"exp": l.until().Unix(), "iat": l.RotatedAt / 1000, "sid": l.ID, "col": l.Collection,
		}, nil
	}
	// The verifier leaves its findings on an event; the request's own credential is not touched.
	probe := &core.RequestEvent{App: e.App, Event: router.Event{Request: e.Request, Response: e.Response}}
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

// wellKnown adds the documents by which libraries find everything else. They list only what exists.
func (s *Sessions) wellKnown(r *router.Router[*core.RequestEvent]) {
	metadata := func(e *core.RequestEvent) error {
		base := s.issuer + api.Prefix + "/auth/"
		raw, err := json.Marshal(map[string]any{
			"issuer": s.issuer, "jwks_uri": s.issuer + "/.well-known/jwks.json",
			"token_endpoint": base + "token", "revocation_endpoint": base + "revoke", "introspection_endpoint": base + "introspect",
			"grant_types_supported":                         []string{"refresh_token"},
			"token_endpoint_auth_methods_supported":         []string{"none"},
			"revocation_endpoint_auth_methods_supported":    []string{"none"},
			"introspection_endpoint_auth_methods_supported": []string{"client_secret_basic"},
			"subject_types_supported":                       []string{"public"},
			"id_token_signing_alg_values_supported":         []string{signing.ES256, signing.EdDSA},
		})
		if err != nil {
			return fmt.Errorf("marshal metadata: %w", err)
		}
		return public(e, raw)
	}
	r.GET("/.well-known/openid-configuration", metadata)
	r.GET("/.well-known/oauth-authorization-server", metadata)
	r.GET("/.well-known/jwks.json", func(e *core.RequestEvent) error {
		raw, err := s.ring.JWKS()
		if err != nil {
			return err
		}
		return public(e, raw)
	})
}

// public answers a document that everybody may keep for a while.
func public(e *core.RequestEvent, raw []byte) error {
	h := e.Response.Header()
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(signing.CacheAge.Seconds())))
	h.Set("Access-Control-Allow-Origin", "*")
	etag := api.ETag(raw)
	h.Set("ETag", etag)
	if strings.Contains(e.Request.Header.Get("If-None-Match"), etag) {
		return e.NoContent(http.StatusNotModified)
	}
	return e.Blob(http.StatusOK, "application/json", raw)
}
