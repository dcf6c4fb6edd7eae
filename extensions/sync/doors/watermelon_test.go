package doors

import (
	"encoding/json"
	"encoding/json/jsontext"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// WatermelonDB makes empty values of what its columns cannot hold, without a word.
func TestColumns(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	f.record("notes", map[string]any{
		"id": id("n"), "owner": u.Id, "title": "a <b> & c", "likes": 3, "done": true, "due": "2026-01-02 03:04:05.678Z", "secret": "x",
		"extra": map[string]any{"a": []int{1}}, "tags": []string{"a", "b"}, "place": map[string]any{"lon": 1.5, "lat": 2},
	})
	m := f.melon(u, token, "m0")
	if !m.sync() {
		t.Fatal("no sync")
	}
	got := m.rows[id("n")].fields
	for name, want := range map[string]any{
		"title": "a <b> & c", "likes": 3.0, "done": true, "due": 1767323045678.0, "extra": `{"a":[1]}`, "tags": `["a","b"]`,
		"place": `{"lon":1.5,"lat":2}`, "owner": u.Id, "parent": "",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, not %v", name, got[name], want)
		}
	}
	for _, name := range []string{"secret", "collectionId", "collectionName", "v", "expand"} {
		if _, ok := got[name]; ok {
			t.Errorf("the row has %s", name)
		}
	}
	if updated, ok := got["updated"].(float64); !ok || updated < 1767323045678 {
		t.Errorf("updated is %v", got["updated"])
	}
	m.set(id("n"), "due", 1767323045679.0)
	m.set(id("n"), "tags", `["c"]`)
	m.set(id("n"), "extra", `[2]`)
	m.set(id("n"), "updated", 5.0)        // what the client sets itself
	m.rows[id("n")].fields["likes"] = 0.0 // not edited: a column of a type that cannot hold the value
	m.create(id("new"), row{"owner": u.Id, "title": "new", "due": 0.0, "tags": "", "extra": "", "place": nil, "likes": nil, "local": 7})
	if !m.sync() || len(m.rejected) > 0 {
		t.Fatalf("not synced: %v", m.rejected)
	}
	r, err := f.FindRecordById("notes", id("n"))
	if err != nil {
		t.Fatal(err)
	}
	if r.GetString("due") != "2026-01-02 03:04:05.679Z" || fmt.Sprint(r.GetStringSlice("tags")) != "[c]" || r.GetString("extra") != "[2]" || r.GetInt("likes") != 3 {
		t.Errorf("the record is %v", r.PublicExport())
	}
	if r, err = f.FindRecordById("notes", id("new")); err != nil || !r.GetDateTime("due").IsZero() || len(r.GetStringSlice("tags")) > 0 {
		t.Errorf("the new record is %v, %v", r, err)
	}
	m.set(id("n"), "due", nil)
	m.sync()
	if r, err = f.FindRecordById("notes", id("n")); err != nil || !r.GetDateTime("due").IsZero() {
		t.Errorf("the date is still %v, %v", r.GetDateTime("due"), err)
	}
}

// Timestamps are positive from the beginning, or the first change would be lost.
func TestTimestamps(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	p := f.phone(u, token, "m0")
	first := into[pulled](t, f.call(p, http.MethodGet, "watermelon?collections=notes&lastPulledAt=null&schemaVersion=1&migration=null", nil))
	if first.Timestamp < 1<<atBits || first.Timestamp > 1<<53 || first.Strategy.Override["notes"] != "replacement" || first.Changes["notes"].Updated == nil {
		t.Fatalf("first answer: %+v", first)
	}
	f.record("notes", map[string]any{"owner": u.Id, "title": "one"})
	path := "watermelon?last_pulled_at=" + strconv.FormatInt(first.Timestamp, 10) + "&schema_version=1&migration=null&collections=notes"
	second := into[pulled](t, f.call(p, http.MethodGet, path, nil))
	if len(second.Changes["notes"].Updated) != 1 || second.Strategy != nil || second.Timestamp <= first.Timestamp {
		t.Errorf("second answer: %+v", second)
	}
	again := into[pulled](t, f.call(p, http.MethodGet, strings.Replace(path, strconv.FormatInt(first.Timestamp, 10), strconv.FormatInt(second.Timestamp, 10), 1), nil))
	if len(again.Changes) != 0 || again.Timestamp != second.Timestamp {
		t.Errorf("third answer: %+v", again)
	}
	unknown := into[pulled](t, f.call(p, http.MethodGet, "watermelon?collections=notes,nowhere&lastPulledAt=1", nil))
	if unknown.Strategy.Override["notes"] != "replacement" || unknown.Strategy.Override["nowhere"] != "replacement" || len(unknown.Changes["notes"].Updated) != 1 {
		t.Errorf("answer to an unknown timestamp: %+v", unknown)
	}
}

