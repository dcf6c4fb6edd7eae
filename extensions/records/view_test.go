package records

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

func TestView(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	own := create(t, app, "posts", map[string]any{"title": "own", "body": "<p>long text</p>", "secret": "s", "owner": p.ann.Id, "team": p.team.Id})
	foreign := create(t, app, "posts", map[string]any{"title": "foreign", "owner": "", "team": ""})
	hidden := create(t, app, "plain", map[string]any{"title": "plain"})
	path := postsPath + "/" + own.Id
	cases := []struct {
		name, path, token string
		status            int
		code              string
		contains          []string
		notContains       []string
	}{
		{name: "by ownership", path: path, token: p.annToken, status: 200, contains: []string{`"success":true,"data":{"body":`, `"title":"own"`}, notContains: []string{`"secret"`, `"expand"`, `"pagination"`}},
		{name: "by a relation", path: path, token: p.bobToken, status: 200, contains: []string{`"title":"own"`}},
		{name: "as superuser", path: path, token: p.rootToken, status: 200, contains: []string{`"secret":"s"`}},
		{name: "as guest", path: path, status: 404, code: "api.not_found"},
		{name: "hidden by the rule", path: postsPath + "/" + foreign.Id, token: p.annToken, status: 404, code: "api.not_found"},
		{name: "unknown", path: postsPath + "/nope", token: p.annToken, status: 404, code: "api.not_found"},
		{name: "unknown collection", path: "/api/v1/records/nope/x", status: 404, code: "api.not_found"},
		{name: "for superusers", path: "/api/v1/records/plain/" + hidden.Id, token: p.annToken, status: 403, code: "api.forbidden"},
		{name: "for superusers as superuser", path: "/api/v1/records/plain/" + hidden.Id, token: p.rootToken, status: 200},
		{name: "of a view", path: "/api/v1/records/digest/" + own.Id, status: 200, contains: []string{`"title":"own"`}},
		{name: "expand", path: path + "?expand=owner,team", token: p.annToken, status: 200, contains: []string{`"expand":{"owner":{`, `"name":"both"`}},
		{name: "expand invalid", path: path + "?expand=title", token: p.annToken, status: 400, code: "records.expand_invalid"},
		{name: "fields", path: path + "?fields=title,body:excerpt(4)", token: p.annToken, status: 200, contains: []string{`"data":{"body":"long","title":"own"}`}},
		{name: "fields under a rule with joins", path: path + "?fields=title", token: p.bobToken, status: 200, contains: []string{`"data":{"title":"own"}`}},
		{name: "fields and expand", path: path + "?fields=expand.owner.id&expand=owner", token: p.annToken, status: 200, contains: []string{`"data":{"expand":{"owner":{"id":"` + p.ann.Id + `"}}}`}},
		{name: "fields invalid", path: path + "?fields=title:nope", token: p.annToken, status: 400, code: "records.fields_invalid"},
		{name: "query malformed", path: path + "?fields=%zz", token: p.annToken, status: 400, code: "api.bad_request"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := app.Do(t, apptest.Request{Path: c.path, Token: c.token})
			if r.Status != c.status || r.Code() != c.code {
				t.Fatalf("%d %q, want %d %q: %s", r.Status, r.Code(), c.status, c.code, cut(r.Body))
			}
			for _, want := range c.contains {
				if !strings.Contains(string(r.Body), want) {
					t.Errorf("no %q in %s", want, cut(r.Body))
				}
			}
			for _, bad := range c.notContains {
				if strings.Contains(string(r.Body), bad) {
					t.Errorf("%q in %s", bad, cut(r.Body))
				}
			}
		})
	}

	etag := app.Do(t, apptest.Request{Path: path, Token: p.annToken}).Header.Get("ETag")
	if r := app.Do(t, apptest.Request{Path: path, Token: p.annToken, Header: map[string]string{"If-None-Match": etag}}); r.Status != http.StatusNotModified {
		t.Errorf("unchanged: %d", r.Status)
	}
	if r := app.Do(t, apptest.Request{Method: http.MethodHead, Path: path, Token: p.annToken}); r.Status != http.StatusOK || len(r.Body) > 0 {
		t.Errorf("HEAD: %d %s", r.Status, r.Body)
	}
}

