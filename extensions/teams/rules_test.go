package teams

import (
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/rules"
)

// Who reads what through PocketBase's own API.
func TestReadRules(t *testing.T) {
	w, team := cast(t)
	w.people(t, "guido", "unverified")
	user, err := w.FindRecordById("users", w.ids["unverified"])
	if err != nil {
		t.Fatal(err)
	}
	user.SetVerified(false)
	if err := w.Save(user); err != nil {
		t.Fatal(err)
	}
	guido, err := w.FindRecordById("users", w.ids["guido"])
	if err != nil {
		t.Fatal(err)
	}
	guido.SetEmail("Guido@Example.test")
	guido.SetVerified(true)
	if err := w.Save(guido); err != nil {
		t.Fatal(err)
	}
	if w.tokens["guido"], err = guido.NewAuthToken(); err != nil {
		t.Fatal(err)
	}
	w.invited(t, "olga", team, "guido@example.test", Member)
	w.invited(t, "olga", team, "unverified@example.test", Member)
	w.linked(t, "olga", team, Admin)
	stranger := core.NewAuthCollection("robots")
	if err := w.Save(stranger); err != nil {
		t.Fatal(err)
	}
	robot := core.NewRecord(stranger)
	robot.SetEmail("guido@example.test")
	robot.SetPassword(apptest.Password)
	robot.SetVerified(true)
	if err := w.Save(robot); err != nil {
		t.Fatal(err)
	}
	if w.tokens["robot"], err = robot.NewAuthToken(); err != nil {
		t.Fatal(err)
	}
	want := map[string][3]int{ // teams, members, invitations
		"olga": {1, 7, 3}, "ada": {1, 7, 3}, "mia": {1, 7, 0}, "vera": {1, 7, 0}, "xena": {1, 1, 0},
		"guido": {0, 0, 1}, "unverified": {0, 0, 0}, "robot": {0, 0, 0}, "guest": {0, 0, 0},
	}
	for who, counts := range want {
		for i, name := range []string{teamsCollection, membersCollection, invitationsCollection} {
			got := w.Do(t, apptest.Request{Path: "/api/collections/" + name + "/records", Token: w.tokens[who]})
			if n, ok := got.JSON(t)["totalItems"].(float64); !ok || int(n) != counts[i] {
				t.Errorf("%s sees %v of %s, want %d: %s", who, got.JSON(t)["totalItems"], name, counts[i], got.Body)
			}
		}
	}
	for _, name := range []string{teamsCollection, membersCollection, invitationsCollection} {
		for _, method := range []string{"POST", "PATCH", "DELETE"} {
			path := "/api/collections/" + name + "/records"
			if method != "POST" {
				path += "/" + team
			}
			if got := w.Do(t, apptest.Request{Method: method, Path: path, Token: w.tokens["olga"], Body: "{}"}); got.Status != 403 {
				t.Errorf("%s %s by an owner: %d", method, name, got.Status)
			}
		}
	}
	one := w.Do(t, apptest.Request{
		Path:  "/api/collections/" + membersCollection + "/records?expand=team&filter=" + url.QueryEscape("team = '"+team+"' && user = '"+w.ids["mia"]+"'"),
		Token: w.tokens["vera"],
	})
	if !strings.Contains(string(one.Body), `"name":"Team of olga"`) {
		t.Errorf("expanded: %s", one.Body)
	}
}

// Rules for an app to copy; docs/teams.md explains them.
const (
	memberRule  = "team.team_members_via_team.user ?= @request.auth.id"
	leaderRule  = "team.team_members_via_team.user ?= @request.auth.id && (team.team_members_via_team.role ?= 'owner' || team.team_members_via_team.role ?= 'admin')"
	exceptRule  = "team.team_members_via_team.user ?= @request.auth.id && team.team_members_via_team.role ?!= 'viewer'"
	profileRule = "id = @request.auth.id || team_members_via_user.team.team_members_via_team.user ?= @request.auth.id"
)

