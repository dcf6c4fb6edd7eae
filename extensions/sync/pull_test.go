package sync_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

func TestRowsComeAndGo(t *testing.T) {
	f := start(t, options{})
	ann, annToken := f.User(t, "ann@example.test")
	bob, bobToken := f.User(t, "bob@example.test")
	team := f.record("teams", map[string]any{"name": "one"})
	mine := f.record("notes", map[string]any{"title": "mine", "owner": ann.Id})
	shared := f.record("notes", map[string]any{"title": "shared", "owner": bob.Id, "team": team.Id, "secret": "x"})
	d, other := f.device(annToken, "ann"), f.device(bobToken, "bob")

	steps := []struct {
		name             string
		do               func()
		upserts, removes []string
	}{
		{"first sync", func() {}, []string{mine.Id}, nil},
		{"nothing", func() {}, nil, nil},
		{"another's change", func() { f.edit(shared, map[string]any{"title": "other"}) }, nil, nil},
		{"own change", func() { f.edit(mine, map[string]any{"title": "new"}) }, []string{mine.Id}, nil},
		{"joining the team", func() { f.record("members", map[string]any{"user": ann.Id, "team": team.Id}) }, []string{shared.Id}, nil},
		{"a shared change", func() { f.edit(shared, map[string]any{"title": "third"}) }, []string{shared.Id}, nil},
		{"moved out of the team", func() { f.edit(shared, map[string]any{"team": ""}) }, nil, []string{shared.Id}},
		{"moved back", func() { f.edit(shared, map[string]any{"team": team.Id}) }, []string{shared.Id}, nil},
		{"leaving the team", func() {
			m, err := f.FindFirstRecordByData("members", "user", ann.Id)
			if err != nil {
				t.Fatal(err)
			}
			f.delete(m)
		}, nil, []string{shared.Id}},
		{"another rule", func() {
			f.notes.ListRule = new("")
			f.save(f.notes)
		}, []string{shared.Id}, nil},
		{"raw SQL", func() {
			if _, err := f.NonconcurrentDB().NewQuery("UPDATE notes SET title = 'raw'").Execute(); err != nil {
				t.Fatal(err)
			}
		}, []string{mine.Id, shared.Id}, nil},
		{"deleted", func() { f.delete(shared) }, nil, []string{shared.Id}},
		{"a new field", func() {
			f.notes.Fields.Add(&core.TextField{Name: "extra"})
			f.save(f.notes)
		}, []string{mine.Id}, nil},
		{"the rule of superusers", func() {
			f.notes.ListRule = nil
			f.save(f.notes)
		}, nil, []string{mine.Id}},
	}
	for _, s := range steps {
		s.do()
		_, upserts, removes := d.sync()
		slices.Sort(s.upserts)
		if !slices.Equal(upserts, s.upserts) || !slices.Equal(removes, s.removes) {
			t.Errorf("%s: upserts %v, removes %v; want %v, %v", s.name, upserts, removes, s.upserts, s.removes)
		}
		if f.notes.ListRule != nil {
			d.equalsList()
		}
	}
	if _, upserts, _ := other.sync(); len(upserts) != 0 {
		t.Errorf("under the rule of superusers bob sees %v", upserts)
	}
}

func TestPagesAndResumption(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	for i := range 25 {
		f.record("notes", map[string]any{"title": fmt.Sprint(i), "owner": ann.Id})
	}
	d := f.device(token, "ann")
	d.limit = 10
	first := d.ask(nil, []string{"notes"})
	if len(first.Collections["notes"].Upserts) != 10 || !first.More || !slices.Equal(first.Reset, []string{"notes"}) {
		t.Fatalf("first page: %+v", first)
	}
	second := d.ask(first.Cursor, []string{"notes"})
	again := d.ask(first.Cursor, []string{"notes"}) // the answer was lost
	a, _ := json.Marshal(second.Collections)
	b, _ := json.Marshal(again.Collections)
	if string(a) != string(b) || *second.Cursor != *again.Cursor {
		t.Errorf("a position that is asked for twice differs: %s and %s", a, b)
	}
	third := d.ask(second.Cursor, []string{"notes"})
	if third.More || len(third.Collections["notes"].Upserts) != 5 || third.Check["notes"][0] != 25 {
		t.Errorf("last page: %+v", third)
	}
	if len(third.Reset) != 0 {
		t.Errorf("the snapshot begins again: %v", third.Reset)
	}
	back := d.ask(first.Cursor, []string{"notes"}) // the app died and goes on from an older position
	for back.More {
		back = d.ask(back.Cursor, []string{"notes"})
	}
	if back.Check["notes"][0] != 25 {
		t.Errorf("after going back: %+v", back)
	}
	unknown := d.ask(new("nonsense"), []string{"notes"})
	if !slices.Equal(unknown.Reset, []string{"notes"}) {
		t.Errorf("an unknown cursor: %+v", unknown)
	}
}

