package operations_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/settings"
)

var (
	errClosed = &extensions.Code{Name: "probe.closed", Status: http.StatusConflict, Title: "The shop is closed"}
	errBoom   = errors.New("boom")
)

type address struct {
	City string `json:"city" minLength:"1"`
}

type order struct {
	Item   string   `json:"item" minLength:"2" maxLength:"10"`
	Count  int      `json:"count,omitempty" minimum:"1"`
	Tags   []string `json:"tags,omitempty" maxItems:"2"`
	To     *address `json:"to,omitempty"`
	Email  string   `json:"email,omitempty" format:"email"`
	Secret string   `json:"secret,omitempty"`
}

type receipt struct {
	Item  string `json:"item"`
	Count int    `json:"count"`
	Tags  []string
}

// place is what the operations of the tests do: one record, then what the item asks for.
func place(c *operations.Call, in order) (receipt, error) {
	items, err := c.App.FindCollectionByNameOrId("items")
	if err != nil {
		return receipt{}, err
	}
	record := core.NewRecord(items)
	record.Set("title", in.Item)
	if in.Item == "unsaved" {
		record.Set("title", "")
	}
	if err := c.App.Save(record); err != nil {
		return receipt{}, err
	}
	c.Subject(record)
	c.Detail("after", in.Item)
	switch in.Item {
	case "closed":
		return receipt{}, api.Fail(errClosed, "come back later")
	case "boom":
		return receipt{}, errBoom
	case "forbidden":
		return receipt{}, api.ErrForbidden
	}
	return receipt{Item: in.Item, Count: in.Count, Tags: in.Tags}, nil
}

func define(name string, change func(*operations.Spec[order, receipt])) operations.Operation {
	s := operations.Spec[order, receipt]{Name: "probe." + name, Summary: "Order something", Audit: []string{"item", "secret"}, Do: place}
	if change != nil {
		change(&s)
	}
	return operations.Define(s)
}

func collection() extensions.Extension {
	return extensions.Extension{Name: "probe", Codes: []*extensions.Code{errClosed}, Migrations: []extensions.Migration{{
		Unix: 1795419000, What: "create_items",
		Up: func(app core.App) error {
			c := core.NewBaseCollection("items")
			c.Fields.Add(&core.TextField{Name: "title", Required: true})
			return app.Save(c)
		},
		Down: func(core.App) error { return nil },
	}}}
}

func set() *operations.Operations {
	ops := operations.New()
	ops.Add([]operations.Operation{
		define("order", nil),
		define("guest", func(s *operations.Spec[order, receipt]) { s.Callers.Guests = true }),
		define("others", func(s *operations.Spec[order, receipt]) { s.Callers.Collections = []string{"customers"} }),
		define("ruledOne", func(s *operations.Spec[order, receipt]) {
			s.Callers.Rule = `verified = true && @request.body.item = "tea" && @collection.items.title ?= "open"`
		}),
		define("staff", func(s *operations.Spec[order, receipt]) { s.Callers.Role, s.Callers.Rule = "support", "id = ''" }),
		define("key", func(s *operations.Spec[order, receipt]) { s.Callers.Scope = true }),
		define("recent", func(s *operations.Spec[order, receipt]) { s.Callers.Recent = true }),
		define("recentStaff", func(s *operations.Spec[order, receipt]) { s.Callers.Recent, s.Callers.Role = true, "owner" }),
		define("attested", func(s *operations.Spec[order, receipt]) { s.Callers.Attested = true }),
		define("limited", func(s *operations.Spec[order, receipt]) { s.Limit = operations.Limit{Count: 2, Per: time.Hour} }),
	}, []operations.Operation{
		operations.Define(operations.Spec[order, receipt]{
			Name: "probe.read", Summary: "Read something", Read: true,
			Do: func(_ *operations.Call, in order) (receipt, error) { return receipt{in.Item, in.Count, in.Tags}, nil },
		}),
	})
	return ops
}

// log writes the audit.
func log() *audit.Log { return audit.NewLog(secret.Fixed([]byte("root key of the tests"))) }

func start(t testing.TB) *apptest.App {
	refuse := func(header string, code *extensions.Code) func(*core.RequestEvent) error {
		return func(e *core.RequestEvent) error {
			if e.Request.Header.Get(header) == "" {
				return code
			}
			return nil
		}
	}
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, log(), nil), collection(), set().Extension(operations.Deps{
		Key: func(e *core.RequestEvent) (string, func(string) bool) {
			id := e.Request.Header.Get("X-Key")
			return id, func(scope string) bool { return id == scope }
		},
		Recent: refuse("X-Recent", api.ErrForbidden), Attested: refuse("X-Attested", api.ErrUnauthorized), Audit: log().Append,
	}))
}

