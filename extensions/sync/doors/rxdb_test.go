package doors

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// push sends documents and returns the conflicts by id.
func (d *docs) send(rows ...map[string]any) map[string]row {
	d.t.Helper()
	raw, err := json.Marshal(rows)
	if err != nil {
		d.t.Fatal(err)
	}
	out := map[string]row{}
	for _, c := range into[[]row](d.t, d.call(d.phone, http.MethodPost, "rxdb/notes", raw)) {
		key, _ := c["id"].(string)
		out[key] = c
	}
	return out
}

func pushed(doc, assumed row) map[string]any {
	out := map[string]any{"newDocumentState": doc}
	if assumed != nil {
		out["assumedMasterState"] = assumed
	}
	return out
}

func with(doc row, name string, value any) row {
	out := maps.Clone(doc)
	out[name] = value
	return out
}

func TestThreeWayMerge(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	note := f.record("notes", map[string]any{"owner": u.Id, "title": "one", "body": "one", "due": "2026-01-02 03:04:05.678Z"})
	d := f.docs(u, token, "d0")
	d.sync()
	base := d.rows[note.Id].master
	if base["v"] == nil || base["_deleted"] != false || base["collectionId"] != nil || base["secret"] != nil || base["due"] != "2026-01-02 03:04:05.678Z" {
		t.Fatalf("document: %v", base)
	}
	if got := d.send(pushed(with(base, "title", "mine"), base)); len(got) > 0 {
		t.Errorf("an edit that nobody else disputes is a conflict: %v", got)
	}
	// Now the base is what the client has sent, with the version from before.
	base = with(base, "title", "mine")
	f.edit("notes", note.Id, map[string]any{"body": "theirs"})
	got := d.send(pushed(with(base, "likes", 7), base))[note.Id]
	if got["body"] != "theirs" || got["likes"] != 7.0 || got["title"] != "mine" {
		t.Errorf("what was merged is told as %v", got)
	}
	f.edit("notes", note.Id, map[string]any{"title": "theirs"})
	got = d.send(pushed(with(with(base, "title", "mine again"), "body", "mine"), base))[note.Id]
	if got["title"] != "theirs" || got["body"] != "theirs" {
		t.Errorf("the answer to a collision is %v", got)
	}
	confirmed := got
	if again := d.send(pushed(confirmed, confirmed)); len(again) > 0 {
		t.Errorf("the settled conflict is another one: %v", again)
	}
	ghost := with(with(confirmed, "v", base["v"]), "title", "older")
	if got = d.send(pushed(ghost, confirmed))[note.Id]; got["title"] != "theirs" {
		t.Errorf("an older state was taken: %v", got)
	}
	if again := d.send(pushed(with(confirmed, "due", "2026-01-02T03:04:05.678Z"), confirmed)); len(again) > 0 {
		t.Errorf("another way to write a date is a conflict: %v", again)
	}
	partial := row{"id": note.Id, "title": "part", "v": confirmed["v"], "_deleted": false}
	d.send(pushed(partial, confirmed))
	if r, err := f.FindRecordById("notes", note.Id); err != nil || r.GetString("body") != "theirs" || r.GetString("title") != "part" {
		t.Errorf("fields that are not there were emptied: %v, %v", r.PublicExport(), err)
	}
}

