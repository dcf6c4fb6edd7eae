package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// withNotes starts an application with a collection that only its owner may use.
func withNotes(change ...func(*api.Config)) func(testing.TB) *apptest.App {
	return func(t testing.TB) *apptest.App {
		t.Helper()
		app := start(change...)(t)
		users, err := app.FindCollectionByNameOrId("users")
		if err != nil {
			t.Fatal(err)
		}
		notes := core.NewBaseCollection("notes")
		rule := "owner = @request.auth.id"
		notes.ListRule, notes.ViewRule, notes.CreateRule, notes.UpdateRule, notes.DeleteRule = &rule, &rule, &rule, &rule, &rule
		notes.Fields.Add(
			&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1, Required: true},
			&core.TextField{Name: "title", Required: true, Max: 20},
			&core.NumberField{Name: "rank"},
		)
		if err := app.Save(notes); err != nil {
			t.Fatal(err)
		}
		return app
	}
}

// as fills in the token of a new user, and her id for OWNER in the body.
func as(t testing.TB, app *apptest.App, r *apptest.Request) {
	user, token := app.User(t, "ada@example.test")
	r.Token = token
	if body, ok := r.Body.(string); ok {
		r.Body = strings.ReplaceAll(body, "OWNER", user.Id)
	}
}

func rows(n int) func(testing.TB, *apptest.App, apptest.Response) {
	return func(t testing.TB, app *apptest.App, _ apptest.Response) {
		t.Helper()
		total, err := app.CountRecords("notes")
		if err != nil || int(total) != n {
			t.Errorf("%d rows, want %d (%v)", total, n, err)
		}
	}
}

func TestGeneratedAPI(t *testing.T) {
	create := func(body string) apptest.Request {
		return apptest.Request{Method: "POST", Path: "/api/v1/collections/notes/records", Body: body}
	}
	apptest.Run(t, withNotes(), []apptest.Scenario{
		{Name: "create", Request: create(`{"owner":"OWNER","title":"milk"}`), Before: as, Status: 200, Contains: []string{`"collectionName":"notes"`, `"title":"milk"`}, NotContains: []string{"success"}, After: rows(1)},
		{Name: "list", Request: apptest.Request{Path: "/api/v1/collections/notes/records"}, Before: as, Status: 200, Contains: []string{`"items":[]`}},
		{Name: "unknown collection", Request: apptest.Request{Path: "/api/v1/collections/nothing/records"}, Status: 404, Code: "api.not_found", Contains: []string{`"status":404`, `"message":`, `"data":{}`, `"requestId":`}},
		{Name: "the stock path has the stock error", Request: apptest.Request{Path: "/api/collections/nothing/records"}, Status: 404, Contains: []string{`{"data":{},"message":"Missing collection context.","status":404}`}},
		{Name: "malformed JSON", Request: create(`{"owner":`), Before: as, Status: 400, Code: "api.bad_request", After: rows(0)},
		{Name: "duplicate member", Request: create(`{"owner":"OWNER","title":"a","title":"b"}`), Before: as, Status: 400, Code: "api.bad_request", After: rows(0)},
		{Name: "invalid UTF-8", Request: create("{\"owner\":\"OWNER\",\"title\":\"\xff\xfe\"}"), Before: as, Status: 400, Code: "api.bad_request", After: rows(0)},
		{Name: "invalid field", Request: create(`{"owner":"OWNER","title":"` + strings.Repeat("long", 9) + `"}`), Before: as, Status: 400, Code: "api.validation_failed", Contains: []string{`"data":{"title":{"code":"validation_max_text_constraint"`}, After: rows(0)},
		{Name: "somebody else's record", Request: create(`{"owner":"000000000000000","title":"a"}`), Before: as, Status: 400, Code: "api.bad_request", After: rows(0)},
		{Name: "bad filter", Request: apptest.Request{Path: "/api/v1/collections/notes/records?filter=((("}, Before: as, Status: 400, Code: "api.bad_request"},
		{Name: "not JSON", Request: apptest.Request{Method: "POST", Path: "/api/v1/collections/notes/records", Body: "x", Header: map[string]string{"Content-Type": "application/x-thing"}}, Before: as, Status: 400, Code: "api.bad_request", After: rows(0)},
		{Name: "login with a number", Request: apptest.Request{Method: "POST", Path: "/api/v1/collections/users/auth-with-password", Body: `{"identity":5,"password":true}`}, Status: 400, Code: "api.bad_request"},
		{Name: "health of PocketBase stays stock", Request: apptest.Request{Path: "/api/health"}, Status: 200, Contains: []string{`"message":"API is healthy."`}},
		{
			Name: "sign in", Request: apptest.Request{Method: "POST", Path: "/api/v1/collections/users/auth-with-password", Body: `{"identity":"ada@example.test","password":"` + apptest.Password + `"}`},
			Before: func(t testing.TB, app *apptest.App, _ *apptest.Request) { app.User(t, "ada@example.test") }, Status: 200, Contains: []string{`"token":`},
			After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
				if r.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("an answer with a token may be stored: %q", r.Header.Get("Cache-Control"))
				}
			},
		},
	})
}