func entries(t testing.TB, app core.App) string {
	t.Helper()
	var rows []struct {
		Action  string `db:"action"`
		Outcome string `db:"outcome"`
		Kind    string `db:"actor_kind"`
		Subject string `db:"subject_collection"`
		Details string `db:"details"`
	}
	if err := app.DB().Select("action", "outcome", "actor_kind", "subject_collection", "details").From("audit_entries").Where(dbx.NewExp("action LIKE 'probe.%'")).OrderBy("id").All(&rows); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range rows {
		out = append(out, strings.Join([]string{r.Action, r.Outcome, r.Kind, r.Subject, r.Details}, " "))
	}
	return strings.Join(out, "\n")
}

func items(t testing.TB, app core.App, want int) {
	t.Helper()
	if n, err := app.CountRecords("items"); err != nil || int(n) != want {
		t.Errorf("%d items (%v), want %d", n, err, want)
	}
}

func call(name string, body any, header ...string) apptest.Request {
	r := apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/probe." + name, Body: body, Header: map[string]string{}}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = header[i+1]
	}
	return r
}

// as signs a user in, a verified one when the name says so.
func as(name string) func(testing.TB, *apptest.App, *apptest.Request) {
	return func(t testing.TB, app *apptest.App, r *apptest.Request) {
		if name == "root" {
			_, r.Token = app.Superuser(t)
			return
		}
		user, token := app.User(t, name+"@example.test")
		user.SetVerified(name == "verified")
		if err := app.Save(user); err != nil {
			t.Fatal(err)
		}
		r.Token = token
	}
}

func audited(want string, wantItems int) func(testing.TB, *apptest.App, apptest.Response) {
	return func(t testing.TB, app *apptest.App, _ apptest.Response) {
		if got := entries(t, app); got != want {
			t.Errorf("audit:\n%s\nwant:\n%s", got, want)
		}
		items(t, app, wantItems)
	}
}

func TestCalls(t *testing.T) {
	tea := map[string]any{"item": "tea"}
	apptest.Run(t, start, []apptest.Scenario{
		{Name: "guest", Request: call("order", tea), Status: 401, Code: "api.unauthorized", After: audited("", 0)},
		{
			Name: "user", Request: call("order", map[string]any{"item": "tea", "count": 2, "secret": "s", "to": nil}), Before: as("ann"),
			Status: 200, Contains: []string{`"success":true`, `"item":"tea"`, `"count":2`},
			After: audited(`probe.order success user items {"after":"tea","item":"tea","secret":"REDACTED"}`, 1),
		},
		{Name: "wrong method", Request: apptest.Request{Path: "/api/v1/operations/probe.order"}, Before: as("ann"), Status: 404},
		{Name: "unknown", Request: call("nothing", tea), Before: as("ann"), Status: 404},
		{Name: "guests allowed", Request: call("guest", tea), Status: 200, After: audited(`probe.guest success guest items {"after":"tea","item":"tea"}`, 1)},
		{Name: "another collection", Request: call("others", tea), Before: as("ann"), Status: 403, Code: "operations.caller_refused", After: audited(`probe.others denied user  {"error":"operations.caller_refused"}`, 0)},
		{
			Name: "rolled back", Request: call("order", map[string]any{"item": "closed"}), Before: as("ann"), Status: 409, Code: "probe.closed",
			Contains: []string{"come back later"}, After: audited(`probe.order failure user items {"after":"closed","error":"probe.closed","item":"closed"}`, 0),
		},
		{Name: "broken", Request: call("order", map[string]any{"item": "boom"}), Before: as("ann"), Status: 500, Code: "api.internal", After: audited(`probe.order failure user items {"after":"boom","error":"api.internal","item":"boom"}`, 0)},
		{Name: "denied inside", Request: call("order", map[string]any{"item": "forbidden"}), Before: as("ann"), Status: 403, After: audited(`probe.order denied user items {"after":"forbidden","error":"api.forbidden","item":"forbidden"}`, 0)},
		{Name: "a record that cannot be saved", Request: call("order", map[string]any{"item": "unsaved"}), Before: as("ann"), Status: 400, Contains: []string{`"title"`}, After: func(t testing.TB, app *apptest.App, _ apptest.Response) { items(t, app, 0) }},
		{Name: "superuser", Request: call("order", tea), Before: as("root"), Status: 403, Code: "operations.caller_refused"},
		{Name: "superuser by role", Request: call("staff", tea), Before: as("root"), Status: 200, After: audited(`probe.staff success superuser items {"after":"tea","item":"tea"}`, 1)},
		{Name: "key without scope", Request: call("key", tea, "X-Key", "other"), Status: 403, Code: "operations.caller_refused"},
		{Name: "key where none may", Request: call("order", tea, "X-Key", "operations:probe.order"), Status: 403, Code: "operations.caller_refused"},
		{Name: "key", Request: call("key", tea, "X-Key", "operations:probe.key"), Status: 200},
		{Name: "not recent", Request: call("recent", tea), Before: as("ann"), Status: 403},
		{Name: "recent", Request: call("recent", tea, "X-Recent", "1"), Before: as("ann"), Status: 200},
		{Name: "staff that is not recent", Request: call("recentStaff", tea), Before: as("root"), Status: 403},
		{Name: "staff that is recent", Request: call("recentStaff", tea, "X-Recent", "1"), Before: as("root"), Status: 200},
		{Name: "not attested", Request: call("attested", tea), Before: as("ann"), Status: 401},
		{Name: "attested", Request: call("attested", tea, "X-Attested", "1"), Before: as("ann"), Status: 200},
	})
}

