package totp_test

import (
	"bytes"
	"encoding/base64"
	"image/png"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	factor "github.com/satchelbase/satchel/extensions/totp"
)

// authenticate ends in PocketBase's answer for whatever method a feature may bring.
func authenticate(e *core.RequestEvent) error {
	record, err := e.App.FindAuthRecordByEmail("users", ada)
	if err != nil {
		return err
	}
	return apis.RecordAuthResponse(e, record, e.Request.PathValue("method"), nil)
}

func TestEnrolAndSignIn(t *testing.T) {
	w := start(t)
	record, token := w.User(t, ada)
	status := func() map[string]any { return data(t, w.Do(t, apptest.Request{Path: enrol, Token: token})) }
	if s := status(); s["enabled"] != false || s["confirmedAt"] != nil || s["recoveryCodesLeft"] != 0.0 {
		t.Errorf("status before: %v", s)
	}
	began := w.Do(t, apptest.Request{Method: "POST", Path: enrol, Token: token, Body: "{}"})
	want(t, began, 201, "")
	u := &user{Record: record, token: token, secret: data(t, began)["secret"].(string)}
	uri, err := url.Parse(data(t, began)["uri"].(string))
	if err != nil || uri.Scheme != "otpauth" || uri.Host != "totp" || uri.Query().Get("secret") != u.secret || !strings.HasSuffix(uri.Path, ":"+ada) {
		t.Errorf("uri %s: %v", uri, err)
	}
	picture, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(data(t, began)["qr"].(string), "data:image/png;base64,"))
	if err != nil {
		t.Fatal(err)
	}
	if img, err := png.Decode(bytes.NewReader(picture)); err != nil || img.Bounds().Dx() != 240 {
		t.Errorf("picture: %v", err)
	}

	// An enrolment that is not confirmed changes nothing.
	if s := status(); s["enabled"] != false {
		t.Errorf("status while enrolling: %v", s)
	}
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: "/test/auth/password"}), 200, "")

	want(t, w.Do(t, apptest.Request{Method: "POST", Path: confirm, Token: token, Body: code(u.wrong(t))}), 400, factor.ErrCode.Name)
	used := u.code(t, 0)
	done := w.Do(t, apptest.Request{Method: "POST", Path: confirm, Token: token, Body: code(used)})
	want(t, done, 200, "")
	if got := done.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	if codes := data(t, done)["recoveryCodes"].([]any); len(codes) != 10 {
		t.Errorf("recovery codes: %v", codes)
	}
	if s := status(); s["enabled"] != true || s["recoveryCodesLeft"] != 10.0 {
		t.Errorf("status after: %v", s)
	}

	// The first step answers as PocketBase's own does, byte for byte, and makes neither token nor session.
	made := len(w.sessions())
	step := w.Do(t, apptest.Request{Method: "POST", Path: signIn, Body: map[string]any{"identity": ada, "password": apptest.Password}})
	id, _ := step.JSON(t)["mfaId"].(string)
	if step.Status != 401 || string(step.Body) != `{"mfaId":"`+id+`"}` || step.Header.Get("WWW-Authenticate") != "TOTP" || step.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("first step: %d %v %s", step.Status, step.Header, step.Body)
	}
	if got := w.sessions(); len(got) != made {
		t.Errorf("sessions of the first step: %v", got)
	}

	// The code that confirmed the enrolment was used.
	want(t, w.second(t, id, code(used)), 400, factor.ErrCode.Name)
	in := w.second(t, id, code(u.code(t, 1)))
	want(t, in, 200, "")
	body := in.JSON(t)
	if got := body["record"].(map[string]any); got["id"] != record.Id || got["email"] != ada || body["token"] == "" || len(body) != 2 {
		t.Errorf("answer: %s", in.Body)
	}
	if got := w.sessions(); len(got) != made+1 || got[made] != factor.Method {
		t.Errorf("sessions: %v", got)
	}
	if n := w.count(t, "_mfas", nil); n != 0 {
		t.Errorf("%d mfas are left", n)
	}
	want(t, w.second(t, id, recovery(data(t, done)["recoveryCodes"].([]any)[0].(string))), 400, factor.ErrMFA.Name)
	wantActions := []string{"totp.enabled success " + ada, "totp.verified denied " + ada, "totp.verified success " + ada}
	if got := w.actions(); !slices.Equal(got, wantActions) {
		t.Errorf("audited %q, want %q", got, wantActions)
	}
}

