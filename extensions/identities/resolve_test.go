package identities_test

import (
	"encoding/json"
	"strconv"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

const (
	ada    = "ada@example.test"
	signIn = "/api/collections/users/auth-with-password"
)

func unverified(t testing.TB, app *apptest.App, email string) (*core.Record, string) {
	t.Helper()
	record, _ := app.User(t, email)
	record.SetVerified(false)
	if err := app.Save(record); err != nil {
		t.Fatal(err)
	}
	token, err := record.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	return record, token
}

func knowsPassword(t testing.TB, app *apptest.App, email string) bool {
	t.Helper()
	return app.Do(t, post(signIn, map[string]string{"identity": email, "password": apptest.Password})).Status == 200
}

func fresh(t testing.TB, app *apptest.App, record *core.Record) *core.Record {
	t.Helper()
	r, err := app.FindRecordById(record.Collection(), record.Id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKnownIdentity(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	first := w.enter(t, app, w.token(t, "ada", mail(ada)))
	if !first.IsNew || first.Record.Email != ada || !first.Record.Verified {
		t.Errorf("first: %+v", first)
	}
	// The address is no part of who it is.
	second := w.enter(t, app, w.token(t, "ada", mail("other@example.test")))
	if second.IsNew || second.Record.ID != first.Record.ID || second.Record.Email != ada {
		t.Errorf("second: %+v", second)
	}
	if third := w.enter(t, app, w.token(t, "Ada", nil)); !third.IsNew || third.Record.ID == first.Record.ID || third.Record.Email != "" {
		t.Errorf("another subject: %+v", third)
	}
	if r := app.Do(t, apptest.Request{Path: "/api/v1/collections/users/records/" + first.Record.ID, Token: second.Session.AccessToken}); r.Status != 200 {
		t.Errorf("the session does not work: %d", r.Status)
	}
}

// Two issuers may give two people the same subject.
func TestSameSubjectElsewhere(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(t, "PROVIDERS=auth0,clerk", "EMAIL_TRUST=", "AUTH0_ISSUER=https://a.example/", "AUTH0_AUDIENCES=app", "CLERK_ISSUER=https://c.example", "CLERK_AUDIENCES=app")
	app := open(t, identities.NewAt(cfg, w.deps(), w.JWKS()))
	ids := map[string]bool{}
	for provider, issuer := range map[string]string{"auth0": "https://a.example/", "clerk": "https://c.example"} {
		token := w.sign(t, "RS256", w.Claims("ada", map[string]any{"iss": issuer, "aud": "app"}), nil)
		got := data[signedIn](t, app.Do(t, post(exchange, map[string]any{"provider": provider, "idToken": token})), 200)
		ids[got.Record.ID] = true
	}
	if len(ids) != 2 {
		t.Errorf("%d users", len(ids))
	}
}

func TestAddresses(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name     string
		settings []string
		local    string // "verified", "unverified" or none
		claims   map[string]any
		code     string
		same     bool // the local account
		email    string
		survives bool // the local account's password
	}{
		{name: "new, trusted", claims: mail(ada), email: ada},
		{name: "new, upper case", claims: mail("Ada@Example.test"), email: ada},
		{name: "new, not verified", claims: map[string]any{"email": ada, "email_verified": false}},
		{name: "new, verified is text", claims: map[string]any{"email": ada, "email_verified": "yes"}},
		{name: "new, not trusted", settings: []string{"EMAIL_TRUST="}, claims: mail(ada)},
		{name: "new, too long", claims: mail(long(250) + "@example.test")},
		{name: "verified account, policy off", local: "verified", claims: mail(ada), code: identities.ErrAccountExists.Name, survives: true},
		{name: "verified account, upper case", local: "verified", claims: mail("ADA@example.test"), code: identities.ErrAccountExists.Name, survives: true},
		{name: "verified account, policy on", settings: []string{"LINK_VERIFIED=oidc"}, local: "verified", claims: mail(ada), same: true, email: ada, survives: true},
		{name: "verified account, not verified", settings: []string{"LINK_VERIFIED=oidc"}, local: "verified", claims: map[string]any{"email": ada}, survives: true},
		{name: "verified account, not trusted", settings: []string{"EMAIL_TRUST="}, local: "verified", claims: mail(ada), survives: true},
		{name: "unverified account", local: "unverified", claims: mail(ada), same: true, email: ada},
		{name: "unverified account, policy on", settings: []string{"LINK_VERIFIED=oidc"}, local: "unverified", claims: mail(ada), same: true, email: ada},
		{name: "unverified account, not verified", local: "unverified", claims: map[string]any{"email": ada, "email_verified": false}, survives: true},
		{name: "unverified account, not trusted", settings: []string{"EMAIL_TRUST="}, local: "unverified", claims: mail(ada), survives: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := w.start(t, c.settings...)
			var local *core.Record
			switch c.local {
			case "verified":
				local, _ = app.User(t, ada)
			case "unverified":
				local, _ = unverified(t, app, ada)
			}
			r := app.Do(t, post(exchange, body(w.token(t, "ada", c.claims))))
			if local != nil && knowsPassword(t, app, ada) != c.survives {
				t.Errorf("the password works: %v", !c.survives)
			}
			if c.code != "" {
				refused(t, r, 409, c.code)
				if n := count(t, app, "users", "") + count(t, app, "identities_links", ""); n != 1 {
					t.Errorf("%d rows", n)
				}
				return
			}
			got := data[signedIn](t, r, 200)
			if (local != nil && got.Record.ID == local.Id) != c.same || got.IsNew == c.same || got.Record.Email != c.email || !got.Record.Verified {
				t.Errorf("answer %s", r.Body)
			}
			if again := w.enter(t, app, w.token(t, "ada", nil)); again.Record.ID != got.Record.ID {
				t.Error("the identity does not lead there the next time")
			}
		})
	}
}

// Whoever made an account with another person's address, and waits in it, is out when the person comes.
func TestTakeOver(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	victim, attacker := unverified(t, app, ada)
	data[struct{}](t, app.Do(t, as(post(own, body(w.token(t, "attacker", nil))), attacker, "")), 201)
	external := core.NewExternalAuth(app)
	external.SetCollectionRef(victim.Collection().Id)
	external.SetRecordRef(victim.Id)
	external.SetProvider("google")
	external.SetProviderId("attacker")
	if err := app.Save(external); err != nil {
		t.Fatal(err)
	}
	mfa := core.NewMFA(app)
	mfa.SetCollectionRef(victim.Collection().Id)
	mfa.SetRecordRef(victim.Id)
	mfa.SetMethod("password")
	if err := app.Save(mfa); err != nil {
		t.Fatal(err)
	}
	got := w.enter(t, app, w.token(t, "ada", mail(ada)))
	if got.Record.ID != victim.Id || got.IsNew {
		t.Fatalf("answer %+v", got)
	}
	if r := app.Do(t, apptest.Request{Path: own, Token: attacker}); r.Status != 401 {
		t.Errorf("the attacker's token: %d", r.Status)
	}
	if other := w.enter(t, app, w.token(t, "attacker", nil)); other.Record.ID == victim.Id {
		t.Error("the attacker's identity still leads into the account")
	}
	for _, table := range []string{"_externalAuths", "_mfas"} {
		if n := count(t, app, table, ""); n != 0 {
			t.Errorf("%d rows in %s", n, table)
		}
	}
	if len(w.revoked) != 1 || w.revoked[0] != victim.Id+" account_taken_over" {
		t.Errorf("revoked %v", w.revoked)
	}
}

// PocketBase's own ways to prove an address put an end to identities of before, too.
func TestVerifiedUpgrade(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	record, token := unverified(t, app, ada)
	data[struct{}](t, app.Do(t, as(post(own, body(w.token(t, "attacker", nil))), token, "")), 201)
	record = fresh(t, app, record)
	key := record.TokenKey()
	record.SetVerified(true)
	if err := app.Save(record); err != nil {
		t.Fatal(err)
	}
	if count(t, app, "identities_links", "") != 0 || fresh(t, app, record).TokenKey() == key || len(w.revoked) != 1 {
		t.Errorf("links %d, revoked %v", count(t, app, "identities_links", ""), w.revoked)
	}

	other, _ := unverified(t, app, "bob@example.test")
	other = fresh(t, app, other)
	key = other.TokenKey()
	other.SetVerified(true)
	if err := app.Save(other); err != nil || other.TokenKey() != key {
		t.Errorf("without identities nothing is reset: %v", err)
	}

	// A failed save changes nothing.
	third, token := unverified(t, app, "eve@example.test")
	data[struct{}](t, app.Do(t, as(post(own, body(w.token(t, "eve", nil))), token, "")), 201)
	third = fresh(t, app, third)
	third.SetVerified(true)
	third.Set("name", long(300))
	if err := app.Save(third); err == nil || count(t, app, "identities_links", "") != 1 {
		t.Errorf("after a failed save: %v, %d links", err, count(t, app, "identities_links", ""))
	}
}

func TestNewUsers(t *testing.T) {
	w := newWorld(t)
	rule := func(text *string) func(t testing.TB, app *apptest.App, _ *apptest.Request) {
		return func(t testing.TB, app *apptest.App, _ *apptest.Request) {
			users(t, app, func(c *core.Collection) { c.CreateRule = text })
		}
	}
	nothing := func(t testing.TB, app *apptest.App, _ apptest.Response) {
		if n := count(t, app, "users", "") + count(t, app, "identities_links", "") + count(t, app, "identities_tokens", ""); n != 0 {
			t.Errorf("%d rows", n)
		}
	}
	token := func(extra map[string]any) apptest.Request { return post(exchange, body(w.token(t, "ada", extra))) }
	apptest.Run(t, func(t testing.TB) *apptest.App { return w.start(t) }, []apptest.Scenario{
		{Name: "nobody may create", Request: token(nil), Before: rule(nil), Status: 403, Code: api.ErrForbidden.Name, After: nothing},
		{Name: "a rule that fits", Request: token(mail(ada)), Before: rule(new(`@request.context = "oauth2" && @request.body.email:isset = true`)), Status: 200},
		{Name: "a rule that does not", Request: token(nil), Before: rule(new(`@request.body.email:isset = true`)), Status: 403, After: nothing},
		{Name: "the name", Request: token(map[string]any{"name": "Ada"}), Status: 200, Contains: []string{`"name":"Ada"`}},
		{Name: "a name that does not fit", Request: token(map[string]any{"name": long(256)}), Status: 200, Contains: []string{`"name":""`}},
		{Name: "an address is needed", Request: token(nil), Before: func(t testing.TB, app *apptest.App, _ *apptest.Request) {
			users(t, app, func(c *core.Collection) { c.Fields.GetByName("email").(*core.EmailField).Required = true })
		}, Status: 400, Code: api.ErrValidation.Name, Contains: []string{`"field":"email"`}, After: nothing},
		{Name: "an auth rule that refuses", Request: token(nil), Before: func(t testing.TB, app *apptest.App, _ *apptest.Request) {
			users(t, app, func(c *core.Collection) { c.AuthRule = new(`email != ""`) })
		}, Status: 403},
		{Name: "fields cannot cut the session out", Request: func() apptest.Request {
			r := token(nil)
			r.Path += "?fields=record"
			return r
		}(), Status: 200, Contains: []string{`"accessToken":"ey`}},
	})
}

func TestRace(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	const n = 8
	answers := make([]apptest.Response, n)
	var group sync.WaitGroup
	for i := range n {
		token := w.token(t, "ada", mail(ada))
		group.Go(func() { answers[i] = app.Do(t, post(exchange, body(token))) })
	}
	group.Wait()
	isNew := 0
	for _, r := range answers {
		if data[signedIn](t, r, 200).IsNew {
			isNew++
		}
	}
	if isNew != 1 || count(t, app, "users", "") != 1 || count(t, app, "identities_links", "") != 1 {
		t.Errorf("%d new, %d users", isNew, count(t, app, "users", ""))
	}
}

func TestSingleUse(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	from := func(token, device string) apptest.Response {
		return app.Do(t, as(post(exchange, body(token)), "", device))
	}
	reused := identities.ErrTokenReused.Name

	token := w.token(t, "ada", nil)
	data[signedIn](t, from(token, ""), 200)
	refused(t, from(token, ""), 401, reused)
	refused(t, from(token, "installation-of-phone-1"), 401, reused)

	token = w.token(t, "ada", nil)
	first := from(token, "installation-of-phone-1")
	refused(t, from(token, "installation-of-phone-2"), 401, reused)
	refused(t, from(token, ""), 401, reused)
	again := data[signedIn](t, from(token, "installation-of-phone-1"), 200)
	if want := data[signedIn](t, first, 200); again != want {
		t.Errorf("a repeated exchange has another session:\n%+v\n%+v", again, want)
	}
	refused(t, app.Do(t, as(post(exchange, body(token)), "", "not a device!")), 401, reused)

	if _, err := app.DB().NewQuery("UPDATE identities_tokens SET usedAt = usedAt - 61000").Execute(); err != nil {
		t.Fatal(err)
	}
	refused(t, from(token, "installation-of-phone-1"), 401, reused)

	// The session of before has ended with the token key.
	token = w.token(t, "ada", nil)
	before := data[signedIn](t, from(token, "installation-of-phone-1"), 200)
	record, err := app.FindRecordById("users", before.Record.ID)
	if err != nil {
		t.Fatal(err)
	}
	record.RefreshTokenKey()
	if err := app.Save(record); err != nil {
		t.Fatal(err)
	}
	if after := data[signedIn](t, from(token, "installation-of-phone-1"), 200); after.Session == before.Session {
		t.Error("a dead session was answered again")
	}
}

// Used tokens are forgotten when they could not be used any more.
func TestUsedTokensArePurged(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	for range 30 {
		w.enter(t, app, w.token(t, "ada", nil))
	}
	if n := count(t, app, "identities_tokens", "expiresAt - usedAt > 700000"); n != 0 {
		t.Errorf("%d tokens are kept longer than they can be used", n)
	}
	if _, err := app.DB().NewQuery("UPDATE identities_tokens SET expiresAt = 1").Execute(); err != nil {
		t.Fatal(err)
	}
	w.enter(t, app, w.token(t, "ada", nil))
	if n := count(t, app, "identities_tokens", ""); n != 11 {
		t.Errorf("%d tokens are left, want 11", n)
	}
}

func TestDeletion(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	first := w.enter(t, app, w.token(t, "ada", nil))
	record, err := app.FindRecordById("users", first.Record.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Delete(record); err != nil {
		t.Fatal(err)
	}
	if n := count(t, app, "identities_links", "") + count(t, app, "identities_passwordless", ""); n != 0 {
		t.Errorf("%d rows of a deleted user", n)
	}
	second := w.enter(t, app, w.token(t, "ada", nil))
	if !second.IsNew || second.Record.ID == first.Record.ID {
		t.Errorf("after the deletion: %+v", second)
	}
	// Deleted behind the program's back.
	if _, err := app.DB().NewQuery("DELETE FROM users").Execute(); err != nil {
		t.Fatal(err)
	}
	if third := w.enter(t, app, w.token(t, "ada", nil)); !third.IsNew {
		t.Errorf("after raw SQL: %+v", third)
	}
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Delete(users); err != nil {
		t.Fatal(err)
	}
	if n := count(t, app, "identities_links", "") + count(t, app, "identities_passwordless", ""); n != 0 {
		t.Errorf("%d rows of a deleted collection", n)
	}
}

func TestCollections(t *testing.T) {
	w := newWorld(t)
	app := w.start(t, "COLLECTIONS=users,members")
	members := core.NewAuthCollection("members")
	members.CreateRule = new("")
	members.Fields.Add(&core.EmailField{Name: "email", System: true})
	if err := app.Save(members); err != nil {
		t.Fatal(err)
	}
	user := w.enter(t, app, w.token(t, "ada", nil))
	member := data[signedIn](t, app.Do(t, post(exchange, body(w.token(t, "ada", nil), "collection", "members"))), 200)
	if !member.IsNew || member.Record.ID == user.Record.ID {
		t.Errorf("%+v", member)
	}
	// A member who exchanges for users is a guest there.
	other := data[signedIn](t, app.Do(t, as(post(exchange, body(w.token(t, "bob", nil))), member.Session.AccessToken, "")), 200)
	if !other.IsNew {
		t.Errorf("%+v", other)
	}
}

func TestMFA(t *testing.T) {
	w := newWorld(t)
	app := w.start(t, "LINK_VERIFIED=oidc")
	app.User(t, ada)
	w.enter(t, app, w.token(t, "ada", mail(ada)))
	users(t, app, func(c *core.Collection) {
		c.MFA.Enabled = true
		c.OTP.Enabled = true
	})
	mfa := func(r apptest.Response) string {
		t.Helper()
		var m struct {
			ID string `json:"mfaId"`
		}
		if err := json.Unmarshal(r.Body, &m); err != nil || r.Status != 401 || m.ID == "" {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		return m.ID
	}
	password := map[string]string{"identity": ada, "password": apptest.Password}

	id := mfa(app.Do(t, post(exchange, body(w.token(t, "ada", nil)))))
	password["mfaId"] = id
	if r := app.Do(t, post(signIn, password)); r.Status != 200 {
		t.Errorf("password second: %d %s", r.Status, r.Body)
	}
	delete(password, "mfaId")
	id = mfa(app.Do(t, post(signIn, password)))
	data[signedIn](t, app.Do(t, post(exchange, body(w.token(t, "ada", nil), "mfaId", id))), 200)

	id = mfa(app.Do(t, post(exchange, body(w.token(t, "ada", nil)))))
	if r := app.Do(t, post(exchange, body(w.token(t, "ada", nil), "mfaId", id))); r.Status != 400 {
		t.Errorf("one provider as two factors: %d %s", r.Status, r.Body)
	}
}

func TestAudit(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	app.User(t, ada)
	w.enter(t, app, w.token(t, "bob", nil))
	app.Do(t, post(exchange, body("garbage")))
	app.Do(t, post(exchange, body(w.token(t, "ada", mail(ada)))))
	want := []string{
		"identities.link success", "identities.exchange success", "identities.exchange identities.token_invalid", "identities.exchange identities.account_exists",
	}
	if len(w.audited) != len(want) {
		t.Fatalf("audited %v", w.audited)
	}
	for i := range want {
		if w.audited[i] != want[i] {
			t.Errorf("%s: %s, want %s", strconv.Itoa(i), w.audited[i], want[i])
		}
	}
}