func TestRules(t *testing.T) {
	open := func(who string) func(testing.TB, *apptest.App, *apptest.Request) {
		return func(t testing.TB, app *apptest.App, r *apptest.Request) {
			c, err := app.FindCollectionByNameOrId("items")
			if err != nil {
				t.Fatal(err)
			}
			record := core.NewRecord(c)
			record.Set("title", "open")
			if err := app.Save(record); err != nil {
				t.Fatal(err)
			}
			as(who)(t, app, r)
		}
	}
	tea := map[string]any{"item": "tea"}
	apptest.Run(t, start, []apptest.Scenario{
		{Name: "not verified", Request: call("ruledOne", tea), Before: open("ann"), Status: 403, Code: "operations.caller_refused", After: audited(`probe.ruledOne denied user  {"error":"operations.caller_refused","item":"tea"}`, 1)},
		{Name: "another collection does not hold it", Request: call("ruledOne", tea), Before: as("verified"), Status: 403},
		{Name: "another body", Request: call("ruledOne", map[string]any{"item": "milk"}), Before: open("verified"), Status: 403},
		{Name: "all hold", Request: call("ruledOne", tea), Before: open("verified"), Status: 200},
	})
}

// All mistakes are told at once, before anything else happens.
func TestValidation(t *testing.T) {
	app := start(t)
	_, token := app.User(t, "ann@example.test")
	r := call("order", `{"item":"x","count":0,"tags":[1,"a","b"],"to":{"town":"x"},"email":"no","more":1}`)
	r.Token = token
	got := app.Do(t, r)
	var answer struct {
		Code   string
		Errors []struct{ Field, Code, Message string }
	}
	if err := json.Unmarshal(got.Body, &answer); err != nil || got.Status != 400 || answer.Code != "api.validation_failed" {
		t.Fatalf("%d %s", got.Status, got.Body)
	}
	var fields []string
	for _, e := range answer.Errors {
		fields = append(fields, e.Field+" "+e.Code)
		if e.Message == "" {
			t.Errorf("%s has no message", e.Field)
		}
	}
	want := "count api.field_invalid, email api.field_invalid, item api.field_invalid, more api.field_unknown, tags api.field_too_long, " +
		"tags.0 api.field_type, to.city api.field_required, to.town api.field_unknown"
	if s := strings.Join(fields, ", "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	for body, code := range map[string]string{
		``: "api.validation_failed", `{}`: "api.validation_failed", `[]`: "api.body_malformed", `{"item":"tea"`: "api.body_malformed",
		`{"item":"tea","item":"tea"}`: "api.body_malformed", `{"item":null}`: "api.validation_failed", `{"Item":"tea"}`: "api.validation_failed",
	} {
		r.Body = body
		if got := app.Do(t, r); got.Status != 400 || got.Code() != code {
			t.Errorf("%s: %d %s", body, got.Status, got.Body)
		}
	}
	items(t, app, 0)
	if got := entries(t, app); got != "" {
		t.Errorf("audit: %s", got)
	}
}

func TestRead(t *testing.T) {
	app := start(t)
	_, token := app.User(t, "ann@example.test")
	get := apptest.Request{Path: "/api/v1/operations/probe.read?item=12&count=3&tags=a&tags=b", Token: token}
	first := app.Do(t, get)
	if first.Status != 200 || !strings.Contains(string(first.Body), `"data":{"item":"12","count":3,"Tags":["a","b"]}`) {
		t.Fatalf("%d %s", first.Status, first.Body)
	}
	get.Header = map[string]string{"If-None-Match": first.Header.Get("ETag")}
	if again := app.Do(t, get); again.Status != http.StatusNotModified {
		t.Errorf("again: %d", again.Status)
	}
	for query, field := range map[string]string{"": `"item"`, "item=tea&count=many": `"count"`, "item=tea&more=1": `"more"`, "item=tea&count=1.5": `"count"`} {
		got := app.Do(t, apptest.Request{Path: "/api/v1/operations/probe.read?" + query, Token: token})
		if got.Status != 400 || !strings.Contains(string(got.Body), field) {
			t.Errorf("%s: %d %s", query, got.Status, got.Body)
		}
	}
}

func TestLimit(t *testing.T) {
	app := start(t)
	r := call("limited", map[string]any{"item": "tea"})
	for _, name := range []string{"ann", "bob"} {
		_, r.Token = app.User(t, name+"@example.test")
		for i, want := range []int{200, 200, 429} {
			got := app.Do(t, r)
			if got.Status != want || (want == 429) != (got.Header.Get("Retry-After") != "") {
				t.Errorf("%s, call %d: %d %s", name, i, got.Status, got.Body)
			}
		}
	}
}

func TestDescriptions(t *testing.T) {
	app := start(t)
	_, root := app.Superuser(t)
	_, user := app.User(t, "ann@example.test")
	for token, want := range map[string]int{"": 401, user: 403, root: 200} {
		got := app.Do(t, apptest.Request{Path: "/api/v1/operations", Token: token})
		if got.Status != want {
			t.Fatalf("%d %s", got.Status, got.Body)
		}
		if want != 200 {
			continue
		}
		var answer struct{ Data []operations.Description }
		if err := json.Unmarshal(got.Body, &answer); err != nil || len(answer.Data) != 11 || answer.Data[0].Name != "probe.attested" {
			t.Fatalf("%s: %v", got.Body, err)
		}
		if s := string(answer.Data[0].Input); !strings.Contains(s, `"additionalProperties":false`) || !strings.Contains(s, `"required":["item"]`) {
			t.Errorf("input: %s", s)
		}
	}
}

func TestCallFromGo(t *testing.T) {
	ops := set()
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, log(), nil), collection(), ops.Extension(operations.Deps{Audit: log().Append}))
	user, _ := app.User(t, "ann@example.test")
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		account *core.Record
		input   any
		want    error
	}{
		{"probe.order", user, order{Item: "tea"}, nil},
		{"probe.ruledOne", user, order{Item: "tea"}, operations.ErrCallerRefused},
		{"probe.ruledOne", nil, order{Item: "tea"}, nil},
		{"probe.others", user, order{Item: "tea"}, operations.ErrCallerRefused},
		{"probe.order", nil, map[string]any{"item": 1}, api.ErrValidation},
		{"probe.nothing", nil, nil, operations.ErrUnknown},
	} {
		if _, err := ops.Call(ctx, app, c.name, c.input, c.account); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	items(t, app, 2)
	// As a part of a larger transaction, an operation is undone with it.
	committed := 0
	err := app.RunInTransaction(func(tx core.App) error {
		if _, err := ops.Call(ctx, tx, "probe.order", order{Item: "milk"}, user); err != nil {
			return err
		}
		return errBoom
	})
	if !errors.Is(err, errBoom) || committed != 0 {
		t.Errorf("%v, %d", err, committed)
	}
	items(t, app, 2)
	want := `probe.order success system items {"after":"tea","item":"tea"}` + "\n" +
		`probe.ruledOne success system items {"after":"tea","item":"tea"}`
	if got := entries(t, app); got != want {
		t.Errorf("audit:\n%s", got)
	}
}

// A wrong declaration stops the program.
func TestDeclarations(t *testing.T) {
	good := operations.Spec[order, receipt]{Name: "a.b", Summary: "x", Do: place}
	for name, change := range map[string]func(s *operations.Spec[order, receipt]){
		"name":    func(s *operations.Spec[order, receipt]) { s.Name = "order" },
		"summary": func(s *operations.Spec[order, receipt]) { s.Summary = "" },
		"do":      func(s *operations.Spec[order, receipt]) { s.Do = nil },
		"audit":   func(s *operations.Spec[order, receipt]) { s.Audit = []string{"price"} },
		"limit":   func(s *operations.Spec[order, receipt]) { s.Limit.Count = 1 },
		"guest rule": func(s *operations.Spec[order, receipt]) {
			s.Callers = operations.Callers{Guests: true, Rule: "id != ''"}
		},
	} {
		s := good
		change(&s)
		ops := operations.New()
		ops.Add([]operations.Operation{operations.Define(s)})
		if err := ops.Extension(operations.Deps{}).Bind(nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	ops := operations.New()
	ops.Add([]operations.Operation{operations.Define(good), operations.Define(good)})
	if err := ops.Extension(operations.Deps{}).Bind(nil); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("twice: %v", err)
	}
}