// Whatever the method, the first step is not a sign-in; what is none, or two factors by itself, passes.
func TestGateByMethod(t *testing.T) {
	w := start(t)
	w.enrolled(t, ada)
	for method, status := range map[string]int{
		"password": 401, "otp": 401, "oauth2": 401, "exchange": 401, "anything": 401,
		"totp":    401, // no code was checked in this request
		"passkey": 200, "": 200,
	} {
		r := w.Do(t, apptest.Request{Method: "POST", Path: "/test/auth/" + method})
		if r.Status != status || (status == 401) != strings.HasPrefix(string(r.Body), `{"mfaId":"`) {
			t.Errorf("%q: %d %s", method, r.Status, r.Body)
		}
	}
	slices.Sort(w.issued)
	if !slices.Equal(w.issued, []string{"", "passkey"}) {
		t.Errorf("sessions: %q", w.issued)
	}
}

// With PocketBase's own MFA on, a code is the second step for it too, and its second step is no way around the code.
func TestWithStockMFA(t *testing.T) {
	w := start(t)
	users, err := w.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.MFA.Enabled, users.OTP.Enabled = true, true
	if err := w.Save(users); err != nil {
		t.Fatal(err)
	}
	u := w.enrolled(t, ada)
	id := w.first(t, ada)
	in := w.second(t, id, code(u.code(t, 0)))
	want(t, in, 200, "")
	if got := w.sessions(); !slices.Equal(got, []string{factor.Method}) {
		t.Errorf("sessions: %q", got)
	}
	if n := w.count(t, "_mfas", nil); n != 0 {
		t.Errorf("%d mfas are left", n)
	}

	otp := core.NewOTP(w)
	otp.SetCollectionRef(u.Collection().Id)
	otp.SetRecordRef(u.Id)
	otp.SetPassword("12345678")
	if err := w.Save(otp); err != nil {
		t.Fatal(err)
	}
	around := w.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/collections/users/auth-with-otp", Body: map[string]any{
		"otpId": otp.Id, "password": "12345678", "mfaId": w.first(t, ada),
	}})
	if around.Status != 401 || around.JSON(t)["mfaId"] == nil {
		t.Fatalf("second stock step: %d %s", around.Status, around.Body)
	}
	w.forget(t)
	want(t, w.second(t, around.JSON(t)["mfaId"].(string), code(u.code(t, 0))), 200, "")

	// Users without a code have PocketBase's flow alone, and its mfaId is of no use here.
	w.User(t, "bob@example.test")
	want(t, w.second(t, w.first(t, "bob@example.test"), code("123456")), 400, factor.ErrMFA.Name)
}

func TestFiveTries(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	id := w.first(t, ada)
	for range 5 {
		want(t, w.second(t, id, recovery("AAAAA-AAAAA")), 400, factor.ErrCode.Name)
	}
	want(t, w.second(t, id, recovery(u.recovery[0])), 400, factor.ErrMFA.Name)
	if n := w.count(t, "_mfas", nil); n != 0 {
		t.Errorf("%d mfas are left", n)
	}
	want(t, w.second(t, w.first(t, ada), recovery(u.recovery[0])), 200, "")
}

