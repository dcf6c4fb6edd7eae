package sessions_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
)

func start(t testing.TB) *apptest.App {
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), sessions.New())
}

const (
	list   = "/api/v1/collections/users/records"
	signIn = "/api/v1/collections/users/auth-with-password"
)

func TestBadCredentials(t *testing.T) {
	challenged := func(t testing.TB, _ *apptest.App, r apptest.Response) {
		t.Helper()
		if got := r.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer error="invalid_token"`) {
			t.Errorf("WWW-Authenticate %q", got)
		}
	}
	expired := func(t testing.TB, app *apptest.App, r *apptest.Request) {
		user, _ := app.User(t, "ada@example.test")
		token, err := user.NewStaticAuthToken(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2100 * time.Millisecond) // exp has whole seconds
		r.Token = "Bearer " + token
	}
	changed := func(t testing.TB, app *apptest.App, r *apptest.Request) {
		user, token := app.User(t, "ada@example.test")
		user.SetPassword("another-password")
		if err := app.Save(user); err != nil {
			t.Fatal(err)
		}
		r.Token = token
	}
	deleted := func(t testing.TB, app *apptest.App, r *apptest.Request) {
		user, token := app.User(t, "ada@example.test")
		if err := app.Delete(user); err != nil {
			t.Fatal(err)
		}
		r.Token = token
	}
	apptest.Run(t, start, []apptest.Scenario{
		{Name: "none", Request: apptest.Request{Path: list}, Status: 200},
		{Name: "good", Request: apptest.Request{Path: list}, Before: func(t testing.TB, app *apptest.App, r *apptest.Request) {
			_, r.Token = app.User(t, "ada@example.test")
		}, Status: 200, Contains: []string{"ada@example.test"}},
		{Name: "garbage", Request: apptest.Request{Path: list, Token: "garbage"}, Status: 401, Code: sessions.ErrTokenInvalid.Name, After: challenged},
		{Name: "another scheme", Request: apptest.Request{Path: list, Token: "Basic YTpi"}, Status: 401, Code: sessions.ErrTokenInvalid.Name},
		{Name: "expired", Request: apptest.Request{Path: list}, Before: expired, Status: 401, Code: sessions.ErrTokenExpired.Name, After: challenged},
		{Name: "password changed", Request: apptest.Request{Path: list}, Before: changed, Status: 401, Code: sessions.ErrTokenInvalid.Name},
		{Name: "user deleted", Request: apptest.Request{Path: list}, Before: deleted, Status: 401, Code: sessions.ErrTokenInvalid.Name},
		{Name: "a guest below /api, as stock", Request: apptest.Request{Path: "/api/collections/users/records", Token: "garbage"}, Status: 200},
		{Name: "batch", Request: apptest.Request{Method: "POST", Path: "/api/v1/batch", Token: "garbage", Body: `{"requests":[]}`}, Status: 401},
		{Name: "realtime", Request: apptest.Request{Method: "POST", Path: "/api/v1/realtime", Token: "garbage", Body: `{}`}, Status: 401},
		{Name: "unknown route", Request: apptest.Request{Path: "/api/v1/nothing", Token: "garbage"}, Status: 401},
		{Name: "refresh of a bad token", Request: apptest.Request{Method: "POST", Path: "/api/v1/collections/users/auth-refresh", Token: "garbage"}, Status: 401},
		{Name: "auth methods", Request: apptest.Request{Path: "/api/v1/collections/users/auth-methods", Token: "garbage"}, Status: 200},
		{Name: "password reset", Request: apptest.Request{Method: "POST", Path: "/api/v1/collections/users/request-password-reset", Token: "garbage", Body: `{"email":"nobody@example.test"}`}, Status: http.StatusNoContent},
		{
			Name: "sign in again with an old token still attached", Request: apptest.Request{Method: "POST", Path: signIn, Token: "garbage", Body: `{"identity":"ada@example.test","password":"` + apptest.Password + `"}`},
			Before: func(t testing.TB, app *apptest.App, _ *apptest.Request) { app.User(t, "ada@example.test") }, Status: 200,
		},
	})
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