// The example of WatermelonDB's documentation puts the timestamp into the address, and the changes alone into the body.
func TestDocumentedForm(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	p := f.phone(u, token, "m0")
	got := into[pulled](t, f.call(p, http.MethodGet, "watermelon", nil))
	if _, ok := got.Changes["notes"]; !ok {
		t.Errorf("all collections: %+v", got)
	}
	changes := map[string]any{"notes": map[string]any{"created": []row{{"id": id("n"), "owner": u.Id, "title": "x"}}, "updated": []row{}, "deleted": []string{}}}
	resp := f.call(p, http.MethodPost, "watermelon?last_pulled_at="+strconv.FormatInt(got.Timestamp, 10), changes)
	if resp.Status != http.StatusOK {
		t.Fatalf("%d %s", resp.Status, resp.Body)
	}
	if _, err := f.FindRecordById("notes", id("n")); err != nil {
		t.Error(err)
	}
}

func TestMelonConflicts(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	note := f.record("notes", map[string]any{"owner": u.Id, "title": "one", "body": "one"})
	a := f.melon(u, token, "m0")
	a.sync()
	a.set(note.Id, "title", "mine")
	a.pull("")
	f.edit("notes", note.Id, map[string]any{"body": "theirs"})
	if resp, _ := a.push(); resp.Status != http.StatusConflict || resp.Code() != "sync.pull_required" || !strings.Contains(string(resp.Body), "notes."+note.Id) {
		t.Fatalf("%d %s", resp.Status, resp.Body)
	}
	if !a.sync() {
		t.Fatal("no sync")
	}
	r, err := f.FindRecordById("notes", note.Id)
	if err != nil || r.GetString("title") != "mine" || r.GetString("body") != "theirs" || a.rows[note.Id].fields["body"] != "theirs" {
		t.Errorf("%v, %v", r.PublicExport(), err)
	}
	a.last = 5 // of a view that the server does not know
	a.set(note.Id, "title", "later")
	if resp, _ := a.push(); resp.Status != http.StatusConflict {
		t.Errorf("%d %s", resp.Status, resp.Body)
	}
}

// Refused rows are taken for pushed, so that the client does not push them for ever, and the next pull puts them right.
func TestMelonRefusals(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	other, _ := f.User(t, "bob@example.test")
	team := f.record("teams", map[string]any{"name": "t"})
	f.record("members", map[string]any{"user": u.Id, "team": team.Id})
	theirs := f.record("notes", map[string]any{"owner": other.Id, "team": team.Id, "title": "theirs"})
	mine := f.record("notes", map[string]any{"owner": u.Id, "title": "mine"})
	hidden := f.record("notes", map[string]any{"owner": other.Id, "title": "hidden"})
	m := f.melon(u, token, "m0")
	m.sync()
	m.remove(theirs.Id)                                                         // only the owner may
	m.set(mine.Id, "title", strings.Repeat("x", 60))                            // too long
	m.create(id("n"), row{"owner": other.Id, "title": "in another's name"})     // not allowed
	m.create("UPPER-and-short", row{"owner": u.Id, "title": "an id like none"}) // not of the form
	m.create(id("good"), row{"owner": u.Id, "title": "good"})
	m.create(hidden.Id, row{"title": "hidden"}) // a guess that is right
	f.edit("notes", hidden.Id, map[string]any{"body": "changed since"})
	if !m.sync() {
		t.Fatal("no sync")
	}
	got := map[string]string{}
	for _, r := range m.rejected {
		got[r.ID] = r.Op + " " + r.Status
	}
	want := map[string]string{theirs.Id: "delete denied", mine.Id: "update invalid", id("n"): "create denied", "UPPER-and-short": "create invalid", hidden.Id: "create denied"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("rejected: %v, not %v", got, want)
	}
	if !m.sync() || len(m.all()) != 3 || m.rows[theirs.Id] == nil || m.rows[mine.Id].fields["title"] != "mine" || m.rows[id("good")] == nil {
		t.Errorf("the device has %v", m.all())
	}
}

