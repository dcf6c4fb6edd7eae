package sessions_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/filesystem"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
)

const waitForMail = 10 * time.Second

func apptestFile(t testing.TB) *filesystem.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.txt")
	if err := os.WriteFile(path, []byte("protected"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := filesystem.NewFileFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func (f *fixture) form(t testing.TB, path, auth string, values url.Values) apptest.Response {
	t.Helper()
	return f.Do(t, apptest.Request{
		Method: http.MethodPost, Path: "/api/v1/auth/" + path, Token: auth, Body: values.Encode(),
		Header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
	})
}

const resourceServer = "Basic eDpyZXNvdXJjZS1zZXJ2ZXI=" // x:resource-server

func TestTokenEndpoint(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	for name, c := range map[string]struct {
		values url.Values
		want   string
	}{
		"nothing":         {url.Values{}, "invalid_request"},
		"other grant":     {url.Values{"grant_type": {"password"}, "username": {"x"}}, "unsupported_grant_type"},
		"no token":        {url.Values{"grant_type": {"refresh_token"}}, "invalid_request"},
		"bad token":       {url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}}, "invalid_grant"},
		"parameter twice": {url.Values{"grant_type": {"refresh_token", "refresh_token"}, "refresh_token": {g.RefreshToken}}, "invalid_request"},
	} {
		r := f.form(t, "token", "", c.values)
		if r.Status != http.StatusBadRequest || r.JSON(t)["error"] != c.want || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s %v", name, r.Status, r.Body, r.Header)
		}
	}
	r := f.form(t, "token", "", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {g.RefreshToken}, "client_id": {"app"}})
	body := r.JSON(t)
	if r.Status != http.StatusOK || body["token_type"] != "Bearer" || body["expires_in"] != 900.0 || body["refresh_token"] == g.RefreshToken {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	f.works(t, "by the endpoint", body["access_token"].(string), "")
}

func TestRevokeEndpoint(t *testing.T) {
	f := start(t)
	f.User(t, email)
	for _, kind := range []string{"access", "refresh"} {
		g := f.signIn(t, nil)
		token := map[string]string{"access": g.AccessToken, "refresh": g.RefreshToken}[kind]
		for range 2 { // again is the same
			if r := f.form(t, "revoke", "", url.Values{"token": {token}}); r.Status != http.StatusOK {
				t.Errorf("%s: %d %s", kind, r.Status, r.Body)
			}
		}
		f.works(t, kind, g.AccessToken, sessions.ErrTokenRevoked.Name)
	}
	if r := f.form(t, "revoke", "", url.Values{"token": {"garbage"}}); r.Status != http.StatusOK {
		t.Errorf("garbage: %d", r.Status)
	}
	if r := f.form(t, "revoke", "", url.Values{}); r.Status != http.StatusBadRequest {
		t.Errorf("nothing: %d", r.Status)
	}
}

func TestIntrospection(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	g := f.signIn(t, nil)
	_, admin := f.superuser(t)
	ask := func(auth, token string) map[string]any {
		r := f.form(t, "introspect", auth, url.Values{"token": {token}})
		if r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		return r.JSON(t)
	}
	for name, token := range map[string]string{"access": g.AccessToken, "refresh": g.RefreshToken, "stock": g.Stock} {
		if got := ask(resourceServer, token); got["active"] != true || got["sub"] != user.Id || got["sid"] != g.SessionID || got["exp"] == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := ask(admin, g.AccessToken); got["active"] != true {
		t.Errorf("asked by an admin: %v", got)
	}
	f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Token: g.AccessToken})
	for name, token := range map[string]string{"access": g.AccessToken, "refresh": g.RefreshToken, "stock": g.Stock, "garbage": "x"} {
		if got := ask(resourceServer, token); got["active"] != false || len(got) != 1 {
			t.Errorf("%s after signing out: %v", name, got)
		}
	}
	other := f.signIn(t, nil)
	if r := f.form(t, "introspect", other.AccessToken, url.Values{"token": {other.AccessToken}}); r.Status != http.StatusUnauthorized {
		t.Errorf("asked by a user: %d", r.Status)
	}
}

