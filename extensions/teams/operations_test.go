package teams

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/operations"
)

// cast is a team with everybody in it: olga and otto own it, ada and abel are admins, mia and max members, vera a viewer;
// xena is in another team, which she owns alone.
func cast(t testing.TB) (w *world, team string) {
	t.Helper()
	w = open(t, nil)
	w.people(t, "olga", "otto", "ada", "abel", "mia", "max", "vera", "xena")
	team = w.found(t, "olga", map[string]string{
		"otto": Owner, "ada": Admin, "abel": Admin, "mia": Member, "max": Member, "vera": "viewer",
	})
	w.found(t, "xena", nil)
	return w, team
}

// Every line says who may, of olga (owner), ada (admin), mia (member), vera (viewer), xena (outsider) and a guest; the
// others may not.
func TestWhoMayWhat(t *testing.T) {
	w, team := cast(t)
	member := func(who string) string { return w.member(t, team, who) }
	pendingFor := func(as string) string {
		id, _ := w.linked(t, "olga", team, as)
		return id
	}
	memberInvitation, adminInvitation := pendingFor(Member), pendingFor(Admin)
	lines := []struct {
		operation string
		in        map[string]any
		may       string
	}{
		{"rename", map[string]any{"team": team, "name": "New"}, "olga ada"},
		{"delete", map[string]any{"team": team}, "olga"},
		{"leave", map[string]any{"team": team}, "olga ada mia vera"},
		{"transferOwnership", map[string]any{"member": member("max")}, "olga"},
		{"transferOwnership", map[string]any{"member": member("otto")}, "olga"},

		{"removeMember", map[string]any{"member": member("otto")}, "olga"},
		{"removeMember", map[string]any{"member": member("abel")}, "olga"},
		{"removeMember", map[string]any{"member": member("max")}, "olga ada"},
		{"removeMember", map[string]any{"member": member("vera")}, "olga ada vera"},

		{"changeRole", map[string]any{"member": member("otto"), "role": Member}, "olga"},
		{"changeRole", map[string]any{"member": member("abel"), "role": Member}, "olga"},
		{"changeRole", map[string]any{"member": member("abel"), "role": Owner}, "olga"},
		{"changeRole", map[string]any{"member": member("max"), "role": Owner}, "olga"},
		{"changeRole", map[string]any{"member": member("max"), "role": Admin}, "olga"},
		{"changeRole", map[string]any{"member": member("max"), "role": "viewer"}, "olga ada"},
		{"changeRole", map[string]any{"member": member("vera"), "role": Member}, "olga ada"},
		{"changeRole", map[string]any{"member": member("mia"), "role": Admin}, "olga"},
		{"changeRole", map[string]any{"member": member("mia"), "role": "viewer"}, "olga ada"},
		{"changeRole", map[string]any{"member": member("ada"), "role": Member}, "olga ada"},
		{"changeRole", map[string]any{"member": member("ada"), "role": Owner}, "olga"},
		{"changeRole", map[string]any{"member": member("olga"), "role": Member}, "olga"},

		{"invite", map[string]any{"team": team, "email": "new@example.test"}, "olga ada"},
		{"invite", map[string]any{"team": team, "role": "viewer"}, "olga ada"},
		{"invite", map[string]any{"team": team, "role": Admin}, "olga"},
		{"invite", map[string]any{"team": team, "role": Owner}, ""},
		{"resendInvitation", map[string]any{"invitation": memberInvitation}, "olga ada"},
		{"resendInvitation", map[string]any{"invitation": adminInvitation}, "olga"},
		{"revokeInvitation", map[string]any{"invitation": memberInvitation}, "olga ada"},
		{"revokeInvitation", map[string]any{"invitation": adminInvitation}, "olga"},
	}
	who := []string{"olga", "ada", "mia", "vera", "xena", "guest"}
	before := w.roles(t, team)
	for _, l := range lines {
		for _, name := range who {
			if slices.Contains(strings.Fields(l.may), name) {
				continue
			}
			got := w.call(t, name, l.operation, l.in)
			want := http.StatusForbidden
			switch name {
			case "xena":
				want = http.StatusNotFound
			case "guest":
				want = http.StatusUnauthorized
			}
			if got.Status != want {
				t.Errorf("%s may not %s %s, but: %d %s", name, l.operation, jsonOf(t, l.in), got.Status, got.Body)
			}
		}
	}
	if after := w.roles(t, team); after != before {
		t.Fatalf("refused operations changed the team: %s", after)
	}
	for _, l := range lines {
		for name := range strings.FieldsSeq(l.may) {
			err := w.rehearse(t, name, l.operation, l.in)
			if err != nil {
				t.Errorf("%s may %s %s, but: %v", name, l.operation, jsonOf(t, l.in), err)
			}
		}
	}
}