// Nobody learns by pushing whether a record that is not shown is there, or whether it changes.
func TestMelonTellsNothingOfOthersRecords(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	other, _ := f.User(t, "bob@example.test")
	hidden := f.record("notes", map[string]any{"owner": other.Id, "title": "hidden"})
	deleted := f.record("notes", map[string]any{"owner": other.Id, "title": "hidden"})
	m := f.melon(u, token, "m0")
	m.sync()
	f.edit("notes", hidden.Id, map[string]any{"body": "changed since"})
	f.delete("notes", deleted.Id)
	for _, target := range []string{id("never"), hidden.Id, deleted.Id} {
		m.take(row{"id": target, "title": "a guess"})
		m.set(target, "title", "x")
		if resp, _ := m.push(); resp.Status != http.StatusOK || len(m.rejected) != 1 || m.rejected[0].Status != "gone" {
			t.Errorf("%s: %d %s", target, resp.Status, resp.Body)
		}
	}
}

// Rows come in no order, and references in circles are possible on a device.
func TestMelonOrder(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	parent, ok := f.notes.Fields.GetByName("parent").(*core.RelationField)
	if !ok {
		t.Fatal("no field")
	}
	m := f.melon(u, token, "m0")
	m.sync()
	for i, name := range []string{"a", "b", "c", "d"} { // each needs the next, in an order that is the wrong one
		fields := row{"owner": u.Id, "title": name}
		if i < 3 {
			fields["parent"] = id([]string{"a", "b", "c", "d"}[i+1])
		}
		m.create(id(name), fields)
	}
	m.create(id("x"), row{"owner": u.Id, "title": "x", "parent": id("y")})
	m.create(id("y"), row{"owner": u.Id, "title": "y", "parent": id("x")})
	m.create(id("z"), row{"owner": u.Id, "title": "z", "parent": id("z")})
	if !m.sync() || len(m.rejected) > 0 {
		t.Fatalf("rejected: %v", m.rejected)
	}
	for child, want := range map[string]string{"a": "b", "c": "d", "x": "y", "y": "x", "z": "z"} {
		if r, err := f.FindRecordById("notes", id(child)); err != nil || r.GetString("parent") != id(want) {
			t.Errorf("%s refers to %v, %v", child, r, err)
		}
	}
	for _, name := range []string{"x", "y", "z"} {
		m.remove(id(name))
	}
	m.sync()
	parent.Required = true // now whoever is referred to must go last
	f.save(f.notes)
	for _, name := range []string{"a", "b", "c"} {
		m.remove(id(name))
	}
	if !m.sync() || len(m.rejected) > 0 {
		t.Errorf("rejected: %v", m.rejected)
	}
}

