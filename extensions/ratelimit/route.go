package ratelimit

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// writeCost is what a write costs: it holds the only writer of the database, a read does not.
const writeCost = 5

// maxPerPage is the longest page that PocketBase serves.
const maxPerPage = 1000

// class decides which quotas a request needs besides the user's.
type class int

const (
	outside class = iota // static files, the dashboard, health, preflights: stage 1 only
	general
	signIn
	refresh
	batch
)

// route is what stage 2 knows of a request from the pattern that the router matched. A pattern, unlike a path, cannot
// be spelled in two ways.
type route struct {
	class   class
	path    string
	account string // the member of the body that names the account or the session; empty when there is none
}

func routeOf(r *http.Request) route {
	_, path, _ := strings.Cut(r.Pattern, "/")
	path = "/" + path
	out := route{class: general, path: path}
	switch {
	case isHealth(path), r.Method == http.MethodOptions, !strings.HasPrefix(path, "/api/") && !strings.HasPrefix(r.URL.Path, "/api/"):
		out.class = outside
	case r.Method == http.MethodPost:
		out.class, out.account = postClass(path)
	}
	return out
}

func isHealth(path string) bool {
	return path == "/api/health" || path == "/api/v1/health" || strings.HasPrefix(path, "/api/v1/health/")
}

// postClass returns the class and the member of the body that names an account. Codes that were sent by mail stand for
// the account they were sent to.
func postClass(path string) (class, string) {
	switch path {
	case "/api/batch":
		return batch, ""
	case "/api/v1/auth/refresh":
		return refresh, "refreshToken"
	case "/api/v1/auth/token":
		return refresh, "refresh_token"
	case "/api/v1/auth/reauthenticate", "/api/v1/auth/exchange", "/api/v1/auth/anonymous",
		"/api/v1/auth/upgrade", "/api/auth/sync":
		return signIn, ""
	case "/api/v1/auth/totp/verify":
		return signIn, "mfaId"
	case "/api/v1/auth/totp/confirm", "/api/v1/auth/passkeys", "/api/v1/auth/passkeys/sign-in":
		return signIn, ""
	case "/api/v1/auth/passkeys/options/sign-in":
		return refresh, "" // a page that offers passkeys asks for one whenever it opens
	}
	switch action, _ := strings.CutPrefix(path, "/api/collections/{collection}/"); action {
	case "auth-refresh":
		return refresh, ""
	case "auth-with-password":
		return signIn, "identity"
	case "request-otp", "request-password-reset", "request-verification":
		return signIn, "email"
	case "auth-with-otp":
		return signIn, "otpId"
	case "confirm-password-reset", "confirm-verification", "confirm-email-change":
		return signIn, "token"
	case "auth-with-oauth2", "request-email-change":
		return signIn, ""
	}
	return general, ""
}

// cost is what the request takes from the quota of its user.
func (r route) cost(req *http.Request) int {
	switch {
	case r.class == signIn, r.class == refresh, r.path == "/api/realtime":
		return 1
	case req.Method == http.MethodGet, req.Method == http.MethodHead:
		return 1 + pageSize(req.URL)/100
	}
	return writeCost
}

// pageSize is the number of records that the client asks for, 0 when it leaves that to the server.
func pageSize(u *url.URL) int {
	if u.RawQuery == "" {
		return 0
	}
	query, size := u.Query(), 0
	for _, name := range []string{"perPage", "limit"} {
		if n, err := strconv.Atoi(query.Get(name)); err == nil {
			size = max(size, n)
		}
	}
	return min(size, maxPerPage)
}