func TestDocumentsRefused(t *testing.T) {
	f := start(t, "notes=reject")
	u, token := f.User(t, "ann@example.test")
	other, _ := f.User(t, "bob@example.test")
	team := f.record("teams", map[string]any{"name": "t"})
	member := f.record("members", map[string]any{"user": u.Id, "team": team.Id})
	theirs := f.record("notes", map[string]any{"owner": other.Id, "team": team.Id, "title": "theirs"})
	mine := f.record("notes", map[string]any{"owner": u.Id, "title": "mine"})
	hidden := f.record("notes", map[string]any{"owner": other.Id, "title": "hidden"})
	d := f.docs(u, token, "d0")
	d.sync()
	base := func(id string) row { return d.rows[id].master }
	got := d.send(
		pushed(row{"id": id("n"), "owner": other.Id, "title": "in another's name", "_deleted": false}, nil),
		pushed(row{"id": hidden.Id, "owner": u.Id, "title": "taken", "_deleted": false}, nil),
		pushed(with(base(theirs.Id), "_deleted", true), base(theirs.Id)),
		pushed(with(base(mine.Id), "title", strings.Repeat("x", 60)), base(mine.Id)),
		pushed(row{"id": id("good"), "owner": u.Id, "title": "good", "_deleted": false}, nil),
		pushed(row{"id": id("offline"), "title": "made and deleted", "_deleted": true}, nil),
		pushed(row{"title": "no id"}, nil),
		pushed(row{"id": 7}, nil),
	)
	if len(got) != 4 || got[id("n")]["_deleted"] != true || got[hidden.Id]["_deleted"] != true || got[hidden.Id]["title"] != nil ||
		got[theirs.Id]["title"] != "theirs" || got[mine.Id]["title"] != "mine" {
		t.Errorf("conflicts: %v", got)
	}
	if again := d.send(pushed(row{"id": id("good"), "owner": u.Id, "title": "good", "_deleted": false}, nil)); len(again) > 0 {
		t.Errorf("a repeated push is a conflict: %v", again)
	}
	// The policy: whoever has not seen the present version may not write at all.
	f.edit("notes", mine.Id, map[string]any{"body": "later"})
	if got = d.send(pushed(with(base(mine.Id), "likes", 3), base(mine.Id))); got[mine.Id]["body"] != "later" || got[mine.Id]["likes"] != 0.0 {
		t.Errorf("conflict: %v", got)
	}
	d.pull()
	sent := with(base(mine.Id), "likes", 3)
	if got = d.send(pushed(sent, base(mine.Id))); len(got) > 0 {
		t.Errorf("refused: %v", got)
	}
	if got = d.send(pushed(with(sent, "likes", 4), sent)); len(got) > 0 {
		t.Errorf("refused behind the client's own edit: %v", got)
	}
	// Who may not see it any more is told to remove it, whatever it pushes.
	f.delete("members", member.Id)
	if got = d.send(pushed(with(base(theirs.Id), "title", "still mine"), base(theirs.Id))); got[theirs.Id]["_deleted"] != true || got[theirs.Id]["title"] != nil {
		t.Errorf("conflict: %v", got)
	}
	if got = d.send(pushed(got[theirs.Id], got[theirs.Id])); len(got) > 0 {
		t.Errorf("the settled conflict is another one: %v", got)
	}
	if _, err := f.FindRecordById("notes", theirs.Id); err != nil {
		t.Error("and it deleted the record")
	}
}

// Collections are replicated one by one: a document may come before the one that it refers to.
func TestParents(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	other, _ := f.User(t, "bob@example.test")
	now := time.Now()
	f.doors.now = func() time.Time { return now }
	d := f.docs(u, token, "d0")
	d.sync()
	child := func(name, team string) map[string]any {
		return pushed(row{"id": id(name), "owner": u.Id, "team": id(team), "title": name, "_deleted": false}, nil)
	}
	try := func(rows ...map[string]any) (int, string) {
		t.Helper()
		raw, err := json.Marshal(rows)
		if err != nil {
			t.Fatal(err)
		}
		r := f.call(d.phone, http.MethodPost, "rxdb/notes", raw)
		return r.Status, string(r.Body)
	}
	if status, body := try(child("a", "team"), pushed(row{"id": id("b"), "owner": u.Id, "_deleted": false}, nil)); status != 503 || !strings.Contains(body, "sync.parent_missing") {
		t.Fatalf("%d %s", status, body)
	}
	if _, err := f.FindRecordById("notes", id("b")); err != nil {
		t.Error("the others waited, too")
	}
	team := func(name, owner string) {
		raw := fmt.Sprintf(`[{"newDocumentState":{"id":%q,"name":"t","owner":%q,"_deleted":false}}]`, id(name), owner)
		if r := f.call(d.phone, http.MethodPost, "rxdb/teams", raw); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}
	team("team", u.Id)
	if status, body := try(child("a", "team")); status != 200 || body != "[]\n" {
		t.Errorf("%d %s", status, body)
	}
	team("refused", other.Id)
	if status, body := try(child("c", "refused")); status != 200 || !strings.Contains(body, `"_deleted":true`) {
		t.Errorf("a document waits for one that was refused: %d %s", status, body)
	}
	if status, _ := try(child("d", "never")); status != 503 {
		t.Errorf("status %d", status)
	}
	now = now.Add(patience)
	if status, body := try(child("d", "never")); status != 200 || !strings.Contains(body, `"_deleted":true`) {
		t.Errorf("a document waits for ever: %d %s", status, body)
	}
	first := pushed(row{"id": id("p1"), "owner": u.Id, "parent": id("p2"), "_deleted": false}, nil)
	if status, body := try(first, pushed(row{"id": id("p2"), "owner": u.Id, "_deleted": false}, nil)); status != 200 || body != "[]\n" {
		t.Errorf("within one push: %d %s", status, body)
	}
}

