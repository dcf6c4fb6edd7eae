package records

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

const writePath = "/api/v1/collections/posts/records"

// badMembers reads the errors of a refused write: "field code".
func badMembers(t testing.TB, r apptest.Response) []string {
	t.Helper()
	var p struct {
		Data map[string]struct{ Code string } `json:"data"`
	}
	if err := json.Unmarshal(r.Body, &p); err != nil {
		t.Fatalf("%s: %v", r.Body, err)
	}
	var out []string
	for field, e := range p.Data {
		out = append(out, field+" "+e.Code)
	}
	slices.Sort(out)
	return out
}

func TestBodyIsMalformed(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	for name, body := range map[string]string{
		"cut":                  `{"title":"a"`,
		"no JSON":              `title=a`,
		"trailing garbage":     `{"title":"a"} x`,
		"two values":           `{"title":"a"}{"title":"b"}`,
		"duplicate name":       `{"title":"a","title":"b"}`,
		"duplicate name below": `{"meta":{"a":1,"a":2}}`,
		"invalid UTF-8":        "{\"title\":\"\xff\"}",
		"list":                 `[{"title":"a"}]`,
		"text":                 `"title"`,
		"null":                 `null`,
		"byte order mark":      "\ufeff{}",
	} {
		for _, request := range []apptest.Request{
			{Method: http.MethodPost, Path: writePath},
			{Method: http.MethodPatch, Path: writePath + "/x"},
			{Method: http.MethodPost, Path: "/api/v1/batch"},
		} {
			request.Token, request.Body = p.annToken, body
			if r := app.Do(t, request); r.Status != 400 || r.Code() != "api.body_malformed" {
				t.Errorf("%s %s: %s: %d %s", request.Method, request.Path, name, r.Status, r.Body)
			}
		}
	}
	if n, err := app.CountRecords("posts"); err != nil || n != 0 {
		t.Errorf("%d records were written, %v", n, err)
	}
}

func TestBodyTypes(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	typeError, unknown := func(f string) string { return f + " records.field_type" }, func(f string) string { return f + " records.field_unknown" }
	cases := []struct {
		body string
		bad  []string
	}{
		{`{}`, nil},
		{`{"title":"a","body":"b","mail":"a@b.test","link":"https://b.test","due":"2030-01-01","kind":"a","doc":"","n":1.5e3,"done":true}`, nil},
		{`{"title":null,"body":null,"mail":null,"link":null,"due":null,"kind":null,"doc":null,"n":null,"done":null,"tags":null,"owner":null,"place":null,"meta":null,"id":null}`, nil},
		{`{"tags":["x","y"],"owner":"","meta":[1,{"a":"b"}],"place":{"lon":1,"lat":-2.5}}`, nil},
		{`{"tags":"x","meta":"text"}`, nil},
		{`{"n+":1,"tags+":"x","+tags":["y"],"tags-":["x"],"title:autogenerate":""}`, nil},
		{`{"collectionId":"c","collectionName":7,"expand":{},"created":"2030-01-01","updated":""}`, nil},
		{`{"invite":"yes"}`, nil},
		{`{"title":1}`, []string{typeError("title")}},
		{`{"title":true,"body":{},"mail":[],"link":1,"due":1700000000,"created":1}`, []string{
			typeError("body"), typeError("created"), typeError("due"), typeError("link"), typeError("mail"), typeError("title"),
		}},
		{`{"n":"1","done":"true"}`, []string{typeError("done"), typeError("n")}},
		{`{"n":1e999,"done":0}`, []string{typeError("done"), typeError("n")}},
		{`{"kind":["a"],"owner":["x"],"doc":["f"],"id":7}`, []string{typeError("doc"), typeError("id"), typeError("kind"), typeError("owner")}},
		{`{"tags":[1]}`, []string{typeError("tags")}},
		{`{"tags":["x",null]}`, []string{typeError("tags")}},
		{`{"tags":{}}`, []string{typeError("tags")}},
		{`{"n+":"1","tags+":1,"n-":[]}`, []string{typeError("n+"), typeError("n-"), typeError("tags+")}},
		{`{"place":{"lon":1}}`, []string{typeError("place")}},
		{`{"place":{"lon":"1","lat":2}}`, []string{typeError("place")}},
		{`{"place":{"lon":1,"lat":2,"alt":3}}`, []string{typeError("place")}},
		{`{"place":"1,2"}`, []string{typeError("place")}},
		{`{"nope":1,"Title":"a","title-":"x"}`, []string{unknown("Title"), unknown("nope"), unknown("title-")}},
		{`{"secret":"s"}`, []string{unknown("secret")}},
		{`{"@jsonPayload":"{}"}`, []string{unknown("@jsonPayload")}},
		{`{"passwordConfirm":"x"}`, []string{unknown("passwordConfirm")}},
	}
	for _, c := range cases {
		r := app.Do(t, apptest.Request{Method: http.MethodPost, Path: writePath, Token: p.annToken, Body: c.body})
		if c.bad == nil {
			if r.Status != http.StatusOK {
				t.Errorf("%s: %d %s", c.body, r.Status, r.Body)
			}
			continue
		}
		if r.Status != 400 || r.Code() != "api.validation_failed" || !slices.Equal(badMembers(t, r), c.bad) {
			t.Errorf("%s: %d %s, want %v", c.body, r.Status, r.Body, c.bad)
		}
	}
}

