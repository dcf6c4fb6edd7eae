package account

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/jobs"
)

func atOnce(c *Config, _ *Deps) { c.Grace = 0 }

// deleteNow deletes Ada's account through the operation.
func (f *fixture) deleteNow(t testing.TB) {
	t.Helper()
	answer[Status](t, f.call(t, f.signIn(t, "ada@example.test"), "account.delete"))
	f.gone(t, f.ada)
}

// remains is what is left of the world without Ada.
func (f *fixture) remains(t testing.TB) {
	t.Helper()
	for collection, want := range map[string]string{
		"notes":       "bob-note-0 bob-note-1 bob-note-2",
		"attachments": "bob-attachment bob-attachment bob-attachment",
		"labels":      "bob-label bob-label bob-label",
		"comments":    "bob-own-comment bob-own-comment bob-own-comment",
		"pins":        "pin-of-ada pin-of-ada pin-of-ada pin-of-bob pin-of-bob pin-of-bob",
		"posts":       "ada-post bob-post",
		"rooms":       "bob-alone shared",
	} {
		if got := f.titles(t, collection); got != want {
			t.Errorf("%s: %s, want %s", collection, got, want)
		}
	}
	for what, from := range map[string]string{
		"posts of Ada":     "posts WHERE author = '" + f.ada.Id + "'",
		"rooms with Ada":   "rooms WHERE members LIKE '%" + f.ada.Id + "%'",
		"pins of notes":    "pins WHERE note <> '' AND title = 'pin-of-ada'",
		"rows of deletion": deletionsTable,
		"sessions of Ada":  "sessions_logins WHERE record = '" + f.ada.Id + "'",
		"jobs":             "jobs_queue",
		"jobs of Ada":      "jobs_history WHERE owner = '" + f.ada.Id + "'",
	} {
		if n := f.count(t, from); n != 0 {
			t.Errorf("%d %s are left", n, what)
		}
	}
	if n := f.count(t, "rooms WHERE title = 'shared' AND members LIKE '%"+f.bob.Id+"%'"); n != 1 {
		t.Error("Bob is not in the shared room any more")
	}
	await(t, "the deletion of files", func() bool { return f.stored(t, "notes") == 3 && f.stored(t, "attachments") == 6 })
}

func TestDelete(t *testing.T) {
	f := start(t, atOnce)
	f.world(t)
	var seen int
	f.OnRecordDelete("labels").BindFunc(func(e *core.RecordEvent) error { seen++; return e.Next() })
	f.deleteNow(t)
	f.remains(t)
	if seen != 3 {
		t.Errorf("the app's hook has seen %d labels go", seen)
	}
	if n := f.count(t, "audit_entries WHERE action IN ('account.delete', 'account.deleted')"); n != 2 {
		t.Errorf("%d audit entries", n)
	}
	if n := f.count(t, "audit_entries WHERE subject_id = '"+f.ada.Id+"' OR actor_id = '"+f.ada.Id+"'"); n != 0 {
		t.Errorf("%d audit entries name the account", n)
	}
}

// Leaves go first: no transaction deletes a record that others hang on.
func TestLeavesFirst(t *testing.T) {
	f := start(t, atOnce)
	f.world(t)
	below := map[string]string{"notes": "attachments WHERE note = {:id}", "attachments": "labels WHERE attachment = {:id}"}
	for collection, from := range below {
		f.OnRecordDelete(collection).BindFunc(func(e *core.RecordEvent) error {
			var n int
			if err := e.App.DB().NewQuery("SELECT count(*) FROM " + from).Bind(dbx.Params{"id": e.Record.Id}).Row(&n); err != nil || n > 0 {
				t.Errorf("%d records hang on one of %s (%v)", n, collection, err)
			}
			return e.Next()
		})
	}
	f.deleteNow(t)
	f.remains(t)
}

// Records that delete each other in a circle, and a long chain, come to an end.
func TestCirclesAndChains(t *testing.T) {
	f := start(t, atOnce)
	parent, first := "", ""
	for range 100 {
		parent = f.add(t, "notes", "chain", map[string]any{"owner": f.ada.Id, "parent": parent})
		if first == "" {
			first = parent
		}
	}
	if _, err := f.NonconcurrentDB().Update("notes", dbx.Params{"parent": parent}, dbx.HashExp{"id": first}).Execute(); err != nil {
		t.Fatal(err)
	}
	self := f.add(t, "notes", "self", map[string]any{"owner": f.ada.Id})
	if _, err := f.NonconcurrentDB().Update("notes", dbx.Params{"parent": self}, dbx.HashExp{"id": self}).Execute(); err != nil {
		t.Fatal(err)
	}
	f.deleteNow(t)
	if n := f.count(t, "notes"); n != 0 {
		t.Errorf("%d notes are left", n)
	}
}

