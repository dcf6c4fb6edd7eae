package records

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/rows"
	"github.com/satchelbase/satchel/extensions/settings"
)

// knownToken stands for a token that need not be verified again.
const knownToken = "known"

// notes runs an application with thirty notes of one user, under a rule by owner. h answers without a connection.
func notes(b *testing.B) (app *apptest.App, h http.Handler, id, token string) {
	b.Helper()
	var known *core.Record
	outermost := extensions.Extension{
		Name:    "outermost",
		Handler: func(next http.Handler) http.Handler { h = next; return next },
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "known", Priority: apis.DefaultLoadAuthTokenMiddlewarePriority - 1, Func: func(e *core.RequestEvent) error {
			if e.Request.Header.Get("Authorization") == knownToken {
				e.Auth = known
			}
			return e.Next()
		}}},
	}
	app = apptest.New(b, outermost, api.New(settings.Defaults[api.Config]()), New(settings.Defaults[Config](), nil))
	app.Settings().Logs.MaxDays = 0
	user, token := app.User(b, "ann@example.test")
	known = user
	c := core.NewBaseCollection("notes")
	c.Fields.Add(
		&core.RelationField{Name: "owner", CollectionId: user.Collection().Id, MaxSelect: 1}, &core.TextField{Name: "title"}, &core.TextField{Name: "body"},
		&core.JSONField{Name: "meta"}, &core.SelectField{Name: "status", Values: []string{"open", "done"}, MaxSelect: 1}, &core.FileField{Name: "attachment"},
		&core.AutodateField{Name: "created", OnCreate: true}, &core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	c.ListRule, c.ViewRule = new("owner = @request.auth.id"), new("owner = @request.auth.id")
	c.AddIndex("idx_notes_owner", false, "owner, updated", "")
	save(b, app, c)
	body := "Notes of about three hundred bytes, as an app for notes has them. "
	for i := range 30 {
		r := create(b, app, "notes", map[string]any{
			"owner": user.Id, "title": fmt.Sprint("Note ", i), "body": body + body + body + body, "status": "open", "meta": map[string]any{"i": i, "tag": "x"},
		})
		id = r.Id
	}
	return app, h, id, token
}

// BenchmarkRead compares the answers of PocketBase's handlers, of these with the encoder of rows, and of /api/v1.
func BenchmarkRead(b *testing.B) {
	app, h, id, token := notes(b)
	as := func(b *testing.B, path, token string) {
		b.ReportAllocs()
		for b.Loop() {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Header.Set("Authorization", token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusOK || w.Body.Len() < 300 {
				b.Fatalf("%d %s", w.Code, w.Body)
			}
		}
	}
	get := func(name, path string) {
		b.Run(name, func(b *testing.B) { as(b, path, token) })
		b.Run(name+"/known", func(b *testing.B) { as(b, path, knownToken) })
	}
	const stockList = "/api/collections/notes/records?perPage=30&skipTotal=1&sort=-updated"
	stockView := "/api/collections/notes/records/" + id
	app.OnRecordsListRequest().Unbind("satchelRows")
	app.OnRecordViewRequest().Unbind("satchelRows")
	get("list30/stock", stockList)
	get("one/stock", stockView)
	rows.BindStock(app)
	get("list30/stock-rows", stockList)
	get("one/stock-rows", stockView)
	get("list30/v1", "/api/v1/records/notes?limit=30&sort=-updated")
	get("one/v1", "/api/v1/records/notes/"+id)
}
