package identities_test

import (
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

type shown struct {
	ID        string `json:"id"`
	Provider  string `json:"provider"`
	Email     string `json:"email"`
	Verified  bool   `json:"emailVerified"`
	CreatedAt string `json:"createdAt"`
}

func TestLink(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	_, token := app.User(t, ada)
	_, other := app.User(t, "bob@example.test")
	link := func(caller, provided, device string) apptest.Response {
		return app.Do(t, as(post(own, body(provided)), caller, device))
	}
	refused(t, link("", w.token(t, "ada", nil), ""), 401, api.ErrUnauthorized.Name)
	w.stale = true
	refused(t, link(token, w.token(t, "ada", nil), ""), 403, errRecent.Name)
	w.stale = false

	provided := w.token(t, "ada", mail("ada@work.test"))
	got := data[shown](t, link(token, provided, "installation-of-phone-1"), 201)
	if got.Provider != "oidc" || got.Email != "ada@work.test" || !got.Verified || len(got.CreatedAt) < 20 {
		t.Errorf("%+v", got)
	}
	if again := data[shown](t, link(token, provided, "installation-of-phone-1"), 200); again.ID != got.ID {
		t.Errorf("a repeated link: %+v", again)
	}
	refused(t, link(token, provided, ""), 401, identities.ErrTokenReused.Name)
	refused(t, link(other, w.token(t, "ada", nil), ""), 409, identities.ErrLinkTaken.Name)
	refused(t, link(token, w.token(t, "eve", map[string]any{"aud": "other"}), ""), 401, identities.ErrTokenInvalid.Name)
	refused(t, app.Do(t, as(post(own, body(w.token(t, "eve", nil), "collection", "members")), token, "")), 400, api.ErrValidation.Name)

	// The provider's address does not replace the account's, and leads nowhere.
	if in := w.enter(t, app, w.token(t, "ada", mail("ada@work.test"))); in.IsNew || in.Record.Email != ada {
		t.Errorf("%+v", in)
	}
	list := data[[]shown](t, app.Do(t, apptest.Request{Path: own, Token: token}), 200)
	if len(list) != 1 || list[0].ID != got.ID {
		t.Errorf("list %+v", list)
	}
	if list := data[[]shown](t, app.Do(t, apptest.Request{Path: own, Token: other}), 200); len(list) != 0 {
		t.Errorf("the other's list %+v", list)
	}
	if r := app.Do(t, apptest.Request{Path: own}); r.Status != 401 {
		t.Errorf("a guest's list: %d", r.Status)
	}
	_, root := app.Superuser(t)
	refused(t, link(root, w.token(t, "root", nil), ""), 403, api.ErrForbidden.Name)

	for i := range 25 {
		r := link(token, w.token(t, "more-"+string(rune('a'+i)), nil), "")
		if i < 19 && r.Status != 201 || i >= 19 && r.Status != 409 {
			t.Fatalf("identity %d: %d %s", i+2, r.Status, r.Body)
		}
	}
}

// An exchange by somebody who is signed in adds an identity that nobody has, and signs in with one that is known.
func TestExchangeWhileSignedIn(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	user, token := app.User(t, ada)
	w.stale = true
	refused(t, app.Do(t, as(post(exchange, body(w.token(t, "ada", nil))), token, "")), 403, errRecent.Name)
	w.stale = false
	if got := data[signedIn](t, app.Do(t, as(post(exchange, body(w.token(t, "ada", nil))), token, "")), 200); got.IsNew || got.Record.ID != user.Id {
		t.Errorf("%+v", got)
	}
	bob := w.enter(t, app, w.token(t, "bob", nil))
	w.stale = true
	if got := data[signedIn](t, app.Do(t, as(post(exchange, body(w.token(t, "bob", nil))), token, "")), 200); got.Record.ID != bob.Record.ID {
		t.Errorf("%+v", got)
	}
}

func TestUnlink(t *testing.T) {
	w := newWorld(t)
	remove := func(app *apptest.App, token, id string) apptest.Response {
		return app.Do(t, apptest.Request{Method: "DELETE", Path: own + "/" + id, Token: token})
	}
	last := identities.ErrLastWayIn.Name
	// enter makes a user who has an identity and nothing else.
	enter := func(t testing.TB, app *apptest.App, claims map[string]any) (signedIn, *core.Record, string) {
		in := w.enter(t, app, w.token(t, "ada", claims))
		record, err := app.FindRecordById("users", in.Record.ID)
		if err != nil {
			t.Fatal(err)
		}
		return in, record, data[[]shown](t, app.Do(t, apptest.Request{Path: own, Token: in.Session.AccessToken}), 200)[0].ID
	}

	t.Run("the only way in", func(t *testing.T) {
		app := w.start(t)
		in, _, id := enter(t, app, mail(ada))
		refused(t, remove(app, in.Session.AccessToken, id), 409, last)
		if count(t, app, "identities_links", "") != 1 {
			t.Error("it is gone")
		}
	})
	t.Run("not the caller's", func(t *testing.T) {
		app := w.start(t)
		_, _, id := enter(t, app, nil)
		_, other := app.User(t, "bob@example.test")
		refused(t, remove(app, other, id), 404, api.ErrNotFound.Name)
		refused(t, remove(app, other, "nothing"), 404, api.ErrNotFound.Name)
		refused(t, remove(app, "", id), 401, api.ErrUnauthorized.Name)
	})
	t.Run("not recent", func(t *testing.T) {
		app := w.start(t)
		in, _, id := enter(t, app, nil)
		w.stale = true
		defer func() { w.stale = false }()
		refused(t, remove(app, in.Session.AccessToken, id), 403, errRecent.Name)
	})
	t.Run("another identity", func(t *testing.T) {
		app := w.start(t)
		in, _, id := enter(t, app, nil)
		second := data[shown](t, app.Do(t, as(post(own, body(w.token(t, "ada-2", nil))), in.Session.AccessToken, "")), 201)
		if r := remove(app, in.Session.AccessToken, id); r.Status != 204 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		refused(t, remove(app, in.Session.AccessToken, second.ID), 409, last)
	})
	t.Run("a password", func(t *testing.T) {
		app := w.start(t)
		in, record, id := enter(t, app, mail(ada))
		record.SetPassword(apptest.Password)
		if err := app.Save(record); err != nil {
			t.Fatal(err)
		}
		token, _ := record.NewAuthToken() // the change has ended that of in
		_ = in
		if r := remove(app, token, id); r.Status != 204 {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
	t.Run("a password without a name to give with it", func(t *testing.T) {
		app := w.start(t)
		_, record, id := enter(t, app, nil)
		record.SetPassword(apptest.Password)
		if err := app.Save(record); err != nil {
			t.Fatal(err)
		}
		token, _ := record.NewAuthToken()
		refused(t, remove(app, token, id), 409, last)
	})
	t.Run("a password that was made up again", func(t *testing.T) {
		app := w.start(t)
		record, token := app.User(t, ada)
		id := data[shown](t, app.Do(t, as(post(own, body(w.token(t, "ada", nil))), token, "")), 201).ID
		record.SetRandomPassword()
		if err := app.Save(record); err != nil {
			t.Fatal(err)
		}
		token, _ = record.NewAuthToken()
		refused(t, remove(app, token, id), 409, last)
	})
	t.Run("a password where none is accepted", func(t *testing.T) {
		app := w.start(t)
		_, token := app.User(t, ada)
		id := data[shown](t, app.Do(t, as(post(own, body(w.token(t, "ada", nil))), token, "")), 201).ID
		users(t, app, func(c *core.Collection) { c.PasswordAuth.Enabled = false })
		refused(t, remove(app, token, id), 409, last)
	})
	t.Run("a code by mail", func(t *testing.T) {
		app := w.start(t)
		in, _, id := enter(t, app, mail(ada))
		users(t, app, func(c *core.Collection) { c.OTP.Enabled = true })
		if r := remove(app, in.Session.AccessToken, id); r.Status != 204 {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
	t.Run("a code by mail without an address", func(t *testing.T) {
		app := w.start(t)
		in, _, id := enter(t, app, nil)
		users(t, app, func(c *core.Collection) { c.OTP.Enabled = true })
		refused(t, remove(app, in.Session.AccessToken, id), 409, last)
	})
	t.Run("PocketBase's own provider", func(t *testing.T) {
		app := w.start(t)
		in, record, id := enter(t, app, nil)
		external := core.NewExternalAuth(app)
		external.SetCollectionRef(record.Collection().Id)
		external.SetRecordRef(record.Id)
		external.SetProvider("google")
		external.SetProviderId("ada")
		if err := app.Save(external); err != nil {
			t.Fatal(err)
		}
		refused(t, remove(app, in.Session.AccessToken, id), 409, last) // it is not set up
		users(t, app, func(c *core.Collection) {
			c.OAuth2.Enabled = true
			c.OAuth2.Providers = []core.OAuth2ProviderConfig{{Name: "google", ClientId: "x", ClientSecret: "y"}}
		})
		if r := remove(app, in.Session.AccessToken, id); r.Status != 204 {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
	t.Run("a passkey", func(t *testing.T) {
		deps := w.deps()
		deps.Passkeys = func(core.App, *core.Record) (bool, error) { return true, nil }
		app := open(t, identities.New(w.config(t), deps))
		in, _, id := enter(t, app, nil)
		if r := remove(app, in.Session.AccessToken, id); r.Status != 204 {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
}

// An anonymous account stays the same one when its owner signs in somewhere, and gets the address that nobody has.
func TestAnonymousUpgrade(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(t, "PROVIDERS=firebase,auth0", "EMAIL_TRUST=auth0", "FIREBASE_PROJECT=example-app", "AUTH0_ISSUER=https://a.example/", "AUTH0_AUDIENCES=app")
	app := open(t, identities.NewAt(cfg, w.deps(), w.JWKS()))
	anonymous := func(subject string) map[string]any {
		return map[string]any{"provider": "firebase", "idToken": w.sign(t, "RS256", w.Claims(subject, map[string]any{
			"iss": "https://securetoken.google.com/example-app", "aud": "example-app", "firebase": map[string]any{"sign_in_provider": "anonymous"},
		}), nil)}
	}
	person := func(subject string) map[string]any {
		return map[string]any{"provider": "auth0", "idToken": w.sign(t, "RS256", w.Claims(subject, map[string]any{
			"iss": "https://a.example/", "aud": "app", "email": ada, "email_verified": true,
		}), nil)}
	}
	first := data[signedIn](t, app.Do(t, post(exchange, anonymous("anon-1"))), 200)
	if first.Record.Verified || first.Record.Email != "" {
		t.Errorf("anonymous: %+v", first)
	}
	data[shown](t, app.Do(t, as(post(own, person("ada")), first.Session.AccessToken, "")), 201)
	after := data[signedIn](t, app.Do(t, post(exchange, person("ada"))), 200)
	if after.Record.ID != first.Record.ID || after.Record.Email != ada || !after.Record.Verified {
		t.Errorf("upgraded: %+v", after)
	}
	if n := count(t, app, "identities_links", ""); n != 2 {
		t.Errorf("%d identities, want 2", n)
	}
	// A second anonymous account cannot take the same person.
	second := data[signedIn](t, app.Do(t, post(exchange, anonymous("anon-2"))), 200)
	refused(t, app.Do(t, as(post(own, person("ada")), second.Session.AccessToken, "")), 409, identities.ErrLinkTaken.Name)
	// Nor the address, with another identity.
	data[shown](t, app.Do(t, as(post(own, person("ada-2")), second.Session.AccessToken, "")), 201)
	if got := data[signedIn](t, app.Do(t, post(exchange, person("ada-2"))), 200); got.Record.ID != second.Record.ID || got.Record.Email != "" {
		t.Errorf("%+v", got)
	}
}
