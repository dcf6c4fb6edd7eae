package sessions_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
)

// mails collects what is sent instead of sending it.
func (f *fixture) mails(t testing.TB) *tests.TestMailer {
	t.Helper()
	box := &tests.TestMailer{}
	f.OnMailerSend().BindFunc(func(e *core.MailerEvent) error { return box.Send(e.Message) })
	return box
}

// mailed is the token in the newest mail.
func mailed(t testing.TB, box *tests.TestMailer) string {
	t.Helper()
	eventually(t, "a mail", waitForMail, func() bool { return box.TotalSend() > 0 })
	text := box.LastMessage().HTML
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune("\"/<> \n", r) }) {
		if strings.Count(word, ".") == 2 && strings.HasPrefix(word, "eyJ") {
			return word
		}
	}
	t.Fatalf("no token in %s", text)
	return ""
}

// Whoever has a copy of the whole database, but not the master key, forges nothing: every kind of token, for a user and
// for an admin.
func TestStolenDatabaseForgesNothing(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	admin, _ := f.superuser(t)
	g := f.signIn(t, nil)
	note := f.protected(t, user)

	for name, record := range map[string]*core.Record{"user": user, "superuser": admin} {
		forge := func(token string, err error) string {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		auth := forge(record.NewAuthToken())
		// With the session of somebody who is signed in, and with a seal that was seen.
		withSession := func(more jwt.MapClaims) string {
			all := claims(t, auth)
			maps.Copy(all, more)
			out, err := jwt.NewWithClaims(jwt.SigningMethodHS256, all).SignedString([]byte(record.TokenKey() + record.Collection().AuthToken.Secret))
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		for kind, token := range map[string]string{
			"auth": auth, "static": forge(record.NewStaticAuthToken(0)), "session": withSession(jwt.MapClaims{"sid": g.SessionID}),
			"seal of another": withSession(jwt.MapClaims{"sid": g.SessionID, "exp": time.Now().Add(time.Hour).Unix(), "smac": claims(t, g.Stock)["smac"]}), "empty seal": withSession(jwt.MapClaims{"smac": ""}),
		} {
			if status := f.status(t, token); status != http.StatusUnauthorized {
				t.Errorf("%s, %s: %d", name, kind, status)
			}
			if r := f.Do(t, apptest.Request{Path: "/api/collections", Token: token}); r.Status == http.StatusOK {
				t.Errorf("%s, %s: an admin's route answers", name, kind)
			}
			if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/" + record.Collection().Name + "/auth-refresh", Token: token}); r.Status == http.StatusOK {
				t.Errorf("%s, %s: refreshed", name, kind)
			}
		}
		if r := f.Do(t, apptest.Request{Path: note + "?token=" + forge(record.NewFileToken())}); r.Status != http.StatusNotFound {
			t.Errorf("%s, file: %d", name, r.Status)
		}
		collection := "/api/collections/" + record.Collection().Name
		for path, body := range map[string]any{
			"/confirm-verification":   map[string]string{"token": forge(record.NewVerificationToken())},
			"/confirm-password-reset": map[string]string{"token": forge(record.NewPasswordResetToken()), "password": "another-password-1", "passwordConfirm": "another-password-1"},
			"/confirm-email-change":   map[string]string{"token": forge(record.NewEmailChangeToken("evil@example.test")), "password": apptest.Password},
		} {
			if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: collection + path, Body: body}); r.Status != http.StatusBadRequest {
				t.Errorf("%s, %s: %d %s", name, path, r.Status, r.Body)
			}
		}
	}
	f.works(t, "the user goes on", g.AccessToken, "")
}

// protected is the path of a protected file of the user.
func (f *fixture) protected(t testing.TB, user *core.Record) string {
	t.Helper()
	c, err := f.FindCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	record := core.NewRecord(c)
	record.Set("owner", user.Id)
	record.Set("file", apptestFile(t))
	save(t, f, record)
	return fmt.Sprintf("/api/files/notes/%s/%s", record.Id, record.GetString("file"))
}