// rehearse calls an operation in a transaction that is rolled back.
func (w *world) rehearse(t testing.TB, who, operation string, in map[string]any) error {
	t.Helper()
	errUndo := api.Fail(api.ErrInternal, "undo")
	auth, err := w.FindRecordById("users", w.ids[who])
	if err != nil {
		t.Fatal(err)
	}
	var outcome error
	err = w.RunInTransaction(func(tx core.App) error {
		_, outcome = w.ops.Call(t.Context(), tx, "teams."+operation, in, auth)
		return errUndo
	})
	if !errors.Is(err, errUndo) {
		t.Fatalf("undo: %v", err)
	}
	return outcome
}

func TestTeamLife(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "mia")
	data := w.must(t, "olga", "create", map[string]any{"name": "  Leaflet 👨‍👩‍👧  "})
	team, _ := data["id"].(string)
	if data["name"] != "Leaflet 👨‍👩‍👧" || data["role"] != Owner || data["members"] != 1.0 || data["memberId"] != w.member(t, team, "olga") {
		t.Errorf("created: %v", data)
	}
	w.add(t, team, "mia", Member)
	got := w.Do(t, apptest.Request{Path: "/api/v1/operations/teams.list", Token: w.tokens["mia"]})
	list, _ := got.JSON(t)["data"].([]any)
	if len(list) != 1 {
		t.Fatalf("list: %d %s", got.Status, got.Body)
	}
	mine, _ := list[0].(map[string]any)
	if mine["id"] != team || mine["role"] != Member || mine["members"] != 2.0 || mine["memberId"] != w.member(t, team, "mia") {
		t.Errorf("list: %v", mine)
	}
	if got := w.Do(t, apptest.Request{Path: "/api/v1/operations/teams.list"}); got.Status != http.StatusUnauthorized {
		t.Errorf("a guest lists: %d", got.Status)
	}
	if renamed := w.must(t, "olga", "rename", map[string]any{"team": team, "name": "Leaf"}); renamed["name"] != "Leaf" || renamed["members"] != 2.0 {
		t.Errorf("renamed: %v", renamed)
	}
	w.refuse(t, &ErrLastOwner.Name, "olga", "leave", map[string]any{"team": team})
	w.refuse(t, &ErrLastOwner.Name, "olga", "removeMember", map[string]any{"member": w.member(t, team, "olga")})
	w.refuse(t, &ErrLastOwner.Name, "olga", "changeRole", map[string]any{"member": w.member(t, team, "olga"), "role": Admin})
	w.refuse(t, &ErrRoleUnknown.Name, "olga", "changeRole", map[string]any{"member": w.member(t, team, "mia"), "role": "boss"})
	w.must(t, "olga", "transferOwnership", map[string]any{"member": w.member(t, team, "mia")})
	if got := w.roles(t, team); got != "mia owner, olga admin" {
		t.Errorf("after the transfer: %s", got)
	}
	w.must(t, "olga", "leave", map[string]any{"team": team})
	w.must(t, "mia", "delete", map[string]any{"team": team})
	if n, err := w.CountRecords(teamsCollection); err != nil || n != 0 {
		t.Errorf("%d teams (%v)", n, err)
	}
	entries := w.entries(t)
	for _, want := range [][]string{
		{"teams.create success", `"name":"  Leaflet`, team},
		{"teams.rename success", `"from":"Leaflet`, `"to":"Leaf"`},
		{"teams.leave failure", "teams.last_owner"},
		{"teams.transferOwnership success", `"from":"member"`, `"to":"owner"`, `"callerTo":"admin"`},
		{"teams.leave success", `"role":"admin"`},
		{"teams.delete success", `"name":"Leaf"`, `"members":1`},
	} {
		if !has(entries, want...) {
			t.Errorf("the audit lacks %v:\n%s", want, strings.Join(entries, "\n"))
		}
	}
	if has(entries, "teams.deleted") || has(entries, "teams.member_removed") {
		t.Errorf("operations are recorded twice:\n%s", strings.Join(entries, "\n"))
	}
}

func TestInputs(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	team := w.found(t, "olga", nil)
	for _, c := range []struct {
		operation string
		in        map[string]any
		field     string
	}{
		{"create", map[string]any{}, "name"},
		{"create", map[string]any{"name": " \t "}, "name"},
		{"create", map[string]any{"name": "two\nlines"}, "name"},
		{"create", map[string]any{"name": "turn\u202eed"}, "name"},
		{"create", map[string]any{"name": strings.Repeat("x", 81)}, "name"},
		{"create", map[string]any{"name": "x", "owner": "y"}, "owner"},
		{"rename", map[string]any{"team": team, "name": ""}, "name"},
		{"invite", map[string]any{"team": team, "email": "nonsense"}, "email"},
		{"invite", map[string]any{"team": team, "email": "a@example.test\r\nBcc: b@example.test"}, "email"},
		{"acceptInvitation", map[string]any{}, "token"},
		{"acceptInvitation", map[string]any{"token": strings.Repeat("a", 43), "invitation": "x"}, "token"},
		{"acceptInvitation", map[string]any{"token": "short"}, "token"},
	} {
		got := w.call(t, "olga", c.operation, c.in)
		if got.Status != http.StatusBadRequest || !strings.Contains(string(got.Body), `"field":"`+c.field+`"`) {
			t.Errorf("%s %v: %d %s", c.operation, c.in, got.Status, got.Body)
		}
	}
	if w.mailed() != 0 {
		t.Error("something was mailed")
	}
}