// An e-mail address is shown to its owner, to managers, and to all if its owner says so; fields do not change that.
func TestEmailVisibility(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	users := collection(t, app, "users")
	users.ListRule, users.ViewRule = new("@request.auth.id != ''"), new("@request.auth.id != ''")
	save(t, app, users)
	p.bob.SetEmailVisibility(true)
	save(t, app, p.bob)
	carol, _ := app.User(t, "carol@example.test")
	for _, query := range []string{"", "?fields=id,email"} {
		r := app.Do(t, apptest.Request{Path: "/api/v1/records/users" + query, Token: p.annToken})
		body := string(r.Body)
		if !strings.Contains(body, "ann@") || !strings.Contains(body, "bob@") || strings.Contains(body, "carol@") {
			t.Errorf("list%s: %s", query, body)
		}
		one := app.Do(t, apptest.Request{Path: "/api/v1/records/users/" + carol.Id + query, Token: p.annToken})
		if one.Status != http.StatusOK || strings.Contains(string(one.Body), "carol@") {
			t.Errorf("view%s: %s", query, one.Body)
		}
		other := app.Do(t, apptest.Request{Path: "/api/v1/records/users/" + p.bob.Id + query, Token: p.annToken})
		if !strings.Contains(string(other.Body), "bob@") {
			t.Errorf("view%s: %s", query, other.Body)
		}
	}
}

func TestHooksRun(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	post := create(t, app, "posts", map[string]any{"title": "one", "body": "text", "owner": p.ann.Id})
	app.OnRecordsListRequest("posts").BindFunc(func(e *core.RecordsListRequestEvent) error {
		e.Response.Header().Set("X-List", e.Records[0].GetString("body"))
		e.Records[0].Set("title", "changed by the list")
		return e.Next()
	})
	app.OnRecordViewRequest("posts").BindFunc(func(e *core.RecordRequestEvent) error {
		if e.Auth == nil {
			return e.ForbiddenError("not you", nil)
		}
		e.Record.Set("title", "changed by the view")
		return e.Next()
	})
	app.OnRecordEnrich("posts").BindFunc(func(e *core.RecordEnrichEvent) error {
		e.Record.WithCustomData(true).Set("extra", len(e.Record.GetString("body")))
		return e.Next()
	})
	// With fields, too, a hook sees the whole record.
	r := app.Do(t, apptest.Request{Path: postsPath + "?fields=title,extra", Token: p.annToken})
	if r.Header.Get("X-List") != "text" || !strings.Contains(string(r.Body), `"data":[{"extra":4,"title":"changed by the list"}]`) {
		t.Errorf("list: %s", r.Body)
	}
	r = app.Do(t, apptest.Request{Path: postsPath + "/" + post.Id + "?fields=title,extra", Token: p.annToken})
	if !strings.Contains(string(r.Body), `"data":{"extra":4,"title":"changed by the view"}`) {
		t.Errorf("view: %s", r.Body)
	}
	posts := collection(t, app, "posts")
	posts.ViewRule = new("")
	save(t, app, posts)
	if r = app.Do(t, apptest.Request{Path: postsPath + "/" + post.Id}); r.Status != http.StatusForbidden {
		t.Errorf("refused by the hook: %d %s", r.Status, r.Body)
	}
}

// A hook may put the read into a transaction; the answer is then written after the commit.
func TestHookInTransaction(t *testing.T) {
	app := start(t)
	p := populate(t, app, 2)
	app.OnRecordsListRequest("posts").BindFunc(func(e *core.RecordsListRequestEvent) error {
		original := e.App
		return original.RunInTransaction(func(tx core.App) error {
			e.App = tx
			defer func() { e.App = original }()
			return e.Next()
		})
	})
	if r := app.Do(t, apptest.Request{Path: postsPath, Token: p.rootToken}); r.Status != http.StatusOK || !strings.Contains(string(r.Body), `"data":[{`) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}