func TestCollectionsComeAndGo(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	f.record("notes", map[string]any{"title": "x", "owner": ann.Id})
	teams, err := f.FindCollectionByNameOrId("teams")
	if err != nil {
		t.Fatal(err)
	}
	teams.ListRule = new("")
	f.save(teams)
	f.record("teams", map[string]any{"name": "one"})
	d := f.device(token, "ann")
	p := d.ask(nil, []string{"notes"})
	p = d.ask(p.Cursor, []string{"notes", "teams", "teams"})
	if !slices.Equal(p.Reset, []string{"teams"}) || len(p.Collections["teams"].Upserts) != 1 || len(p.Collections["notes"].Upserts) != 0 {
		t.Errorf("one more collection: %+v", p)
	}
	p = d.ask(p.Cursor, []string{"teams"})
	p = d.ask(p.Cursor, []string{"notes", "teams"})
	if len(p.Gone) != 0 || p.More {
		t.Errorf("one less and one more: %+v", p)
	}
	p = d.ask(p.Cursor, []string{"notes", "nothing"})
	if !slices.Equal(p.Gone, []string{"nothing"}) {
		t.Errorf("unknown collection: %+v", p)
	}
	f.drop(f.notes)
	p = d.ask(p.Cursor, []string{"notes", "teams"})
	if !slices.Equal(p.Gone, []string{"notes"}) {
		t.Errorf("deleted collection: %+v", p)
	}
}

func (f *fixture) drop(m core.Model) {
	f.t.Helper()
	if err := f.Delete(m); err != nil {
		f.t.Fatal(err)
	}
}

func TestHiddenThings(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	f.User(t, "bob@example.test")
	f.record("notes", map[string]any{"title": "x", "owner": ann.Id, "secret": "hidden thing"})
	users, err := f.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.ListRule = new("")
	f.save(users)
	d := f.device(token, "ann")
	check := func() {
		t.Helper()
		resp := d.post(map[string]any{"collections": []string{"notes", "users"}})
		text := string(resp.Body)
		for _, bad := range []string{"hidden thing", "bob@example.test", "tokenKey", "password"} {
			if strings.Contains(text, bad) {
				t.Errorf("the answer has %q: %s", bad, text)
			}
		}
		if !strings.Contains(text, "ann@example.test") {
			t.Errorf("the answer lacks the own address: %s", text)
		}
	}
	check()
	f.OnRecordEnrich("notes").BindFunc(func(e *core.RecordEnrichEvent) error {
		e.Record.WithCustomData(true)
		e.Record.Set("added", "by a hook")
		return e.Next()
	})
	check()
	if resp := d.post(map[string]any{"collections": []string{"notes"}}); !strings.Contains(string(resp.Body), "by a hook") {
		t.Errorf("OnRecordEnrich has no say: %s", resp.Body)
	}
}

func TestRefusedRequests(t *testing.T) {
	device := map[string]string{"X-Device-Id": "device-0123456789"}
	post := func(body any) apptest.Request {
		return apptest.Request{Method: http.MethodPost, Path: "/api/v1/sync", Body: body, Header: device}
	}
	many := make([]map[string]any, 201)
	for i := range many {
		many[i] = update(fmt.Sprint(i), "x", map[string]any{"title": "x"})
	}
	asUser := func(t testing.TB, app *apptest.App, r *apptest.Request) { _, r.Token = app.User(t, "ann@example.test") }
	apptest.Run(t, func(t testing.TB) *apptest.App { return start(t, options{}).App }, []apptest.Scenario{
		{Name: "guest", Request: post(map[string]any{}), Status: http.StatusUnauthorized, Code: "api.unauthorized"},
		{
			Name: "superuser", Request: post(map[string]any{}), Status: http.StatusForbidden, Code: "sync.superuser_unsupported",
			Before: func(t testing.TB, app *apptest.App, r *apptest.Request) { _, r.Token = app.Superuser(t) },
		},
		{
			Name: "no device", Request: apptest.Request{Method: http.MethodPost, Path: "/api/v1/sync", Body: map[string]any{}},
			Status: http.StatusBadRequest, Code: "sync.device_required", Before: asUser,
		},
		{Name: "too many changes", Request: post(map[string]any{"changes": many}), Status: http.StatusRequestEntityTooLarge, Code: "api.body_too_large", Before: asUser},
		{Name: "too large", Request: post(`{"schema":"` + string(make([]byte, 1<<20)) + `"}`), Status: http.StatusRequestEntityTooLarge, Code: "api.body_too_large", Before: asUser},
		{Name: "unknown member", Request: post(map[string]any{"x": 1}), Status: http.StatusBadRequest, Code: "api.validation_failed", Before: asUser},
		{Name: "limit", Request: post(map[string]any{"limit": 5000}), Status: http.StatusBadRequest, Code: "api.validation_failed", Before: asUser},
		{Name: "system collection", Request: post(map[string]any{"collections": []string{"_superusers"}}), Status: http.StatusBadRequest, Code: "sync.collection_unsupported", Before: asUser},
		{
			Name: "view", Request: post(map[string]any{"collections": []string{"titles"}}), Status: http.StatusBadRequest, Code: "sync.collection_unsupported",
			Before: func(t testing.TB, app *apptest.App, r *apptest.Request) {
				asUser(t, app, r)
				c := core.NewViewCollection("titles")
				c.ViewQuery = "SELECT id, title FROM notes"
				if err := app.Save(c); err != nil {
					t.Fatal(err)
				}
			},
		},
		{Name: "nothing", Request: post(map[string]any{}), Status: http.StatusOK, Contains: []string{`"results":[]`, `"collections":{}`, `"cursor":null`, `"more":false`}, Before: asUser},
		{Name: "poll without device", Request: apptest.Request{Path: "/api/v1/changes"}, Status: http.StatusBadRequest, Code: "changes.device_required", Before: asUser},
		{Name: "poll with a bad cursor", Request: apptest.Request{Path: "/api/v1/changes?since=x", Header: device}, Status: http.StatusGone, Code: "changes.cursor_reset", Before: asUser},
		{Name: "poll of nothing", Request: apptest.Request{Path: "/api/v1/records/nothing/changes", Header: device}, Status: http.StatusNotFound, Code: "api.not_found", Before: asUser},
	})
}