func TestMetadata(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server", "/.well-known/jwks.json"} {
		r := f.Do(t, apptest.Request{Path: path})
		if r.Status != http.StatusOK || r.Header.Get("Cache-Control") != "public, max-age=600" || r.Header.Get("ETag") == "" {
			t.Errorf("%s: %d %v", path, r.Status, r.Header)
		}
		again := f.Do(t, apptest.Request{Path: path, Header: map[string]string{"If-None-Match": r.Header.Get("ETag")}})
		if again.Status != http.StatusNotModified {
			t.Errorf("%s again: %d", path, again.Status)
		}
	}
	body := f.Do(t, apptest.Request{Path: "/.well-known/openid-configuration"}).JSON(t)
	for _, name := range []string{"token_endpoint", "revocation_endpoint", "introspection_endpoint", "jwks_uri"} {
		endpoint, _ := body[name].(string)
		path := strings.TrimPrefix(endpoint, body["issuer"].(string))
		if r := f.Do(t, apptest.Request{Method: map[bool]string{true: http.MethodGet, false: http.MethodPost}[name == "jwks_uri"], Path: path}); r.Status == http.StatusNotFound {
			t.Errorf("%s: %s does not exist", name, path)
		}
	}
}

func TestRecentAuthentication(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	sensitive := func(token string) apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/sensitive", Token: token})
	}
	if r := sensitive(g.AccessToken); r.Status != http.StatusNoContent {
		t.Fatalf("right after signing in: %d %s", r.Status, r.Body)
	}
	f.exec(t, "UPDATE sessions_logins SET auth_at = 1", nil)
	if r := sensitive(g.AccessToken); r.Code() != sessions.ErrRecentAuth.Name {
		t.Fatalf("long after: %d %s", r.Status, r.Body)
	}
	reauth := func(body string) apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/reauthenticate", Token: g.AccessToken, Body: body})
	}
	for body, code := range map[string]string{
		`{"password":"wrong"}`: sessions.ErrWrongPassword.Name, `{}`: "api.validation_failed", `{"password":"x","otpId":"a","code":"b"}`: "api.validation_failed",
		`{"otpId":"a","code":"b"}`: sessions.ErrWrongPassword.Name,
	} {
		if r := reauth(body); r.Code() != code {
			t.Errorf("%s: %d %s", body, r.Status, r.Body)
		}
	}
	if r := reauth(`{"password":"` + apptest.Password + `"}`); r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	if r := sensitive(g.AccessToken); r.Status != http.StatusNoContent {
		t.Errorf("after the password: %d", r.Status)
	}
	// A refresh is no proof of anything.
	f.exec(t, "UPDATE sessions_logins SET auth_at = 1", nil)
	next, _ := f.refresh(t, g.RefreshToken)
	if r := sensitive(next.AccessToken); r.Status != http.StatusForbidden {
		t.Errorf("after a refresh: %d", r.Status)
	}
}

func TestReauthenticateByMailedCode(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	user.Collection().OTP.Enabled = true
	if err := f.Save(user.Collection()); err != nil {
		t.Fatal(err)
	}
	g := f.signIn(t, nil)
	code := func() string {
		otp := core.NewOTP(f.App)
		otp.SetCollectionRef(user.Collection().Id)
		otp.SetRecordRef(user.Id)
		otp.SetPassword("12345678")
		if err := f.Save(otp); err != nil {
			t.Fatal(err)
		}
		return otp.Id
	}
	try := func(id, value string) int {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/reauthenticate", Token: g.AccessToken, Body: map[string]string{"otpId": id, "code": value}}).Status
	}
	id := code()
	if got := try(id, "00000000"); got != http.StatusUnauthorized {
		t.Errorf("wrong: %d", got)
	}
	if got := try(id, "12345678"); got != http.StatusUnauthorized {
		t.Errorf("right, but spent by the wrong guess: %d", got)
	}
	if got := try(code(), "12345678"); got != http.StatusOK {
		t.Errorf("right: %d", got)
	}
}

