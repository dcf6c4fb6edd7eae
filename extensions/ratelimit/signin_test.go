package ratelimit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

func signInAs(identity string) apptest.Request {
	return apptest.Request{
		Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-password",
		Body: map[string]any{"identity": identity, "password": "wrong-password"},
	}
}

// Every way to sign in is counted by address, under both of its paths together.
func TestSignInQuotaByAddress(t *testing.T) {
	paths := []string{"/api/v1/auth/exchange", "/api/v1/auth/anonymous", "/api/v1/auth/upgrade", "/api/auth/sync"}
	for _, action := range []string{
		"auth-with-password", "request-otp", "auth-with-otp", "auth-with-oauth2", "request-password-reset", "confirm-password-reset",
		"request-verification", "confirm-verification", "request-email-change", "confirm-email-change",
	} {
		paths = append(paths, "/api/collections/users/"+action)
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			app := start(t, func(c *Config) { c.Auth = 2 })
			post := apptest.Request{Method: http.MethodPost, Path: path, Body: `{"identity":"ann","email":"ann","otpId":"ann","token":"ann"}`}
			versioned := post
			versioned.Body = `{"identity":"bob","email":"bob","otpId":"bob","token":"bob"}`
			versioned.Path = strings.Replace(path, "/api/collections/", "/api/v1/collections/", 1)

			allowed(t, app, 1, from("192.0.2.1", post))
			got := allowed(t, app, 1, from("192.0.2.1", versioned))
			if name, q, w, r, reset := limits(t, got.Header); name != "auth" || q != 2 || w != 900 || r != 0 || reset < 899 {
				t.Errorf("headers %v", got.Header)
			}
			refused(t, app, from("192.0.2.1", post), "auth")
			refused(t, app, from("192.0.2.1", versioned), "auth")
			refused(t, app, from("192.0.2.1", apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/exchange"}), "auth")
			allowed(t, app, 1, from("192.0.2.1", get("/api/v1/collections/users/auth-methods")))
		})
	}
}

func TestSignInDefaults(t *testing.T) {
	app := start(t, func(*Config) {})
	for i := range 10 {
		allowed(t, app, 1, from("192.0.2.1", signInAs(fmt.Sprintf("user%d@example.test", i))))
	}
	refused(t, app, from("192.0.2.1", signInAs("another@example.test")), "auth")
	for i := range 10 {
		allowed(t, app, 1, from(fmt.Sprintf("192.0.2.%d", 100+i), signInAs("ann@example.test")))
	}
	refused(t, app, from("192.0.2.200", signInAs("ann@example.test")), "account")
}

func TestSignInQuotaByNetwork(t *testing.T) {
	app := start(t, func(c *Config) { c.Auth = 1 })
	for i := range 8 {
		allowed(t, app, 1, from(fmt.Sprintf("2001:db8:0:%x::1", i), signInAs(fmt.Sprintf("user%d@example.test", i))))
	}
	refused(t, app, from("2001:db8:0:99::1", signInAs("another@example.test")), "auth-network")
}

// An account is counted over all addresses, known or not, however the body is written.
func TestSignInQuotaByAccount(t *testing.T) {
	form := map[string]string{"Content-Type": formType}
	body := func(action, body string, header map[string]string) apptest.Request {
		return apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/" + action, Body: body, Header: header}
	}
	large := `{"pad":"` + strings.Repeat("x", maxSignInBody) + `","identity":"%s","password":"x"}`
	for _, c := range []struct {
		name    string
		first   apptest.Request
		second  apptest.Request
		another apptest.Request
	}{
		{"known account", signInAs("ann@example.test"), signInAs(" ANN@example.test "), signInAs("bob@example.test")},
		{"unknown account", signInAs("nobody@example.test"), signInAs("Nobody@Example.test"), signInAs("ann@example.test")},
		{"JSON and form", signInAs("ann"), body("auth-with-password", "identity=ann&password=x", form), signInAs("bob")},
		{"password and mail", signInAs("a@b.c"), body("request-otp", `{"email":"a@b.c"}`, nil), body("request-otp", `{"email":"a@b.d"}`, nil)},
		{
			"reset and verification",
			body("request-password-reset", `{"email":"a@b.c"}`, nil), body("request-verification", `{"email":"a@b.c"}`, nil), signInAs("ann"),
		},
		{
			"one-time password",
			body("auth-with-otp", `{"otpId":"one","password":"1"}`, nil), body("auth-with-otp", `{"otpId":"one","password":"2"}`, nil),
			body("auth-with-otp", `{"otpId":"two","password":"1"}`, nil),
		},
		{
			"mailed token",
			body("confirm-email-change", `{"token":"t","password":"1"}`, nil), body("confirm-email-change", `{"token":"t","password":"2"}`, nil),
			body("confirm-email-change", `{"token":"u","password":"1"}`, nil),
		},
		{
			"unreadable bodies share one account",
			body("auth-with-password", fmt.Sprintf(large, "ann"), nil), body("auth-with-password", `{"Identity":"bob","password":"x"}`, nil), signInAs("ann"),
		},
		{
			"the query does not stand in for what was not read",
			body("auth-with-password?identity=decoy1", "pad="+strings.Repeat("x", maxSignInBody)+"&identity=ann&password=x", form),
			body("auth-with-password?identity=decoy2", "pad="+strings.Repeat("x", maxSignInBody)+"&identity=ann&password=x", form), signInAs("ann"),
		},
		{
			"collection by name and id",
			signInAs("ann"),
			apptest.Request{Method: http.MethodPost, Path: "/api/collections/_pb_users_auth_/auth-with-password", Body: signInAs("ann").Body},
			apptest.Request{Method: http.MethodPost, Path: "/api/collections/_superusers/auth-with-password", Body: signInAs("ann").Body},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := start(t, func(c *Config) { c.Auth = 2 })
			app.User(t, "ann@example.test")
			allowed(t, app, 1, from("192.0.2.1", c.first))
			allowed(t, app, 1, from("192.0.2.2", c.second))
			refused(t, app, from("192.0.2.3", c.first), "account")
			refused(t, app, from("192.0.2.4", c.second), "account")
			allowed(t, app, 1, from("192.0.2.3", c.another))
		})
	}
}

