package admins_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/admins"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/apikeys"
	"github.com/satchelbase/satchel/extensions/impersonation"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/sessions"
)

// Who passes which gate.
func TestRoles(t *testing.T) {
	w := start(t)
	w.User(t, "ada@example.test")
	tokens := map[string]string{"guest": "", "user": w.signIn(t, "users", "ada@example.test"), "superuser": w.root(t)}
	for _, role := range admins.Roles() {
		_, tokens[string(role)] = w.admin(t, role)
	}
	for who, reach := range map[string]int{"guest": -1, "user": 0, "viewer": 1, "support": 2, "operator": 3, "owner": 4, "superuser": 4} {
		for i, role := range append(admins.Roles(), "nobody") {
			status, code := http.StatusNoContent, ""
			switch {
			case reach < 0:
				status, code = http.StatusUnauthorized, api.ErrUnauthorized.Name
			case i >= reach:
				status, code = http.StatusForbidden, admins.ErrRoleMissing.Name
			}
			w.expect(t, who+" at the gate of "+string(role), "GET", "/api/v1/gate/"+string(role), tokens[who], nil, status, code)
		}
	}
	r := w.expect(t, "me", "GET", "/api/v1/admin/me", tokens["operator"], nil, http.StatusOK, "")
	if got := string(r.Body); !strings.Contains(got, `"role":"operator","may":["viewer","support","operator"]`) || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s", got)
	}
	w.expect(t, "me, a superuser", "GET", "/api/v1/admin/me", tokens["superuser"], nil, http.StatusOK, "")
	w.expect(t, "me, a user", "GET", "/api/v1/admin/me", tokens["user"], nil, http.StatusForbidden, admins.ErrRoleMissing.Name)

	// What else looks at roles.
	for who, detail := range map[string]bool{"guest": false, "user": false, "viewer": true, "superuser": true} {
		if r := w.ask(t, "GET", "/api/v1/health", tokens[who], nil); strings.Contains(string(r.Body), "uptimeSeconds") != detail {
			t.Errorf("health for %s: %s", who, r.Body)
		}
	}
	for who, status := range map[string]int{"viewer": 403, "support": 403, "operator": 200, "owner": 200} {
		w.expect(t, "keys for "+who, "GET", "/api/v1/admin/apikeys", tokens[who], nil, status, "")
	}
	key := map[string]any{"name": "x", "scopes": []string{"introspect"}}
	w.expect(t, "a key by an operator", "POST", "/api/v1/admin/apikeys", tokens["operator"], key, 403, admins.ErrRoleMissing.Name)
	text, _ := data(t, w.expect(t, "a key by an owner", "POST", "/api/v1/admin/apikeys", tokens["owner"], key, 201, ""))["key"].(string)

	// A key is no admin, and passes the other judges of credentials where it is taken.
	w.expect(t, "a key at a gate", "GET", "/api/v1/gate/viewer", "Bearer "+text, nil, 401, api.ErrUnauthorized.Name)
	w.expect(t, "a key elsewhere", "GET", "/api/v1/admin/me", "Bearer "+text, nil, 401, sessions.ErrTokenInvalid.Name)
	r = w.Do(t, apptest.Request{
		Method: "POST", Path: "/api/v1/auth/introspect", Token: "Bearer " + text, Body: "token=" + tokens["user"],
		Header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
	})
	if r.Status != http.StatusOK || !strings.Contains(string(r.Body), `"active":true`) {
		t.Errorf("introspection: %d %s", r.Status, r.Body)
	}
}

