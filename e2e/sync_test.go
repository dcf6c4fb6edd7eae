package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// syncing is a device: rows as they were pulled, and changes that are still to be sent.
type syncing struct {
	server *server
	client *http.Client
	token  string
	owner  string
	name   string

	cursor any
	rows   map[string]map[string]any
	sweep  map[string]bool // what a running snapshot has mentioned
	resets int
	more   bool
	queue  []map[string]any
	count  int            // of changes
	bumps  map[string]int // increments of the device's own counter that were acknowledged
	again  int            // changes that were already done when they were repeated

	late sync.WaitGroup // requests that the device does not wait for
}

func (s *server) device(t testing.TB, name, email, owner string) *syncing {
	t.Helper()
	d := &syncing{
		server: s, client: &http.Client{Transport: &http.Transport{}}, name: name, owner: owner,
		token: s.signIn(t, "users", email, "a long password"), // a session is a device
		rows:  map[string]map[string]any{}, bumps: map[string]int{},
	}
	t.Cleanup(d.client.CloseIdleConnections)
	return d
}

// sharing makes the collection items, which are seen by their owners and by the members of their teams.
func (s *server) sharing(t testing.TB, admin string) {
	t.Helper()
	const seen = `owner = @request.auth.id || (@collection.members.team ?= team && @collection.members.user ?= @request.auth.id)`
	for _, c := range []map[string]any{
		{"name": "members", "type": "base", "fields": []map[string]any{{"name": "user", "type": "text"}, {"name": "team", "type": "text"}}},
		{
			"name": "items", "type": "base", "listRule": seen, "viewRule": seen, "createRule": `owner = @request.auth.id`, "updateRule": seen, "deleteRule": seen,
			"fields": []map[string]any{
				{"name": "owner", "type": "text"}, {"name": "team", "type": "text"}, {"name": "title", "type": "text"}, {"name": "n", "type": "number"},
			},
		},
	} {
		s.do(t, request{Method: http.MethodPost, Path: "/api/collections", Token: admin, JSON: c}).assertStatus(t, http.StatusOK)
	}
}

// change puts a change into the queue.
func (d *syncing) change(op, id string, members map[string]any) {
	d.count++
	c := map[string]any{"cid": strconv.Itoa(d.count), "collection": "items", "op": op, "id": id}
	maps.Copy(c, members)
	d.queue = append(d.queue, c)
}

func (d *syncing) counter() string { return fmt.Sprintf("counter%08s", d.name) }

// edit is what the user does, online or not.
func (d *syncing) edit(dice *rand.Rand) {
	ids := slices.DeleteFunc(slices.Sorted(maps.Keys(d.rows)), func(id string) bool { return strings.HasPrefix(id, "counter") })
	switch x := dice.Float64(); {
	case x < .3:
		d.change("update", d.counter(), map[string]any{"apply": map[string]any{"n+": 1}})
	case len(ids) == 0 || x < .5 && len(ids) < 60:
		d.change("create", fmt.Sprintf("x%sn%012d", d.name, d.count), map[string]any{
			"set": map[string]any{"owner": d.owner, "team": fmt.Sprint("t", dice.IntN(2)), "title": "new"},
		})
	case x < .9:
		d.change("update", ids[dice.IntN(len(ids))], map[string]any{"set": map[string]any{"title": fmt.Sprint(d.name, " ", d.count)}})
	default:
		d.change("delete", ids[dice.IntN(len(ids))], nil)
	}
}

// run edits and syncs. Some requests are sent twice, and the second one arrives whenever it does: before the first, beside
// it, or after later ones.
func (d *syncing) run(ctx context.Context, dice *rand.Rand) {
	for ctx.Err() == nil {
		if len(d.queue) < 5 {
			d.edit(dice)
		}
		if dice.Float64() < .1 {
			double := d.body()
			wait := time.Duration(dice.IntN(30)) * time.Millisecond
			d.late.Go(func() {
				time.Sleep(wait) // what a network does
				_, _ = d.server.try(ctx, d.client, double)
			})
		}
		_ = d.push(ctx) // it is repeated
	}
	d.late.Wait()
}

func (d *syncing) body() request {
	return request{Method: http.MethodPost, Path: "/api/v1/sync", Token: d.token, JSON: map[string]any{
		"cursor": d.cursor, "collections": []string{"items"}, "limit": 20, "changes": slices.Clone(d.queue[:min(3, len(d.queue))]),
	}}
}