func TestBodyWritesNothing(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	post := create(t, app, "posts", map[string]any{"title": "before", "owner": p.ann.Id})
	r := app.Do(t, apptest.Request{Method: http.MethodPatch, Path: writePath + "/" + post.Id, Token: p.annToken, Body: `{"title":"after","n":"x"}`})
	if r.Status != 400 || !slices.Equal(badMembers(t, r), []string{"n records.field_type"}) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	fresh, err := app.FindRecordById("posts", post.Id)
	if err != nil || fresh.GetString("title") != "before" {
		t.Errorf("title %q, %v", fresh.GetString("title"), err)
	}
	r = app.Do(t, apptest.Request{Method: http.MethodPatch, Path: writePath + "/" + post.Id, Token: p.annToken, Body: `{"title":"after"}`})
	if r.Status != 200 || !strings.Contains(string(r.Body), `"title":"after"`) {
		t.Errorf("good write: %d %s", r.Status, r.Body)
	}
}

func TestBodyOfAccounts(t *testing.T) {
	app := start(t)
	users := "/api/v1/collections/users/records"
	post := func(body string) apptest.Response {
		t.Helper()
		return app.Do(t, apptest.Request{Method: http.MethodPost, Path: users, Body: body})
	}
	if r := post(`{"email":"new@example.test","emailVisibility":true,"password":"correct-horse","passwordConfirm":"correct-horse","oldPassword":null,"verified":false,"name":"n"}`); r.Status != 200 {
		t.Errorf("sign-up: %d %s", r.Status, r.Body)
	}
	r := post(`{"email":1,"emailVisibility":"yes","password":12345678,"passwordConfirm":12345678,"verified":"x","tokenKey":"abc"}`)
	want := []string{
		"email records.field_type", "emailVisibility records.field_type", "password records.field_type",
		"passwordConfirm records.field_type", "tokenKey records.field_unknown", "verified records.field_type",
	}
	if r.Status != 400 || !slices.Equal(badMembers(t, r), want) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}

func TestBodyErrorsAreBounded(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	members := make([]string, 200)
	for i := range members {
		members[i] = fmt.Sprintf(`"x%d":1`, i)
	}
	r := app.Do(t, apptest.Request{Method: http.MethodPost, Path: writePath, Token: p.annToken, Body: "{" + strings.Join(members, ",") + "}"})
	if got := badMembers(t, r); len(got) != 50 || !strings.Contains(string(r.Body), "200 members") {
		t.Errorf("%d errors: %s", len(got), cut(r.Body))
	}
}

