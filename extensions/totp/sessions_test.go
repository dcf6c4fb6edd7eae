package totp_test

import (
	"bytes"
	"net/http"
	"slices"
	"testing"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
	factor "github.com/satchelbase/satchel/extensions/totp"
)

// With the real sessions, vault and audit: the first step leaves no session behind, the second has one in its answer,
// and enrolment wants a recent sign-in.
func TestWithSessions(t *testing.T) {
	vault := secret.Fixed(bytes.Repeat([]byte{7}, secret.KeySize))
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := audit.NewLog(vault)
	sess := sessions.New(settings.Defaults[sessions.Config](), sessions.Deps{Vault: vault, Audit: log.Append, Version: db.TableVersion})
	cache := settings.Defaults[authcache.Config]()
	w := &world{App: apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), audit.New(audit.Config{}, log, nil),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, sess.Verify)), sess.Extension(),
		factor.New(settings.Defaults[factor.Config](), factor.Deps{Vault: vault, Recent: sess.RequireRecent(), Audit: log.Note}))}
	record, foreign := w.User(t, ada)
	if r := w.Do(t, apptest.Request{Method: "POST", Path: enrol, Token: foreign}); r.Status < 400 {
		t.Errorf("a token without a session enrols: %d %s", r.Status, r.Body)
	}
	enter := apptest.Request{Method: "POST", Path: signIn, Body: map[string]any{"identity": ada, "password": apptest.Password}}
	session := func(r apptest.Response) map[string]any {
		t.Helper()
		want(t, r, http.StatusOK, "")
		meta, _ := r.JSON(t)["meta"].(map[string]any)
		s, ok := meta["session"].(map[string]any)
		if !ok {
			t.Fatalf("no session: %s", r.Body)
		}
		return s
	}
	token := session(w.Do(t, enter))["accessToken"].(string)
	began := w.Do(t, apptest.Request{Method: "POST", Path: enrol, Token: token})
	want(t, began, http.StatusCreated, "")
	u := &user{Record: record, token: token, secret: data(t, began)["secret"].(string)}
	want(t, w.Do(t, apptest.Request{Method: "POST", Path: confirm, Token: token, Body: code(u.code(t, 0))}), http.StatusOK, "")

	sessionsOf := func() int { return w.count(t, "sessions_logins", dbx.HashExp{"record": record.Id}) }
	before := sessionsOf()
	id := w.first(t, ada)
	if now := sessionsOf(); now != before {
		t.Errorf("%d sessions after the first step, %d before", now, before)
	}
	made := session(w.second(t, id, code(u.code(t, 1))))
	if now := sessionsOf(); now != before+1 {
		t.Errorf("%d sessions after the second step, %d before", now, before)
	}
	refreshed := w.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/auth/refresh", Body: map[string]any{"refreshToken": made["refreshToken"]}})
	want(t, refreshed, http.StatusOK, "")

	var actions []string
	if err := w.DB().Select("action").From("audit_entries").Where(dbx.NewExp("action LIKE 'totp.%'")).Column(&actions); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(actions, []string{"totp.enabled", "totp.verified"}) {
		t.Errorf("audited %q", actions)
	}
}
