package live_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

func TestEvents(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	_, other := s.user("eve")
	mine, theirs := s.connect(token), s.connect(other)
	for _, p := range []*phone{mine, theirs} {
		p.sub("n", map[string]any{"collection": "notes"})
	}
	note := s.record("notes", map[string]any{"title": "one", "owner": ada.Id, "hush": "secret"})
	e := mine.next("event")
	if e.Sub != "n" || e.Collection != "notes" || e.ID != note.Id || e.Action != "create" || e.Version < 1 || e.Record["title"] != "one" {
		t.Fatalf("%+v", e)
	}
	if _, ok := e.Record["hush"]; ok {
		t.Error("a hidden field was sent")
	}
	if c := mine.next("cursor"); c.Cursor == "" {
		t.Error("no cursor")
	}
	s.set(note, map[string]any{"title": "two"})
	if u := mine.next("event"); u.Action != "update" || u.Record["title"] != "two" || u.Version <= e.Version {
		t.Fatalf("%+v", u)
	}
	s.remove(note)
	if d := mine.next("event"); d.Action != "delete" || d.ID != note.Id || d.Record != nil {
		t.Fatalf("%+v", d)
	}
	theirs.quiet(s)
}

func TestSubscriptions(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	a, b := s.record("posts", map[string]any{"title": "a", "owner": ada.Id}), s.record("posts", map[string]any{"title": "b"})
	p := s.connect(token)
	p.sub("one", map[string]any{"collection": "posts", "record": a.Id, "fields": "id,title"})
	p.sub("filtered", map[string]any{"collection": "posts", "filter": "n > 5", "fields": "id,n"})
	p.sub("expanded", map[string]any{"collection": "posts", "filter": "owner != ''", "expand": "owner", "fields": "id,expand.owner.id"})
	s.set(b, map[string]any{"title": "B"})
	s.set(a, map[string]any{"title": "A"})
	want := map[string]string{
		"one":      fmt.Sprintf(`{"id":%q,"title":"A"}`, a.Id),
		"expanded": fmt.Sprintf(`{"expand":{"owner":{"id":%q}},"id":%q}`, ada.Id, a.Id),
	}
	for range want {
		e := p.next("event")
		raw, err := json.Marshal(e.Record)
		if err != nil || string(raw) != want[e.Sub] {
			t.Errorf("%s: %s, want %s", e.Sub, raw, want[e.Sub])
		}
	}
	s.set(b, map[string]any{"n": 9})
	if e := p.next("event"); e.Sub != "filtered" || e.Record["n"] != 9.0 {
		t.Errorf("%+v", e)
	}
	s.set(b, map[string]any{"n": 1})
	if e := p.next("leave"); e.Sub != "filtered" || e.ID != b.Id {
		t.Errorf("%+v", e)
	}
	p.send(map[string]any{"type": "unsub", "id": "u", "sub": "one"})
	if u := p.next("unsub"); u.ID != "u" {
		t.Errorf("%+v", u)
	}
	s.set(a, map[string]any{"owner": "", "title": "unheard"})
	if e := p.next("leave"); e.Sub != "expanded" {
		t.Errorf("%+v", e)
	}
	p.quiet(s)
}