// posts is a collection of an app.
func posts(t *testing.T, w *world, rule string) *core.Collection {
	t.Helper()
	teams, err := w.FindCollectionByNameOrId(teamsCollection)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.FindCollectionByNameOrId("posts")
	if err != nil {
		c = core.NewBaseCollection("posts")
		c.Fields.Add(
			&core.RelationField{Name: "team", CollectionId: teams.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
			&core.TextField{Name: "title"},
		)
		c.AddIndex("idx_posts_team_title", false, "team, title, id", "")
	}
	c.ListRule, c.ViewRule = new(rule), new(rule)
	if err := w.Save(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Both halves of a rule with a role look at the same membership: an admin of one team is none of another.
func TestRulesOfApps(t *testing.T) {
	w, team := cast(t)
	other := w.found(t, "mia", map[string]string{"ada": Member, "vera": Member})
	for rule, who := range map[string]map[string]int{
		memberRule: {"olga": 1, "ada": 2, "mia": 2, "vera": 2, "xena": 0, "guest": 0},
		leaderRule: {"olga": 1, "ada": 1, "mia": 1, "vera": 0, "xena": 0, "guest": 0},
		exceptRule: {"olga": 1, "ada": 2, "mia": 2, "vera": 1, "xena": 0, "guest": 0},
	} {
		c := posts(t, w, "@request.auth.id != '' && "+rule)
		if n, err := w.CountRecords(c); err != nil {
			t.Fatal(err)
		} else if n == 0 {
			for _, id := range []string{team, other} {
				r := core.NewRecord(c)
				r.Load(map[string]any{"team": id, "title": id})
				if err := w.Save(r); err != nil {
					t.Fatal(err)
				}
			}
		}
		for name, want := range who {
			got := w.Do(t, apptest.Request{Path: "/api/collections/posts/records", Token: w.tokens[name]})
			if n, ok := got.JSON(t)["totalItems"].(float64); !ok || int(n) != want {
				t.Errorf("%s: %s sees %v, want %d", rule, name, got.JSON(t)["totalItems"], want)
			}
		}
	}
	w.must(t, "olga", "delete", map[string]any{"team": team})
	if n, err := w.CountRecords("posts"); err != nil || n != 1 {
		t.Errorf("%d posts are left (%v)", n, err)
	}
}

// plan is SQLite's plan for a list under the rule.
func (w *world) plan(t *testing.T, c *core.Collection, who, rule, filter, sort string) []string {
	t.Helper()
	auth, err := w.FindRecordById("users", w.ids[who])
	if err != nil {
		t.Fatal(err)
	}
	q := w.RecordQuery(c)
	r := core.NewRecordFieldResolver(w.App, c, &core.RequestInfo{Context: core.RequestInfoContextDefault, Auth: auth, Method: "GET"}, true)
	for _, text := range []string{rule, filter} {
		if text == "" {
			continue
		}
		expr, err := search.FilterData(text).BuildExpr(r)
		if err != nil {
			t.Fatal(err)
		}
		q.AndWhere(expr)
	}
	if err := r.UpdateQuery(q); err != nil {
		t.Fatal(err)
	}
	built := q.OrderBy("[[" + c.Name + "." + sort + "]]").Limit(30).Build()
	var steps []dbx.NullStringMap
	if err := w.DB().NewQuery("EXPLAIN QUERY PLAN " + built.SQL()).Bind(built.Params()).All(&steps); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range steps {
		out = append(out, s["detail"].String)
	}
	return out
}

// Lists that an app shows search by indexes and never walk through a table.
func TestPlans(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	// A table of one row is walked whatever its indexes, so there are more, and SQLite is told.
	for _, statement := range []string{
		`INSERT INTO users (id, email, tokenKey, password, created, updated) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
			SELECT 'u' || i, i || '@example.test', hex(randomblob(20)), '', '', '' FROM n`,
		"ANALYZE",
	} {
		if _, err := w.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	c := posts(t, w, memberRule)
	accounts, err := w.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	own := readRules(accounts)
	collection := func(name string) *core.Collection {
		found, err := w.FindCollectionByNameOrId(name)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, q := range []struct {
		name               string
		c                  *core.Collection
		rule, filter, sort string
	}{
		{"my teams", collection(teamsCollection), own.teams, "", "name"},
		{"one team", collection(teamsCollection), own.teams, "id = 'x'", "name"},
		{"members of a team", collection(membersCollection), own.members, "team = 'x'", "created"},
		{"one member", collection(membersCollection), own.members, "id = 'x'", "created"},
		{"my memberships", collection(membersCollection), own.members, "user = 'x'", "created"},
		{"invitations of a team", collection(invitationsCollection), own.invitations, "team = 'x' && state = 'pending'", "created"},
		{"my invitations", collection(invitationsCollection), own.invitations, "email = 'x@example.test'", "created"},
		{"posts of a team", c, memberRule, "team = 'x'", "title"},
		{"one post", c, memberRule, "id = 'x'", "title"},
		{"posts of a team for its leaders", c, leaderRule, "team = 'x'", "title"},
		{"posts of a team but for viewers", c, exceptRule, "team = 'x'", "title"},
		{"one account of a team mate", accounts, profileRule, "id = 'x'", "created"},
	} {
		steps := w.plan(t, q.c, "olga", q.rule, q.filter, q.sort)
		if len(steps) == 0 || slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, "SCAN") && !strings.Contains(s, "CONSTANT ROW") }) {
			t.Errorf("%s walks:\n%s", q.name, strings.Join(steps, "\n"))
		}
		t.Logf("%s:\n  %s", q.name, strings.Join(steps, "\n  "))
	}
	// The test sees a walk when there is one.
	if steps := w.plan(t, c, "olga", memberRule, "", "title"); !strings.HasPrefix(steps[0], "SCAN posts") {
		t.Errorf("a list across all teams: %v", steps)
	}
}

// The example in the documentation is a test of the rules for reading, through the stock API on a new database.
func TestRuleTable(t *testing.T) {
	open := func(dir string) (core.App, error) {
		app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
		h := &extensions.Host{App: app, Logger: slog.New(slog.DiscardHandler)}
		return app, extensions.Install(h, []extensions.Extension{New(config(), Deps{}).Extension()})
	}
	table := filepath.Join("..", "..", "docs", "examples", "teams.rules")
	report, err := rules.Test(t.Context(), filepath.Join(t.TempDir(), "none"), table, open)
	if err != nil {
		t.Fatal(err)
	}
	if report.Passed != 26 {
		t.Errorf("%d checks hold, want 26", report.Passed)
	}
	for _, c := range report.Checks {
		if !c.OK {
			t.Errorf("%s:%d: %s: %s", table, c.Line, c.Check, c.Reason)
		}
	}
}
