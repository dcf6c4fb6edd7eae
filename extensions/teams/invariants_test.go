package teams

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// A superuser may write what they like in the dashboard, but not make a team without an owner.
func TestDashboard(t *testing.T) {
	w, team := cast(t)
	root, token := w.Superuser(t)
	w.people(t, "newcomer")
	member := func(who string) string { return membersCollection + "/records/" + w.member(t, team, who) }
	invitation, _ := w.linked(t, "olga", team, Admin)
	steps := []struct {
		name, method, path string
		body               map[string]any
		status             int
		roles              string // of the team afterwards, if it should have changed
		entry              string // that the audit has then
	}{
		{"a role that there is not", http.MethodPatch, member("mia"), map[string]any{"role": "boss"}, http.StatusBadRequest, "", ""},
		{"a membership moved", http.MethodPatch, member("mia"), map[string]any{"user": w.ids["xena"]}, http.StatusBadRequest, "", ""},
		{
			"a role", http.MethodPatch, member("mia"),
			map[string]any{"role": "viewer"},
			http.StatusOK,
			"abel admin, ada admin, max member, mia viewer, olga owner, otto owner, vera viewer", `teams.role_changed success {"from":"member"`,
		},
		{
			"an owner demoted", http.MethodPatch, member("otto"),
			map[string]any{"role": Admin},
			http.StatusOK,
			"abel admin, ada admin, max member, mia viewer, olga owner, otto admin, vera viewer", `"from":"owner"`,
		},
		{"the last owner demoted", http.MethodPatch, member("olga"), map[string]any{"role": Admin}, http.StatusBadRequest, "", ""},
		{
			"somebody added", http.MethodPost, membersCollection + "/records",
			map[string]any{"team": team, "user": w.ids["newcomer"], "role": Member},
			http.StatusOK,
			"abel admin, ada admin, max member, mia viewer, newcomer member, olga owner, otto admin, vera viewer", `teams.member_added success`,
		},
		{"somebody added twice", http.MethodPost, membersCollection + "/records", map[string]any{"team": team, "user": w.ids["mia"], "role": Owner}, http.StatusBadRequest, "", ""},
		{
			"somebody removed", http.MethodDelete, member("mia"), nil, http.StatusNoContent,
			"abel admin, ada admin, max member, newcomer member, olga owner, otto admin, vera viewer", `teams.member_removed success`,
		},
		{
			"the last owner removed", http.MethodDelete, member("olga"), nil, http.StatusNoContent,
			"abel owner, ada admin, max member, newcomer member, otto admin, vera viewer", `teams.owner_succeeded success {"from":"admin"`,
		},
		{"a team without anybody", http.MethodPost, teamsCollection + "/records", map[string]any{"name": "Nobody's"}, http.StatusForbidden, "", ""},
		{"a name", http.MethodPatch, teamsCollection + "/records/" + team, map[string]any{"name": "Theirs"}, http.StatusOK, "", ""},
		{
			"an invitation", http.MethodPost, invitationsCollection + "/records",
			map[string]any{"team": team, "email": "a@example.test", "role": Member, "invitedBy": w.ids["otto"], "state": pending, "expiresAt": "2090-01-01 00:00:00.000Z"},
			http.StatusForbidden, "", "",
		},
		{"an invitation sent elsewhere", http.MethodPatch, invitationsCollection + "/records/" + invitation, map[string]any{"email": "b@example.test"}, http.StatusForbidden, "", ""},
		{"an invitation deleted", http.MethodDelete, invitationsCollection + "/records/" + invitation, nil, http.StatusNoContent, "", ""},
		{"a team deleted", http.MethodDelete, teamsCollection + "/records/" + team, nil, http.StatusNoContent, " ", `"members":6,"name":"Theirs"`},
	}
	want := w.roles(t, team)
	for _, s := range steps {
		got := w.Do(t, apptest.Request{Method: s.method, Path: "/api/collections/" + s.path, Token: token, Body: s.body})
		if got.Status != s.status {
			t.Fatalf("%s: %d %s", s.name, got.Status, got.Body)
		}
		if s.roles != "" {
			want = strings.TrimSpace(s.roles)
		}
		if is := w.roles(t, team); is != want {
			t.Fatalf("%s: %s, want %s", s.name, is, want)
		}
		if entries := w.entries(t); s.entry != "" && !strings.Contains(entries[len(entries)-1], s.entry) {
			t.Errorf("%s: the audit ends with %s", s.name, entries[len(entries)-1])
		}
		if n := w.unowned(t); n != 0 {
			t.Fatalf("%s: %d teams have no owner", s.name, n)
		}
	}
	var actor string
	if err := w.DB().Select("actor_id").From("audit_entries").Where(dbx.HashExp{"action": "teams.deleted"}).Row(&actor); err != nil || actor != root.Id {
		t.Errorf("the team was deleted by %q (%v)", actor, err)
	}
	w.writes.Range(func(any, any) bool { t.Error("a request is remembered after its end"); return false })
}

