package demo

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// The cast: in team Leaflet ada is the owner, grace an admin and alan a member; in Allotment 12 grace is the owner, alan a
// member and ada an outsider.
func cast(t *testing.T) (app *apptest.App, tokens map[string]string) {
	t.Helper()
	app = open(t)
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
	want := map[string]map[string]int{
		"ada":     {Teams: 1, Members: 3, Profiles: 3, Rooms: 5, Messages: 119, Tasks: 30},
		"grace":   {Teams: 2, Members: 5, Profiles: 3, Rooms: 7, Messages: 149, Tasks: 42},
		"alan":    {Teams: 2, Members: 5, Profiles: 3, Rooms: 7, Messages: 149, Tasks: 42},
		"mallory": {Teams: 0, Members: 0, Profiles: 0, Rooms: 0, Messages: 0, Tasks: 0},
		"guest":   {Teams: 0, Members: 0, Profiles: 0, Rooms: 0, Messages: 0, Tasks: 0},
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
	profile := func(name string) string { return recordID("profile", name) }
	tries := []try{
		{update, Profiles, profile("alan"), map[string]any{"name": "Al"}, "alan"},
		{update, Profiles, profile("alan"), map[string]any{"user": userID("grace")}, ""},
		{remove, Profiles, profile("alan"), nil, "alan"},

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

	// A record can be deleted only once: each of those who may delete it has a stage. What goes with something else goes
	// before it.
	type stage struct {
		app    *apptest.App
		tokens map[string]string
	}
	stages := []stage{{app, tokens}}
	slices.Reverse(tries)
	for _, c := range tries {
		for i, who := range strings.Fields(c.may) {
			at := 0
			if c.method == remove {
				at = i + 1
			}
			if at == len(stages) {
				app, tokens := cast(t)
				stages = append(stages, stage{app, tokens})
			}
			if got := send(stages[at].app, stages[at].tokens[who], c); got.Status >= http.StatusBadRequest {
				t.Errorf("%s may %s %s/%s %v, but: %d %s", who, c.method, c.collection, c.id, c.body, got.Status, got.Body)
			}
		}
	}
}

// A profile is one's own.
func TestProfile(t *testing.T) {
	app, tokens := cast(t)
	mallory, err := app.FindAuthRecordByEmail("users", "mallory@example.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who    string
		status int
	}{{"ada", http.StatusBadRequest}, {"guest", http.StatusBadRequest}, {"mallory", http.StatusOK}} {
		got := app.Do(t, apptest.Request{
			Method: http.MethodPost, Path: "/api/collections/" + Profiles + "/records", Token: tokens[c.who],
			Body: map[string]any{"user": mallory.Id, "name": "Mallory"},
		})
		if got.Status != c.status {
			t.Errorf("%s: %d %s", c.who, got.Status, got.Body)
		}
	}
}

// The lists that an app shows must come from an index, without a sort of the whole table.
func TestIndexes(t *testing.T) {
	app := open(t)
	mustRun(t, app.Host)
	for _, query := range []string{
		"SELECT * FROM demo_messages WHERE room = 'x' AND (created, id) < ('2026', 'x') ORDER BY created DESC, id DESC LIMIT 25",
		"SELECT * FROM demo_messages ORDER BY created DESC, id DESC LIMIT 25",
		"SELECT * FROM demo_tasks WHERE team = 'x' ORDER BY due, id LIMIT 25",
		"SELECT * FROM demo_tasks WHERE team = 'x' AND status = 'todo' ORDER BY due, id LIMIT 25",
		"SELECT * FROM demo_tasks WHERE assignee = 'x' ORDER BY due, id LIMIT 25",
		"SELECT * FROM demo_tasks ORDER BY updated, id LIMIT 25",
		"SELECT * FROM demo_profiles WHERE user = 'x'",
		"SELECT * FROM demo_profiles ORDER BY name, id",
		"SELECT * FROM demo_rooms WHERE team = 'x' ORDER BY name, id",
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
