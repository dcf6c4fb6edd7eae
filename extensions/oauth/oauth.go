// Package oauth lets clients and resource servers use what they have for OAuth 2.0: the token endpoint of RFC 6749, for
// refreshing only, revocation (RFC 7009), introspection (RFC 7662), and the documents by which libraries find them (RFC
// 8414) and the public keys (RFC 7517). Bodies have the shapes of those documents.
//
// Routes: /api/v1/auth/{token,revoke,introspect}, /.well-known/{openid-configuration,oauth-authorization-server,jwks.json}.
// Settings, tables and codes: none.
package oauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sessions"
)

// Callers admits a server that asks about tokens.
type Callers func(e *core.RequestEvent) error

// routes answers with what the sessions know.
type routes struct {
	sessions *sessions.Sessions
	callers  Callers
}

// New returns the extension. Without callers, only superusers may ask about tokens.
func New(s *sessions.Sessions, callers Callers) extensions.Extension {
	r := &routes{s, callers}
	return extensions.Extension{
		Name:  "oauth",
		Group: "auth",
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.POST("/token", r.token)
			g.POST("/revoke", r.revoke)
			g.POST("/introspect", r.introspect)
		},
		Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
			r.wellKnown(e.Router)
			return nil
		},
	}
}

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
	e.Response.Header().Set("Cache-Control", "no-store")
	e.Response.Header().Set("Pragma", "no-cache") // RFC 6749 section 5.1
	return e.Blob(status, "application/json", raw)
}

// token is the token endpoint; it knows one grant type.
func (r *routes) token(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
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
	g, err := r.sessions.Renew(e, params["refresh_token"])
	switch {
	case errors.Is(err, sessions.ErrRefreshInvalid), errors.Is(err, sessions.ErrRefreshReused), errors.Is(err, sessions.ErrTokenRevoked):
		return oauthError(e, http.StatusBadRequest, "invalid_grant", "the refresh token is expired, revoked or not valid")
	case err != nil:
		return err
	}
	return writeOAuth(e, http.StatusOK, map[string]any{
		"access_token": g.AccessToken, "refresh_token": g.RefreshToken, "token_type": g.TokenType, "expires_in": g.ExpiresIn,
	})
}

// revoke ends the session of a token. A token that is not valid is answered like one that was (RFC 7009 section
// 2.2).
func (r *routes) revoke(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	params, err := form(e)
	if err != nil || params["token"] == "" {
		return oauthError(e, http.StatusBadRequest, "invalid_request", "token is missing, or the form is malformed")
	}
	if err := r.sessions.Revoke(e, params["token"]); err != nil {
		return err
	}
	return e.NoContent(http.StatusOK)
}

// introspect tells a resource server what a token is worth. It needs an API key with the scope introspect, or a
// superuser.
func (r *routes) introspect(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	if !e.HasSuperuserAuth() {
		if r.callers == nil {
			return api.ErrForbidden
		}
		if err := r.callers(e); err != nil {
			return err
		}
	}
	params, err := form(e)
	if err != nil || params["token"] == "" {
		return oauthError(e, http.StatusBadRequest, "invalid_request", "token is missing, or the form is malformed")
	}
	answer, err := r.sessions.Introspect(e, params["token"])
	if err != nil {
		return err
	}
	return writeOAuth(e, http.StatusOK, answer)
}

// wellKnown adds the documents by which libraries find everything else. They list only what exists.
func (r *routes) wellKnown(to *router.Router[*core.RequestEvent]) {
	metadata := func(e *core.RequestEvent) error {
		issuer := r.sessions.Issuer()
		base := issuer + api.Prefix + "/auth/"
		raw, err := json.Marshal(map[string]any{
			"issuer": issuer, "jwks_uri": issuer + "/.well-known/jwks.json",
			"token_endpoint": base + "token", "revocation_endpoint": base + "revoke", "introspection_endpoint": base + "introspect",
			"grant_types_supported":                         []string{"refresh_token"},
			"token_endpoint_auth_methods_supported":         []string{"none"},
			"revocation_endpoint_auth_methods_supported":    []string{"none"},
			"introspection_endpoint_auth_methods_supported": []string{"client_secret_basic"},
			"subject_types_supported":                       []string{"public"},
			"id_token_signing_alg_values_supported":         sessions.Algorithms(),
		})
		if err != nil {
			return fmt.Errorf("marshal metadata: %w", err)
		}
		return public(e, raw)
	}
	to.GET("/.well-known/openid-configuration", metadata)
	to.GET("/.well-known/oauth-authorization-server", metadata)
	to.GET("/.well-known/jwks.json", func(e *core.RequestEvent) error {
		raw, err := r.sessions.JWKS()
		if err != nil {
			return err
		}
		return public(e, raw)
	})
}

// public answers a document that everybody may keep for a while.
func public(e *core.RequestEvent, raw []byte) error {
	h := e.Response.Header()
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(sessions.KeysAge.Seconds())))
	h.Set("Access-Control-Allow-Origin", "*")
	etag := api.ETag(raw)
	h.Set("ETag", etag)
	if strings.Contains(e.Request.Header.Get("If-None-Match"), etag) {
		return e.NoContent(http.StatusNotModified)
	}
	return e.Blob(http.StatusOK, "application/json", raw)
}
