package rows

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// bound is an application with some posts and the handlers of this package.
func bound(t *testing.T) (app *apptest.App, token string, id string) {
	t.Helper()
	app = start(t, extensions.Extension{Name: "rows", Bind: func(h *extensions.Host) error { BindStock(h.App); return nil }})
	user, token := app.User(t, "ann@example.test")
	for i := range 5 {
		r := core.NewRecord(find(t, app, "posts"))
		r.Load(map[string]any{"title": fmt.Sprint("<", i, ">"), "owner": user.Id, "tags": []string{"a", "b"}, "meta": `{"a": 1}`, "hidden": "h"})
		save(t, app, r)
		id = r.Id
	}
	return app, token, id
}

// The answers are PocketBase's own, to the byte, but for the length in the headers.
func TestStockAnswersStay(t *testing.T) {
	app, token, id := bound(t)
	_, root := app.Superuser(t)
	const list = "/api/collections/posts/records"
	for _, path := range []string{
		list, list + "?skipTotal=1", list + "?perPage=2&page=2", list + "?sort=-title", list + "?filter=title='<1>'", list + "?filter=title='none'",
		list + "?expand=owner", list + "?fields=", list + "?page=99", list + "?filter=nope", list + "/" + id, list + "/" + id + "?expand=owner", list + "/nope", "/api/collections/nope/records",
		"/api/collections/users/records", list + "/" + id + "?fields=title",
	} {
		for who, token := range map[string]string{"guest": "", "ann": token, "root": root} {
			ask := func() apptest.Response { return app.Do(t, apptest.Request{Path: path, Token: token}) }
			app.OnRecordsListRequest().Unbind(stockHook)
			app.OnRecordViewRequest().Unbind(stockHook)
			want := ask()
			BindStock(app)
			got := ask()
			if got.Status != want.Status || !bytes.Equal(got.Body, want.Body) || got.Header.Get("Content-Type") != want.Header.Get("Content-Type") {
				t.Errorf("%s as %s:\n got %d %s\nwant %d %s", path, who, got.Status, got.Body, want.Status, want.Body)
			}
		}
	}
	if r := app.Do(t, apptest.Request{Path: list}); r.Header.Get("Content-Length") == "" {
		t.Errorf("the handler did not write: %v", r.Header)
	}
	for path, want := range map[string]string{list + "?fields=title:excerpt(2)&perPage=1": `"title":"<0`, list + "/" + id + "?fields=id,title": `"title":"\u003c4>"`} {
		r := app.Do(t, apptest.Request{Path: path})
		if want = strings.ReplaceAll(want, `\u003c`, "<"); r.Status != http.StatusOK || !strings.Contains(string(r.Body), want) || strings.Contains(string(r.Body), "owner") {
			t.Errorf("%s: %s", path, r.Body)
		}
	}
}