// An update of the app that has added a column gets the rows of that table again, and of no other.
func TestMigration(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	f.record("notes", map[string]any{"owner": u.Id, "title": "n"})
	f.record("teams", map[string]any{"name": "t"})
	p := f.phone(u, token, "m0")
	ask := func(last int64, extra string) pulled {
		t.Helper()
		return into[pulled](t, f.call(p, http.MethodGet, fmt.Sprintf("watermelon?collections=notes,teams&lastPulledAt=%d%s", last, extra), nil))
	}
	first := ask(0, "")
	migration := "&schemaVersion=2&migration=" + url.QueryEscape(`{"from":1,"tables":[],"columns":[{"table":"notes","columns":["body"]}]}`)
	for range 2 { // the answer may be lost
		if got := ask(first.Timestamp, migration); len(got.Changes["notes"].Updated) != 1 || len(got.Changes["teams"].Updated) != 0 || got.Strategy != nil {
			t.Errorf("after the migration: %+v", got)
		}
	}
	second := ask(first.Timestamp, migration)
	if got := ask(second.Timestamp, "&schemaVersion=2&migration=null"); len(got.Changes) != 0 {
		t.Errorf("and again: %+v", got)
	}
	added := "&schemaVersion=3&migration=" + url.QueryEscape(`{"from":2,"tables":["teams"],"columns":[]}`)
	third := ask(second.Timestamp, added)
	if len(third.Changes["notes"].Updated) != 0 || len(third.Changes["teams"].Updated) != 1 {
		t.Errorf("with another table: %+v", third)
	}
	if got := ask(third.Timestamp, ""); len(got.Changes) != 0 {
		t.Errorf("and again: %+v", got)
	}
}

// What the client has of other tables than the server's does not hold up the rest.
func TestMelonForeignTables(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	p := f.phone(u, token, "m0")
	first := into[pulled](t, f.call(p, http.MethodGet, "watermelon?collections=notes", nil))
	table := func(rows ...row) map[string]any {
		return map[string]any{"created": rows, "updated": []row{}, "deleted": []string{}}
	}
	body := map[string]any{"lastPulledAt": first.Timestamp, "changes": map[string]any{
		"settings": table(row{"id": "x"}), "teams": table(row{"id": id("t"), "name": "not pulled"}), "_superusers": table(row{"id": "x"}), "empty": table(),
		"notes": table(row{"id": id("n"), "owner": u.Id, "title": "n"}, row{"title": "no id"}),
	}}
	got := into[struct{ Rejected []rejection }](t, f.call(p, http.MethodPost, "watermelon", body))
	raw, _ := json.Marshal(got.Rejected)
	if len(got.Rejected) != 4 || !strings.Contains(string(raw), "settings") || !strings.Contains(string(raw), "_superusers") || !strings.Contains(string(raw), "sync.change_invalid") {
		t.Errorf("rejected: %s", raw)
	}
	if _, err := f.FindRecordById("notes", id("n")); err != nil {
		t.Error(err)
	}
}

func TestRefusedRequests(t *testing.T) {
	f := start(t)
	_, user := f.User(t, "ann@example.test")
	_, root := f.Superuser(t)
	const device = "d0-0123456789abcdef"
	many := ""
	for i := range 101 {
		many += fmt.Sprintf("t%d,", i)
	}
	for _, test := range []struct {
		name, token, device, method, path string
		body                              any
		status                            int
		code                              string
	}{
		{name: "guest", path: "watermelon", status: 401},
		{name: "guest of the other door", path: "rxdb/notes", status: 401},
		{name: "no device", token: user, path: "watermelon", status: 400, code: "sync.device_required"},
		{name: "superuser", token: root, device: device, path: "rxdb/notes", status: 403, code: "sync.superuser_unsupported"},
		{name: "no number", token: user, device: device, path: "watermelon?lastPulledAt=x", status: 400},
		{name: "negative", token: user, device: device, path: "watermelon?lastPulledAt=-1", status: 400},
		{name: "no migration", token: user, device: device, path: "watermelon?migration=x", status: 400},
		{name: "many collections", token: user, device: device, path: "watermelon?collections=" + many, status: 400},
		{name: "own collections", token: user, device: device, path: "watermelon?collections=_superusers", status: 400, code: "sync.collection_unsupported"},
		{name: "push without a pull", token: user, device: device, method: "POST", path: "watermelon", body: row{"changes": row{}, "lastPulledAt": nil}, status: 400},
		{name: "no changes", token: user, device: device, method: "POST", path: "watermelon", body: `{"changes":7}`, status: 400},
		{name: "no collection", token: user, device: device, path: "rxdb/nowhere", status: 404},
		{name: "push to no collection", token: user, device: device, method: "POST", path: "rxdb/nowhere", body: `[]`, status: 404},
		{name: "large pages", token: user, device: device, path: "rxdb/notes?limit=1001", status: 400},
		{name: "no documents", token: user, device: device, method: "POST", path: "rxdb/notes", body: `{}`, status: 400},
		{name: "no checkpoint", token: user, device: device, path: "rxdb/notes?checkpoint=null&limit=10", status: 200},
		{name: "unknown checkpoint", token: user, device: device, path: "rxdb/notes?checkpoint=%7B%22c%22%3A%22x%22%7D", status: 410, code: "sync.checkpoint_unknown"},
	} {
		r := apptest.Request{Method: test.method, Path: "/api/v1/sync/" + test.path, Token: test.token, Body: test.body, Header: map[string]string{}}
		if test.device != "" {
			r.Header["X-Device-Id"] = test.device
		}
		if got := f.Do(t, r); got.Status != test.status || test.code != "" && got.Code() != test.code {
			t.Errorf("%s: %d %s", test.name, got.Status, got.Body)
		}
	}
}

