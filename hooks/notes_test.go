package hooks_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // PocketBase's own collections

	"github.com/satchelbase/satchel/hooks"
	_ "github.com/satchelbase/satchel/migrations" // the app's collections
)

// newApp opens a fresh application with this app's collections and hooks and serves it on loopback.
func newApp(t *testing.T) (core.App, string) {
	t.Helper()
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
	hooks.Bind(app, hooks.Deps{})
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.ClearBootstrap() })
	if err := app.RunAllMigrations(); err != nil {
		t.Fatal(err)
	}
	app.Settings().Batch.Enabled = true
	router, err := apis.NewRouter(app)
	if err != nil {
		t.Fatal(err)
	}
	mux, err := router.BuildMux()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return app, server.URL
}

func newUser(t *testing.T, app core.App, email string) (*core.Record, string) {
	t.Helper()
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	user := core.NewRecord(users)
	user.SetEmail(email)
	user.SetRandomPassword()
	if err := app.Save(user); err != nil {
		t.Fatal(err)
	}
	token, err := user.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	return user, token
}

func send(t *testing.T, method, url, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

func TestNoteTitles(t *testing.T) {
	app, url := newApp(t)
	user, token := newUser(t, app, "ada@example.com")
	records := url + "/api/collections/notes/records"

	status, body := send(t, http.MethodPost, records, token, `{"owner":"`+user.Id+`","title":" \t Milk and eggs\u00a0\n"}`)
	var note struct{ ID, Title string }
	if err := json.Unmarshal([]byte(body), &note); err != nil || status != http.StatusOK || note.Title != "Milk and eggs" {
		t.Fatalf("create: %d %s (%v)", status, body, err)
	}

	status, body = send(t, http.MethodPatch, records+"/"+note.ID, token, `{"title":"  Bread "}`)
	if status != http.StatusOK || !strings.Contains(body, `"title":"Bread"`) {
		t.Fatalf("update: %d %s", status, body)
	}

	for _, title := range []string{"", "   ", `\t\n\u2003`} {
		refused := `{"owner":"` + user.Id + `","title":"` + title + `"}`
		status, body = send(t, http.MethodPost, records, token, refused)
		if status != http.StatusBadRequest || !strings.Contains(body, "validation_required") {
			t.Errorf("create with title %q: %d %s", title, status, body)
		}
	}
	status, body = send(t, http.MethodPatch, records+"/"+note.ID, token, `{"title":"  "}`)
	if status != http.StatusBadRequest || !strings.Contains(body, "validation_required") {
		t.Errorf("update to white space: %d %s", status, body)
	}
	if total, err := app.CountRecords("notes"); err != nil || total != 1 {
		t.Fatalf("%d notes (%v), want 1: a refused write left a record", total, err)
	}
}

// A batch runs no middlewares of its routes, so it shows that the policy does not depend on the way in.
func TestNoteTitlesInBatch(t *testing.T) {
	app, url := newApp(t)
	user, token := newUser(t, app, "ada@example.com")
	request := func(title string) string {
		return `{"method":"POST","url":"/api/collections/notes/records","body":{"owner":"` + user.Id + `","title":"` + title + `"}}`
	}
	status, body := send(t, http.MethodPost, url+"/api/batch", token, `{"requests":[`+request(" Tea ")+`]}`)
	if status != http.StatusOK || !strings.Contains(body, `"title":"Tea"`) {
		t.Fatalf("batch: %d %s", status, body)
	}
	status, body = send(t, http.MethodPost, url+"/api/batch", token, `{"requests":[`+request("Coffee")+`,`+request("  ")+`]}`)
	if status != http.StatusBadRequest {
		t.Fatalf("batch with a bad title: %d %s", status, body)
	}
	if total, err := app.CountRecords("notes"); err != nil || total != 1 {
		t.Fatalf("%d notes (%v), want 1: the failed batch left a record", total, err)
	}
}