// A record that a hook does not let go keeps the account, and all else goes.
func TestRefusedRecord(t *testing.T) {
	f := start(t, atOnce)
	f.world(t)
	refuse := true
	f.OnRecordDelete("labels").BindFunc(func(e *core.RecordEvent) error {
		if refuse && e.Record.GetString("title") == "ada-label" {
			return errNo
		}
		return e.Next()
	})
	answer[Status](t, f.call(t, f.signIn(t, "ada@example.test"), "account.delete"))
	await(t, "the end of the first attempt", func() bool { return f.count(t, "jobs_queue WHERE state = 2 AND error <> ''") == 1 })
	if got := f.titles(t, "comments"); strings.Contains(got, "ada-own") {
		t.Errorf("what is not in the way stays: %s", got)
	}
	token := f.signIn(t, "ada@example.test")
	if r := f.call(t, token, "account.cancelDeletion"); r.Code() != ErrStarted.Name {
		t.Errorf("cancelled in the middle: %d %s", r.Status, r.Body)
	}
	if s := answer[Status](t, f.call(t, token, "account.status")); s.State != deleting {
		t.Errorf("%+v", s)
	}
	f.accounts.now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	if r := f.accounts.checkDeletions(t.Context(), &extensions.Host{App: f.App}); r.Level != extensions.Warn {
		t.Errorf("%+v", r)
	}
	refuse = false
	if err := f.accounts.deleteNow(t.Context(), f.App, f.ada); err != nil {
		t.Fatal(err)
	}
	f.remains(t)
}

func TestGrace(t *testing.T) {
	f := start(t, nil)
	f.world(t)
	token := f.signIn(t, "ada@example.test")
	before := time.Now()
	s := answer[Status](t, f.call(t, token, "account.delete"))
	if s.State != scheduled || s.DeleteAt.Sub(before) < 14*24*time.Hour-time.Minute {
		t.Fatalf("%+v", s)
	}
	if r := f.call(t, token, "account.status"); r.Status != http.StatusUnauthorized {
		t.Errorf("the session goes on: %d", r.Status)
	}

	// Whoever signs in may cancel, and nothing else.
	token = f.signIn(t, "ada@example.test")
	for _, request := range []apptest.Request{
		{Path: "/api/v1/collections/notes/records"},
		{Path: "/api/collections/notes/records"},
		{Method: http.MethodPost, Path: "/api/v1/batch", Body: map[string]any{"requests": []any{}}},
		{Method: http.MethodPost, Path: "/api/realtime", Body: map[string]any{}},
		{Method: http.MethodPatch, Path: "/api/v1/collections/users/records/" + f.ada.Id, Body: map[string]any{"name": "x"}},
	} {
		request.Token = token
		if r := f.Do(t, request); r.Status != http.StatusForbidden || request.Path == "/api/v1/collections/notes/records" && r.Code() != ErrPending.Name {
			t.Errorf("%s: %d %s", request.Path, r.Status, r.Body)
		}
	}
	if r := f.Do(t, apptest.Request{Path: "/api/v1/collections/notes/records", Token: f.signIn(t, "bob@example.test")}); r.Status != http.StatusOK {
		t.Errorf("Bob is kept out: %d %s", r.Status, r.Body)
	}
	again := answer[Status](t, f.call(t, token, "account.delete"))
	if !again.DeleteAt.Equal(*s.DeleteAt) {
		t.Errorf("asking again moves the date: %+v", again)
	}
	if r := f.call(t, token, "account.export"); r.Status != http.StatusOK {
		t.Errorf("export: %d %s", r.Status, r.Body)
	}
	if s := answer[Status](t, f.call(t, token, "account.cancelDeletion")); s.State != active || s.DeleteAt != nil {
		t.Errorf("%+v", s)
	}
	if s := answer[Status](t, f.call(t, token, "account.cancelDeletion")); s.State != active {
		t.Errorf("cancelled twice: %+v", s)
	}
	if r := f.Do(t, apptest.Request{Path: "/api/v1/collections/notes/records", Token: token}); r.Status != http.StatusOK || !strings.Contains(string(r.Body), "ada-note-0") {
		t.Errorf("after cancelling: %d %s", r.Status, r.Body)
	}

	// A second wish is carried out when it is due.
	answer[Status](t, f.call(t, token, "account.delete"))
	f.hurry(t)
	f.gone(t, f.ada)
	f.remains(t)
}

// What another process has scheduled holds here, too.
func TestGateFollows(t *testing.T) {
	f := start(t, nil)
	token := f.signIn(t, "ada@example.test")
	row := dbx.Params{"collection": f.ada.Collection().Id, "record": f.ada.Id, "run": "none", "requested_at": 1, "due_at": 2}
	if _, err := f.NonconcurrentDB().Insert(deletionsTable, row).Execute(); err != nil {
		t.Fatal(err)
	}
	status := func() int {
		return f.Do(t, apptest.Request{Path: "/api/v1/collections/notes/records", Token: token}).Status
	}
	await(t, "the gate", func() bool { return status() == http.StatusForbidden })
	if err := forgetDeletion(f.App, keyOf(f.ada)); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the gate", func() bool { return status() == http.StatusOK })
}