// The quota of an account holds strangers back, never a device that the account knows; its address still counts.
func TestKnownDeviceIsNotLockedOut(t *testing.T) {
	cfg := settings.Defaults[Config]()
	cfg.Auth = 2
	known := func(e *core.RequestEvent, account string) bool {
		return account == "Ann@example.test" && e.Request.Header.Get("X-Device-Id") == "phone"
	}
	conventions := settings.Defaults[api.Config]()
	conventions.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	app := apptest.New(t, api.New(conventions), New(cfg, known, nil))
	as := func(identity, device string) apptest.Request {
		r := signInAs(identity)
		r.Header = map[string]string{"X-Device-Id": device}
		return r
	}
	allowed(t, app, 1, from("192.0.2.1", as("ann@example.test", "")))
	allowed(t, app, 1, from("192.0.2.2", as("ann@example.test", "")))
	refused(t, app, from("192.0.2.3", as("Ann@example.test", "")), "account")
	refused(t, app, from("192.0.2.3", as("Ann@example.test", "another")), "account")
	allowed(t, app, 2, from("192.0.2.4", as("Ann@example.test", "phone")))
	refused(t, app, from("192.0.2.4", as("Ann@example.test", "phone")), "auth")
}

func TestEmailChangeCountsForItsUser(t *testing.T) {
	app := start(t, func(c *Config) { c.Auth = 2 })
	_, ann := app.User(t, "ann@example.test")
	change := apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/request-email-change", Token: ann, Body: "{}"}
	allowed(t, app, 1, from("192.0.2.1", change))
	allowed(t, app, 1, from("192.0.2.2", change))
	refused(t, app, from("192.0.2.3", change), "account")
}

func TestRefusedAddressDoesNotUseUpAccounts(t *testing.T) {
	app := start(t, func(c *Config) { c.Auth = 2 })
	allowed(t, app, 2, from("192.0.2.1", signInAs("attacker@example.test")))
	refused(t, app, from("192.0.2.1", signInAs("attacker@example.test")), "auth") // the body is not even read
	for range 5 {
		refused(t, app, from("192.0.2.1", signInAs("ann@example.test")), "auth")
	}
	allowed(t, app, 1, from("192.0.2.2", signInAs("ann@example.test")))
	allowed(t, app, 1, from("192.0.2.3", signInAs("ann@example.test")))
}

// The limiter reads the body before the handler does; the handler must still get all of it.
func TestSignInStillWorks(t *testing.T) {
	multipart := "--b\r\nContent-Disposition: form-data; name=\"identity\"\r\n\r\nann@example.test\r\n" +
		"--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n" + apptest.Password + "\r\n--b--\r\n"
	padded := `{"pad":"` + strings.Repeat("x", 3*maxSignInBody) + `","identity":"ann@example.test","password":"` + apptest.Password + `"}`
	for _, c := range []struct{ name, contentType, body string }{
		{"json", "application/json", `{"identity":"ann@example.test","password":"` + apptest.Password + `"}`},
		{"form", formType, "identity=ann@example.test&password=" + apptest.Password},
		{"multipart", "multipart/form-data; boundary=b", multipart},
		{"longer than what is read", "application/json", padded},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := start(t, func(*Config) {})
			app.User(t, "ann@example.test")
			for _, path := range []string{"/api/collections/users/auth-with-password", "/api/v1/collections/users/auth-with-password"} {
				got := app.Do(t, apptest.Request{
					Method: http.MethodPost, Path: path, Body: c.body, Header: map[string]string{"Content-Type": c.contentType},
				})
				if got.Status != http.StatusOK || got.JSON(t)["token"] == "" {
					t.Errorf("%s: %d %s", path, got.Status, got.Body)
				}
			}
		})
	}
}