func (w *world) unowned(t testing.TB) int {
	t.Helper()
	var n int
	err := w.DB().NewQuery(`SELECT count(*) FROM teams t WHERE NOT EXISTS (SELECT 1 FROM team_members m WHERE m.team = t.id AND m.role = 'owner')`).Row(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Accounts go in many ways. Their teams stay, as long as somebody is left.
func TestAccountsGo(t *testing.T) {
	w, team := cast(t)
	_, token := w.Superuser(t)
	gone := func(who, roles string) {
		t.Helper()
		path := "/api/collections/users/records/" + w.ids[who]
		if got := w.Do(t, apptest.Request{Method: http.MethodDelete, Path: path, Token: token}); got.Status != http.StatusNoContent {
			t.Fatalf("delete %s: %d %s", who, got.Status, got.Body)
		}
		if is := w.roles(t, team); is != roles {
			t.Fatalf("without %s: %s, want %s", who, is, roles)
		}
		if n := w.unowned(t); n != 0 {
			t.Fatalf("without %s: %d teams have no owner", who, n)
		}
	}
	if teams, err := LastOwner(w.App, w.ids["olga"]); err != nil || len(teams) != 0 {
		t.Errorf("olga is the last owner of %v (%v)", teams, err)
	}
	gone("otto", "abel admin, ada admin, max member, mia member, olga owner, vera viewer")
	if teams, err := LastOwner(w.App, w.ids["olga"]); err != nil || !slices.Equal(teams, []Team{{team, "Team of olga", 6}}) {
		t.Errorf("olga is the last owner of %v (%v)", teams, err)
	}
	if teams, err := LastOwner(w.App, w.ids["xena"]); err != nil || len(teams) != 0 { // nobody else is in hers
		t.Errorf("xena is the last owner of %v (%v)", teams, err)
	}
	gone("olga", "abel owner, ada admin, max member, mia member, vera viewer") // abel came before ada
	gone("ada", "abel owner, max member, mia member, vera viewer")
	gone("abel", "max owner, mia member, vera viewer")
	gone("xena", "max owner, mia member, vera viewer")
	if n, err := w.CountRecords(teamsCollection); err != nil || n != 1 {
		t.Errorf("%d teams (%v)", n, err)
	}

	// All accounts at once.
	users, err := w.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.TruncateCollection(users); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{teamsCollection, membersCollection, invitationsCollection} {
		if n, err := w.CountRecords(name); err != nil || n != 0 {
			t.Errorf("%d of %s are left (%v)", n, name, err)
		}
	}
	entries := w.entries(t)
	removed := 0
	for _, e := range entries {
		if strings.HasPrefix(e, "teams.member_removed success") {
			removed++
		}
	}
	if removed < 6 || !has(entries, "teams.deleted success", `"members":0`) {
		t.Errorf("the audit:\n%s", strings.Join(entries, "\n"))
	}
}

// Truncating the memberships is the worst that a superuser can do to them.
func TestMembershipsGo(t *testing.T) {
	w, _ := cast(t)
	members, err := w.FindCollectionByNameOrId(membersCollection)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.TruncateCollection(members); err != nil {
		t.Fatal(err)
	}
	if n, err := w.CountRecords(teamsCollection); err != nil || n != 0 {
		t.Errorf("%d teams are left (%v)", n, err)
	}
}

// What a change takes back with it when it fails.
func TestAuditFails(t *testing.T) {
	broken := false
	w := open(t, func(_ *Config, deps *Deps) {
		note := deps.Audit
		deps.Audit = func(tx core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error {
			if broken {
				return http.ErrAbortHandler
			}
			return note(tx, e, action, outcome, subject, details)
		}
	})
	w.people(t, "olga", "mia")
	team := w.found(t, "olga", map[string]string{"mia": Member})
	broken = true
	r, err := w.FindRecordById(membersCollection, w.member(t, team, "mia"))
	if err != nil {
		t.Fatal(err)
	}
	r.Set("role", Admin)
	if err := w.Save(r); err == nil {
		t.Error("a change was saved without its entry")
	}
	user, err := w.FindRecordById("users", w.ids["olga"])
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(user); err == nil {
		t.Error("an account was deleted without the entry of its membership")
	}
	if got := w.roles(t, team); got != "mia member, olga owner" {
		t.Error(got)
	}
}

func TestCheck(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	team := w.found(t, "olga", nil)
	check := func(want extensions.Level) {
		t.Helper()
		if err := w.sweep(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if r := w.Extension().Checks[0].Run(t.Context(), w.Host); r.Level != want {
			t.Errorf("%+v", r)
		}
	}
	check(extensions.OK)
	if _, err := w.NonconcurrentDB().Delete(membersCollection, dbx.HashExp{"team": team}).Execute(); err != nil {
		t.Fatal(err)
	}
	check(extensions.Warn)
}

// An app may have fields of its own on teams, and its collections may refer to them.
func TestOwnFields(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	c, err := w.FindCollectionByNameOrId(teamsCollection)
	if err != nil {
		t.Fatal(err)
	}
	c.Fields.Add(&core.SelectField{Name: "plan", Values: []string{"free", "pro"}})
	if err := w.Save(c); err != nil {
		t.Fatal(err)
	}
	team := w.found(t, "olga", nil)
	if r, err := w.FindRecordById(teamsCollection, team); err != nil || r.GetString("plan") != "" {
		t.Errorf("%v", err)
	}
	for what, change := range map[string]func(c *core.Collection){
		"rule":  func(c *core.Collection) { c.UpdateRule = new("id != ''") },
		"field": func(c *core.Collection) { c.Fields.RemoveByName("name") },
		"name":  func(c *core.Collection) { c.Name = "groups" },
	} {
		c, err := w.FindCollectionByNameOrId(teamsCollection)
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		if err := w.Save(c); err == nil {
			t.Errorf("the %s was changed", what)
		}
	}
}

// A data folder that has such collections, or no accounts, must not be touched.
func TestMigrationRefuses(t *testing.T) {
	w := open(t, nil)
	if err := New(Config{Accounts: "people"}, Deps{}).createCollections(w); err == nil || !strings.Contains(err.Error(), "SATCHEL_TEAMS_ACCOUNTS") {
		t.Errorf("without accounts: %v", err)
	}
	if err := w.createCollections(w); err == nil || !strings.Contains(err.Error(), "SATCHEL_TEAMS_ENABLED=false") {
		t.Errorf("with others' collections: %v", err)
	}
}

func TestMigrationDown(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	w.found(t, "olga", nil)
	for _, m := range slices.Backward(w.Extension().Migrations) {
		if err := w.RunInTransaction(m.Down); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range w.Extension().Migrations {
		if err := w.RunInTransaction(m.Up); err != nil {
			t.Fatal(err)
		}
	}
	w.found(t, "olga", nil)
}

// A superuser's request reads the record before its transaction: what it did not mean to change must not go back to what
// it was then, and what it does change is judged by what is stored.
func TestStaleWrites(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "mia")
	team := w.found(t, "olga", map[string]string{"mia": Member})
	read := func() *core.Record {
		r, err := w.FindRecordById(membersCollection, w.member(t, team, "mia"))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	untouched, demoted, removed := read(), read(), read()
	w.must(t, "olga", "transferOwnership", map[string]any{"member": untouched.Id})
	if err := w.Save(untouched); err != nil {
		t.Fatal(err)
	}
	demoted.Set("role", "viewer")
	if err := w.Save(demoted); err == nil {
		t.Error("the last owner was demoted by somebody who took them for a member")
	}
	if got := w.roles(t, team); got != "mia owner, olga admin" {
		t.Fatal(got)
	}
	w.must(t, "mia", "transferOwnership", map[string]any{"member": w.member(t, team, "olga")})
	w.must(t, "olga", "removeMember", map[string]any{"member": removed.Id})
	before := len(w.entries(t))
	if err := w.Delete(removed); err != nil {
		t.Error(err)
	}
	removed.Set("role", Admin)
	if err := w.Save(removed); err == nil {
		t.Error("a membership that has ended was changed")
	}
	if after := w.entries(t); len(after) != before {
		t.Errorf("nothing happened, but: %v", after[before:])
	}
}