// What is none of the check's business goes through to the handler.
func TestBodyIsLeftAlone(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	multipart := "--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nx\r\n--b--\r\n"
	cases := []struct {
		name    string
		request apptest.Request
		status  int
		code    string
	}{
		{"stock path", apptest.Request{Method: "POST", Path: "/api/collections/posts/records", Token: p.annToken, Body: `{"title":7,"nope":1}`}, 200, ""},
		{"multipart", apptest.Request{Method: "POST", Path: writePath, Token: p.annToken, Body: multipart, Header: map[string]string{"Content-Type": "multipart/form-data; boundary=b"}}, 200, ""},
		{"no body", apptest.Request{Method: "POST", Path: writePath, Token: p.annToken, Header: map[string]string{"Content-Type": "application/json"}}, 200, ""},
		{"unknown collection", apptest.Request{Method: "POST", Path: "/api/v1/collections/nope/records", Token: p.annToken, Body: `{"x":1}`}, 404, "api.not_found"},
		{"collection for superusers", apptest.Request{Method: "POST", Path: "/api/v1/collections/plain/records", Token: p.annToken, Body: `{"x":1}`}, 403, "api.forbidden"},
		{"view", apptest.Request{Method: "POST", Path: "/api/v1/collections/digest/records", Token: p.annToken, Body: `{"x":1}`}, 400, "api.bad_request"},
		{"superuser writes hidden fields", apptest.Request{Method: "POST", Path: writePath, Token: p.rootToken, Body: `{"secret":"s"}`}, 200, ""},
		{"too large", apptest.Request{Method: "POST", Path: writePath, Token: p.annToken, Body: `{"title":"` + strings.Repeat("x", 11<<20) + `"}`}, 413, "api.body_too_large"},
	}
	for _, c := range cases {
		if r := app.Do(t, c.request); r.Status != c.status || r.Code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, r.Status, cut(r.Body), c.status, c.code)
		}
	}
}

func TestBatchBodies(t *testing.T) {
	app := start(t)
	p := populate(t, app, 0)
	send := func(body string) apptest.Response {
		t.Helper()
		return app.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/batch", Token: p.annToken, Body: body})
	}
	r := send(`{"requests":[
		{"method":"POST","url":"/api/v1/collections/posts/records","body":{"title":"good"}},
		{"method":"POST","url":"/api/collections/posts/records?fields=id","body":{"title":1,"nope":2}},
		{"method":"patch","url":"/api/collections/posts/records/abc","body":{"n":"x"}},
		{"method":"PUT","url":"/api/v1/collections/posts/records","body":{"done":1}},
		{"method":"POST","url":"/api/v1/collections/posts/records","body":[]},
		{"method":"DELETE","url":"/api/v1/collections/posts/records/abc","body":{"any":1}}]}`)
	want := []string{
		"requests.1.body.nope records.field_unknown", "requests.1.body.title records.field_type",
		"requests.2.body.n records.field_type", "requests.3.body.done records.field_type", "requests.4.body records.field_type",
	}
	if r.Status != 400 || r.Code() != "api.validation_failed" || !slices.Equal(badMembers(t, r), want) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if n, err := app.CountRecords("posts"); err != nil || n != 0 {
		t.Errorf("%d records were written, %v", n, err)
	}
	if r := send(`{"requests":7}`); r.Code() != "api.body_malformed" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if r := send(`{"requests":[{"method":"POST","url":"/api/v1/collections/posts/records","body":{"title":"a","title":"b"}}]}`); r.Code() != "api.body_malformed" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if r := send(`{"Requests":[{"Method":"POST","URL":"/api/v1/collections/posts/records","Body":{"title":"good"}}]}`); r.Status != 200 {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}