func TestImpersonation(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	admin, token := f.superuser(t)
	begin := func(body map[string]any) apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/impersonate", Token: token, Body: body})
	}
	for name, body := range map[string]map[string]any{
		"no reason":    {"user": user.Id, "reason": " "},
		"unknown user": {"user": "nosuchuser00000", "reason": "x"},
		"an admin":     {"user": admin.Id, "collection": "_superusers", "reason": "x"},
	} {
		if r := begin(body); r.Status == http.StatusOK {
			t.Errorf("%s: %s", name, r.Body)
		}
	}
	r := begin(map[string]any{"user": user.Id, "reason": "ticket 7"})
	var got struct{ Data grant }
	if err := json.Unmarshal(r.Body, &got); err != nil || r.Status != http.StatusOK || got.Data.RefreshToken != "" || got.Data.ExpiresIn > 900 {
		t.Fatalf("%d %s %v", r.Status, r.Body, err)
	}
	act, _ := claims(t, got.Data.AccessToken)["act"].(map[string]any)
	if act["sub"] != admin.Id {
		t.Errorf("act %v", act)
	}
	f.works(t, "acting", got.Data.AccessToken, "")
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Token: got.Data.AccessToken}); r.Status != http.StatusNoContent {
		t.Errorf("the admin ends it: %d", r.Status)
	}
	if n := f.count(t, "SELECT count(*) FROM audit_entries WHERE action = 'sessions.ended' AND actor_id = '"+admin.Id+"' AND act_as = '"+user.Id+"'"); n != 1 {
		t.Errorf("%d entries name the admin who acted", n)
	}
	r = begin(map[string]any{"user": user.Id, "reason": "ticket 7"})
	if err := json.Unmarshal(r.Body, &got); err != nil {
		t.Fatal(err)
	}
	if f.audited(t, "sessions.impersonated") != 2 {
		t.Error("not audited")
	}
	external := core.NewExternalAuth(f.App)
	external.SetCollectionRef(user.Collection().Id)
	external.SetRecordRef(user.Id)
	external.SetProvider("google")
	external.SetProviderId("1")
	save(t, f, external.Record)
	for name, request := range map[string]apptest.Request{
		"password":     {Method: http.MethodPatch, Path: "/api/collections/users/records/" + user.Id, Body: `{"password":"another-password-1","passwordConfirm":"another-password-1","oldPassword":"` + apptest.Password + `"}`},
		"e-mail":       {Method: http.MethodPost, Path: "/api/collections/users/request-email-change", Body: `{"newEmail":"evil@example.test"}`},
		"deletion":     {Method: http.MethodDelete, Path: "/api/collections/users/records/" + user.Id},
		"reauth":       {Method: http.MethodPost, Path: "/api/v1/auth/reauthenticate", Body: `{"password":"` + apptest.Password + `"}`},
		"sensitive":    {Method: http.MethodPost, Path: "/api/v1/sensitive"},
		"other logout": {Method: http.MethodPost, Path: "/api/v1/auth/logout-all"},
		"refresh":      {Method: http.MethodPost, Path: "/api/collections/users/auth-refresh"},
		"OAuth2":       {Method: http.MethodPost, Path: "/api/collections/users/auth-with-oauth2", Body: `{"provider":"google","code":"x","redirectURL":"http://x"}`},
		"unlinking":    {Method: http.MethodDelete, Path: "/api/collections/_externalAuths/records/" + external.Id},
		"alias":        {Method: http.MethodPost, Path: "/api/auth/sync", Body: `{}`},
	} {
		request.Token = got.Data.AccessToken
		if r := f.Do(t, request); r.Status != http.StatusForbidden {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	// Harmless changes are allowed, unless it is for reading only.
	rename := apptest.Request{Method: http.MethodPatch, Path: "/api/collections/users/records/" + user.Id, Token: got.Data.AccessToken, Body: `{"name":"Ada"}`}
	if r := f.Do(t, rename); r.Status != http.StatusOK {
		t.Errorf("name: %d %s", r.Status, r.Body)
	}
	r = begin(map[string]any{"user": user.Id, "reason": "ticket 8", "readOnly": true})
	if err := json.Unmarshal(r.Body, &got); err != nil {
		t.Fatal(err)
	}
	rename.Token = got.Data.AccessToken
	if r := f.Do(t, rename); r.Status != http.StatusForbidden {
		t.Errorf("read-only: %d", r.Status)
	}
	f.works(t, "reading", got.Data.AccessToken, "")

	// PocketBase's own impersonation is put under the same limits.
	r = f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/impersonate/" + user.Id, Token: token, Body: `{"duration":86400}`})
	stock, _ := r.JSON(t)["token"].(string)
	f.works(t, "stock impersonation", stock, "")
	rename.Token, rename.Body = stock, `{"password":"another-password-1","passwordConfirm":"another-password-1"}`
	if r := f.Do(t, rename); r.Status < 400 {
		t.Errorf("stock impersonation changes the password: %d", r.Status)
	}
	f.exec(t, "UPDATE sessions_logins SET expires_at = expires_at - {:ms} WHERE actor <> ''", dbx.Params{"ms": (15 * time.Minute).Milliseconds()})
	f.exec(t, "INSERT INTO sessions_ended VALUES ('x', 1, 'bump')", nil)
	f.works(t, "after 15 minutes", stock, sessions.ErrTokenRevoked.Name)
}

// An admin whose credentials change acts for nobody any more, however the impersonation was begun.
func TestImpersonationEndsWithActor(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	admin, token := f.superuser(t)
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/impersonate", Token: token, Body: map[string]any{"user": user.Id, "reason": "ticket 7"}})
	var acting struct{ Data grant }
	if err := json.Unmarshal(r.Body, &acting); err != nil {
		t.Fatal(err)
	}
	r = f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/impersonate/" + user.Id, Token: token, Body: `{}`})
	stock, _ := r.JSON(t)["token"].(string)
	own := f.signIn(t, nil)
	f.works(t, "acting", acting.Data.AccessToken, "")
	f.works(t, "acting by the stock route", stock, "")

	admin.SetPassword("another-password-1")
	save(t, f, admin)
	f.works(t, "acting for somebody, after a change of the password", acting.Data.AccessToken, sessions.ErrTokenRevoked.Name)
	f.works(t, "the same by the stock route", stock, sessions.ErrTokenRevoked.Name)
	f.works(t, "the user", own.AccessToken, "")
}

func TestKeysRotate(t *testing.T) {
	f := start(t)
	f.User(t, email)
	before := f.signIn(t, nil)
	ring := signing.NewRing(f.App, f.vault, f.version, signing.EdDSA, time.Hour)
	states := func() map[signing.State]int {
		keys, err := ring.List()
		if err != nil {
			t.Fatal(err)
		}
		n := map[signing.State]int{}
		for _, k := range keys {
			n[k.State]++
		}
		return n
	}
	if n := states(); n[signing.Active] != 1 || n[signing.Standby] != 1 {
		t.Fatalf("%v", n)
	}
	if err := ring.Rotate(false); err != nil {
		t.Fatal(err)
	}
	if n := states(); n[signing.Active] != 1 || n[signing.Standby] != 1 || n[signing.Retired] != 1 {
		t.Fatalf("%v", n)
	}
	f.works(t, "signed by the retired key", before.AccessToken, "")
	if err := ring.Rotate(false); err != nil { // now the EdDSA key signs
		t.Fatal(err)
	}
	ed := f.signIn(t, nil)
	f.works(t, "EdDSA", ed.AccessToken, "")
	if !strings.Contains(string(f.Do(t, apptest.Request{Path: "/.well-known/jwks.json"}).Body), `"crv":"Ed25519"`) {
		t.Error("the EdDSA key is not published")
	}
	if err := ring.Rotate(true); err != nil {
		t.Fatal(err)
	}
	f.works(t, "signed by a dropped key", before.AccessToken, sessions.ErrTokenInvalid.Name)
	if next, r := f.refresh(t, before.RefreshToken); r.Status != http.StatusOK {
		t.Errorf("the session does not go on: %s", r.Body)
	} else {
		f.works(t, "refreshed", next.AccessToken, "")
	}
	// Time does the same by itself.
	f.exec(t, "UPDATE sessions_keys SET activated_at = 1 WHERE state = 'active'", nil)
	f.exec(t, "UPDATE sessions_keys SET retired_at = 1 WHERE state = 'retired'", nil)
	if err := ring.Maintain(); err != nil {
		t.Fatal(err)
	}
	if n := states(); n[signing.Active] != 1 || n[signing.Standby] != 1 || n[signing.Retired] != 1 {
		t.Errorf("%v", n)
	}
	// A key whose row was changed is refused, not used.
	f.exec(t, "UPDATE sessions_keys SET sealed = (SELECT sealed FROM sessions_keys WHERE state = 'standby') WHERE state = 'active'", nil)
	if _, err := ring.List(); err == nil {
		t.Error("a key in another's place opens")
	}
}