func TestBatch(t *testing.T) {
	item := func(url, title string) string {
		return `{"method":"POST","url":"` + url + `","body":{"owner":"OWNER","title":"` + title + `"}}`
	}
	batch := func(items ...string) apptest.Request {
		return apptest.Request{Method: "POST", Path: "/api/v1/batch", Body: `{"requests":[` + strings.Join(items, ",") + `]}`}
	}
	for _, prefix := range []string{"/api/collections/", "/api/v1/collections/"} {
		notes := prefix + "notes/records"
		many := make([]string, 51)
		for i := range many {
			many[i] = item(notes, fmt.Sprint("n", i))
		}
		t.Run(prefix, func(t *testing.T) {
			apptest.Run(t, withNotes(), []apptest.Scenario{
				{Name: "two creates", Request: batch(item(notes, "a"), item(notes, "b")), Before: as, Status: 200, After: func(t testing.TB, app *apptest.App, r apptest.Response) {
					var results []struct{ Status int }
					if err := json.Unmarshal(r.Body, &results); err != nil || len(results) != 2 || results[0].Status != 200 {
						t.Errorf("%v %s", err, r.Body)
					}
					rows(2)(t, app, r)
				}},
				{Name: "unknown collection", Request: batch(item(notes, "a"), item(prefix+"nothing/records", "b")), Before: as, Status: 400, Code: "api.validation_failed", Contains: []string{`"requests":{"1":`, `"status":404`}, After: rows(0)},
				{Name: "a failing item undoes all", Request: batch(item(notes, "a"), item(notes, "")), Before: as, Status: 400, Code: "api.validation_failed", Contains: []string{`"requests":{"1":`, `"title"`}, After: rows(0)},
				{Name: "over the limit", Request: batch(many...), Before: as, Status: 400, Code: "api.validation_failed", Contains: []string{"requests"}, After: rows(0)},
				{Name: "unknown action", Request: batch(`{"method":"GET","url":"` + notes + `"}`), Before: as, Status: 400, Code: "api.validation_failed", After: rows(0)},
			})
		})
	}
}

// A data folder that the stock binary made has settings already.
func TestOpensFolderOfStockPocketBase(t *testing.T) {
	app := start()(t)
	s := app.Settings()
	s.Meta.AppName = "made by stock"
	s.Batch.Enabled, s.Batch.MaxRequests = false, 7
	if err := app.Save(s); err != nil {
		t.Fatal(err)
	}
	if _, err := app.DB().NewQuery("DELETE FROM _migrations WHERE file LIKE '%_api_%'").Execute(); err != nil {
		t.Fatal(err)
	}
	again := core.NewBaseApp(core.BaseAppConfig{DataDir: app.DataDir()})
	if err := again.Bootstrap(); err != nil {
		t.Fatalf("open: %v", err)
	}
	defer func() { _ = again.ClearBootstrap() }()
	got := again.Settings()
	if !got.Batch.Enabled || got.Batch.MaxRequests != 7 || got.Meta.AppName != "made by stock" {
		t.Errorf("settings %+v, name %q", got.Batch, got.Meta.AppName)
	}
}

func TestVersionGate(t *testing.T) {
	gated := withNotes(func(c *api.Config) {
		if err := c.MinVersion.UnmarshalText([]byte("ios=1.4.0,1.2.0")); err != nil {
			panic(err)
		}
		if err := c.RecommendedVersion.UnmarshalText([]byte("2.0")); err != nil {
			panic(err)
		}
		c.StoreURL = []string{"https://example.test/app", "ios=https://apps.example.test/1"}
	})
	get := func(path, platform, version string) apptest.Request {
		return apptest.Request{Path: path, Header: map[string]string{"X-App-Platform": platform, "X-App-Version": version}}
	}
	upgraded := func(want string) func(testing.TB, *apptest.App, apptest.Response) {
		return func(t testing.TB, _ *apptest.App, r apptest.Response) {
			if got := r.Header.Get("X-App-Upgrade"); got != want {
				t.Errorf("X-App-Upgrade %q, want %q", got, want)
			}
		}
	}
	refresh := get("/api/v1/collections/users/auth-refresh", "ios", "1.0.0")
	refresh.Method = "POST"
	remove := get("/api/v1/collections/users/records/x", "ios", "1.0.0")
	remove.Method = "DELETE"
	apptest.Run(t, gated, []apptest.Scenario{
		{Name: "too old", Request: get("/api/v1/probe/ok", "ios", "1.3.9"), Status: 426, Code: "api.app_upgrade_required", Contains: []string{"1.4.0"}, After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
			if r.Header.Get("X-App-Minimum-Version") != "1.4.0" || r.Header.Get("Link") != `<https://apps.example.test/1>; rel="latest-version"` {
				t.Errorf("headers %v", r.Header)
			}
		}},
		{Name: "too old on the generated API", Request: get("/api/v1/collections/notes/records", "android", "1.1"), Status: 426, Code: "api.app_upgrade_required"},
		{Name: "the general minimum", Request: get("/api/v1/probe/ok", "android", "1.2"), Status: 200, After: upgraded("recommended")},
		{Name: "new enough", Request: get("/api/v1/probe/ok", "ios", "2.0.1-beta+5"), Status: 200, After: upgraded("")},
		{Name: "no version", Request: get("/api/v1/probe/ok", "ios", ""), Status: 200, After: upgraded("")},
		{Name: "nonsense", Request: get("/api/v1/probe/ok", "ios", "banana"), Status: 200},
		{Name: "not on stock paths", Request: get("/api/health", "ios", "1.0.0"), Status: 200},
		{Name: "an old build may renew its token", Request: refresh, Status: 401},
		{Name: "an old build may delete the account", Request: remove, Status: 404},
	})
}

func FuzzVersions(f *testing.F) {
	for _, s := range []string{"", "1.4.0", "ios=1.4.0,android=1", "=1", "1..2", "9999999999999999999", "ios=1.2.3-rc.1+b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var v api.Versions
		if v.UnmarshalText([]byte(s)) != nil {
			return
		}
		var again api.Versions
		if err := again.UnmarshalText([]byte(v.String())); err != nil || again.String() != v.String() {
			t.Errorf("%q became %q, then %q (%v)", s, v, again, err)
		}
	})
}