// WatermelonDB's own ids fit into an id field that is relaxed as the guide says.
func TestRelaxedIDs(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	field, ok := f.notes.Fields.GetByName("id").(*core.TextField)
	if !ok {
		t.Fatal("no field")
	}
	field.Pattern, field.Min, field.Max = "^[a-zA-Z0-9]+$", 15, 36
	f.save(f.notes)
	m := f.melon(u, token, "m0")
	m.sync()
	m.create("aB3dE6gH9jK2mN5p", row{"owner": u.Id, "title": "x"})
	if !m.sync() || len(m.rejected) > 0 || m.rows["aB3dE6gH9jK2mN5p"] == nil {
		t.Errorf("rejected: %v", m.rejected)
	}
}

func TestOrder(t *testing.T) {
	const n = 2000
	r := rand.New(rand.NewPCG(1, 2))
	list := make([][]int, n)
	for i := range list {
		for range r.IntN(3) {
			list[i] = append(list[i], r.IntN(n))
		}
	}
	sorted, circular := order(n, func(i int) []int { return list[i] })
	place := make([]int, n)
	for at, i := range sorted {
		place[i] = at
	}
	if len(sorted) != n {
		t.Fatalf("%d of %d", len(sorted), n)
	}
	for i := range list {
		for _, need := range list[i] {
			if place[need] >= place[i] && !slices.Contains(circular[i], need) {
				t.Errorf("%d stands before %d, which it needs", i, need)
			}
		}
	}
	chain, _ := order(100_000, func(i int) []int { return []int{min(i+1, 99_999)} })
	if len(chain) != 100_000 || chain[0] != 99_999 {
		t.Errorf("a chain of %d begins with %d", len(chain), chain[0])
	}
}

// Whatever a client has in a column, what comes of it is JSON that the validation can judge.
func FuzzColumns(f *testing.F) {
	c := core.NewBaseCollection("c")
	c.Fields.Add(
		&core.TextField{Name: "text"}, &core.NumberField{Name: "number"}, &core.BoolField{Name: "bool"}, &core.DateField{Name: "date"},
		&core.JSONField{Name: "json"}, &core.GeoPointField{Name: "point"}, &core.SelectField{Name: "several", MaxSelect: 3},
	)
	for _, seed := range []string{`null`, `1e300`, `-1`, `"[1]"`, `"{"`, `""`, `[[]]`, `{"a":1}`, `true`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		value := jsontext.Value(raw)
		if !value.IsValid() {
			return
		}
		for _, field := range c.Fields {
			out, ok := fromColumn(c, field.GetName(), value)
			if ok && !out.IsValid() {
				t.Fatalf("%s: %q", field.GetName(), out)
			}
			if !ok {
				continue
			}
			back, err := toColumn(c, field.GetName(), out)
			if err == nil && !back.IsValid() {
				t.Fatalf("%s: %q", field.GetName(), back)
			}
		}
	})
}
