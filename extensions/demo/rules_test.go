package demo

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// The cast: in team Leaflet ada is the owner, grace an admin and alan a member; in Allotment 12 grace is the owner, alan a
// member and ada an outsider.
func cast(t *testing.T) (app *apptest.App, tokens map[string]string) {
	t.Helper()
	app = apptest.New(t, New())
	mustRun(t, app.Host)
	tokens = map[string]string{"guest": ""}
	for _, name := range []string{"ada", "grace", "alan"} {
		user, err := app.FindAuthRecordByEmail("users", emailOf(name))
		if err != nil {
			t.Fatal(err)
		}
		if tokens[name], err = user.NewAuthToken(); err != nil {
			t.Fatal(err)
		}
	}
	_, tokens["mallory"] = app.User(t, "mallory@example.test")
	return app, tokens
}

// ids of the records that the rules are tried on.
func leaflet() string   { return recordID("team", "Leaflet") }
func allotment() string { return recordID("team", "Allotment 12") }
func general() string   { return recordID("room", "Leaflet", "general") }
func plot() string      { return recordID("room", "Allotment 12", "plot") }

func TestWhoSeesWhat(t *testing.T) {
	app, tokens := cast(t)
	// A team without members must not be open to those who have no id either.
	teams, err := app.FindCollectionByNameOrId(Teams)
	if err != nil {
		t.Fatal(err)
	}
	lonely := core.NewRecord(teams)
	lonely.Load(map[string]any{"name": "Lonely", "owner": recordID("user", "grace")})
	if err := app.Save(lonely); err != nil {
		t.Fatal(err)
	}

	want := map[string]map[string]int{
		"ada":     {Teams: 1, Members: 3, Rooms: 5, Messages: 119, Tasks: 30},
		"grace":   {Teams: 3, Members: 5, Rooms: 7, Messages: 149, Tasks: 42},
		"alan":    {Teams: 2, Members: 5, Rooms: 7, Messages: 149, Tasks: 42},
		"mallory": {Teams: 0, Members: 0, Rooms: 0, Messages: 0, Tasks: 0},
		"guest":   {Teams: 0, Members: 0, Rooms: 0, Messages: 0, Tasks: 0},
	}
	for who, counts := range want {
		for name, total := range counts {
			got := app.Do(t, apptest.Request{Path: "/api/collections/" + name + "/records?perPage=1", Token: tokens[who]})
			if n, ok := got.JSON(t)["totalItems"].(float64); !ok || int(n) != total {
				t.Errorf("%s sees %v of %s, want %d", who, got.JSON(t)["totalItems"], name, total)
			}
		}
	}
	views := []struct {
		who, path string
		status    int
	}{
		{"ada", Teams + "/records/" + leaflet(), http.StatusOK},
		{"alan", Rooms + "/records/" + general(), http.StatusOK},
		{"ada", Rooms + "/records/" + plot(), http.StatusNotFound},
		{"mallory", Rooms + "/records/" + general(), http.StatusNotFound},
		{"guest", Teams + "/records/" + leaflet(), http.StatusNotFound},
		{"guest", Teams + "/records/" + lonely.Id, http.StatusNotFound},
	}
	for _, v := range views {
		if got := app.Do(t, apptest.Request{Path: "/api/collections/" + v.path, Token: tokens[v.who]}); got.Status != v.status {
			t.Errorf("%s views %s: %d, want %d", v.who, v.path, got.Status, v.status)
		}
	}
}

