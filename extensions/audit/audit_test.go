package audit_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/settings"
)

type row struct {
	ID         int64  `db:"id"`
	At         string `db:"at"`
	Action     string `db:"action"`
	Outcome    string `db:"outcome"`
	ActorKind  string `db:"actor_kind"`
	ActorColl  string `db:"actor_collection"`
	ActorID    string `db:"actor_id"`
	ActAs      string `db:"act_as"`
	SubjectID  string `db:"subject_id"`
	SubjectCol string `db:"subject_collection"`
	Session    string `db:"session"`
	Request    string `db:"request"`
	Address    string `db:"address"`
	Details    string `db:"details"`
}

func rows(t testing.TB, app core.App) []row {
	t.Helper()
	var out []row
	if err := app.DB().Select("*").From("audit_entries").Where(dbx.NewExp("action NOT LIKE 'collections.%' AND action NOT LIKE 'settings.%' AND action NOT LIKE 'superusers.%'")).OrderBy("id").All(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// log writes the audit.
func log() *audit.Log { return audit.NewLog(secret.Fixed([]byte("root key of the tests"))) }

func appendEntry(t testing.TB, app core.App, e audit.Entry) {
	t.Helper()
	if err := log().Append(app, e); err != nil {
		t.Fatal(err)
	}
}

func TestAppend(t *testing.T) {
	app := apptest.New(t, audit.New(audit.Config{}, log(), nil))
	appendEntry(t, app, audit.Entry{
		Action: "sessions.revoked", Outcome: audit.Denied, ActAs: audit.Party{Kind: audit.User, Collection: "users", ID: "somebody"}, Session: "s", Request: "r", Address: "192.0.2.77",
		Actor: audit.Party{Kind: audit.User, Collection: "users", ID: "a"}, Subject: audit.Party{Kind: audit.User, Collection: "users", ID: "b"},
		Details: map[string]any{"reason": "lost", "count": 9007199254740993, "nested": map[string]any{"list": []any{"x", 1}}},
	})
	appendEntry(t, app, audit.Entry{Action: "keys.rotated"})
	got := rows(t, app)
	if len(got) != 2 {
		t.Fatalf("%d rows", len(got))
	}
	first := got[0]
	at := first.At
	first.At, first.ID = "", 0
	want := row{
		Action: "sessions.revoked", Outcome: "denied", ActorKind: "user", ActorColl: "users", ActorID: "a", ActAs: "somebody",
		SubjectID: "b", SubjectCol: "users", Session: "s", Request: "r", Address: "192.0.2.0/24",
		Details: `{"count":9007199254740993,"nested":{"list":["x",1]},"reason":"lost"}`,
	}
	if first != want {
		t.Errorf("got  %+v\nwant %+v", first, want)
	}
	if len(at) != len("2006-01-02T15:04:05.000Z") || !strings.HasSuffix(at, "Z") || at[10] != 'T' {
		t.Errorf("at %q", at)
	}
	if got[1].Outcome != audit.Success || got[1].ActorKind != audit.System || got[1].Details != "{}" {
		t.Errorf("defaults: %+v", got[1])
	}
}

func TestWrongEntries(t *testing.T) {
	app := apptest.New(t, audit.New(audit.Config{}, log(), nil))
	for _, e := range []audit.Entry{
		{},
		{Action: "revoked"},
		{Action: "Sessions.revoked"},
		{Action: "sessions.revoked by ann"},
		{Action: "sessions.revoked", Outcome: "It failed"},
		{Action: "sessions.revoked", Actor: audit.Party{Kind: "root"}},
		{Action: "sessions.revoked", Subject: audit.Party{Kind: "root"}},
		{Action: "sessions.revoked", Details: map[string]any{"f": func() {}}},
	} {
		if err := log().Append(app, e); err == nil {
			t.Errorf("accepted %+v", e)
		}
	}
	if n := len(rows(t, app)); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// An entry belongs to the transaction of the act.
func TestTransaction(t *testing.T) {
	app := apptest.New(t, audit.New(audit.Config{}, log(), nil))
	boom := errors.New("boom")
	err := app.RunInTransaction(func(tx core.App) error {
		appendEntry(t, tx, audit.Entry{Action: "sessions.revoked"})
		return boom
	})
	if !errors.Is(err, boom) || len(rows(t, app)) != 0 {
		t.Fatalf("err %v, %d rows", err, len(rows(t, app)))
	}
	err = app.RunInTransaction(func(tx core.App) error { return log().Append(tx, audit.Entry{Action: "sessions.revoked"}) })
	if err != nil || len(rows(t, app)) != 1 {
		t.Fatalf("err %v, %d rows", err, len(rows(t, app)))
	}
}

func TestAppendOnly(t *testing.T) {
	app := apptest.New(t, audit.New(audit.Config{}, log(), nil))
	appendEntry(t, app, audit.Entry{Action: "sessions.revoked"})
	before := rows(t, app)
	columns := "(id, at, action, outcome, actor, subject, act_as, session, request, address, details, mac) VALUES (1, 1, 'x', 'x', 1, 0, 0, '', '', '', '', zeroblob(32))"
	for _, statement := range []string{
		"UPDATE audit_chain SET action = 'x'",
		"UPDATE OR REPLACE audit_chain SET id = 2",
		"DELETE FROM audit_chain",
		"REPLACE INTO audit_chain " + columns,
		"INSERT OR REPLACE INTO audit_chain " + columns,
		"INSERT INTO audit_chain " + columns + " ON CONFLICT (id) DO UPDATE SET action = 'x'",
	} {
		_, err := app.NonconcurrentDB().NewQuery(statement).Execute()
		if err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if after := rows(t, app); len(after) != 1 || after[0] != before[0] {
		t.Errorf("the entry changed: %+v", after)
	}
}

func TestNoSecrets(t *testing.T) {
	app := apptest.New(t, audit.New(audit.Config{}, log(), nil))
	type typed struct {
		AccessToken string `json:"accessToken"`
		Kept        string `json:"kept"`
	}
	const secret = "hunter2hunter2"
	jwt := "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IjEifQ.c2lnbmF0dXJl"
	appendEntry(t, app, audit.Entry{Action: "a.b", Details: map[string]any{
		"token": secret, "refreshToken": secret, "Password": secret, "new_password": []string{secret}, "clientSecret": map[string]string{"x": secret},
		"apiKey": secret, "api_key": secret, "Authorization": secret, "cookie": secret, "otp": secret, "code": secret, "hash": secret,
		"list": []any{map[string]any{"passwd": secret}, typed{secret, "yes"}}, "typed": typed{secret, "yes"},
		"header": "Bearer " + secret, "jwt in text": "presented " + jwt, "plain": jwt, "refresh": "rt1.abc.1." + secret,
		"key text": "sk_abcdefghijklmno_" + secret, "bcrypt": "$2a$12$" + secret, jwt: 1,
		"reason": "lost phone", "passwordChanged": true,
	}})
	got := rows(t, app)[0].Details
	if strings.Contains(got, secret) || strings.Contains(got, jwt) {
		t.Errorf("a secret is stored: %s", got)
	}
	var details map[string]any
	if err := json.Unmarshal([]byte(got), &details); err != nil {
		t.Fatal(err)
	}
	if details["reason"] != "lost phone" || details["passwordChanged"] != true || details["token"] != "REDACTED" ||
		details["typed"].(map[string]any)["kept"] != "yes" {
		t.Errorf("details: %s", got)
	}
}

// Nobody keeps an act out of the record by sending long or broken text.
func TestBounds(t *testing.T) {
	app := apptest.New(t, audit.New(audit.Config{}, log(), nil))
	long := strings.Repeat("ä", 10_000)
	many := map[string]any{}
	for i := range 1000 {
		many[strings.Repeat("k", i+1)] = "0123456789"
	}
	for _, details := range []map[string]any{{"agent": long}, {"agent": "a\xff\x00b"}, many} {
		appendEntry(t, app, audit.Entry{Action: "a.b", Session: long, Actor: audit.Party{ID: long}, Address: "nonsense", Details: details})
	}
	for _, r := range rows(t, app) {
		if len(r.Details) > 8<<10 || len(r.Session) > 256 || len(r.ActorID) > 256 || r.Address != "" || !json.Valid([]byte(r.Details)) {
			t.Errorf("entry: %+v", r)
		}
	}
}

func TestFrom(t *testing.T) {
	probe := extensions.Extension{Name: "probe", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("", func(e *core.RequestEvent) error {
			e.Set("satchelSession", "sid")
			entry := audit.From(e)
			entry.Action = "probe.called"
			if err := log().Append(e.App, entry); err != nil {
				return err
			}
			return e.NoContent(http.StatusNoContent)
		})
	}}
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, log(), nil), probe)
	user, token := app.User(t, "ann@example.test")
	_, root := app.Superuser(t)
	var ids []string
	for _, token := range []string{"", token, root} {
		got := app.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/probe", Token: token})
		if got.Status != http.StatusNoContent {
			t.Fatalf("status %d: %s", got.Status, got.Body)
		}
		ids = append(ids, got.Header.Get(api.RequestIDHeader))
	}
	for i, r := range rows(t, app) {
		if r.ActorKind != []string{"guest", "user", "superuser"}[i] || r.ActorColl != []string{"", "users", "_superusers"}[i] ||
			r.Request != ids[i] || r.Session != "sid" || r.Address != "127.0.0.0/24" {
			t.Errorf("entry %d: %+v", i, r)
		}
		if i == 1 && r.ActorID != user.Id {
			t.Errorf("actor %q", r.ActorID)
		}
	}
}