// What other hooks do to records, results and errors counts as it always did.
func TestStockHooksKeepTheirSay(t *testing.T) {
	cases := []struct {
		name   string
		bind   func(app core.App)
		status int
		list   string
		view   string
	}{
		{name: "record changed", status: 200, list: `"title":"changed"`, view: `"title":"changed"`, bind: func(app core.App) {
			app.OnRecordEnrich("posts").BindFunc(func(e *core.RecordEnrichEvent) error {
				e.Record.Set("title", "changed")
				return e.Next()
			})
		}},
		{name: "field hidden and custom data", status: 200, list: `"extra":[1,2]`, view: `"extra":[1,2]`, bind: func(app core.App) {
			app.OnRecordEnrich("posts").BindFunc(func(e *core.RecordEnrichEvent) error {
				e.Record.Hide("title").WithCustomData(true).Set("extra", []int{1, 2})
				return e.Next()
			})
		}},
		{name: "error for the client", status: 418, list: "Teapot", view: "Teapot", bind: func(app core.App) {
			app.OnRecordEnrich("posts").BindFunc(func(*core.RecordEnrichEvent) error {
				e := &core.RequestEvent{}
				return e.Error(http.StatusTeapot, "teapot", nil)
			})
		}},
		{name: "error of the server", status: 500, list: "Failed to enrich records", view: "Failed to enrich record", bind: func(app core.App) {
			app.OnRecordEnrich("posts").BindFunc(func(*core.RecordEnrichEvent) error { return errors.New("secret") })
		}},
		{name: "other items", status: 200, list: `"items":"none"`, view: `"title"`, bind: func(app core.App) {
			app.OnRecordsListRequest().BindFunc(func(e *core.RecordsListRequestEvent) error {
				e.Result.Items = "none"
				return e.Next()
			})
		}},
		{name: "another total and another type", status: 200, list: `"totalItems":77`, view: `"title"`, bind: func(app core.App) {
			app.OnRecordsListRequest().BindFunc(func(e *core.RecordsListRequestEvent) error {
				e.Result.TotalItems = 77
				e.Response.Header().Set("Content-Type", "application/vnd.test+json")
				return e.Next()
			})
		}},
		{name: "answer of its own", status: 202, list: "mine", view: "mine", bind: func(app core.App) {
			app.OnRecordsListRequest().BindFunc(func(e *core.RecordsListRequestEvent) error { return e.String(202, "mine") })
			app.OnRecordViewRequest().BindFunc(func(e *core.RecordRequestEvent) error { return e.String(202, "mine") })
		}},
		{name: "late priority", status: 403, list: `"No."`, view: `"No."`, bind: func(app core.App) {
			app.OnRecordsListRequest().Bind(&hook.Handler[*core.RecordsListRequestEvent]{Priority: 1 << 40, Func: func(e *core.RecordsListRequestEvent) error { return e.ForbiddenError("no", nil) }})
			app.OnRecordViewRequest().Bind(&hook.Handler[*core.RecordRequestEvent]{Priority: 1 << 40, Func: func(e *core.RecordRequestEvent) error { return e.ForbiddenError("no", nil) }})
		}},
		{name: "transaction", status: 200, list: `"title":"<0>"`, view: `"title":"<4>"`, bind: func(app core.App) {
			app.OnRecordsListRequest().BindFunc(func(e *core.RecordsListRequestEvent) error {
				return inTransaction(&e.App, e.Next, e.RequestEvent)
			})
			app.OnRecordViewRequest().BindFunc(func(e *core.RecordRequestEvent) error {
				return inTransaction(&e.App, e.Next, e.RequestEvent)
			})
		}},
		{name: "value that JSON cannot hold", status: 200, list: ``, view: ``, bind: func(app core.App) {
			app.OnRecordEnrich("posts").BindFunc(func(e *core.RecordEnrichEvent) error {
				e.Record.WithCustomData(true).Set("zzz", func() {})
				return e.Next()
			})
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			app, _, id := bound(t)
			c.bind(app)
			for path, want := range map[string]string{"/api/collections/posts/records": c.list, "/api/collections/posts/records/" + id: c.view} {
				app.OnRecordsListRequest().Unbind(stockHook)
				app.OnRecordViewRequest().Unbind(stockHook)
				before := app.Do(t, apptest.Request{Path: path})
				BindStock(app)
				r := app.Do(t, apptest.Request{Path: path})
				if r.Status != c.status || !strings.Contains(string(r.Body), want) || !bytes.Equal(r.Body, before.Body) || r.Header.Get("Content-Type") != before.Header.Get("Content-Type") {
					t.Errorf("%s: %d %s, before %d %s", path, r.Status, r.Body, before.Status, before.Body)
				}
			}
		})
	}
}

func inTransaction(app *core.App, next func() error, e *core.RequestEvent) error {
	original := *app
	return original.RunInTransaction(func(tx core.App) error {
		*app = tx
		defer func() { *app = original }()
		err := next()
		if e.Written() {
			return errors.New("written before the commit")
		}
		return err
	})
}

// PocketBase binds none of the hooks of reads itself; a count above ours means that somebody else has.
func TestSeamHooksOfReadsAreFree(t *testing.T) {
	app, _, _ := bound(t)
	if n := [3]int{app.OnRecordEnrich().Length(), app.OnRecordsListRequest().Length(), app.OnRecordViewRequest().Length()}; n != [3]int{0, StockHooks, StockHooks} {
		t.Errorf("%v", n)
	}
	app.OnRecordEnrich("users").BindFunc(func(e *core.RecordEnrichEvent) error { return e.Next() })
	if app.OnRecordEnrich().Length() != 1 {
		t.Error("a handler for one collection is not counted")
	}
}

// PocketBase slows down who keeps getting empty answers to filters; it must go on counting these.
func TestEmptyStockListsAreCounted(t *testing.T) {
	app, token, _ := bound(t)
	posts := find(t, app, "posts")
	posts.ListRule = new("owner = @request.auth.id")
	save(t, app, posts)
	const limiters = "__pbRateLimiters__" // PocketBase's key
	for filter, counted := range map[string]bool{"title!='none'": false, "title='none'": true} {
		app.Store().Remove(limiters)
		r := app.Do(t, apptest.Request{Path: "/api/collections/posts/records?filter=" + filter, Token: token})
		if r.Status != http.StatusOK || app.Store().Has(limiters) != counted {
			t.Errorf("%s: %d, counted %v", filter, r.Status, !counted)
		}
	}
}