// What this server hands out itself goes on working: the link for the first admin, the dashboard's login, mails, files.
func TestOwnStockTokensWork(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	box := f.mails(t)
	admin, _ := f.Superuser(t)

	installer, err := admin.NewStaticAuthToken(0)
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Do(t, apptest.Request{Path: "/api/collections", Token: f.sealed(t, admin, installer)}); r.Status != http.StatusOK {
		t.Errorf("the first admin's link: %d", r.Status)
	}
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/_superusers/auth-with-password", Body: map[string]string{"identity": admin.Email(), "password": apptest.Password}})
	if r.Status != http.StatusOK {
		t.Fatalf("dashboard: %d %s", r.Status, r.Body)
	}
	dashboard := grantOf(t, r)
	if r := f.Do(t, apptest.Request{Path: "/api/collections", Token: dashboard.Stock}); r.Status != http.StatusOK {
		t.Errorf("dashboard: %d", r.Status)
	}

	g := f.signIn(t, nil)
	note := f.protected(t, user)
	r = f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/files/token", Token: g.Stock})
	file, _ := r.JSON(t)["token"].(string)
	if r := f.Do(t, apptest.Request{Path: note + "?token=" + file}); r.Status != http.StatusOK {
		t.Errorf("file: %d %s", r.Status, r.Body)
	}
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Token: g.Stock}); r.Status != http.StatusNoContent {
		t.Fatal(r.Status)
	}
	if r := f.Do(t, apptest.Request{Path: note + "?token=" + file}); r.Status != http.StatusNotFound {
		t.Errorf("file token of an ended session: %d", r.Status)
	}

	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/request-password-reset", Body: map[string]string{"email": email}}); r.Status != http.StatusNoContent {
		t.Fatal(r.Status)
	}
	reset := map[string]string{"token": mailed(t, box), "password": "another-password-1", "passwordConfirm": "another-password-1"}
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/confirm-password-reset", Body: reset}); r.Status != http.StatusNoContent {
		t.Errorf("mailed reset: %d %s", r.Status, r.Body)
	}
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/confirm-password-reset", Body: reset}); r.Status != http.StatusBadRequest {
		t.Errorf("the same link again: %d", r.Status)
	}
}

func TestStockTokenModes(t *testing.T) {
	for mode, want := range map[string]struct{ plain, sealed, admin int }{
		sessions.StockOn:      {200, 200, 200},
		sessions.StockSidOnly: {401, 200, 200},
		sessions.StockOff:     {401, 401, 200},
	} {
		t.Run(mode, func(t *testing.T) {
			cfg := settings.Defaults[sessions.Config]()
			cfg.StockTokens = mode
			f := with(t, cfg)
			user, plain := f.User(t, email)
			if got := f.status(t, plain); got != want.plain {
				t.Errorf("plain: %d", got)
			}
			if got := f.status(t, f.sealed(t, user, plain)); got != want.sealed {
				t.Errorf("sealed: %d", got)
			}
			_, admin := f.superuser(t)
			if got := f.status(t, admin); got != want.admin {
				t.Errorf("admin: %d", got)
			}
			// Whatever the mode, the token in PocketBase's place of a sign-in works.
			f.works(t, "signed in", f.signIn(t, nil).Stock, "")
		})
	}
}

// A user is told of a new device, and of none that is known, whatever address it has now.
func TestNoticeOfNewDevice(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	user.Collection().AuthAlert.Enabled = true
	if err := f.Save(user.Collection()); err != nil {
		t.Fatal(err)
	}
	box := f.mails(t)
	phone := map[string]string{"X-Device-Id": "11111111-aaaa-4aaa", "User-Agent": "App/1"}
	f.signIn(t, phone)
	phone["User-Agent"] = "App/2" // an update, from another network
	f.signIn(t, phone)
	f.signIn(t, map[string]string{"X-Device-Id": "22222222-bbbb-4bbb", "User-Agent": "App/2", "X-Device-Name": "Eve's phone"})
	eventually(t, "the notice", waitForMail, func() bool { return box.TotalSend() == 1 })
	if message := box.LastMessage(); !strings.Contains(message.HTML, "Eve&#39;s phone") || message.To[0].Address != email {
		t.Errorf("%+v", message)
	}
}