// Of an account of another collection, an admin of the server and the app itself, none is a member of anything.
func TestOtherCallers(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	w.found(t, "olga", nil)
	_, w.tokens["root"] = w.Superuser(t)
	c := core.NewAuthCollection("robots")
	if err := w.Save(c); err != nil {
		t.Fatal(err)
	}
	robot := core.NewRecord(c)
	robot.SetEmail("r@example.test")
	robot.SetPassword(apptest.Password)
	if err := w.Save(robot); err != nil {
		t.Fatal(err)
	}
	token, err := robot.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	w.tokens["robot"] = token
	for _, who := range []string{"root", "robot"} {
		w.refuse(t, &operations.ErrCallerRefused.Name, who, "create", map[string]any{"name": "x"})
	}
	if _, err := w.ops.Call(t.Context(), w.App, "teams.create", createInput{"x"}, nil); !errors.Is(err, operations.ErrCallerRefused) {
		t.Errorf("the app itself: %v", err)
	}
}

func TestLimits(t *testing.T) {
	w := open(t, func(cfg *Config, _ *Deps) { cfg.MaxTeams, cfg.MaxMembers, cfg.MaxPending = 2, 2, 2 })
	w.people(t, "olga", "mia", "max")
	w.found(t, "olga", nil)
	team := w.found(t, "olga", nil)
	w.refuse(t, &ErrTooManyTeams.Name, "olga", "create", map[string]any{"name": "third"})

	var tokens []string
	for range 2 {
		_, token := w.linked(t, "olga", team, Member)
		tokens = append(tokens, token)
	}
	w.refuse(t, &ErrTooManyPending.Name, "olga", "invite", map[string]any{"team": team})
	w.must(t, "mia", "acceptInvitation", map[string]any{"token": tokens[0]})
	w.refuse(t, &ErrFull.Name, "max", "acceptInvitation", map[string]any{"token": tokens[1]})
	w.refuse(t, &ErrFull.Name, "olga", "invite", map[string]any{"team": team})
}

// The app's own policy is asked in the transaction, after the role.
func TestPolicy(t *testing.T) {
	var asked []string
	w := open(t, func(_ *Config, deps *Deps) {
		deps.Check = func(c *operations.Call, operation string, team *core.Record) error {
			asked = append(asked, operation)
			if operation == "teams.invite" && team.GetString("name") == "Free" && c.App.IsTransactional() {
				return api.Fail(api.ErrForbidden, "not in the free plan")
			}
			return nil
		}
	})
	w.people(t, "olga", "mia")
	team, _ := w.must(t, "olga", "create", map[string]any{"name": "Free"})["id"].(string)
	w.refuse(t, &api.ErrForbidden.Name, "olga", "invite", map[string]any{"team": team})
	w.refuse(t, &ErrTeamNotFound.Name, "mia", "invite", map[string]any{"team": team})
	if !slices.Equal(asked, []string{"teams.create", "teams.invite"}) {
		t.Errorf("asked: %v", asked)
	}
}

func TestOff(t *testing.T) {
	off := New(Config{}, Deps{})
	if x := off.Extension(); len(off.Operations()) > 0 || len(x.Migrations)+len(x.Tables)+len(x.Checks) > 0 || x.Bind != nil {
		t.Error("teams that are off do something")
	}
}

func TestConfig(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"":                    func(c *Config) { c.InviteURL, c.Roles = "myapp://join", []string{"viewer", "billing_admin"} },
		"ACCOUNTS":            func(c *Config) { c.Accounts = "" },
		"ROLES":               func(c *Config) { c.Roles = []string{"owner"} },
		"must be a new":       func(c *Config) { c.Roles = []string{"a", "a"} },
		"MAX_MEMBERS":         func(c *Config) { c.MaxMembers = 0 },
		"INVITATION_LIFETIME": func(c *Config) { c.Lifetime = 0 },
		"INVITE_URL":          func(c *Config) { c.InviteURL = "javascript:alert(1)" },
		"without #":           func(c *Config) { c.InviteURL = "https://example.test/#x" },
	} {
		cfg := config()
		change(&cfg)
		err := cfg.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// Every code of the list is declared once, and every declared one is in the list.
func TestCodes(t *testing.T) {
	listed := map[string]bool{}
	for _, c := range codes() {
		listed[c.Name] = true
	}
	named := map[string]bool{}
	for _, o := range New(config(), Deps{}).Operations() {
		for _, name := range o.Codes {
			named[name] = true
		}
	}
	for name := range named {
		if !listed[name] {
			t.Errorf("%s is not registered", name)
		}
	}
	for name := range listed {
		if !named[name] {
			t.Errorf("%s is answered by no operation", name)
		}
	}
}