// A hook that fails on one record must not keep the client from pushing others for ever, nor drop anything at once.
func TestBrokenHook(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	now := time.Now()
	f.doors.now = func() time.Time { return now }
	f.OnRecordCreateRequest("notes").BindFunc(func(e *core.RecordRequestEvent) error {
		if e.Record.GetString("title") == "bad" {
			panic("bad")
		}
		return e.Next()
	})
	d, m := f.docs(u, token, "d0"), f.melon(u, token, "m0")
	d.pull()
	m.pull("")
	d.create(id("bad"), row{"owner": u.Id, "title": "bad"})
	d.create(id("good"), row{"owner": u.Id, "title": "good"})
	m.create(id("bad2"), row{"owner": u.Id, "title": "bad"})
	m.create(id("good2"), row{"owner": u.Id, "title": "good"})
	if resp, _ := m.push(); d.push() || resp.Status != http.StatusServiceUnavailable {
		t.Fatalf("acknowledged: %d %s", resp.Status, resp.Body)
	}
	for _, name := range []string{"good", "good2"} {
		if _, err := f.FindRecordById("notes", id(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	now = now.Add(patience)
	if !d.sync() || !m.sync() || len(m.rejected) != 1 || m.rejected[0].Status != "retry" {
		t.Errorf("they push for ever: %v", m.rejected)
	}
	if !d.sync() || !m.sync() || len(d.all()) != 2 || len(m.all()) != 2 {
		t.Errorf("RxDB has %v, WatermelonDB %v", d.all(), m.all())
	}
}

// The client takes a page that is not full for the last.
func TestPagesAreFull(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	f.doors.rxBytes = 8000
	for i := range 9 {
		body := ""
		if i < 6 {
			body = strings.Repeat("x", 3000) // more than a page may have
		}
		f.record("notes", map[string]any{"id": id(fmt.Sprint("n", i)), "owner": u.Id, "body": body})
	}
	p := f.phone(u, token, "d0")
	ask := func(point string, limit int) rxPulled {
		t.Helper()
		if point != "" {
			point = "&checkpoint=" + url.QueryEscape(`{"c":"`+point+`"}`)
		}
		return into[rxPulled](t, f.call(p, http.MethodGet, fmt.Sprintf("rxdb/notes?limit=%d%s", limit, point), nil))
	}
	seen, point, pages := map[any]bool{}, "", 0
	for last := false; !last; pages++ {
		got := ask(point, 5)
		for _, doc := range got.Documents {
			seen[doc["id"]] = true
		}
		point, last = got.Checkpoint.C, len(got.Documents) < 5
	}
	if len(seen) != 9 || pages < 3 {
		t.Errorf("%d documents in %d pages", len(seen), pages)
	}
}

// What happens while a client pulls page by page is in its last page: nothing would make it pull once more.
func TestLastPageIsTheEnd(t *testing.T) {
	f := start(t)
	u, token := f.User(t, "ann@example.test")
	for i := range 6 {
		f.record("notes", map[string]any{"id": id(fmt.Sprint("n", i)), "owner": u.Id})
	}
	d := f.docs(u, token, "d0")
	first := into[rxPulled](t, f.call(d.phone, http.MethodGet, "rxdb/notes?limit=4", nil))
	f.record("notes", map[string]any{"id": id("late"), "owner": u.Id})
	f.delete("notes", id("n0"))
	got := into[rxPulled](t, f.call(d.phone, http.MethodGet, "rxdb/notes?limit=9&checkpoint="+url.QueryEscape(`{"c":"`+first.Checkpoint.C+`"}`), nil))
	there := map[any]any{}
	for _, doc := range got.Documents {
		there[doc["id"]] = doc["_deleted"]
	}
	if len(there) != 4 || there[id("n0")] != true || there[id("late")] != false {
		t.Errorf("the last page has %v", there)
	}
}