func TestWhoWritesWhat(t *testing.T) {
	userID := func(name string) string { return recordID("user", name) }
	const create, update, remove = http.MethodPost, http.MethodPatch, http.MethodDelete
	type try struct {
		method, collection, id string
		body                   map[string]any
		may                    string // who may, in words; all others of the cast may not
	}
	task := recordID("task", "Leaflet", "Buy the pot icons")
	message := func(i string) string { return recordID("message", general(), i) } // 0 is ada's, 2 is alan's
	member := func(name string) string { return recordID("member", "Leaflet", name) }
	tries := []try{
		{update, Teams, leaflet(), map[string]any{"name": "Leaf"}, "ada"},
		{update, Teams, leaflet(), map[string]any{"owner": userID("alan")}, ""},
		{remove, Teams, leaflet(), nil, "ada"},
		{update, Teams, allotment(), map[string]any{"about": "x"}, "grace"},

		{create, Members, "", map[string]any{"team": allotment(), "user": userID("ada"), "role": "member", "name": "Ada"}, "grace"},
		{update, Members, member("alan"), map[string]any{"name": "Al"}, "ada alan"},
		{update, Members, member("alan"), map[string]any{"role": "admin"}, "ada"},
		{update, Members, member("alan"), map[string]any{"team": allotment()}, ""},
		{update, Members, member("alan"), map[string]any{"user": userID("grace")}, ""},
		{remove, Members, member("alan"), nil, "ada alan"},
		{remove, Members, member("grace"), nil, "ada grace"},

		{create, Rooms, "", map[string]any{"team": leaflet(), "name": "new"}, "ada grace"},
		{update, Rooms, general(), map[string]any{"topic": "x"}, "ada grace"},
		{update, Rooms, general(), map[string]any{"team": allotment()}, ""},
		{remove, Rooms, general(), nil, "ada grace"},
		{create, Rooms, "", map[string]any{"team": allotment(), "name": "new"}, "grace"},

		{create, Messages, "", map[string]any{"room": general(), "author": userID("alan"), "text": "hi"}, "alan"},
		{create, Messages, "", map[string]any{"room": plot(), "author": userID("ada"), "text": "hi"}, ""},
		{update, Messages, message("2"), map[string]any{"text": "edited"}, "alan"},
		{update, Messages, message("2"), map[string]any{"room": plot()}, ""},
		{update, Messages, message("2"), map[string]any{"author": userID("ada")}, ""},
		{remove, Messages, message("2"), nil, "ada grace alan"},
		{remove, Messages, message("0"), nil, "ada grace"},

		{create, Tasks, "", map[string]any{"team": leaflet(), "title": "x", "status": "todo", "priority": "low"}, "ada grace alan"},
		{create, Tasks, "", map[string]any{"team": allotment(), "title": "x", "status": "todo", "priority": "low"}, "grace alan"},
		{update, Tasks, task, map[string]any{"status": "doing", "done": false}, "ada grace alan"},
		{update, Tasks, task, map[string]any{"team": allotment()}, ""},
		{remove, Tasks, task, nil, "ada grace"},
	}
	send := func(app *apptest.App, token string, c try) apptest.Response {
		path := "/api/collections/" + c.collection + "/records"
		if c.id != "" {
			path += "/" + c.id
		}
		return app.Do(t, apptest.Request{Method: c.method, Path: path, Token: token, Body: c.body})
	}

	app, tokens := cast(t)
	before := stateOf(t, app)
	for _, c := range tries {
		for who, token := range tokens {
			if slices.Contains(strings.Fields(c.may), who) {
				continue
			}
			// Refused by the rule: no field is to blame.
			got := send(app, token, c)
			data, _ := got.JSON(t)["data"].(map[string]any)
			if got.Status != http.StatusBadRequest && got.Status != http.StatusNotFound || len(data) > 0 {
				t.Errorf("%s may not %s %s/%s %v, but: %d %s", who, c.method, c.collection, c.id, c.body, got.Status, got.Body)
			}
		}
	}
	mustEqual(t, stateOf(t, app), before)

	for _, c := range tries {
		for who := range strings.FieldsSeq(c.may) {
			stage, passes := app, tokens
			if c.method == remove {
				stage, passes = cast(t) // a record can be deleted only once
			}
			if got := send(stage, passes[who], c); got.Status >= http.StatusBadRequest {
				t.Errorf("%s may %s %s/%s %v, but: %d %s", who, c.method, c.collection, c.id, c.body, got.Status, got.Body)
			}
		}
	}
}

// Anybody may found a team, for themselves alone, and build it up.
func TestFoundATeam(t *testing.T) {
	app, tokens := cast(t)
	mallory, err := app.FindAuthRecordByEmail("users", "mallory@example.test")
	if err != nil {
		t.Fatal(err)
	}
	post := func(who, collection string, body map[string]any) apptest.Response {
		return app.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/" + collection + "/records", Token: tokens[who], Body: body})
	}
	if got := post("ada", Teams, map[string]any{"name": "Trap", "owner": mallory.Id}); got.Status != http.StatusBadRequest {
		t.Errorf("ada founds a team for mallory: %d", got.Status)
	}
	if got := post("guest", Teams, map[string]any{"name": "Nobody's"}); got.Status != http.StatusBadRequest {
		t.Errorf("a guest founds a team: %d", got.Status)
	}
	founded := post("mallory", Teams, map[string]any{"name": "Mine", "owner": mallory.Id})
	if founded.Status != http.StatusOK {
		t.Fatalf("found: %d %s", founded.Status, founded.Body)
	}
	team := founded.JSON(t)["id"]
	if got := post("mallory", Members, map[string]any{"team": team, "user": recordID("user", "ada"), "role": "admin", "name": "Ada"}); got.Status != http.StatusOK {
		t.Errorf("add a member: %d %s", got.Status, got.Body)
	}
	if got := post("mallory", Members, map[string]any{"team": team, "user": recordID("user", "ada"), "role": "member", "name": "Ada"}); got.Status != http.StatusBadRequest {
		t.Errorf("add the same member twice: %d", got.Status)
	}
	if got := post("ada", Rooms, map[string]any{"team": team, "name": "new"}); got.Status != http.StatusOK {
		t.Errorf("the new admin opens a room: %d %s", got.Status, got.Body)
	}
}

// The lists that an app shows must come from an index, without a sort of the whole table.
func TestIndexes(t *testing.T) {
	app := apptest.New(t, New())
	mustRun(t, app.Host)
	for _, query := range []string{
		"SELECT * FROM demo_messages WHERE room = 'x' AND (created, id) < ('2026', 'x') ORDER BY created DESC, id DESC LIMIT 25",
		"SELECT * FROM demo_messages ORDER BY created DESC, id DESC LIMIT 25",
		"SELECT * FROM demo_tasks WHERE team = 'x' ORDER BY due, id LIMIT 25",
		"SELECT * FROM demo_tasks WHERE team = 'x' AND status = 'todo' ORDER BY due, id LIMIT 25",
		"SELECT * FROM demo_tasks WHERE assignee = 'x' ORDER BY due, id LIMIT 25",
		"SELECT * FROM demo_tasks ORDER BY updated, id LIMIT 25",
		"SELECT * FROM demo_members WHERE user = 'x' AND team = 'y'",
		"SELECT * FROM demo_members WHERE team = 'x' ORDER BY name, id",
		"SELECT * FROM demo_rooms WHERE team = 'x' ORDER BY name, id",
		"SELECT * FROM demo_teams ORDER BY name, id",
	} {
		var steps []struct{ Detail string }
		if err := app.DB().NewQuery("EXPLAIN QUERY PLAN " + query).All(&steps); err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if !strings.Contains(s.Detail, "USING INDEX idx_demo_") {
				t.Errorf("%s\nplan: %s", query, s.Detail)
			}
		}
	}
}