func TestPolling(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	note := f.record("notes", map[string]any{"title": "one", "owner": ann.Id})
	get := func(path string, header map[string]string) apptest.Response {
		t.Helper()
		h := map[string]string{"X-Device-Id": "device-0123456789"}
		maps.Copy(h, header)
		return f.Do(t, apptest.Request{Path: path, Token: token, Header: h})
	}
	for _, base := range []string{"/api/v1/changes?collections=notes&since=", "/api/v1/records/notes/changes?since="} {
		resp := get(base, nil)
		var body struct {
			Data       []struct{ Collection, ID, Action string }
			Pagination struct {
				NextCursor string
				HasNext    bool
			}
		}
		if err := json.Unmarshal(resp.Body, &body); err != nil {
			t.Fatalf("%v: %s", err, resp.Body)
		}
		if resp.Header.Get("ETag") == "" || resp.Status != http.StatusOK || len(body.Data) != 1 || body.Data[0].ID != note.Id || body.Data[0].Action != "upsert" || body.Pagination.HasNext {
			t.Fatalf("first poll: %d %s", resp.Status, resp.Body)
		}
		cursor := body.Pagination.NextCursor
		quiet := get(base+cursor, nil)
		if quiet.Status != http.StatusNoContent || quiet.Header.Get("X-Next-Cursor") == "" || quiet.Header.Get("Retry-After") != "30" {
			t.Errorf("quiet poll: %d %v %s", quiet.Status, quiet.Header, quiet.Body)
		}
		cursor = quiet.Header.Get("X-Next-Cursor")
		f.edit(note, map[string]any{"owner": ""})
		gone := get(base+cursor, nil)
		if gone.Status != http.StatusOK || !strings.Contains(string(gone.Body), `"action":"remove"`) || !strings.Contains(string(gone.Body), note.Id) {
			t.Errorf("poll of a lost record: %d %s", gone.Status, gone.Body)
		}
		f.edit(note, map[string]any{"owner": ann.Id})
		// In the middle of a page after page walk the same request has the same answer, and is not sent again.
		second := f.record("notes", map[string]any{"title": "two", "owner": ann.Id})
		walk := get(base+"&limit=1", nil)
		middle := base + walk.Header.Get("X-Next-Cursor") + "&limit=1"
		page := get(middle, nil)
		tag := map[string]string{"If-None-Match": page.Header.Get("ETag")}
		if again := get(middle, tag); page.Status != http.StatusOK || again.Status != http.StatusNotModified || again.Header.Get("X-Next-Cursor") != page.Header.Get("X-Next-Cursor") {
			t.Errorf("the same page again: %d, then %d %v", page.Status, again.Status, again.Header)
		}
		f.edit(note, map[string]any{"title": "changed"})
		f.edit(second, map[string]any{"title": "changed"})
		if again := get(middle, tag); again.Status != http.StatusOK || !strings.Contains(string(again.Body), `"changed"`) {
			t.Errorf("a page that has changed: %d %s", again.Status, again.Body)
		}
		f.delete(second)
		if _, err := f.log.BeginEpoch(); err != nil {
			t.Fatal(err)
		}
		if reset := get(base+cursor, nil); reset.Status != http.StatusGone || reset.Code() != "changes.cursor_reset" {
			t.Errorf("poll of another epoch: %d %s", reset.Status, reset.Body)
		}
	}
}
