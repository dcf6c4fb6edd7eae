package apikeys

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/admins"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/ratelimit"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// recent lets everybody pass who sends the header, as if he had just signed in.
func recent() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{Func: func(e *core.RequestEvent) error {
		if e.Request.Header.Get("X-Recent") == "" {
			return api.Fail(api.ErrForbidden, "sign in again")
		}
		return e.Next()
	}}
}

// program is the server with its own store, the rate limiter, and routes for admins. reads counts what the service reads.
func program(t testing.TB, limits ratelimit.Config) (*apptest.App, *store.Store) {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: []string{Uses}})
	if err != nil {
		t.Fatal(err)
	}
	log := newLog()
	d := deps(log)
	d.Version, d.May, d.Recent = db.TableVersion, admins.May, recent()
	return apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), ratelimit.New(limits, nil, nil), audit.New(audit.Config{}, log, nil),
		New(settings.Defaults[Config](), d), probe()), db
}

func get(app *apptest.App, t testing.TB, text string) apptest.Response {
	t.Helper()
	return app.Do(t, apptest.Request{Path: "/api/v1/probe", Header: map[string]string{"Authorization": "Bearer " + text}})
}

func TestScopes(t *testing.T) {
	s := newService(Config{Rate: 1}, Deps{Scopes: []string{"operations:teams.invite", "operations:teams.remove", "reports:*"}})
	for scope, want := range map[string]bool{
		"introspect": true, "operations:teams.invite": true, "operations:teams.*": true, "operations:*": true, "reports:*": true, "reports:year": true,
		"reports:year.*": true, "operations:refund": false, "operations:team.*": false, "operations:teams": false, "operations:teams.inv*": false,
		"*": false, "": false, "operations": false, "introspect:*": false, "intro*": false, "operations:teams.": false, "reports:*.a": false,
		"reports:" + strings.Repeat("x", maxScope): false, "Introspect": false, "reports:a b": false,
	} {
		if got := s.grantable(scope); got != want {
			t.Errorf("grantable %q: %v", scope, got)
		}
	}
	k := &Key{Scopes: []string{"introspect", "operations:teams.*"}}
	for scope, want := range map[string]bool{
		"introspect": true, "operations:teams.invite": true, "operations:teams.a.b": true, "operations:teamsters.invite": false,
		"operations:refund": false, "operations:teams": false, "operations:*": false, "*": false, "": false,
	} {
		if got := k.May(scope); got != want {
			t.Errorf("may %q: %v", scope, got)
		}
	}
}