// The failures of a user count over all mfaIds; the lock is in the database and doubles.
func TestLock(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	fail := func(n int) {
		t.Helper()
		for range n {
			want(t, w.second(t, w.first(t, ada), code(u.wrong(t))), 400, factor.ErrCode.Name)
		}
	}
	locked := func(least, most time.Duration) {
		t.Helper()
		r := w.second(t, w.first(t, ada), code(u.code(t, 0)))
		want(t, r, 429, factor.ErrLocked.Name)
		if after, err := time.ParseDuration(r.Header.Get("Retry-After") + "s"); err != nil || after < least || after > most {
			t.Errorf("Retry-After %v, want %v to %v: %v", after, least, most, err)
		}
	}
	fail(5)
	locked(4*time.Minute, 5*time.Minute)
	w.exec(t, "UPDATE totp_secrets SET locked_until = 0")
	fail(5)
	locked(9*time.Minute, 10*time.Minute)
	want(t, w.Do(t, apptest.Request{Method: "DELETE", Path: enrol, Token: u.token, Body: code(u.code(t, 0))}), 429, factor.ErrLocked.Name)
	w.exec(t, "UPDATE totp_secrets SET locked_until = 0, failures = 10004")
	fail(1)
	locked(23*time.Hour, 24*time.Hour)

	// A recovery code gets the user in and ends the lock.
	want(t, w.second(t, w.first(t, ada), recovery(u.recovery[3])), 200, "")
	want(t, w.second(t, w.first(t, ada), code(u.code(t, 0))), 200, "")
}

func TestCodesWorkOnce(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	now := u.code(t, 0)
	ids := []string{w.first(t, ada), w.first(t, ada), w.first(t, ada), w.first(t, ada)}
	statuses := make([]int, len(ids))
	var group sync.WaitGroup
	for i, id := range ids {
		group.Go(func() { statuses[i] = w.second(t, id, code(now)).Status })
	}
	group.Wait()
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{200, 400, 400, 400}) {
		t.Errorf("one code at once: %v", statuses)
	}
	want(t, w.second(t, w.first(t, ada), code(u.code(t, -1))), 400, factor.ErrCode.Name) // older than the last
	w.forget(t)
	want(t, w.second(t, w.first(t, ada), code(u.code(t, 3))), 400, factor.ErrCode.Name)
	want(t, w.second(t, w.first(t, ada), code(u.code(t, -3))), 400, factor.ErrCode.Name)

	sloppy := " " + strings.ToLower(strings.ReplaceAll(u.recovery[0], "-", " – "))
	want(t, w.second(t, w.first(t, ada), recovery(sloppy)), 200, "")
	want(t, w.second(t, w.first(t, ada), recovery(u.recovery[0])), 400, factor.ErrCode.Name)
	if left := data(t, w.Do(t, apptest.Request{Path: enrol, Token: u.token}))["recoveryCodesLeft"]; left != 9.0 {
		t.Errorf("%v recovery codes are left", left)
	}
	renewed := w.Do(t, apptest.Request{Method: "POST", Path: renew, Token: u.token})
	want(t, renewed, 200, "")
	want(t, w.second(t, w.first(t, ada), recovery(u.recovery[1])), 400, factor.ErrCode.Name)
	want(t, w.second(t, w.first(t, ada), recovery(data(t, renewed)["recoveryCodes"].([]any)[9].(string))), 200, "")
}

func TestHostileSecondSteps(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	eve := w.enrolled(t, "eve@example.test")
	id := w.first(t, ada)
	good := u.code(t, 1)
	want(t, w.second(t, id, code(eve.code(t, 0))), 400, factor.ErrCode.Name)
	want(t, w.second(t, id, recovery(eve.recovery[0])), 400, factor.ErrCode.Name)
	want(t, w.second(t, "0123456789abcde", code(good)), 400, factor.ErrMFA.Name)
	want(t, w.second(t, id, nil), 400, "api.validation_failed")
	want(t, w.second(t, id, map[string]any{"code": good, "recoveryCode": u.recovery[0]}), 400, "api.validation_failed")
	r := w.Do(t, apptest.Request{Method: "POST", Path: verify, Body: map[string]any{"code": 123456, "mfa": id}})
	want(t, r, 400, "api.validation_failed")
	if problems := r.JSON(t)["errors"].([]any); len(problems) != 3 {
		t.Errorf("problems: %s", r.Body)
	}

	// An expired first step, and one from before the password changed.
	w.exec(t, "UPDATE _mfas SET created = '2020-01-01 00:00:00.000Z' WHERE id = '"+id+"'")
	want(t, w.second(t, id, code(good)), 400, factor.ErrMFA.Name)
	id = w.first(t, ada)
	u.SetPassword("another-long-password")
	if err := w.Save(u.Record); err != nil {
		t.Fatal(err)
	}
	want(t, w.second(t, id, code(good)), 400, factor.ErrMFA.Name)
}