func TestRefusals(t *testing.T) {
	s := start(t, func(c *live.Config, _ *live.Deps) { c.Subscriptions = 2 })
	_, token := s.user("ada")
	p := s.connect(token)
	locked := core.NewBaseCollection("locked")
	s.save(locked)
	for name, c := range map[string]struct{ frame, code string }{
		"no JSON":            {`{`, "live.frame_invalid"},
		"no object":          {`[]`, "live.frame_invalid"},
		"no type":            {`{}`, "live.frame_invalid"},
		"unknown type":       {`{"type":"event"}`, "live.frame_invalid"},
		"unknown member":     {`{"type":"ping","x":1}`, "live.frame_invalid"},
		"member of another":  {`{"type":"ping","sub":"x"}`, "live.frame_invalid"},
		"wrong type":         {`{"type":"sub","sub":1,"collection":"posts"}`, "live.frame_invalid"},
		"no name":            {`{"type":"sub","collection":"posts"}`, "live.frame_invalid"},
		"long name":          {`{"type":"sub","collection":"posts","sub":"` + strings.Repeat("x", 101) + `"}`, "live.frame_invalid"},
		"neither":            {`{"type":"sub","sub":"x"}`, "live.frame_invalid"},
		"both":               {`{"type":"sub","sub":"x","collection":"posts","channel":"c"}`, "live.frame_invalid"},
		"unknown collection": {`{"type":"sub","sub":"x","collection":"nope"}`, "live.collection_unknown"},
		"locked":             {`{"type":"sub","sub":"x","collection":"locked"}`, "live.denied"},
		"not captured":       {`{"type":"sub","sub":"x","collection":"_mfas"}`, "live.not_captured"},
		"bad filter":         {`{"type":"sub","sub":"x","collection":"posts","filter":"nope = 1"}`, "live.filter_invalid"},
		"hidden filter":      {`{"type":"sub","sub":"x","collection":"posts","filter":"hush = 1"}`, "live.filter_invalid"},
		"rule filter":        {`{"type":"sub","sub":"x","collection":"posts","filter":"@request.auth.id = 1"}`, "live.filter_invalid"},
		"bad expand":         {`{"type":"sub","sub":"x","collection":"posts","expand":"title"}`, "live.frame_invalid"},
		"no such sub":        {`{"type":"unsub","sub":"x"}`, "live.frame_invalid"},
		"no such channel":    {`{"type":"sub","sub":"x","channel":"room:1"}`, "live.denied"},
		"not in channel":     {`{"type":"publish","sub":"x","data":1}`, "live.denied"},
		"no presence":        {`{"type":"presence","sub":"x","state":1}`, "live.denied"},
	} {
		p.raw(c.frame)
		if e := p.next("error"); e.Code != c.code || e.Message == "" {
			t.Errorf("%s: %+v, want %s", name, e, c.code)
		}
	}
	p.sub("a", map[string]any{"collection": "posts"})
	p.sub("b", map[string]any{"collection": "posts"})
	p.send(map[string]any{"type": "sub", "id": "i", "sub": "c", "collection": "posts"})
	if e := p.next("error"); e.Code != "live.too_many_subscriptions" || e.ID != "i" || e.Sub != "c" {
		t.Errorf("%+v", e)
	}
	p.send(map[string]any{"type": "ping", "id": "7"})
	if pong := p.next("pong"); pong.ID != "7" {
		t.Errorf("%+v", pong)
	}
}