func TestDeleteNeedsRecentAuth(t *testing.T) {
	f := start(t, nil)
	token := f.signIn(t, "ada@example.test")
	if _, err := f.NonconcurrentDB().Update("sessions_logins", dbx.Params{"auth_at": 0}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"account.delete", "account.export"} {
		if r := f.call(t, token, name); r.Code() != "sessions.recent_auth_required" {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
		if r := f.call(t, "", name); r.Status != http.StatusUnauthorized {
			t.Errorf("%s of a guest: %d", name, r.Status)
		}
	}
	if n := f.count(t, deletionsTable) + f.count(t, exportsTable); n != 0 {
		t.Errorf("%d wishes are noted", n)
	}
}

// Whoever has no credential cannot show one, nor sign in again to cancel.
func TestAnonymous(t *testing.T) {
	f := start(t, func(_ *Config, d *Deps) {
		d.Anonymous = func(_ core.App, account *core.Record) (bool, error) {
			return account.Email() == "ada@example.test", nil
		}
	})
	token := f.signIn(t, "ada@example.test")
	if _, err := f.NonconcurrentDB().Update("sessions_logins", dbx.Params{"auth_at": 0}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	answer[Status](t, f.call(t, token, "account.delete"))
	f.gone(t, f.ada)
}

// An app that is too old for everything else may still take the data along and delete the account.
func TestOldApp(t *testing.T) {
	f := start(t, nil)
	token := f.signIn(t, "ada@example.test")
	old := func(method, path string) apptest.Response {
		return f.Do(t, apptest.Request{Method: method, Path: "/api/v1" + path, Token: token, Header: map[string]string{"X-App-Version": "1.0"}})
	}
	if r := old(http.MethodGet, "/collections/notes/records"); r.Status != http.StatusUpgradeRequired {
		t.Fatalf("the gate is open: %d", r.Status)
	}
	x := answer[Export](t, old(http.MethodPost, "/operations/account.export"))
	answer[Status](t, old(http.MethodGet, "/operations/account.status"))
	answer[struct{ ID string }](t, old(http.MethodGet, "/jobs/"+x.Run))
	await(t, "the export", func() bool { return old(http.MethodGet, "/account/exports/"+x.ID).Status == http.StatusOK })
	answer[Status](t, old(http.MethodPost, "/operations/account.cancelDeletion"))
	answer[Status](t, old(http.MethodPost, "/operations/account.delete"))
}

func TestBlocked(t *testing.T) {
	f := start(t, func(_ *Config, d *Deps) {
		d.Blockers = func(core.App, *core.Record) ([]Blocker, error) {
			return []Blocker{{Kind: "teams", ID: "t1", Message: "Give the team Red to somebody"}}, nil
		}
	})
	r := f.call(t, f.signIn(t, "ada@example.test"), "account.delete")
	if r.Status != http.StatusConflict || r.Code() != ErrBlocked.Name || !strings.Contains(string(r.Body), `{"field":"teams.t1","code":"account.blocked","message":"Give the team Red to somebody"}`) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if n := f.count(t, deletionsTable); n != 0 {
		t.Error("the deletion is scheduled")
	}
}

func TestSectionsAndForget(t *testing.T) {
	var deleted, forgotten string
	f := start(t, func(c *Config, d *Deps) {
		c.Grace = 0
		d.Sections = []Section{{Name: "push", Delete: func(_ core.App, account *core.Record) error { deleted = account.Id; return nil }}}
		forget := d.Forget
		d.Forget = func(tx core.App, collection, id string) error {
			forgotten = collection + " " + id
			return forget(tx, collection, id)
		}
	})
	f.deleteNow(t)
	if deleted != f.ada.Id || forgotten != "users "+f.ada.Id {
		t.Errorf("deleted %q, forgotten %q", deleted, forgotten)
	}
}

// The server may stop in the middle: the next one goes on.
func TestStopInTheMiddle(t *testing.T) {
	f := start(t, atOnce)
	f.world(t)
	f.insert(t, "notes", 300, func(int) dbx.Params {
		return dbx.Params{"id": core.GenerateDefaultRandomId(), "owner": f.ada.Id, "file": "[]"}
	})
	x := f.jobs.Extension(jobs.Deps{})
	answer[Status](t, f.call(t, f.signIn(t, "ada@example.test"), "account.delete"))
	for range 3 {
		before := f.count(t, "notes")
		await(t, "some progress", func() bool { return f.count(t, "notes") < before })
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := x.Start(context.Background(), f.Host); err != nil {
			t.Fatal(err)
		}
	}
	f.gone(t, f.ada)
	f.remains(t)
}
