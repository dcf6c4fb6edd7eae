package doors

import (
	"encoding/json"
	"encoding/json/jsontext"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sync"
)

var (
	doorSeeds = flag.Int("sync.door-seeds", 2, "histories of stock clients on the real application")
	doorSeed  = flag.Uint64("sync.door-seed", 0, "replay one history of stock clients")
)

// client is a simulated device of either kind.
type client interface {
	sync() bool
	create(id string, fields row)
	set(id, name string, value any)
	remove(id string)
	all() map[string]row
	wants(api json.RawMessage) row
	name() string
	quiet() bool
}

func (p phone) name() string { return p.device[:2] }

func (m *melon) quiet() bool {
	return !slices.ContainsFunc(slices.Collect(maps.Values(m.rows)), (*localRow).dirty)
}

func (d *docs) quiet() bool {
	return !slices.ContainsFunc(slices.Collect(maps.Values(d.rows)), func(r *localDoc) bool { return r.dirty })
}

// wants is what the device must have of a record that the record API shows.
func (m *melon) wants(raw json.RawMessage) row {
	doc, err := document(raw, "", func(name string, value jsontext.Value) (jsontext.Value, error) { return toColumn(m.notes, name, value) })
	return decoded(m.t, doc, err)
}

func (d *docs) wants(raw json.RawMessage) row {
	doc, err := document(raw, `,"_deleted":false`, func(_ string, value jsontext.Value) (jsontext.Value, error) { return value, nil })
	return decoded(d.t, doc, err)
}