// push sends the next changes and takes in the answer, if there is one.
func (d *syncing) push(ctx context.Context) error {
	resp, err := d.server.try(ctx, d.client, d.body())
	if err != nil {
		return err
	}
	if resp.Status != http.StatusOK {
		return fmt.Errorf("status %d: %s", resp.Status, resp.Body)
	}
	var answer struct {
		Data struct {
			Results     []struct{ CID, Status, Original string }
			Collections map[string]struct {
				Upserts []map[string]any
				Removes []string
			}
			Cursor string
			More   bool
			Reset  []string
		}
	}
	if err := json.Unmarshal(resp.Body, &answer); err != nil {
		return err
	}
	for _, r := range answer.Data.Results {
		i := slices.IndexFunc(d.queue, func(c map[string]any) bool { return c["cid"] == r.CID })
		if i < 0 || r.Status == "retry" {
			continue
		}
		if r.Status == "duplicate" {
			d.again++
		}
		if d.queue[i]["apply"] != nil && (r.Status == "applied" || r.Original == "applied") {
			d.bumps[d.counter()]++
		}
		d.queue = slices.Delete(d.queue, i, i+1)
	}
	if len(answer.Data.Reset) > 0 {
		d.sweep = map[string]bool{}
		d.resets++
	}
	for _, row := range answer.Data.Collections["items"].Upserts {
		id, _ := row["id"].(string)
		d.rows[id] = row
		if d.sweep != nil {
			d.sweep[id] = true
		}
	}
	for _, id := range answer.Data.Collections["items"].Removes {
		delete(d.rows, id)
	}
	d.cursor, d.more = answer.Data.Cursor, answer.Data.More
	if !d.more && d.sweep != nil {
		maps.DeleteFunc(d.rows, func(id string, _ map[string]any) bool { return !d.sweep[id] })
		d.sweep = nil
	}
	return nil
}

// drain syncs until nothing is left on either side.
func (d *syncing) drain(t testing.TB) {
	t.Helper()
	for range 500 {
		if err := d.push(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(d.queue) == 0 && !d.more {
			return
		}
	}
	t.Fatalf("%s is never done: %d changes, more %v", d.name, len(d.queue), d.more)
}

// equals checks that the device has what another one that has just been bought gets, and what the record API shows.
func (d *syncing) equals(t testing.TB, fresh *syncing) {
	t.Helper()
	if !reflect.DeepEqual(d.rows, fresh.rows) {
		t.Errorf("%s has %v, a new device gets %v", d.name, d.rows, fresh.rows)
	}
	listed := d.server.do(t, request{Path: "/api/collections/items/records?perPage=500&skipTotal=1", Token: d.token})
	listed.assertStatus(t, http.StatusOK)
	items, _ := listed.json(t)["items"].([]any)
	if len(items) != len(d.rows) {
		t.Errorf("%s has %d rows, the API shows %d", d.name, len(d.rows), len(items))
	}
	for _, item := range items {
		row, _ := item.(map[string]any)
		id, _ := row["id"].(string)
		have := maps.Clone(d.rows[id])
		delete(have, "v")
		if !reflect.DeepEqual(have, row) {
			t.Errorf("%s has %v, the API shows %v", d.name, have, row)
		}
	}
}

// meddle changes memberships, rows and fields while devices sync and the server dies.
func (s *server) meddle(ctx context.Context, admin string, users []string, dice *rand.Rand) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	send := func(method, path string, body any) map[string]any {
		resp, err := s.try(ctx, client, request{Method: method, Path: path, Token: admin, JSON: body})
		var out map[string]any
		if err == nil && resp.Status == http.StatusOK {
			_ = json.Unmarshal(resp.Body, &out) // then nothing is done with it
		}
		return out
	}
	for step := 0; ctx.Err() == nil; step++ {
		i, j := dice.IntN(len(users)), dice.IntN(2)
		id := fmt.Sprintf("member%dof%06d", i, j)
		switch {
		case step%40 == 20: // a field more, and later another name for it
			c := send(http.MethodGet, "/api/collections/items", nil)
			fields, _ := c["fields"].([]any)
			if len(fields) == 0 {
				continue
			}
			if last, _ := fields[len(fields)-1].(map[string]any); strings.HasPrefix(fmt.Sprint(last["name"]), "extra") {
				last["name"] = fmt.Sprint("extra", step)
			} else {
				fields = append(fields, map[string]any{"name": "extra", "type": "text"})
			}
			send(http.MethodPatch, "/api/collections/items", map[string]any{"fields": fields})
		case dice.Float64() < .5:
			send(http.MethodPost, "/api/collections/members/records", map[string]any{"id": id, "user": users[i], "team": fmt.Sprint("t", j)})
		default:
			send(http.MethodDelete, "/api/collections/members/records/"+id, nil)
		}
		time.Sleep(time.Duration(dice.IntN(20)) * time.Millisecond) // not always something happens
	}
}

