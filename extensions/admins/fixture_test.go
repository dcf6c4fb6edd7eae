package admins_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/admins"
	"github.com/satchelbase/satchel/extensions/anonymous"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/apikeys"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/guard"
	"github.com/satchelbase/satchel/extensions/health"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/impersonation"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/oauth"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/totp"
)

// world is the server with everything that admins meet.
type world struct{ *apptest.App }

func start(t testing.TB) *world {
	t.Helper()
	vault := secret.Fixed(bytes.Repeat([]byte{7}, secret.KeySize))
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := audit.NewLog(vault)
	sess := sessions.New(settings.Defaults[sessions.Config](), sessions.Deps{Vault: vault, Version: db.TableVersion, Audit: log.Append})
	cache := settings.Defaults[authcache.Config]()
	anon := settings.Defaults[anonymous.Config]()
	anon.Collections = []string{"users", "admins"} // by mistake
	ids := settings.Defaults[identities.Config]()
	ids.Providers, ids.GoogleAudiences = []string{"google"}, []string{"app"}
	gates := extensions.Extension{Name: "gate", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		for _, role := range append(admins.Roles(), "nobody", "") {
			g.GET("/"+string(role), func(e *core.RequestEvent) error { return e.NoContent(http.StatusNoContent) }).Bind(admins.Require(role))
		}
	}}
	ops := operations.New()
	ops.Add([]operations.Operation{operations.Define(operations.Spec[struct{}, string]{
		Name: "teams.count", Summary: "Count the teams", KeyOptional: true, Callers: operations.Callers{Role: "support", Scope: true},
		Do: func(*operations.Call, struct{}) (string, error) { return "done", nil },
	})})
	w := &world{apptest.Open(t, db.Connect,
		api.New(settings.Defaults[api.Config]()), store.New(db),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, sess.Verify)), audit.New(audit.Config{}, log, admins.May),
		admins.New(admins.Deps{Recent: sess.RequireRecent(), Audit: log.Append}),
		apikeys.New(settings.Defaults[apikeys.Config](), apikeys.Deps{
			Scopes: []string{"operations:*"}, Routes: []string{"/api/v1/gate/", "/api/v1/operations/"}, Version: db.TableVersion, Audit: log.Append, May: admins.May, Recent: sess.RequireRecent(),
		}),
		sess.Extension(), oauth.New(sess, apikeys.Allow(apikeys.ScopeIntrospect)),
		impersonation.New(sess, impersonation.Deps{May: admins.May, Privileged: admins.Privileged}),
		anonymous.New(anon, sess, log.Append), guard.New(settings.Defaults[guard.Config](), guard.Deps{Audit: log.Note}),
		totp.New(settings.Defaults[totp.Config](), totp.Deps{Vault: vault, Recent: sess.RequireRecent(), Audit: log.Note}),
		identities.New(ids, identities.Deps{
			SignIn: sess.SignIn, Recent: sess.RequireRecent(), RevokeSessions: sess.EndAll, Audit: log.Note, Seal: vault.Seal, Open: vault.Open,
		}),
		health.New(settings.Defaults[health.Config](), func() []extensions.Extension { return nil }, admins.May), gates,
		ops.Extension(operations.Deps{
			Role: admins.May, Staff: []string{admins.Collection}, Key: apikeys.Presented, Recent: sess.Recent,
			Attested: func(*core.RequestEvent) error { return nil }, Audit: log.Append,
		}),
	)}
	c, err := w.FindCollectionByNameOrId(admins.CollectionID)
	if err != nil {
		t.Fatal(err)
	}
	if field, ok := c.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField); ok {
		field.Cost = 4 // the least, so that tests do not spend their time hashing
	}
	if err := w.Save(c); err != nil {
		t.Fatal(err)
	}
	return w
}

// add makes an account of the collection, past the API.
func (w *world) add(t testing.TB, collection, email string, role admins.Role) *core.Record {
	t.Helper()
	c, err := w.FindCollectionByNameOrId(collection)
	if err != nil {
		t.Fatal(err)
	}
	record := core.NewRecord(c)
	record.SetEmail(email)
	record.SetPassword(apptest.Password)
	record.SetVerified(true)
	if role != "" {
		record.Set("role", string(role))
	}
	if err := w.Save(record); err != nil {
		t.Fatalf("add %s: %v", email, err)
	}
	return record
}

// signIn signs in with the usual password and returns the access token.
func (w *world) signIn(t testing.TB, collection, email string) string {
	t.Helper()
	token, r := w.trySignIn(t, collection, email, apptest.Password)
	if token == "" {
		t.Fatalf("sign in: %d %s", r.Status, r.Body)
	}
	return token
}

func (w *world) trySignIn(t testing.TB, collection, email, password string) (string, apptest.Response) {
	t.Helper()
	r := w.Do(t, apptest.Request{
		Method: http.MethodPost, Path: "/api/v1/collections/" + collection + "/auth-with-password",
		Body: map[string]any{"identity": email, "password": password},
	})
	var body struct {
		Meta struct {
			Session struct{ AccessToken string } `json:"session"`
		} `json:"meta"`
	}
	_ = json.Unmarshal(r.Body, &body)
	return body.Meta.Session.AccessToken, r
}

// admin makes an admin and signs him in.
func (w *world) admin(t testing.TB, role admins.Role) (*core.Record, string) {
	t.Helper()
	email := string(role) + "@example.test"
	record := w.add(t, admins.Collection, email, role)
	return record, w.signIn(t, admins.Collection, email)
}

// root makes a superuser and signs him in.
func (w *world) root(t testing.TB) string {
	t.Helper()
	w.add(t, core.CollectionNameSuperusers, "root@example.test", "")
	return w.signIn(t, core.CollectionNameSuperusers, "root@example.test")
}

func (w *world) ask(t testing.TB, method, path, token string, body any) apptest.Response {
	t.Helper()
	return w.Do(t, apptest.Request{Method: method, Path: path, Token: token, Body: body})
}

// expect asks, and fails unless the status and the code, if one is given, are what is expected.
func (w *world) expect(t testing.TB, what, method, path, token string, body any, status int, code string) apptest.Response {
	t.Helper()
	r := w.ask(t, method, path, token, body)
	if r.Status != status || code != "" && r.Code() != code {
		t.Errorf("%s: %d %s", what, r.Status, r.Body)
	}
	return r
}

func (w *world) text(t testing.TB, query string) string {
	t.Helper()
	var out string
	if err := w.DB().NewQuery(query).Row(&out); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return out
}

func data(t testing.TB, r apptest.Response) map[string]any {
	t.Helper()
	out, _ := r.JSON(t)["data"].(map[string]any)
	return out
}