func TestWhoMayEnrol(t *testing.T) {
	w := start(t)
	_, root := w.Superuser(t)
	u := w.enrolled(t, ada)
	for _, c := range []struct {
		method, path, token string
		body                any
		status              int
		code                string
	}{
		{"POST", enrol, "", nil, 401, "api.unauthorized"},
		{"GET", enrol, "", nil, 401, "api.unauthorized"},
		{"POST", confirm, "", nil, 401, "api.unauthorized"},
		{"DELETE", enrol, "", nil, 401, "api.unauthorized"},
		{"POST", renew, "", nil, 401, "api.unauthorized"},
		{"POST", enrol, root, nil, 403, factor.ErrCollection.Name},
		{"POST", enrol, u.token, nil, 409, factor.ErrEnabled.Name},
		{"POST", confirm, u.token, code("123456"), 409, factor.ErrEnabled.Name},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			want(t, w.Do(t, apptest.Request{Method: c.method, Path: c.path, Token: c.token, Body: c.body}), c.status, c.code)
		})
	}
	_, bob := w.User(t, "bob@example.test")
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: confirm, Token: bob, Body: code("123456")}), 409, factor.ErrNotBegun.Name)
	want(t, w.Do(t, apptest.Request{Method: "DELETE", Path: enrol, Token: bob, Body: code("123456")}), 409, factor.ErrNotEnabled.Name)
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: renew, Token: bob}), 409, factor.ErrNotEnabled.Name)
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: enrol, Token: bob}), 201, "")
	w.exec(t, "UPDATE totp_secrets SET created_at = 0 WHERE confirmed_at = 0")
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: confirm, Token: bob, Body: code("123456")}), 409, factor.ErrNotBegun.Name)

	w.stale = true
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: enrol, Token: bob}), 403, "api.forbidden")
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: renew, Token: u.token}), 403, "api.forbidden")
	want(t, w.Do(t, apptest.Request{Method: "DELETE", Path: enrol, Token: u.token, Body: code(u.code(t, 0))}), 403, "api.forbidden")
	w.stale = false
	want(t, w.Do(t, apptest.Request{Method: "DELETE", Path: enrol, Token: u.token, Body: code(u.wrong(t))}), 400, factor.ErrCode.Name)
	want(t, w.Do(t, apptest.Request{Method: "DELETE", Path: enrol, Token: u.token, Body: code(u.code(t, 0))}), 204, "")
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: "/test/auth/password"}), 200, "")
	if got := w.actions(); !slices.Contains(got, "totp.disabled denied "+ada) || !slices.Contains(got, "totp.disabled success "+ada) {
		t.Errorf("audited: %q", got)
	}
}

// What the database holds is of no use without the key, and of none in another user's row.
func TestStoredSecrets(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	eve := w.enrolled(t, "eve@example.test")
	var sealed string
	if err := w.DB().Select("secret").From("totp_secrets").Where(dbx.HashExp{"record": u.Id}).Row(&sealed); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(sealed, u.secret) {
		t.Error("the secret is stored as it is")
	}
	w.exec(t, "UPDATE totp_secrets SET secret = (SELECT secret FROM totp_secrets WHERE record = '"+eve.Id+"') WHERE record = '"+u.Id+"'")
	want(t, w.second(t, w.first(t, ada), code(eve.code(t, 0))), 500, "api.internal")
	w.exec(t, "DELETE FROM totp_codes WHERE record = '"+u.Id+"'")
	w.exec(t, "UPDATE totp_codes SET record = '"+u.Id+"'")
	want(t, w.second(t, w.first(t, ada), recovery(eve.recovery[0])), 400, factor.ErrCode.Name)
}