func decoded(t testing.TB, raw []byte, err error) (out row) {
	t.Helper()
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// past is one history.
type past struct {
	*fixture
	r       *rand.Rand
	step    int
	users   []*core.Record
	owners  map[string]*core.Record // of clients
	teams   []*core.Record
	clients []client
	late    []func()
	calm    bool
	rows    int // at most so many
	errs    []string
}

// newPast begins a history with clients of the kinds: m(elon), d(ocs).
func newPast(t testing.TB, seed uint64, kinds string, rows int, f faults) *past {
	h := &past{fixture: start(t), r: rand.New(rand.NewPCG(seed, 5)), owners: map[string]*core.Record{}, rows: rows}
	h.doors.faults = f
	tokens := map[string]string{}
	for i := range 2 {
		u, token := h.User(t, fmt.Sprintf("u%d@example.test", i))
		h.users, tokens[u.Id] = append(h.users, u), token
	}
	for i := range 2 {
		h.teams = append(h.teams, h.record("teams", map[string]any{"name": fmt.Sprint(i)}))
	}
	for i, kind := range kinds {
		u := h.users[i%len(h.users)]
		name := fmt.Sprintf("%c%d", kind, i)
		h.owners[name] = u
		if kind == 'm' {
			m := h.melon(u, tokens[u.Id], name)
			m.lost, m.dies = h.network, h.dies
			h.clients = append(h.clients, m)
			continue
		}
		d := h.docs(u, tokens[u.Id], name)
		d.lost, d.dies = h.network, h.dies
		h.clients = append(h.clients, d)
	}
	return h
}

func (h *past) dies() bool { return !h.calm && h.r.Float64() < .08 }

// network loses requests and answers, and delivers some only after the client has given up.
func (h *past) network(do func() apptest.Response) (apptest.Response, bool) {
	if h.calm {
		return do(), true
	}
	switch x := h.r.Float64(); {
	case x < .1:
		return apptest.Response{}, false
	case x < .22:
		do()
		return apptest.Response{}, false
	case x < .28:
		do()
	case x < .44:
		h.late = append(h.late, func() { do() })
		return apptest.Response{}, false
	}
	return do(), true
}

func (h *past) deliver() {
	if len(h.late) > 0 {
		i := h.r.IntN(len(h.late))
		do := h.late[i]
		h.late = slices.Delete(h.late, i, i+1)
		do()
	}
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (h *past) play() {
	c := pick(h.r, h.clients)
	switch x := h.r.Float64(); {
	case x < .5:
		h.local(c)
	case x < .56:
		h.members()
	case x < .62:
		h.server()
	case x < .63:
		h.lose()
	case x < .72:
		h.deliver()
	default:
		c.sync()
	}
}

func (h *past) forget(c client) {
	p, channel := h.phoneOf(c), melonChannel
	if d, ok := c.(*docs); ok {
		if channel = rxChannel("notes"); d.checkpoint == "" {
			return // without a first checkpoint and without the view nobody could tell what it has
		}
	}
	caller := sync.CallerOf(p.user, "device/"+p.device)
	d, err := h.doors.sync.Engine().Open(h.t.Context(), caller.Key(channel))
	if err != nil {
		h.t.Fatal(err)
	}
	defer d.Close()
	if err := d.Forget(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

func (h *past) phoneOf(c client) phone {
	if m, ok := c.(*melon); ok {
		return m.phone
	}
	return c.(*docs).phone
}

// value tells by whom and when it was made.
func (h *past) value(kind string, c client) string {
	return fmt.Sprintf("%s%d.%s", kind, h.step, c.name())
}

func (h *past) local(c client) {
	ids := slices.Sorted(maps.Keys(c.all()))
	x := h.r.Float64()
	if len(ids) == 0 || x < .3 && len(ids) < h.rows {
		c.create(id(fmt.Sprintf("r%dx", h.step)), row{
			"title": h.value("c", c), "owner": h.owners[c.name()].Id, "team": pick(h.r, h.teams).Id,
		})
		return
	}
	target := pick(h.r, ids)
	d, ghostly := c.(*docs)
	switch {
	case ghostly && x < .37:
		d.haunt(target)
	case x < .6:
		c.set(target, "title", h.value("e", c))
	case x < .75:
		c.set(target, "body", h.value("b", c))
	case x < .83:
		c.set(target, "team", pick(h.r, h.teams).Id)
	case x < .9:
		c.set(target, "owner", pick(h.r, h.users).Id)
	default:
		c.remove(target)
	}
}

func (h *past) members() {
	u, team := pick(h.r, h.users), pick(h.r, h.teams)
	found, err := h.FindFirstRecordByFilter("members", "user = {:u} && team = {:t}", map[string]any{"u": u.Id, "t": team.Id})
	if err == nil {
		h.delete("members", found.Id)
		return
	}
	h.record("members", map[string]any{"user": u.Id, "team": team.Id})
}

func (h *past) server() {
	list, err := h.FindAllRecords("notes")
	if err != nil {
		h.t.Fatal(err)
	}
	if len(list) == 0 {
		return
	}
	if target := pick(h.r, list); h.r.Float64() < .6 {
		h.edit("notes", target.Id, map[string]any{"body": fmt.Sprint("s", h.step), "likes": h.step})
	} else {
		h.delete("notes", target.Id)
	}
}

// lose loses what the server knows of a client, or begins another epoch, as a restored backup does.
func (h *past) lose() {
	if c := pick(h.r, h.clients); h.r.Float64() < .5 {
		h.forget(c)
		return
	}
	if _, err := h.log.BeginEpoch(); err != nil {
		h.t.Fatal(err)
	}
}

// trace notices a client that writes what it did not mean to write: an older value of its own after a newer one, when a
// request that it had given up came late, or a value that another client has made.
func (h *past) trace() {
	last := map[string]int{}
	h.OnRecordUpdateRequest("notes").BindFunc(func(e *core.RecordRequestEvent) error {
		device := e.Request.Header.Get("X-Device-Id")[:2]
		before := e.Record.Original()
		for _, name := range []string{"title", "body"} {
			var step int
			var kind, author string
			value := e.Record.GetString(name)
			if _, err := fmt.Sscanf(value, "%1s%d.%s", &kind, &step, &author); err != nil || value == before.GetString(name) {
				continue // nobody's
			}
			key := device + e.Record.Id + name
			if author != device || step < last[key] {
				h.errs = append(h.errs, fmt.Sprintf("%s sets %s of %s to %s, after %d", device, name, e.Record.Id, value, last[key]))
			}
			last[key] = max(last[key], step)
		}
		return e.Next()
	})
}

// run plays the history and returns what is wrong in the end.
func (h *past) run(steps int) []string {
	h.trace()
	for h.step = 1; h.step <= steps; h.step++ {
		h.play()
	}
	for len(h.late) > 0 {
		h.deliver()
	}
	h.calm = true
	for range 4 {
		for _, c := range h.clients {
			c.sync()
		}
	}
	for _, c := range h.clients {
		h.compare(c)
	}
	return h.errs
}

func (h *past) compare(c client) {
	got := c.all()
	for id, raw := range h.phoneOf(c).listed() {
		want := c.wants(raw)
		have := maps.Clone(got[id])
		for _, name := range []string{"v", "_status", "_changed"} {
			delete(have, name)
		}
		if !reflect.DeepEqual(have, want) {
			h.errs = append(h.errs, fmt.Sprintf("%s has %v, not %v", c.name(), have, want))
		}
		delete(got, id)
	}
	for id := range got {
		h.errs = append(h.errs, fmt.Sprintf("%s still has %v", c.name(), got[id]))
	}
	if !c.quiet() {
		h.errs = append(h.errs, c.name()+" is not done")
	}
}

// TestHistories plays random histories of simulated stock clients through the real doors: rules, triggers, SQLite, HTTP.
func TestHistories(t *testing.T) {
	first, last := uint64(1), uint64(*doorSeeds)
	if raceEnabled {
		last = min(last, 1)
	}
	if *doorSeed != 0 {
		first, last = *doorSeed, *doorSeed
	}
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprintf("sync.door-seed=%d", seed), func(t *testing.T) {
			for _, err := range newPast(t, seed, "mmddmd", 6, faults{}).run(120) {
				t.Error(err)
			}
		})
	}
}

// mutations are ways to get the doors wrong, each with a history that shows it.
func mutations() []struct {
	name  string
	kinds string
	f     faults
	seed  uint64 // of the first history to look at
	last  uint64
} {
	return []struct {
		name  string
		kinds string
		f     faults
		seed  uint64
		last  uint64
	}{
		{"late pushes of WatermelonDB are merged", "mm", faults{merge: true}, 11, 60},
		{"the last document wins", "dd", faults{lastWrite: true}, 30, 90},
		{"pushes of older states are believed", "dd", faults{noGhost: true}, 7, 60},
	}
}

// A test of convergence that does not notice these notices nothing.
func TestMutations(t *testing.T) {
	for _, m := range mutations() {
		t.Run(m.name, func(t *testing.T) {
			if !raceEnabled { // which is slow, and learns nothing new here
				if errs := newPast(t, m.seed, m.kinds, 3, faults{}).run(100); len(errs) > 0 {
					t.Errorf("history %d fails without it: %s", m.seed, errs[0])
				}
			}
			for seed := m.seed; seed <= m.last; seed++ {
				if errs := newPast(t, seed, m.kinds, 3, m.f).run(100); len(errs) > 0 {
					t.Logf("noticed in history %d: %s", seed, errs[0])
					return
				}
			}
			t.Errorf("not noticed in %d histories", m.last-m.seed+1)
		})
	}
}
