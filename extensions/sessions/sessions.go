// Package sessions decides what a presented credential is worth. PocketBase treats a bad or expired token as no token,
// so that a phone with an old one would see an empty list and delete its copy; below /api/v1 such a request is refused
// with 401 instead, except where a client goes to get a new credential.
//
// Routes, settings and tables: none yet.
package sessions

import (
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// Codes of credentials that fail.
var (
	ErrTokenExpired = &extensions.Code{Name: "sessions.token_expired", Status: http.StatusUnauthorized, Title: "The token has expired"}
	ErrTokenInvalid = &extensions.Code{Name: "sessions.token_invalid", Status: http.StatusUnauthorized, Title: "The token is not valid"}
)

// strictPriority is right after PocketBase has loaded the token.
const strictPriority = apis.DefaultLoadAuthTokenMiddlewarePriority + 1

// New returns the extension.
func New() extensions.Extension {
	return extensions.Extension{
		Name:  "sessions",
		Group: "auth",
		Codes: []*extensions.Code{ErrTokenExpired, ErrTokenInvalid},
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			{Id: "satchelCredentials", Priority: strictPriority, Func: requireGoodCredential},
		},
	}
}

func requireGoodCredential(e *core.RequestEvent) error {
	presented := e.Request.Header.Get("Authorization")
	if presented == "" || e.Auth != nil || !api.RequestOf(e.Request.Context()).Versioned || obtainsCredential(e.Request) {
		return e.Next()
	}
	code := ErrTokenInvalid
	if expired(presented) {
		code = ErrTokenExpired
	}
	p := api.Fail(code, "sign in again or refresh the token")
	// RFC 6750 section 3.1
	p.Header = http.Header{"Www-Authenticate": {`Bearer error="invalid_token", error_description="` + code.Title + `"`}}
	return p
}

// expired tells a token that was once good from one that never was, as far as its own claim says; no decision but the
// choice of the code depends on it.
func expired(header string) bool {
	token := header
	if len(token) > 7 && strings.EqualFold(token[:7], "Bearer ") {
		token = token[7:]
	}
	claims := jwt.RegisteredClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil || claims.ExpiresAt == nil {
		return false
	}
	return claims.ExpiresAt.Before(time.Now())
}

// obtainsCredential lists where a client with an old credential must get through: it goes there to get a new one, or
// the answer is for everybody. The path is the canonical one.
func obtainsCredential(r *http.Request) bool {
	path := r.URL.Path
	switch path {
	case api.Prefix + "/auth/refresh", api.Prefix + "/auth/token", api.Prefix + "/auth/exchange", api.Prefix + "/auth/anonymous":
		return true
	case api.Prefix + "/auth/totp/verify", api.Prefix + "/auth/passkeys/options/sign-in", api.Prefix + "/auth/passkeys/sign-in":
		return true
	}
	if strings.HasPrefix(path, api.Prefix+"/health") {
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