func TestRowsGoWithTheirOwner(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	eve := w.enrolled(t, "eve@example.test")
	if err := w.Delete(u.Record); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"totp_secrets", "totp_codes"} {
		if w.count(t, table, dbx.HashExp{"record": u.Id}) != 0 || w.count(t, table, dbx.HashExp{"record": eve.Id}) == 0 {
			t.Errorf("%s after the user was deleted", table)
		}
	}
	if err := w.Delete(eve.Collection()); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"totp_secrets", "totp_codes"} {
		if n := w.count(t, table, nil); n != 0 {
			t.Errorf("%s has %d rows after the collection was deleted", table, n)
		}
	}
}

func TestResetCommand(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	x := factor.New(settings.Defaults[factor.Config](), factor.Deps{Vault: newVault(t)})
	run := func(args ...string) (string, error) {
		c := x.Commands(&extensions.Host{App: w.App.App})[0]
		var out bytes.Buffer
		c.SetOut(&out)
		c.SetErr(&out)
		c.SilenceUsage = true
		c.SetArgs(args)
		err := c.Execute()
		return out.String(), err
	}
	if out, err := run("reset", "nobody@example.test"); err == nil {
		t.Errorf("unknown user: %s", out)
	}
	if out, err := run("reset", ada); err != nil || !strings.Contains(out, ada) {
		t.Errorf("reset: %v %s", err, out)
	}
	if out, err := run("reset", ada); err == nil {
		t.Errorf("reset again: %s", out)
	}
	r := w.Do(t, apptest.Request{Method: http.MethodPost, Path: signIn, Body: map[string]any{"identity": u.Email(), "password": apptest.Password}})
	want(t, r, 200, "")
}

// codeByMail makes the one-time password that PocketBase would send to the address.
func codeByMail(t testing.TB, app core.App, user *core.Record) map[string]any {
	t.Helper()
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.OTP.Enabled = true
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	otp := core.NewOTP(app)
	otp.SetCollectionRef(users.Id)
	otp.SetRecordRef(user.Id)
	otp.SetSentTo(user.Email())
	otp.SetPassword("12345678")
	if err := app.Save(otp); err != nil {
		t.Fatal(err)
	}
	return map[string]any{"otpId": otp.Id, "password": "12345678"}
}

// Somebody signs up with another's address and enrols. When the owner of the address signs in by a code that was mailed
// there, nobody is asked for that other person's code.
func TestTakeover(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	eve := w.enrolled(t, "eve@example.test")
	w.exec(t, "UPDATE users SET verified = FALSE WHERE id = '"+u.Id+"'")
	for email, status := range map[string]int{ada: 200, "eve@example.test": 401} {
		record, err := w.FindAuthRecordByEmail("users", email)
		if err != nil {
			t.Fatal(err)
		}
		r := w.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/collections/users/auth-with-otp", Body: codeByMail(t, w, record)})
		want(t, r, status, "")
	}
	if got := w.actions(); !slices.Contains(got, "totp.dropped success "+ada) {
		t.Errorf("audited: %q", got)
	}
	if on, err := factor.Enabled(w, eve.Record); err != nil || !on {
		t.Errorf("eve: %v %v", on, err)
	}
}

// A user who was deleted behind the back of the hooks has no second step.
func TestOrphan(t *testing.T) {
	w := start(t)
	u := w.enrolled(t, ada)
	id := w.first(t, ada)
	w.exec(t, "DELETE FROM users WHERE id = '"+u.Id+"'")
	want(t, w.second(t, id, code(u.code(t, 0))), 400, factor.ErrMFA.Name)
}