func TestNetworks(t *testing.T) {
	k := &Key{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}}
	for address, want := range map[string]bool{
		"192.0.2.7": true, "::ffff:192.0.2.7": true, "2001:db8:1::1": true, "192.0.3.7": false, "::1": false, "": false, "invalid IP": false,
	} {
		if got := k.from(address); got != want {
			t.Errorf("%q: %v", address, got)
		}
	}
	app, _ := program(t, settings.Defaults[ratelimit.Config]())
	_, here := newWish(t, app, wish{name: "a", scopes: []string{ScopeIntrospect}, networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	_, away := newWish(t, app, wish{name: "b", scopes: []string{ScopeIntrospect}, networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	if r := get(app, t, here); r.Status != http.StatusOK {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if r := get(app, t, away); r.Status != http.StatusForbidden || r.Code() != ErrNetwork.Name {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}

// A key has a quota of its own, in the headers too, and takes nothing from that of its address.
func TestRate(t *testing.T) {
	limits := settings.Defaults[ratelimit.Config]()
	limits.IP = 5
	app, _ := program(t, limits)
	_, slow := newWish(t, app, wish{name: "slow", scopes: []string{ScopeIntrospect}, rate: 3})
	_, fast := newWish(t, app, wish{name: "fast", scopes: []string{ScopeIntrospect}, rate: 20})
	for i := range 3 {
		r := get(app, t, slow)
		if r.Status != http.StatusOK || r.Header.Get("RateLimit-Policy") != `"key";q=3;w=60` || !strings.HasPrefix(r.Header.Get("RateLimit"), fmt.Sprintf(`"key";r=%d;`, 2-i)) {
			t.Fatalf("%d: %d %v", i, r.Status, r.Header)
		}
	}
	r := get(app, t, slow)
	if r.Status != http.StatusTooManyRequests || r.Code() != ErrRateExceeded.Name || r.Header.Get("Retry-After") == "" || !strings.HasPrefix(r.Header.Get("RateLimit"), `"key";r=0;`) {
		t.Errorf("%d %v %s", r.Status, r.Header, r.Body)
	}
	for range 15 { // three times what the address may
		if r := get(app, t, fast); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}
}

// Whoever guesses keys is held back like any guest, and then even a good key is not looked at.
func TestGuesser(t *testing.T) {
	limits := settings.Defaults[ratelimit.Config]()
	limits.IP = 5
	app, _ := program(t, limits)
	k, text := newKey(t, app, 0, ScopeIntrospect)
	statuses := map[int]int{}
	for i := range 12 {
		guess := fmt.Sprintf("sk_%s_%043d", k.ID, i)
		statuses[get(app, t, guess).Status]++
	}
	if statuses[http.StatusUnauthorized] != 5 || statuses[http.StatusTooManyRequests] != 7 {
		t.Errorf("%v", statuses)
	}
	if r := get(app, t, text); r.Status != http.StatusTooManyRequests {
		t.Errorf("%d", r.Status)
	}
}

// A good key costs no query, and its use is no change; whatever changes the table is seen by the next request.
func TestMemory(t *testing.T) {
	app, db := program(t, settings.Defaults[ratelimit.Config]())
	s := other()
	s.deps.Version = db.TableVersion
	k, text := newKey(t, app, 0, ScopeIntrospect)
	if _, err := s.authenticate(app, text); err != nil {
		t.Fatal(err)
	}
	x := s.known.entries[k.ID]
	for range 3 {
		x.used.Store(0) // so that the use is written
		if _, err := s.authenticate(app, text); err != nil {
			t.Fatal(err)
		}
		if s.known.entries[k.ID] != x || s.known.get(k.ID, db.TableVersion(table)) != x {
			t.Fatal("the key was read again")
		}
	}
	set(t, app, k.ID, dbx.Params{"scopes": `["operations:refund"]`})
	if got, err := s.authenticate(app, text); err != nil || got.May(ScopeIntrospect) {
		t.Errorf("the old scopes count: %+v, %v", got, err)
	}
	set(t, app, k.ID, dbx.Params{"expires_at": time.Now().Unix() - 1})
	if _, err := s.authenticate(app, text); !errors.Is(err, ErrInvalid) {
		t.Errorf("expired: %v", err)
	}
}

// Once the revocation has returned, no request is let in, however many are under way.
func TestRevokedAtOnce(t *testing.T) {
	limits := settings.Defaults[ratelimit.Config]()
	limits.IP = 1_000_000
	app, _ := program(t, limits)
	k, text := newWish(t, app, wish{name: "busy", scopes: []string{ScopeIntrospect}, rate: maxRate})
	var revoked, stop atomic.Bool
	var before, late atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				ended := revoked.Load()
				status := get(app, t, text).Status
				switch {
				case status == http.StatusOK && ended:
					late.Add(1)
				case status == http.StatusOK:
					before.Add(1)
				case status != http.StatusUnauthorized:
					t.Errorf("status %d", status)
				}
				if ended {
					return
				}
			}
		})
	}
	for before.Load() < 20 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	if _, done, err := revoke(app, k.ID); err != nil || !done {
		t.Error(done, err)
	}
	revoked.Store(true)
	wg.Wait()
	if late.Load() > 0 {
		t.Errorf("%d requests were let in after the end", late.Load())
	}
}

func TestAdminRoutes(t *testing.T) {
	app, _ := program(t, settings.Defaults[ratelimit.Config]())
	_, root := app.Superuser(t)
	_, user := app.User(t, "ada@example.test")
	ask := func(method, path, token string, body any, fresh bool) apptest.Response {
		t.Helper()
		header := map[string]string{}
		if fresh {
			header["X-Recent"] = "yes"
		}
		return app.Do(t, apptest.Request{Method: method, Path: "/api/v1/admin/apikeys" + path, Token: token, Body: body, Header: header})
	}
	good := map[string]any{"name": "billing", "scopes": []string{"operations:teams.*"}, "rate": 10, "networks": []string{"127.0.0.1"}, "expiresAt": time.Now().Add(time.Hour)}
	for name, c := range map[string]struct {
		r      apptest.Response
		status int
		code   string
	}{
		"list as a guest":     {ask("GET", "", "", nil, true), 401, ""},
		"list as a user":      {ask("GET", "", user, nil, true), 403, admins.ErrRoleMissing.Name},
		"create as a user":    {ask("POST", "", user, good, true), 403, admins.ErrRoleMissing.Name},
		"not recent":          {ask("POST", "", root, good, false), 403, api.ErrForbidden.Name},
		"revoke as a user":    {ask("DELETE", "/abc", user, nil, true), 403, admins.ErrRoleMissing.Name},
		"revoke an unknown":   {ask("DELETE", "/abc", root, nil, true), 404, api.ErrNotFound.Name},
		"unknown member":      {ask("POST", "", root, map[string]any{"name": "x", "scopes": []string{"introspect"}, "secret": "x"}, true), 400, api.ErrValidation.Name},
		"too large a page":    {ask("GET", "?limit=101", root, nil, false), 400, api.ErrBadRequest.Name},
		"no scope":            {ask("POST", "", root, map[string]any{"name": "x", "scopes": []string{}}, true), 400, api.ErrValidation.Name},
		"expired when it was": {ask("POST", "", root, map[string]any{"name": "x", "scopes": []string{"introspect"}, "expiresAt": time.Now().Add(-time.Hour)}, true), 400, api.ErrValidation.Name},
	} {
		if c.r.Status != c.status || c.code != "" && c.r.Code() != c.code {
			t.Errorf("%s: %d %s", name, c.r.Status, c.r.Body)
		}
	}
	r := ask("POST", "", root, map[string]any{"name": " ", "scopes": []string{"all"}, "rate": -1, "networks": []string{"x"}}, true)
	for _, field := range []string{"name", "scopes", "rate", "networks"} {
		if !strings.Contains(string(r.Body), `"field":"`+field+`"`) {
			t.Errorf("%s is not named: %s", field, r.Body)
		}
	}

	r = ask("POST", "", root, good, true)
	data, _ := r.JSON(t)["data"].(map[string]any)
	text, _ := data["key"].(string)
	id, _ := data["id"].(string)
	if r.Status != http.StatusCreated || !keyPattern.MatchString(text) || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	if r := get(app, t, text); r.Status != http.StatusForbidden || r.Code() != ErrScopeMissing.Name {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if r := ask("GET", "?limit=1", root, nil, false); r.Status != http.StatusOK || !strings.Contains(string(r.Body), `"127.0.0.1/32"`) || strings.Contains(string(r.Body), text[20:]) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	for range 2 {
		if r := ask("DELETE", "/"+id, root, nil, true); r.Status != http.StatusNoContent {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	}
	if r := get(app, t, text); r.Status != http.StatusUnauthorized {
		t.Errorf("after the end: %d", r.Status)
	}
	var details []string
	if err := app.DB().NewQuery("SELECT action || ' ' || actor_kind || ' ' || details FROM audit_entries WHERE action LIKE 'apikeys.%' ORDER BY id").Column(&details); err != nil {
		t.Fatal(err)
	}
	if len(details) != 2 || !strings.HasPrefix(details[0], "apikeys.created superuser") || !strings.Contains(details[0], `"before":null`) ||
		!strings.HasPrefix(details[1], "apikeys.revoked superuser") || !strings.Contains(details[1], `"before":{`) || slices.ContainsFunc(details, func(d string) bool { return strings.Contains(d, text[20:]) }) {
		t.Errorf("%q", details)
	}
}

// What was noted in the table of keys moves to that of uses, and back.
func TestMigration(t *testing.T) {
	app := start(t)
	k, _ := newKey(t, app, 0, ScopeIntrospect)
	if err := app.RunInTransaction(reduceKeys); err != nil {
		t.Fatal(err)
	}
	set(t, app, k.ID, dbx.Params{"last_used_at": 7})
	if err := app.RunInTransaction(extendKeys); err != nil {
		t.Fatal(err)
	}
	if r, err := find(app, k.ID); err != nil || r.LastUsed != 7 || r.Networks != "[]" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := app.RunInTransaction(reduceKeys); err != nil {
		t.Fatal(err)
	}
	var used int64
	if err := app.DB().NewQuery("SELECT last_used_at FROM apikeys_keys").Row(&used); err != nil || used != 7 {
		t.Errorf("%d, %v", used, err)
	}
}

func TestPages(t *testing.T) {
	app := start(t)
	want := map[string]bool{}
	for range 5 {
		k, _ := newKey(t, app, 0, ScopeIntrospect)
		want[k.ID] = true
	}
	for cursor, n := "", 0; ; n++ {
		keys, next, err := page(app, 2, cursor)
		if err != nil || n > 2 {
			t.Fatal(n, err)
		}
		for _, k := range keys {
			delete(want, k.ID)
		}
		if cursor = next; next == "" {
			break
		}
	}
	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}
}
