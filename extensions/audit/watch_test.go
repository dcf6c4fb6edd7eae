package audit_test

import (
	"errors"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// byRoot demands that the admin did it, in a request.
func (w *world) byRoot(t testing.TB, action, outcome string) audit.View {
	t.Helper()
	v := w.last(t, action)
	if v.Actor.ID != w.rootID || v.Actor.Kind != audit.Superuser || v.Outcome != outcome || v.Request == "" || v.Address != "127.0.0.0/24" {
		t.Errorf("%s: %+v", action, v)
	}
	return v
}

func TestCollections(t *testing.T) {
	w := start(t)
	w.must(t, "POST", "/api/collections", map[string]any{
		"name": "notes", "type": "base", "listRule": "", "fields": []any{map[string]any{"name": "title", "type": "text"}, map[string]any{"name": "old", "type": "text"}},
	}, 200)
	d := w.details(t, w.byRoot(t, "collections.created", audit.Success))
	if d["name"] != "notes" || d["rules"].(map[string]any)["list"] != "" || d["rules"].(map[string]any)["view"] != nil {
		t.Errorf("created: %v", d)
	}
	w.must(t, "PATCH", "/api/collections/notes", map[string]any{
		"name": "papers", "listRule": "@request.auth.id != ''", "fields": []any{map[string]any{"name": "title", "type": "text"}, map[string]any{"name": "new", "type": "text"}},
	}, 200)
	d = w.details(t, w.byRoot(t, "collections.updated", audit.Success))
	rule, _ := d["rules"].(map[string]any)["list"].(map[string]any)
	if d["name"] != "papers" || d["nameBefore"] != "notes" || rule["before"] != "" || rule["after"] != "@request.auth.id != ''" ||
		!reflect.DeepEqual(d["fieldsAdded"], []any{"title", "new"}) && !reflect.DeepEqual(d["fieldsAdded"], []any{"new"}) || d["fieldsRemoved"] == nil {
		t.Errorf("updated: %v", d)
	}
	w.must(t, "DELETE", "/api/collections/papers/truncate", nil, 204)
	if d := w.details(t, w.byRoot(t, "collections.truncated", audit.Began)); d["collection"] != "papers" {
		t.Errorf("truncated: %v", d)
	}
	w.must(t, "PUT", "/api/collections/import", map[string]any{"collections": []any{map[string]any{"name": "imported", "type": "base"}}}, 204)
	if d := w.details(t, w.byRoot(t, "collections.created", audit.Success)); d["name"] != "imported" {
		t.Errorf("imported: %v", d)
	}
	w.must(t, "DELETE", "/api/collections/papers", nil, 204)
	if d := w.details(t, w.byRoot(t, "collections.deleted", audit.Success)); d["name"] != "papers" {
		t.Errorf("deleted: %v", d)
	}
	// What fails leaves nothing, and what the program does by itself is the system's.
	before := w.count(t, "1=1")
	w.must(t, "POST", "/api/collections", map[string]any{"name": "bad", "type": "base", "listRule": "nonsense ==="}, 400)
	if n := w.count(t, "1=1"); n != before {
		t.Errorf("%d entries about a collection that is not there", n-before)
	}
	if err := w.Save(core.NewBaseCollection("own")); err != nil {
		t.Fatal(err)
	}
	if v := w.last(t, "collections.created"); v.Actor.Kind != audit.System {
		t.Errorf("%+v", v)
	}
	boom := errors.New("boom")
	err := w.RunInTransaction(func(tx core.App) error {
		if err := tx.Save(core.NewBaseCollection("gone")); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) || w.count(t, `details LIKE '%"gone"%'`) != 0 {
		t.Errorf("an entry outlives its act: %v", err)
	}
	w.intact(t)
}

func TestSettings(t *testing.T) {
	w := start(t)
	w.must(t, "PATCH", "/api/settings", map[string]any{"smtp": map[string]any{"enabled": true, "host": "smtp.example.test", "port": 25, "password": "hunter2hunter2"}}, 200)
	v := w.byRoot(t, "settings.updated", audit.Success)
	if d := w.details(t, v); !reflect.DeepEqual(d["sections"], []any{"smtp"}) || strings.Contains(string(v.Details), "hunter2") {
		t.Errorf("%s", v.Details)
	}
	before := w.count(t, "action = 'settings.updated'")
	w.must(t, "PATCH", "/api/settings", map[string]any{}, 200)
	if n := w.count(t, "action = 'settings.updated'"); n != before {
		t.Error("no change is an entry")
	}
}

func TestAccounts(t *testing.T) {
	w := start(t)
	users := "/api/collections/users/records/" + w.userID
	for _, c := range []struct {
		body   map[string]any
		fields []any
	}{
		{map[string]any{"email": "eve@example.test"}, []any{"email", "tokenKey"}},
		{map[string]any{"verified": false}, []any{"verified"}},
		{map[string]any{"password": "another-password", "passwordConfirm": "another-password"}, []any{"password", "tokenKey"}},
	} {
		w.must(t, "PATCH", users, c.body, 200)
		v := w.byRoot(t, "accounts.updated", audit.Success)
		if d := w.details(t, v); !reflect.DeepEqual(d["fields"], c.fields) || v.Subject.ID != w.userID {
			t.Errorf("%v: %s about %+v", c.body, v.Details, v.Subject)
		}
	}
	before := w.count(t, "1=1")
	w.must(t, "PATCH", users, map[string]any{"name": "Ann"}, 200)
	if n := w.count(t, "1=1"); n != before {
		t.Error("a change of a name is an entry")
	}
	w.must(t, "POST", "/api/collections/users/impersonate/"+w.userID, map[string]any{}, 200)
	if v := w.byRoot(t, "accounts.impersonated", audit.Began); v.Subject == nil || v.Subject.ID != w.userID {
		t.Errorf("%+v", v)
	}
	w.must(t, "DELETE", users, nil, 204)
	if v := w.byRoot(t, "accounts.deleted", audit.Success); v.Subject.ID != w.userID || v.Subject.Collection != "users" {
		t.Errorf("%+v", v)
	}
	// The next admin, from the first to the last day.
	made := w.must(t, "POST", "/api/collections/_superusers/records", map[string]any{"email": "two@example.test", "password": "another-password", "passwordConfirm": "another-password"}, 200).JSON(t)
	id, _ := made["id"].(string)
	if v := w.byRoot(t, "superusers.created", audit.Success); v.Subject.ID != id || v.Subject.Kind != audit.Superuser {
		t.Errorf("%+v", v)
	}
	w.must(t, "PATCH", "/api/collections/_superusers/records/"+id, map[string]any{"email": "three@example.test"}, 200)
	if d := w.details(t, w.byRoot(t, "superusers.updated", audit.Success)); !reflect.DeepEqual(d["fields"], []any{"email", "tokenKey"}) {
		t.Errorf("%v", d)
	}
	w.must(t, "DELETE", "/api/collections/_superusers/records/"+id, nil, 204)
	if v := w.byRoot(t, "superusers.deleted", audit.Success); v.Subject.ID != id {
		t.Errorf("%+v", v)
	}
	w.intact(t)
}

func TestPrivilegedRoutes(t *testing.T) {
	w := start(t)
	w.must(t, "POST", "/api/sql", map[string]any{"query": "SELECT 'hunter2'"}, 200)
	if v := w.byRoot(t, "sql.executed", audit.Began); strings.Contains(string(v.Details), "hunter2") {
		t.Errorf("%s", v.Details)
	}
	w.must(t, "POST", "/api/sql", map[string]any{"query": "SELECT nonsense FROM nothing"}, 400)
	w.byRoot(t, "sql.executed", audit.Failure)
	for _, token := range []string{"", w.user} {
		before := w.count(t, "action = 'sql.executed' AND outcome = 'denied'")
		if r := w.Do(t, apptest.Request{Method: "POST", Path: "/api/sql", Token: token, Body: map[string]any{"query": "SELECT 1"}}); r.Status < 400 {
			t.Fatal(r.Status)
		}
		if n := w.count(t, "action = 'sql.executed' AND outcome = 'denied'"); n != before+1 {
			t.Errorf("%d entries", n-before)
		}
	}
	w.must(t, "POST", "/api/backups", map[string]any{"name": "one.zip"}, 204)
	if d := w.details(t, w.byRoot(t, "backups.created", audit.Success)); d["name"] != "one.zip" {
		t.Errorf("%v", d)
	}
	if err := w.CreateBackup(t.Context(), "two.zip"); err != nil {
		t.Fatal(err)
	}
	if v := w.last(t, "backups.created"); v.Actor.Kind != audit.System || v.Outcome != audit.Success {
		t.Errorf("%+v", v)
	}
	token, _ := w.must(t, "POST", "/api/files/token", nil, 200).JSON(t)["token"].(string)
	if r := w.Do(t, apptest.Request{Path: "/api/backups/one.zip?token=" + token}); r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	if d := w.details(t, w.byRoot(t, "backups.downloaded", audit.Began)); d["name"] != "one.zip" {
		t.Errorf("%v", d)
	}
	if r := w.Do(t, apptest.Request{Path: "/api/backups/one.zip?token=x"}); r.Status != http.StatusForbidden {
		t.Fatalf("%d", r.Status)
	}
	if v := w.last(t, "backups.downloaded"); v.Outcome != audit.Denied || v.Actor.Kind != audit.Guest {
		t.Errorf("%+v", v)
	}
	w.must(t, "DELETE", "/api/backups/two.zip", nil, 204)
	w.byRoot(t, "backups.deleted", audit.Began)
	w.must(t, "POST", "/api/crons/__pbMFACleanup__", nil, 204)
	w.byRoot(t, "crons.run", audit.Began)
	w.intact(t)
}

// A restore replaces the log by an older one. The file is told before, so that it is no alarm but an entry.
func TestRestore(t *testing.T) {
	w := start(t)
	if err := w.CreateBackup(t.Context(), "one.zip"); err != nil {
		t.Fatal(err)
	}
	if err := w.RestoreBackup(t.Context(), "missing.zip"); err == nil {
		t.Fatal("restored what is not there")
	}
	if v := w.last(t, "backups.restored"); v.Outcome != audit.Failure {
		t.Errorf("%+v", v)
	}
	text, err := os.ReadFile(w.file)
	if err != nil || strings.Contains(string(text), "missing.zip") {
		t.Errorf("%s, %v", text, err)
	}
	w.intact(t)
}

// From one network, what anybody can cause is stored five times a minute, and then counted.
func TestFailures(t *testing.T) {
	w := start(t)
	for range 40 {
		w.Do(t, apptest.Request{Method: "POST", Path: "/api/sql", Body: map[string]any{"query": "SELECT 1"}})
	}
	if n := w.count(t, "action = 'sql.executed'"); n < 5 || n > 7 { // a slow machine may come into the next interval
		t.Fatalf("%d entries", n)
	}
	single := w.count(t, "action = 'sql.executed'")
	if err := w.log.Summarise(); err != nil {
		t.Fatal(err)
	}
	v := w.last(t, "sql.executed")
	if d := w.details(t, v); d["count"] != float64(40-single) || v.Address != "127.0.0.0/24" || v.Actor.Kind != audit.Guest || v.Outcome != audit.Denied {
		t.Errorf("%+v %s", v, v.Details)
	}
	if err := w.log.Summarise(); err != nil || w.count(t, "action = 'sql.executed'") != single+1 {
		t.Errorf("%v", err)
	}
	w.intact(t)
}