// Nobody rises by other ways than these.
func TestEscalation(t *testing.T) {
	w := start(t)
	w.Settings().Batch.Enabled = true
	if err := w.Save(w.Settings()); err != nil {
		t.Fatal(err)
	}
	w.User(t, "ada@example.test")
	viewer, token := w.admin(t, admins.Viewer)
	_, operator := w.admin(t, admins.Operator)
	w.add(t, admins.Collection, "boss@example.test", admins.Owner)
	user := w.signIn(t, "users", "ada@example.test")
	own := "/api/collections/admins/records/" + viewer.Id
	rise := map[string]any{"role": "owner"}
	account := map[string]any{"email": "eve@example.test", "password": apptest.Password, "passwordConfirm": apptest.Password, "role": "owner"}
	batch := func(method, url string, body any) map[string]any {
		return map[string]any{"requests": []any{map[string]any{"method": method, "url": url, "body": body}}}
	}
	for name, c := range map[string]struct {
		method, path, token string
		body                any
		least, most         int
	}{
		"own record":                   {"PATCH", own, token, rise, 403, 404},
		"own record, versioned":        {"PATCH", "/api/v1/collections/admins/records/" + viewer.Id, token, rise, 403, 404},
		"own record, by id":            {"PATCH", "/api/collections/" + admins.CollectionID + "/records/" + viewer.Id, token, rise, 403, 404},
		"own record as a user":         {"PATCH", own, user, rise, 403, 404},
		"own record in a batch":        {"POST", "/api/batch", token, batch("PATCH", own, rise), 400, 404},
		"upsert in a batch":            {"POST", "/api/batch", token, batch("PUT", "/api/collections/admins/records", map[string]any{"id": viewer.Id, "role": "owner"}), 400, 404},
		"sign-up":                      {"POST", "/api/collections/admins/records", "", account, 403, 403},
		"sign-up, versioned":           {"POST", "/api/v1/collections/admins/records", "", account, 403, 403},
		"sign-up as a user":            {"POST", "/api/collections/admins/records", user, account, 403, 403},
		"sign-up as an admin":          {"POST", "/api/collections/admins/records", operator, account, 403, 403},
		"sign-up in a batch":           {"POST", "/api/batch", "", batch("POST", "/api/collections/admins/records", account), 400, 403},
		"own record through records":   {"GET", "/api/v1/records/admins/" + viewer.Id, token, nil, 403, 404},
		"list of admins":               {"GET", "/api/collections/admins/records", token, nil, 403, 403},
		"anonymous":                    {"POST", "/api/v1/auth/anonymous", "", map[string]any{"collection": "admins"}, 400, 400},
		"exchange":                     {"POST", "/api/v1/auth/exchange", "", map[string]any{"provider": "google", "token": "x.y.z", "collection": "admins"}, 400, 400},
		"exchange, by id":              {"POST", "/api/v1/auth/exchange", "", map[string]any{"provider": "google", "token": "x.y.z", "collection": admins.CollectionID}, 400, 400},
		"OAuth2":                       {"POST", "/api/collections/admins/auth-with-oauth2", "", map[string]any{"provider": "google", "code": "x", "redirectURL": "http://x", "createData": rise}, 400, 403},
		"one-time password":            {"POST", "/api/collections/admins/request-otp", "", map[string]any{"email": "boss@example.test"}, 400, 403},
		"upgrade":                      {"POST", "/api/v1/auth/upgrade", token, map[string]any{"email": "boss2@example.test", "password": apptest.Password}, 400, 409},
		"route, as a viewer":           {"PATCH", "/api/v1/admin/admins/" + viewer.Id, token, rise, 403, 403},
		"route, as an operator":        {"PATCH", "/api/v1/admin/admins/" + viewer.Id, operator, rise, 403, 403},
		"route, a new one":             {"POST", "/api/v1/admin/admins", operator, map[string]any{"email": "eve@example.test", "role": "viewer"}, 403, 403},
		"route, removal":               {"DELETE", "/api/v1/admin/admins/" + viewer.Id, operator, nil, 403, 403},
		"route, list":                  {"GET", "/api/v1/admin/admins", operator, nil, 403, 403},
		"more with the password":       {"PUT", "/api/v1/admin/me/password", token, map[string]any{"password": "another-password-1", "role": "owner"}, 400, 400},
		"collections":                  {"GET", "/api/collections", operator, nil, 403, 403},
		"rules of the collection":      {"PATCH", "/api/collections/admins", operator, map[string]any{"createRule": ""}, 403, 403},
		"settings":                     {"GET", "/api/settings", operator, nil, 403, 403},
		"logs":                         {"GET", "/api/logs", operator, nil, 403, 403},
		"backups":                      {"GET", "/api/backups", operator, nil, 403, 403},
		"PocketBase's impersonation":   {"POST", "/api/collections/users/impersonate/" + viewer.Id, operator, nil, 403, 403},
		"superusers":                   {"POST", "/api/collections/_superusers/records", operator, account, 403, 403},
		"all sessions, as superusers":  {"DELETE", "/api/v1/auth/sessions/abc", operator, nil, 404, 404},
		"truncation of the collection": {"DELETE", "/api/collections/admins/truncate", operator, nil, 403, 403},
	} {
		r := w.ask(t, c.method, c.path, c.token, c.body)
		if strings.Contains(string(r.Body), "atch requests are not allowed") {
			t.Errorf("%s: batches are off", name)
		}
		if r.Status < c.least || r.Status > c.most {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if got := w.text(t, "SELECT group_concat(role, ' ') FROM (SELECT role FROM admins ORDER BY role)"); got != "operator owner viewer" {
		t.Errorf("the admins are now: %s", got)
	}

	// Not even a superuser opens the collection.
	root := w.root(t)
	for _, change := range []map[string]any{{"createRule": ""}, {"updateRule": "id = @request.auth.id"}, {"manageRule": ""}, {"name": "users2"}, {"system": false}} {
		w.expect(t, "the collection is changed", "PATCH", "/api/collections/admins", root, change, 400, "")
	}
	w.expect(t, "the collection is deleted", "DELETE", "/api/collections/admins", root, nil, 400, "")
}

// An admin is an account: row rules that ask for any account let it in, those that ask for a user's id do not.
func TestRowRules(t *testing.T) {
	w := start(t)
	users, err := w.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	admin, token := w.admin(t, admins.Support)
	c := core.NewBaseCollection("notes")
	c.Fields.Add(&core.TextField{Name: "title"}, &core.RelationField{Name: "owner", CollectionId: users.Id, Required: true, MaxSelect: 1})
	rule := "@request.auth.id != '' && owner = @request.auth.id"
	c.ListRule, c.CreateRule = &rule, &rule
	if err := w.Save(c); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "a note of an admin", "POST", "/api/collections/notes/records", token, map[string]any{"title": "x", "owner": admin.Id}, 400, "")
	user, _ := w.User(t, "ada@example.test")
	w.expect(t, "a note of somebody else", "POST", "/api/collections/notes/records", token, map[string]any{"title": "x", "owner": user.Id}, 400, "")
}

// An owner adds, changes and removes admins; each act is in the audit, and counts at once.
func TestManage(t *testing.T) {
	w := start(t)
	_, owner := w.admin(t, admins.Owner)
	r := w.expect(t, "add", "POST", "/api/v1/admin/admins", owner, map[string]any{"email": "bob@example.test", "role": "support"}, 201, "")
	id, _ := data(t, r)["id"].(string)
	password, _ := data(t, r)["password"].(string)
	if r.Header.Get("Cache-Control") != "no-store" || len(password) != 26 {
		t.Errorf("%s", r.Body)
	}
	bob, _ := w.trySignIn(t, admins.Collection, "bob@example.test", password)
	w.expect(t, "bob", "GET", "/api/v1/gate/support", bob, nil, 204, "")

	for name, body := range map[string]any{
		"taken":          map[string]any{"email": "bob@example.test", "role": "viewer"},
		"no role":        map[string]any{"email": "eve@example.test"},
		"no such role":   map[string]any{"email": "eve@example.test", "role": "king"},
		"short password": map[string]any{"email": "eve@example.test", "role": "viewer", "password": "short"},
		"no address":     map[string]any{"email": "eve", "role": "viewer"},
		"another member": map[string]any{"email": "eve@example.test", "role": "viewer", "verified": true},
	} {
		w.expect(t, name, "POST", "/api/v1/admin/admins", owner, body, 400, api.ErrValidation.Name)
	}
	w.expect(t, "unknown", "PATCH", "/api/v1/admin/admins/nobody", owner, map[string]any{"role": "viewer"}, 404, "")
	w.expect(t, "an owner does not need it twice", "PATCH", "/api/v1/admin/admins/"+id, owner, map[string]any{"role": "king"}, 400, "")
	if r := w.expect(t, "list", "GET", "/api/v1/admin/admins?limit=1", owner, nil, 200, ""); !strings.Contains(string(r.Body), `"hasNext":true`) || strings.Contains(string(r.Body), "tokenKey") {
		t.Errorf("%s", r.Body)
	}

	// Bob acts for a user, and has an own password.
	user, _ := w.User(t, "ada@example.test")
	acting, _ := data(t, w.expect(t, "act", "POST", "/api/v1/auth/impersonate", bob, map[string]any{"user": user.Id, "reason": "ticket 7"}, 200, ""))["accessToken"].(string)
	w.expect(t, "acting", "GET", "/api/v1/auth/sessions", acting, nil, 200, "")
	w.expect(t, "whoever acts has no role", "GET", "/api/v1/gate/viewer", acting, nil, 403, "")
	if got := w.text(t, "SELECT actor_kind || ' ' || actor_collection || ' ' || actor_id FROM audit_entries WHERE action = 'sessions.impersonated'"); got != "user admins "+id {
		t.Errorf("%s", got)
	}
	w.expect(t, "rename", "PATCH", "/api/collections/users/records/"+user.Id, acting, map[string]any{"name": "Ada"}, 200, "")

	// A change ends what there is, also what bob does for others.
	w.expect(t, "demote", "PATCH", "/api/v1/admin/admins/"+id, owner, map[string]any{"role": "viewer"}, 200, "")
	w.expect(t, "bob's old session", "GET", "/api/v1/gate/viewer", bob, nil, 401, sessions.ErrTokenRevoked.Name)
	w.expect(t, "bob's acting", "GET", "/api/v1/auth/sessions", acting, nil, 401, sessions.ErrTokenRevoked.Name)
	bob, _ = w.trySignIn(t, admins.Collection, "bob@example.test", password)
	w.expect(t, "bob is a viewer", "GET", "/api/v1/gate/support", bob, nil, 403, "")
	w.expect(t, "acting", "POST", "/api/v1/auth/impersonate", bob, map[string]any{"user": user.Id, "reason": "x"}, 403, admins.ErrRoleMissing.Name)

	w.expect(t, "a common password", "PUT", "/api/v1/admin/me/password", bob, map[string]any{"password": "short"}, 400, "")
	w.expect(t, "password", "PUT", "/api/v1/admin/me/password", bob, map[string]any{"password": "a-new-password-1"}, 204, "")
	w.expect(t, "after that", "GET", "/api/v1/admin/me", bob, nil, 401, "")
	bob, _ = w.trySignIn(t, admins.Collection, "bob@example.test", "a-new-password-1")
	w.expect(t, "remove", "DELETE", "/api/v1/admin/admins/"+id, owner, nil, 204, "")
	w.expect(t, "bob is gone", "GET", "/api/v1/admin/me", bob, nil, 401, "")
	w.expect(t, "remove again", "DELETE", "/api/v1/admin/admins/"+id, owner, nil, 404, "")

	var entries []string
	err := w.DB().NewQuery(`SELECT action || ' ' || actor_id || ' ' || details FROM audit_entries WHERE action LIKE 'admins.%' AND subject_id = {:id} ORDER BY id`).
		Bind(dbx.Params{"id": id}).Column(&entries)
	boss := w.text(t, "SELECT id FROM admins WHERE role = 'owner'")
	want := []string{
		"admins.added " + boss + ` {"after":{"email":"bob@example.test","role":"support"},"before":null}`,
		"admins.changed " + boss + ` {"after":{"email":"bob@example.test","role":"viewer"},"before":{"email":"bob@example.test","role":"support"}}`,
		"admins.removed " + boss + ` {"after":null,"before":{"email":"bob@example.test","role":"viewer"}}`,
	}
	if err != nil || strings.Join(entries, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v\n%s", err, strings.Join(entries, "\n"))
	}
}

// Operations take admins by their role and keys by their scope, and the audit knows which it was.
func TestOperations(t *testing.T) {
	w := start(t)
	_, owner := w.admin(t, admins.Owner)
	_, viewer := w.admin(t, admins.Viewer)
	_, support := w.admin(t, admins.Support)
	const count = "/api/v1/operations/teams.count"
	key := func(scope string) (id, text string) {
		t.Helper()
		r := data(t, w.expect(t, "key", "POST", "/api/v1/admin/apikeys", owner, map[string]any{"name": "x", "scopes": []string{scope}}, 201, ""))
		id, _ = r["id"].(string)
		text, _ = r["key"].(string)
		return id, "Bearer " + text
	}
	id, good := key("operations:teams.*")
	_, other := key("operations:users.*")
	empty := map[string]any{}
	w.expect(t, "a viewer", "POST", count, viewer, empty, 403, admins.ErrRoleMissing.Name)
	w.expect(t, "support", "POST", count, support, empty, 200, "")
	w.expect(t, "a key", "POST", count, good, empty, 200, "")
	w.expect(t, "a key of another scope", "POST", count, other, empty, 403, operations.ErrCallerRefused.Name)
	if got := w.text(t, "SELECT group_concat(actor_kind || ' ' || actor_id) FROM audit_entries WHERE actor_kind = 'key' AND outcome = 'success'"); got != "key "+id {
		t.Errorf("%s", w.text(t, "SELECT group_concat(action || ' ' || actor_kind || ' ' || outcome) FROM audit_entries"))
	}
	w.expect(t, "revoke", "DELETE", "/api/v1/admin/apikeys/"+id, owner, nil, 204, "")
	w.expect(t, "after that", "POST", count, good, empty, 401, apikeys.ErrInvalid.Name)
}

// A change in the dashboard is like one by the routes.
func TestDashboard(t *testing.T) {
	w := start(t)
	root := w.root(t)
	record, token := w.admin(t, admins.Operator)
	path := "/api/collections/admins/records/" + record.Id
	w.expect(t, "another role", "PATCH", path, root, map[string]any{"role": "viewer"}, 200, "")
	w.expect(t, "the old session", "GET", "/api/v1/gate/viewer", token, nil, 401, "")
	w.expect(t, "removal", "DELETE", path, root, nil, 204, "")
	if got := w.text(t, "SELECT group_concat(action || ' ' || actor_kind, ', ') FROM audit_entries WHERE action LIKE 'admins.%'"); got != "admins.added system, admins.changed superuser, admins.removed superuser" {
		t.Errorf("%s", got)
	}
}

// Changes want a sign-in that is recent, and the routes for it work for admins.
func TestRecent(t *testing.T) {
	w := start(t)
	record, owner := w.admin(t, admins.Owner)
	_, err := w.NonconcurrentDB().NewQuery("UPDATE sessions_logins SET auth_at = {:at}").Bind(dbx.Params{"at": time.Now().Add(-time.Hour).UnixMilli()}).Execute()
	if err != nil {
		t.Fatal(err)
	}
	code := sessions.ErrRecentAuth.Name
	w.expect(t, "add", "POST", "/api/v1/admin/admins", owner, map[string]any{"email": "bob@example.test", "role": "viewer"}, 403, code)
	w.expect(t, "change", "PATCH", "/api/v1/admin/admins/"+record.Id, owner, map[string]any{"role": "viewer"}, 403, code)
	w.expect(t, "remove", "DELETE", "/api/v1/admin/admins/"+record.Id, owner, nil, 403, code)
	w.expect(t, "password", "PUT", "/api/v1/admin/me/password", owner, map[string]any{"password": "a-new-password-1"}, 403, code)
	w.expect(t, "key", "POST", "/api/v1/admin/apikeys", owner, map[string]any{"name": "x", "scopes": []string{"introspect"}}, 403, code)
	w.expect(t, "list", "GET", "/api/v1/admin/admins", owner, nil, 200, "")
	w.expect(t, "again", "POST", "/api/v1/auth/reauthenticate", owner, map[string]any{"password": apptest.Password}, 200, "")
	w.expect(t, "add", "POST", "/api/v1/admin/admins", owner, map[string]any{"email": "bob@example.test", "role": "viewer"}, 201, "")
	w.expect(t, "second factor", "POST", "/api/v1/auth/totp", owner, nil, 201, "")
	w.expect(t, "own sessions", "GET", "/api/v1/auth/sessions", owner, nil, 200, "")
}

// The last owner stays unless there is a superuser; of two who demote each other at the same time, one does.
func TestLastOwner(t *testing.T) {
	w := start(t)
	a, tokenA := w.admin(t, admins.Owner)
	b := w.add(t, admins.Collection, "second@example.test", admins.Owner)
	tokenB := w.signIn(t, admins.Collection, "second@example.test")
	var wg sync.WaitGroup
	demote := map[string]any{"role": "viewer"}
	wg.Go(func() { w.ask(t, "PATCH", "/api/v1/admin/admins/"+b.Id, tokenA, demote) })
	wg.Go(func() { w.ask(t, "PATCH", "/api/v1/admin/admins/"+a.Id, tokenB, demote) })
	wg.Wait()
	if got := w.text(t, "SELECT count(*) FROM admins WHERE role = 'owner'"); got != "1" {
		t.Fatalf("%s owners are left", got)
	}
	id, email := w.text(t, "SELECT id FROM admins WHERE role = 'owner'"), w.text(t, "SELECT email FROM admins WHERE role = 'owner'")
	token := w.signIn(t, admins.Collection, email)
	w.expect(t, "demote", "PATCH", "/api/v1/admin/admins/"+id, token, demote, 409, admins.ErrLastOwner.Name)
	w.expect(t, "remove", "DELETE", "/api/v1/admin/admins/"+id, token, nil, 409, admins.ErrLastOwner.Name)
	w.expect(t, "still in", "GET", "/api/v1/gate/owner", token, nil, 204, "")
	w.add(t, core.CollectionNameSuperusers, core.DefaultInstallerEmail, "")
	w.expect(t, "the installer's account is nobody", "DELETE", "/api/v1/admin/admins/"+id, token, nil, 409, admins.ErrLastOwner.Name)
	w.root(t)
	w.expect(t, "remove", "DELETE", "/api/v1/admin/admins/"+id, token, nil, 204, "")
}

// Support sees and ends the sessions of users, not those of admins, and acts for users, not for admins.
func TestSupport(t *testing.T) {
	w := start(t)
	user, _ := w.User(t, "ada@example.test")
	owner, ownerToken := w.admin(t, admins.Owner)
	_, viewer := w.admin(t, admins.Viewer)
	_, support := w.admin(t, admins.Support)
	root := w.root(t)
	first, second := w.signIn(t, "users", "ada@example.test"), w.signIn(t, "users", "ada@example.test")

	list := "/api/v1/admin/sessions?user=" + user.Id
	w.expect(t, "as a viewer", "GET", list, viewer, nil, 403, admins.ErrRoleMissing.Name)
	w.expect(t, "as a user", "GET", list, first, nil, 403, admins.ErrRoleMissing.Name)
	w.expect(t, "of nobody", "GET", "/api/v1/admin/sessions", support, nil, 400, "")
	w.expect(t, "bad cursor", "GET", list+"&cursor=x", support, nil, 400, "")
	w.expect(t, "no such collection", "GET", list+"&collection=nothing", support, nil, 404, "")
	r := w.expect(t, "list", "GET", list+"&limit=1", support, nil, 200, "")
	page, _ := r.JSON(t)["data"].([]any)
	if len(page) != 1 || !strings.Contains(string(r.Body), `"collection":"users"`) {
		t.Fatalf("%s", r.Body)
	}
	session, _ := page[0].(map[string]any)["id"].(string)
	w.expect(t, "end as a viewer", "DELETE", "/api/v1/admin/sessions/"+session, viewer, nil, 403, "")
	w.expect(t, "end", "DELETE", "/api/v1/admin/sessions/"+session, support, nil, 204, "")
	w.expect(t, "end again", "DELETE", "/api/v1/admin/sessions/"+session, support, nil, 404, "")
	alive := 0
	for _, token := range []string{first, second} {
		if w.ask(t, "GET", "/api/v1/auth/sessions", token, nil).Status == http.StatusOK {
			alive++
		}
	}
	if alive != 1 {
		t.Errorf("%d of two sessions live", alive)
	}
	if got := w.text(t, "SELECT subject_id || ' ' || session FROM audit_entries WHERE action = 'sessions.ended'"); got != user.Id+" "+session {
		t.Errorf("%s", got)
	}

	ofOwner := "/api/v1/admin/sessions?collection=admins&user=" + owner.Id
	w.expect(t, "those of an admin", "GET", ofOwner, support, nil, 403, admins.ErrRoleMissing.Name)
	w.expect(t, "those of an admin, by an owner", "GET", ofOwner, ownerToken, nil, 200, "")
	id := w.text(t, "SELECT id FROM sessions_logins WHERE record = '"+owner.Id+"'")
	w.expect(t, "end one of an admin", "DELETE", "/api/v1/admin/sessions/"+id, support, nil, 403, admins.ErrRoleMissing.Name)
	w.expect(t, "end one of an admin, by a superuser", "DELETE", "/api/v1/admin/sessions/"+id, root, nil, 204, "")
	w.expect(t, "it has ended", "GET", "/api/v1/admin/me", ownerToken, nil, 401, "")

	acting := w.expect(t, "act for a user", "POST", "/api/v1/auth/impersonate", support, map[string]any{"user": user.Id, "reason": "x"}, 200, "")
	grant, _ := acting.JSON(t)["data"].(map[string]any)
	token, _ := grant["accessToken"].(string)
	w.expect(t, "a user's account", "POST", "/api/v1/operations/account.delete", token, map[string]any{}, 403, impersonation.ErrForbidden.Name)
	super := w.text(t, "SELECT id FROM _superusers")
	for name, c := range map[string]struct{ token, collection, id string }{
		"an admin":                     {support, "admins", owner.Id},
		"an admin, by id":              {support, admins.CollectionID, owner.Id},
		"a superuser":                  {support, "_superusers", super},
		"an admin, by a superuser":     {root, "admins", owner.Id},
		"a superuser, by another":      {root, "_superusers", super},
		"oneself":                      {support, "admins", w.text(t, "SELECT id FROM admins WHERE role = 'support'")},
		"an admin, by PocketBase":      {root, "/admins", owner.Id},
		"a superuser, by PocketBase":   {root, "/_superusers", super},
		"a user, by PocketBase, as us": {support, "/users", user.Id},
	} {
		r := w.ask(t, "POST", "/api/v1/auth/impersonate", c.token, map[string]any{"user": c.id, "collection": c.collection, "reason": "x"})
		if collection, ok := strings.CutPrefix(c.collection, "/"); ok {
			r = w.ask(t, "POST", "/api/collections/"+collection+"/impersonate/"+c.id, c.token, map[string]any{"duration": 60})
		} else if r.Code() != impersonation.ErrForbidden.Name {
			t.Errorf("%s: %s", name, r.Body)
		}
		if r.Status != http.StatusForbidden {
			t.Errorf("%s is impersonated: %d %s", name, r.Status, r.Body)
		}
	}
}