func TestAuthentication(t *testing.T) {
	s := start(t)
	_, token := s.user("ada")
	_, other := s.user("eve")
	access, stock, _ := s.signIn("ada")

	guest := s.connect("")
	for name, token := range map[string]string{"PocketBase's": token, "with a scheme": "Bearer " + token, "stock": stock, "access": access} {
		p := s.dial()
		p.send(map[string]any{"type": "auth", "token": token})
		if ready := p.next("ready"); ready.User == nil || ready.User.Collection != "users" || ready.ExpiresAt == "" {
			t.Errorf("%s: %+v", name, ready)
		}
		_ = p.ws.CloseNow()
	}
	for name, first := range map[string]string{
		"a bad token": `{"type":"auth","token":"nonsense"}`, "another frame": `{"type":"ping"}`, "no frame at all": `hello`,
		"an altered token": `{"type":"auth","token":"` + token + `x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := s.dial()
			p.raw(first)
			p.ends(frame.CloseAuth)
		})
	}
	// A guest may sign in, and a newer token of the same account is taken, but no other account.
	guest.sub("n", map[string]any{"collection": "notes"})
	guest.send(map[string]any{"type": "auth", "token": access})
	ready := guest.next("ready")
	if r := guest.next("reset"); r.Sub != "n" || r.Reason != "visibility" {
		t.Errorf("%+v", r)
	}
	s.record("notes", map[string]any{"title": "mine", "owner": ready.User.ID})
	if e := guest.next("event"); e.Record["title"] != "mine" {
		t.Errorf("%+v", e)
	}
	guest.send(map[string]any{"type": "auth", "token": stock})
	guest.next("ready")
	guest.send(map[string]any{"type": "auth", "token": other})
	guest.ends(frame.CloseAuth)

	if status, body := s.do(http.MethodGet, "/api/v1/live", "", nil); status != http.StatusUpgradeRequired || !strings.Contains(string(body), "live.upgrade_required") {
		t.Errorf("%d %s", status, body)
	}
}

func TestRevocation(t *testing.T) {
	s := start(t)
	ada, plain := s.user("ada")
	access, _, session := s.signIn("ada")
	keeps, _, _ := s.signIn("ada")
	gone, stays := s.connect(access), s.connect(keeps)
	sse, sseStays := s.stream("/api/realtime"), s.stream("/api/v1/realtime")
	s.subscribe(sse, access, "notes/*")
	s.subscribe(sseStays, keeps, "notes/*")
	began := time.Now()
	if status, body := s.do(http.MethodDelete, "/api/v1/auth/sessions/"+session, keeps, nil); status != http.StatusNoContent {
		t.Fatalf("%d %s", status, body)
	}
	gone.ends(frame.CloseAuth)
	select {
	case <-sse.closed:
	case <-time.After(patience):
		t.Error("the stream is still open")
	}
	t.Logf("dropped after %v", time.Since(began))
	stays.quiet(s)
	select {
	case <-sseStays.closed:
		t.Error("the stream of another session was closed")
	default:
	}

	// A token that expires.
	short, err := ada.NewStaticAuthToken(2 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s.connect(short).ends(frame.CloseAuth)

	// A token without a session ends with the account's password, and with the account.
	bare := s.connect(plain)
	fresh, err := s.FindRecordById("users", ada.Id)
	if err != nil {
		t.Fatal(err)
	}
	fresh.SetPassword("another-" + password)
	s.save(fresh)
	bare.ends(frame.CloseAuth)
	stays.ends(frame.CloseAuth)
	after := s.connect(s.token(fresh))
	s.remove(ada)
	after.ends(frame.CloseAuth)
}

// What is held is taken back when another record decides so: a membership, the account itself, or the rule.
func TestLeave(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	team := s.record("teams", map[string]any{"members": []string{ada.Id}})
	p := s.connect(token)
	p.sub("c", map[string]any{"collection": "cards"})
	p.sub("s", map[string]any{"collection": "secrets"})
	card := s.record("cards", map[string]any{"team": team.Id})
	if e := p.next("event"); e.ID != card.Id {
		t.Fatalf("%+v", e)
	}
	s.record("secrets", map[string]any{"title": "not yet"})
	s.set(team, map[string]any{"members": []string{}})
	if e := p.next("leave"); e.ID != card.Id || e.Sub != "c" {
		t.Fatalf("%+v", e)
	}
	s.set(card, map[string]any{"title": "unseen"})
	p.quiet(s)
	s.set(team, map[string]any{"members": []string{ada.Id}})
	if e := p.next("reset"); e.Sub != "c" || e.Reason != "visibility" {
		t.Fatalf("%+v", e)
	}
	s.set(card, map[string]any{"title": "seen"})
	if e := p.next("event"); e.Record["title"] != "seen" {
		t.Fatalf("%+v", e)
	}

	s.set(ada, map[string]any{"role": "chief"})
	if e := p.next("reset"); e.Sub != "s" {
		t.Fatalf("%+v", e)
	}
	secret := s.record("secrets", map[string]any{"title": "now"})
	if e := p.next("event"); e.ID != secret.Id {
		t.Fatalf("%+v", e)
	}
	s.set(ada, map[string]any{"role": ""})
	if left := p.both("leave", "reset"); left[0].ID != secret.Id || left[0].Sub != "s" || left[1].Sub != "s" { // of the other one it was never sent
		t.Fatalf("%+v", left)
	}

	cards, err := s.FindCollectionByNameOrId("cards")
	if err != nil {
		t.Fatal(err)
	}
	cards.ListRule = new("title = 'other'")
	s.save(cards)
	if left := p.both("leave", "reset"); left[0].ID != card.Id || left[1].Sub != "c" {
		t.Fatalf("%+v", left)
	}
	cards.ListRule = nil
	s.save(cards)
	if e := p.next("error"); e.Code != "live.denied" || e.Sub != "c" {
		t.Fatalf("%+v", e)
	}
	p.quiet(s)
}

// A delete is told to those who could see the record, by the rule as it was; one by raw SQL to those who hold it.
func TestDeletes(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	eve, other := s.user("eve")
	team := s.record("teams", map[string]any{"members": []string{ada.Id}})
	unheld := s.record("cards", map[string]any{"team": team.Id, "n": 1})
	old := s.record("notes", map[string]any{"owner": ada.Id})
	mine, theirs := s.connect(token), s.connect(other)
	for _, p := range []*phone{mine, theirs} {
		p.sub("c", map[string]any{"collection": "cards"})
		p.sub("n", map[string]any{"collection": "notes"})
		p.sub("p", map[string]any{"collection": "posts"})
	}
	s.remove(unheld)
	s.remove(old)
	for _, want := range []string{unheld.Id, old.Id} {
		if e := mine.next("event"); e.Action != "delete" || e.ID != want {
			t.Fatalf("%+v, want %s", e, want)
		}
	}
	held, raw := s.record("notes", map[string]any{"owner": ada.Id}), s.record("notes", map[string]any{"owner": eve.Id})
	mine.next("event")
	theirs.next("event")
	s.exec("DELETE FROM notes")
	if e := mine.next("event"); e.Action != "delete" || e.ID != held.Id {
		t.Fatalf("%+v", e)
	}
	if e := theirs.next("event"); e.Action != "delete" || e.ID != raw.Id {
		t.Fatalf("%+v", e)
	}
	post := s.record("posts", nil)
	for _, p := range []*phone{mine, theirs} {
		if e := p.next("event"); e.ID != post.Id {
			t.Fatalf("%+v", e)
		}
	}
	s.exec("DELETE FROM posts")
	for _, p := range []*phone{mine, theirs} {
		if e := p.next("event"); e.Action != "delete" || e.ID != post.Id {
			t.Fatalf("%+v", e)
		}
	}
	// What a failed delete left behind is forgotten.
	kept := s.record("notes", map[string]any{"owner": ada.Id})
	mine.next("event")
	s.OnRecordDeleteExecute("notes").BindFunc(func(*core.RecordEvent) error { return fmt.Errorf("no") })
	if err := s.Delete(kept); err == nil {
		t.Fatal("the hook did not work")
	}
	mine.quiet(s)
	theirs.quiet(s)
}

// Somebody who sleeps through a thousand changes and a restart misses none and sees none twice.
func TestResume(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	first := s.connect(token)
	first.sub("n", map[string]any{"collection": "notes"})
	held := s.record("notes", map[string]any{"owner": ada.Id, "title": "held"})
	lost := s.record("notes", map[string]any{"owner": ada.Id, "title": "lost"})
	gone := s.record("notes", map[string]any{"owner": ada.Id, "title": "gone"})
	versions := map[string]int64{}
	for range 3 {
		e := first.next("event")
		versions[e.ID] = e.Version
	}
	cursor := first.next("cursor").Cursor
	for len(first.frames) > 0 {
		if g := <-first.frames; g.Type == "cursor" {
			cursor = g.Cursor
		}
	}
	_ = first.ws.CloseNow()

	want := map[string]string{}
	write := func(from, to int) {
		for i := from; i < to; i++ {
			r := s.record("notes", map[string]any{"owner": ada.Id, "title": fmt.Sprint(i)})
			want[r.Id] = fmt.Sprint(i)
			if i%3 == 0 {
				s.set(r, map[string]any{"title": fmt.Sprint(i, "b")})
				want[r.Id] = fmt.Sprint(i, "b")
			}
		}
	}
	write(0, 400)
	s.set(lost, map[string]any{"owner": ""})
	s.remove(gone)
	s.down()
	s.up()
	write(400, 800)

	p := s.connect(token)
	p.sub("n", map[string]any{"collection": "notes", "cursor": cursor, "known": []string{held.Id, lost.Id, gone.Id}})
	got, left := map[string]string{}, map[string]bool{}
	for len(got) < len(want) || len(left) < 2 {
		select {
		case g := <-p.frames:
			switch {
			case g.Type == "leave" || g.Action == "delete":
				left[g.ID] = true
			case g.Type == "event":
				if _, twice := got[g.ID]; twice && g.Version <= versions[g.ID] || g.Version <= versions[g.ID] {
					t.Errorf("%+v came again", g)
				}
				got[g.ID], versions[g.ID] = g.Record["title"].(string), g.Version
			}
		case <-time.After(patience):
			t.Fatalf("%d of %d came, %v left", len(got), len(want), left)
		}
	}
	if !maps.Equal(got, want) {
		t.Error("the states differ")
	}
	if !left[lost.Id] || !left[gone.Id] || left[held.Id] {
		t.Errorf("left: %v", left)
	}
	p.quiet(s)

	// Positions that cannot be continued.
	at, _, _ := strings.Cut(cursor, ".")
	for reason, bad := range map[string]string{"epoch": strings.Repeat("a", len(at)) + ".1", "ahead": at + ".zzzzzz"} {
		p.send(map[string]any{"type": "sub", "sub": reason, "collection": "notes", "cursor": bad})
		p.next("subbed")
		if r := p.next("reset"); r.Reason != reason || r.Sub != reason {
			t.Errorf("%+v", r)
		}
	}
}

// Concurrent writers: of each record the states come in their order, and the last one comes.
func TestOrder(t *testing.T) {
	s := start(t)
	_, token := s.user("ada")
	phones := []*phone{s.connect(token), s.connect("")}
	for _, p := range phones {
		p.sub("p", map[string]any{"collection": "posts"})
	}
	const writers, writes = 4, 60
	records := make([]*core.Record, writers)
	for i := range records {
		records[i] = s.record("posts", nil)
	}
	var group sync.WaitGroup
	for _, r := range records {
		group.Go(func() {
			for n := 1; n <= writes; n++ {
				r.Set("n", n)
				if err := s.Save(r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for _, p := range phones {
		last := map[string]got{}
		for slices.ContainsFunc(records, func(r *core.Record) bool { return last[r.Id].Record["n"] != float64(writes) }) {
			g := p.next("event")
			was := last[g.ID]
			if was.Record != nil && (g.Version <= was.Version || g.Record["n"].(float64) < was.Record["n"].(float64)) {
				t.Fatalf("%+v after %+v", g, was)
			}
			last[g.ID] = g
		}
	}
}