// TestKillWhileSyncing kills the server in a storm of syncs, while memberships and fields change. Whatever was not
// answered is repeated, every increment must count once, and in the end each device has what its user may see.
func TestKillWhileSyncing(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	admin := s.superuser(t)
	s.sharing(t, admin)
	emails := []string{"ann@example.com", "ben@example.com", "cy@example.com"}
	users := make([]string, len(emails))
	for i, email := range emails {
		users[i], _ = s.user(t, email)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var storm sync.WaitGroup
	devices := make([]*syncing, 6)
	for i := range devices {
		d := s.device(t, strconv.Itoa(i), emails[i/2], users[i/2])
		devices[i] = d
		d.change("create", d.counter(), map[string]any{"set": map[string]any{"owner": d.owner}})
		storm.Go(func() { d.run(ctx, rand.New(rand.NewPCG(uint64(i), 1))) })
	}
	storm.Go(func() { s.meddle(ctx, admin, users, rand.New(rand.NewPCG(7, 1))) })
	for range 6 {
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond) // where it strikes is the test's only dice
		s.kill()
		s.up(t)
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	storm.Wait()
	for _, d := range devices {
		d.drain(t)
	}
	again, rows, resets := 0, 0, 0
	for _, d := range devices {
		d.drain(t) // what the others had left to say
		resets += d.resets
	}
	s.kill()
	s.up(t)
	for i, d := range devices {
		before := d.resets
		d.drain(t)
		if d.resets != before {
			t.Errorf("device %d starts over because the server was killed", i)
		}
		fresh := s.device(t, "fresh", emails[i/2], users[i/2])
		fresh.drain(t)
		d.equals(t, fresh)
		for id, n := range d.bumps {
			if row := d.rows[id]; row == nil || row["n"] != float64(n) {
				t.Errorf("device %d has counted to %v, %d were acknowledged", i, row["n"], n)
			}
		}
		again, rows = again+d.again, rows+len(d.rows)
	}
	t.Logf("%d changes were done and not answered, %d rows are held, %d resets", again, rows, resets)
}

// TestSyncSeesEverythingAndRestores writes in ways that are not the API's, and then puts a backup in place: devices learn
// of all of it.
func TestSyncSeesEverythingAndRestores(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/main.pb.js", `
onRecordAfterCreateSuccess((e) => {
    if (e.record.get("title") === "parent") {
        const child = new Record(e.app.findCollectionByNameOrId("items"))
        child.set("id", "childofthehook0")
        child.set("owner", e.record.get("owner"))
        child.set("title", "made by a hook")
        e.app.save(child)
    }
    e.next()
}, "items")
routerAdd("POST", "/raw", (e) => {
    e.app.db().newQuery("UPDATE items SET title = 'raw of a hook' WHERE title = 'made by a hook'").execute()
    return e.noContent(204)
})
`)
	s := startIn(t, dir, relaxed()...)
	admin := s.superuser(t)
	s.sharing(t, admin)
	owner, _ := s.user(t, "ann@example.com")
	d := s.device(t, "0", "ann@example.com", owner)
	const parent, kept, child = "parent000000000", "kept00000000000", "childofthehook0"
	title := func(id, want string) {
		t.Helper()
		if got := d.rows[id]; got == nil || got["title"] != want {
			t.Errorf("%s is %v, want %q", id, got, want)
		}
	}
	poll := func(since string) response {
		return s.do(t, request{Path: "/api/v1/changes?collections=items&since=" + since, Token: d.token})
	}
	d.change("create", parent, map[string]any{"set": map[string]any{"owner": owner, "title": "parent"}})
	d.change("create", kept, map[string]any{"set": map[string]any{"owner": owner, "title": "before"}})
	d.drain(t)
	title(child, "made by a hook")
	s.do(t, request{Method: http.MethodPost, Path: "/raw"}).assertStatus(t, http.StatusNoContent)
	d.drain(t)
	title(child, "raw of a hook")
	s.do(t, request{Method: http.MethodPost, Path: "/api/sql", Token: admin, JSON: map[string]any{
		"query": "UPDATE items SET title = 'console' WHERE id = '" + child + "'",
	}}).assertStatus(t, http.StatusOK)
	d.drain(t)
	title(child, "console")

	s.do(t, request{Method: http.MethodPost, Path: "/api/backups", Token: admin, JSON: map[string]any{"name": "before.zip"}}).assertStatus(t, http.StatusNoContent)
	d.change("update", kept, map[string]any{"set": map[string]any{"title": "after"}})
	d.change("delete", child, nil)
	d.change("create", "later0000000000", map[string]any{"set": map[string]any{"owner": owner, "title": "later"}})
	d.drain(t)
	title(kept, "after")
	polled := poll("")
	polled.assertStatus(t, http.StatusOK)
	cursor := polled.Header.Get("X-Next-Cursor")
	poll(cursor).assertStatus(t, http.StatusNoContent)

	s.do(t, request{Method: http.MethodPost, Path: "/api/backups/before.zip/restore", Token: admin}).assertStatus(t, http.StatusNoContent)
	eventually(t, "the backup is in place", startTimeout, func() bool {
		resp, err := s.try(t.Context(), d.client, request{Path: "/api/collections/items/records/" + kept, Token: d.token})
		return err == nil && resp.Status == http.StatusOK && resp.text(t, "title") == "before"
	})
	poll(cursor).assertProblem(t, http.StatusGone, "changes.cursor_reset")
	resets := d.resets
	d.change("update", parent, map[string]any{"set": map[string]any{"title": "made during the restore"}})
	d.drain(t)
	if d.resets != resets+1 {
		t.Errorf("%d resets", d.resets-resets)
	}
	title(kept, "before")
	title(child, "console")
	title(parent, "made during the restore")
	if _, there := d.rows["later0000000000"]; there {
		t.Error("a row that the backup does not have is still there")
	}
	fresh := s.device(t, "1", "ann@example.com", owner)
	fresh.drain(t)
	d.equals(t, fresh)
	poll("").assertStatus(t, http.StatusOK)
}
