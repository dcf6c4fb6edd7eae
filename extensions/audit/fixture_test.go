package audit_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// world is an application with an admin and a user.
type world struct {
	*apptest.App
	log            *audit.Log
	made           extensions.Extension // of log
	file           string
	root, user     string // tokens
	rootID, userID string
	rootMail       string
}

func start(t testing.TB) *world {
	t.Helper()
	w := &world{log: log(), file: filepath.Join(t.TempDir(), "head")}
	w.made = audit.New(audit.Config{CheckpointFile: w.file}, w.log, nil)
	w.App = apptest.New(t, api.New(settings.Defaults[api.Config]()), w.made)
	root, token := w.Superuser(t)
	user, userToken := w.User(t, "ann@example.test")
	w.rootID, w.root, w.userID, w.user, w.rootMail = root.Id, token, user.Id, userToken, root.Email()
	return w
}

// must sends a request as the admin.
func (w *world) must(t testing.TB, method, path string, body any, status int) apptest.Response {
	t.Helper()
	r := w.Do(t, apptest.Request{Method: method, Path: path, Token: w.root, Body: body})
	if r.Status != status {
		t.Fatalf("%s %s: %d %s", method, path, r.Status, r.Body)
	}
	return r
}

// last is the newest entry with the action.
func (w *world) last(t testing.TB, action string) audit.View {
	t.Helper()
	list, _, err := w.log.List(t.Context(), w.DB(), audit.Filter{Action: action}, "", 1)
	if err != nil || len(list) != 1 {
		t.Fatalf("no entry %s: %v", action, err)
	}
	return list[0]
}

func (w *world) details(t testing.TB, v audit.View) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(v.Details, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (w *world) count(t testing.TB, where string) int {
	t.Helper()
	var n int
	if err := w.DB().NewQuery("SELECT count(*) FROM audit_entries WHERE " + where).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) intact(t testing.TB) {
	t.Helper()
	if r, err := w.log.Verify(t.Context(), w.App, nil); err != nil || !r.OK {
		t.Errorf("%+v, %v", r, err)
	}
}
