package sessions_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/settings"
)

func TestBadCredentials(t *testing.T) {
	challenged := func(t testing.TB, r apptest.Response) {
		t.Helper()
		if got := r.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer error="invalid_token"`) {
			t.Errorf("WWW-Authenticate %q", got)
		}
	}
	good := func(t *testing.T, f *fixture) string { _, token := f.sealedUser(t); return token }
	unsealed := func(t *testing.T, f *fixture) string { _, token := f.User(t, email); return token }
	expired := func(t *testing.T, f *fixture) string {
		user, _ := f.User(t, email)
		token, err := user.NewStaticAuthToken(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		token = f.sealed(t, user, token)
		time.Sleep(2100 * time.Millisecond) // exp has whole seconds
		return "Bearer " + token
	}
	changed := func(t *testing.T, f *fixture) string {
		user, token := f.sealedUser(t)
		user.SetPassword("another-password")
		if err := f.Save(user); err != nil {
			t.Fatal(err)
		}
		return token
	}
	deleted := func(t *testing.T, f *fixture) string {
		user, token := f.sealedUser(t)
		if err := f.Delete(user); err != nil {
			t.Fatal(err)
		}
		return token
	}
	garbage := func(*testing.T, *fixture) string { return "garbage" }
	get := func(path string) apptest.Request { return apptest.Request{Path: path} }
	post := func(path, body string) apptest.Request {
		return apptest.Request{Method: http.MethodPost, Path: path, Body: body}
	}
	for name, c := range map[string]struct {
		request apptest.Request
		token   func(t *testing.T, f *fixture) string
		status  int
		code    string
	}{
		"none":                         {get(list), func(*testing.T, *fixture) string { return "" }, 200, ""},
		"good":                         {get(list), good, 200, ""},
		"without the seal":             {get(list), unsealed, 401, sessions.ErrTokenInvalid.Name},
		"without the seal, as stock":   {get("/api/collections/users/records"), unsealed, 200, ""},
		"garbage":                      {get(list), garbage, 401, sessions.ErrTokenInvalid.Name},
		"another scheme":               {get(list), func(*testing.T, *fixture) string { return "Basic YTpi" }, 401, sessions.ErrTokenInvalid.Name},
		"expired":                      {get(list), expired, 401, sessions.ErrTokenExpired.Name},
		"password changed":             {get(list), changed, 401, sessions.ErrTokenInvalid.Name},
		"user deleted":                 {get(list), deleted, 401, sessions.ErrTokenInvalid.Name},
		"a guest below /api, as stock": {get("/api/collections/users/records"), garbage, 200, ""},
		"batch":                        {post("/api/v1/batch", `{"requests":[]}`), garbage, 401, ""},
		"realtime":                     {post("/api/v1/realtime", `{}`), garbage, 401, ""},
		"unknown route":                {get("/api/v1/nothing"), garbage, 401, ""},
		"refresh of a bad token":       {post("/api/v1/collections/users/auth-refresh", ""), garbage, 401, ""},
		"auth methods":                 {get("/api/v1/collections/users/auth-methods"), garbage, 200, ""},
		"password reset":               {post("/api/v1/collections/users/request-password-reset", `{"email":"nobody@example.test"}`), garbage, 204, ""},
		"sign in with an old one":      {post(signIn, `{"identity":"`+email+`","password":"`+apptest.Password+`"}`), func(t *testing.T, f *fixture) string { f.User(t, email); return "garbage" }, 200, ""},
		"refresh with an old one":      {post("/api/v1/auth/refresh", `{"refreshToken":"x"}`), garbage, 401, sessions.ErrRefreshInvalid.Name},
		"discovery with an old one":    {get("/.well-known/jwks.json"), garbage, 200, ""},
		"own route without a token":    {get("/api/v1/auth/sessions"), func(*testing.T, *fixture) string { return "" }, 401, "api.unauthorized"},
		"sign out without a token":     {post("/api/v1/auth/logout", ""), func(*testing.T, *fixture) string { return "" }, 204, ""},
		"sign out with an old one":     {post("/api/v1/auth/logout", ""), garbage, 204, ""},
		"unknown members are told":     {post("/api/v1/auth/refresh", `{"refresh_token":"x"}`), garbage, 400, "api.validation_failed"},
		"a body that is not JSON":      {post("/api/v1/auth/refresh", `refreshToken=x`), garbage, 400, "api.body_malformed"},
		"a wrong type":                 {post("/api/v1/auth/refresh", `{"refreshToken":5}`), garbage, 400, "api.validation_failed"},
		"introspection without a key":  {post("/api/v1/auth/introspect", "token=x"), func(*testing.T, *fixture) string { return "" }, 401, "api.unauthorized"},
		"impersonation by a user":      {post("/api/v1/auth/impersonate", `{}`), good, 403, "api.forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			c.request.Token = c.token(t, f)
			r := f.Do(t, c.request)
			if r.Status != c.status || c.code != "" && r.Code() != c.code {
				t.Fatalf("%d %s, want %d %s", r.Status, r.Body, c.status, c.code)
			}
			if strings.HasPrefix(c.code, "sessions.token_") {
				challenged(t, r)
			}
		})
	}
}

// A collection or record that is named like an authentication method must not open a way around the check.
func TestNoWayAround(t *testing.T) {
	app := start(t)
	if err := app.Save(core.NewBaseCollection("auth")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/api/v1/collections/auth/records", "/api/v1/collections/auth/records/auth-1", "/api/v1/collections/users/records/confirm-x",
		"/api/v1/collections/users//auth-methods",
	} {
		if r := app.Do(t, apptest.Request{Path: path, Token: "garbage"}); r.Status == 200 {
			t.Errorf("%s: status %d", path, r.Status)
		}
	}
}

// Every remembered token stands on the state of the table of ends, so what ends nothing must leave it alone.
func TestWhatEndsNothingDisturbsNobody(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	// A version that cannot be told never comes again, so two equal ones are the true one.
	ends := func() uint64 {
		for {
			if v := f.version("sessions_ended"); v == f.version("sessions_ended") {
				return v
			}
		}
	}
	before := ends()
	f.signIn(t, nil)
	if ends() != before {
		t.Error("a sign-in makes all tokens be verified again")
	}
	f.exec(t, "DELETE FROM sessions_logins WHERE id <> {:id}", dbx.Params{"id": g.SessionID})
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/sessions/revoke-others", Token: g.AccessToken}); r.Status != http.StatusNoContent {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	if ends() != before {
		t.Error("ending no other session makes all tokens be verified again")
	}
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Token: g.AccessToken}); r.Status != http.StatusNoContent {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	if ends() == before {
		t.Error("a session has ended, and the table of ends has the state of before")
	}
}

// Renewing a stock token is a use of the session, noted with an accuracy of a minute or of a tenth of the idle life.
func TestStockRefreshIsNoted(t *testing.T) {
	day := login.Lifetimes{"": 24 * time.Hour}
	for name, c := range map[string]struct {
		idle   login.Lifetimes
		ago    time.Duration
		header map[string]string
		noted  bool
	}{
		"a moment ago":                     {day, 20 * time.Second, nil, false},
		"minutes ago":                      {day, 2 * time.Minute, nil, true},
		"a moment ago, of a short session": {login.Lifetimes{"": time.Minute}, 20 * time.Second, nil, true},
		"a moment ago, by another name":    {day, 20 * time.Second, map[string]string{login.DeviceNameHeader: "Ada's phone"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := settings.Defaults[sessions.Config]()
			cfg.IdleLifetime = c.idle
			f := with(t, cfg)
			f.User(t, email)
			g := f.signIn(t, nil)
			used := time.Now().Add(-c.ago).UnixMilli()
			f.exec(t, "UPDATE sessions_logins SET used_at = {:used}", dbx.Params{"used": used})
			if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/auth-refresh", Token: g.Stock, Header: c.header}); r.Status != http.StatusOK {
				t.Fatalf("%d %s", r.Status, r.Body)
			}
			if got := int64(f.count(t, "SELECT used_at FROM sessions_logins")); (got != used) != c.noted {
				t.Errorf("noted: %v, want %v", got != used, c.noted)
			}
		})
	}
}
