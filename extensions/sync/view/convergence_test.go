package view

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	seeds = flag.Int("sync.seeds", 3000, "histories of the convergence test")

	seed     = flag.Uint64("sync.seed", 1, "the history that TestReplay plays")
	planName = flag.String("sync.plan", "", "its plan: the name of a mutation, or the convergence test's")
)

// plan is what kinds of things happen in a history.
type plan struct {
	kinds   string // n(ative), m(elon), d(ocs)
	steps   int
	hostile float64
	rows    int  // 0: as many as come
	lose    bool // the views are lost
	restore bool // a backup is restored
	purge   bool // deletions are forgotten
	setup   func(w *world)
}

func everything() plan {
	return plan{kinds: "nnnnmmmddd", steps: 120, hostile: 1, lose: true, restore: true, purge: true}
}

// history plays one random history and returns what is wrong in the end.
func history(number uint64, p plan) []string {
	h := &hist{plan: p, r: rand.New(rand.NewPCG(number, 7919)), w: newWorld()}
	at := time.Unix(epochOfRuns+1000, 0)
	skew := rand.New(rand.NewPCG(number, 7920))
	h.w.engine.now = func() time.Time {
		at = at.Add(time.Millisecond * time.Duration(h.r.IntN(1500)))
		if skew.Float64() < .02 { // somebody sets the clock
			at = at.Add(time.Duration(skew.IntN(7200)-3600) * time.Second)
		}
		return at
	}
	h.w.engine.verify = h.verify
	if p.setup != nil {
		p.setup(h.w)
	}
	for i, kind := range p.kinds {
		c := common{key: fmt.Sprintf("%c%d", kind, i), user: h.pick(users), network: &network{r: h.r, hostile: p.hostile}}
		switch kind {
		case 'n':
			h.devices = append(h.devices, &native{common: c, rows: map[string]map[string]string{}})
		case 'm':
			h.devices = append(h.devices, &melon{common: c, rows: map[string]*melonRow{}})
		case 'd':
			h.devices = append(h.devices, &docs{common: c, rows: map[string]*doc{}})
		}
	}
	for _, u := range users {
		for _, t := range teams {
			if h.r.Float64() < .5 {
				h.w.setMember(u, t, true)
			}
		}
	}
	for h.step = 1; h.step <= p.steps; h.step++ {
		h.play()
	}
	h.settle()
	return h.errs
}

var (
	users = []string{"u1", "u2", "u3"}
	teams = []string{"t1", "t2"}
)

type hist struct {
	plan
	r       *rand.Rand
	w       *world
	devices []device
	step    int
	upset   bool // something has happened that makes a reset legitimate
	back    bool // the data has gone back in time
	backup  *data
	errs    []string
}

func (h *hist) pick(list []string) string { return list[h.r.IntN(len(list))] }

func (h *hist) errorf(format string, args ...any) {
	h.errs = append(h.errs, fmt.Sprintf(format, args...))
}

// verify is the test that the two ways of making a run agree: the delta has all that the set asks for, and beyond it only
// what the device may hold without its being sure.
func (h *hist) verify(_ Collection, delta, wanted *Set) error {
	missing := set(wanted)
	missing.AndNot(delta)
	if !missing.IsEmpty() {
		h.errorf("step %d: the delta lacks %v", h.step, missing.ToArray())
	}
	return nil
}

func (h *hist) play() {
	d := h.devices[h.r.IntN(len(h.devices))]
	x := h.r.Float64()
	switch {
	case x < .55:
		h.edit(d)
	case x < .61:
		h.w.setMember(h.pick(users), h.pick(teams), h.r.Float64() < .5)
	case x < .66:
		h.server()
	case x < .70:
		h.disaster()
	case x < .75:
		d.net().deliver()
	default:
		d.sync(h.w)
	}
}

// edit is what the user of a device does.
func (h *hist) edit(d device) {
	rows := d.all()
	ids := slices.Sorted(maps.Keys(rows))
	x := h.r.Float64()
	if len(ids) == 0 || x < .3 && (h.rows == 0 || len(h.w.rows) < h.rows) {
		id := fmt.Sprintf("r%d", h.step)
		owner := d.owner()
		if h.r.Float64() < .2 {
			owner = h.pick(users)
		}
		n := note{Title: fmt.Sprintf("c%d", h.step), Owner: owner, Team: h.pick(teams)}
		d.create(id, n.fields(id, h.w.schema))
		return
	}
	id := h.pick(ids)
	body := "body"
	if _, renamed := rows[id]["text"]; renamed {
		body = "text"
	}
	switch {
	case x < .5:
		d.update(id, "title", fmt.Sprintf("e%d", h.step))
	case x < .6:
		d.update(id, body, fmt.Sprintf("b%d", h.step))
	case x < .68:
		d.update(id, "team", h.pick(teams))
	case x < .76:
		d.update(id, "owner", h.pick(users))
	case x < .88:
		d.increment(id)
	default:
		d.remove(id)
	}
}

// server is what happens on the server without any device.
func (h *hist) server() {
	ids := slices.Sorted(maps.Keys(h.w.rows))
	if len(ids) == 0 {
		return
	}
	id := h.pick(ids)
	n := h.w.rows[id]
	switch x := h.r.Float64(); {
	case x < .5:
		n.Title = fmt.Sprintf("s%d", h.step)
		h.w.put(id, n)
	case x < .7:
		n.Owner = h.pick(users)
		h.w.put(id, n)
	default:
		h.w.remove(id)
	}
}

// disaster is what seldom happens.
func (h *hist) disaster() {
	switch x := h.r.Float64(); {
	case x < .2:
		h.w.rule = 1 - h.w.rule
		h.w.seq++
		h.w.deps = h.w.seq
	case x < .28:
		h.w.schema ^= renamed
		h.w.seq++
	case x < .35:
		h.w.schema ^= added
		h.w.seq++
	case x < .5 && h.lose:
		h.upset = true
		for _, d := range h.devices {
			if rx, ok := d.(*docs); !ok || rx.checkpoint.Run != 0 { // see docs.sync
				delete(h.w.store.kept, d.name())
			}
		}
		h.w.store.nonce++
	case x < .7 && h.purge:
		h.upset = true
		h.w.purge()
	case x < .85 && h.restore:
		if h.backup == nil {
			backup := h.w.clone()
			h.backup = &backup
			return
		}
		h.upset, h.back = true, true
		h.w.restore(*h.backup)
		h.backup = nil
	}
}

// settle ends the faults, lets every device sync, and compares.
func (h *hist) settle() {
	for _, d := range h.devices {
		for len(d.net().late) > 0 {
			d.net().deliver()
		}
		d.net().calm = true
	}
	for range 6 {
		for _, d := range h.devices {
			d.sync(h.w)
		}
	}
	for _, d := range h.devices {
		h.compare(d)
	}
	h.promises()
}

func (h *hist) compare(d device) {
	want := map[string]string{}
	for id, n := range h.w.visible(d.owner()) {
		want[id] = text(n.fields(id, h.w.schema))
	}
	got := map[string]string{}
	var hash uint32
	for id, row := range d.all() {
		got[id] = text(row)
		hash ^= Hash(id)
	}
	for id, row := range want {
		if got[id] != row {
			h.errorf("%s has %q, not %q", d.name(), got[id], row)
		}
	}
	for id, row := range got {
		if _, ok := want[id]; !ok {
			h.errorf("%s still has %q", d.name(), row)
		}
	}
	if !d.quiet() {
		h.errorf("%s is not done", d.name())
	}
	if c := d.last(); c != nil && d.name()[0] == 'n' && len(h.errs) == 0 && (c.Count != uint64(len(got)) || c.XOR != hash) {
		h.errorf("%s: the check %v does not hold for %d rows", d.name(), *c, len(got))
	}
}

func text(row map[string]string) string {
	var parts []string
	for _, f := range slices.Sorted(maps.Keys(row)) {
		parts = append(parts, f+"="+row[f])
	}
	return strings.Join(parts, " ")
}

// promises checks the guarantees that are not convergence.
func (h *hist) promises() {
	h.errs = append(h.errs, h.w.leaks...)
	for _, reset := range h.w.resets {
		if !h.upset {
			h.errorf("reset without a reason: %s", reset)
		}
	}
	for _, r := range h.w.regressions {
		if !h.back {
			h.errorf("an older value came back: %s", r)
		}
	}
	if h.back {
		return
	}
	counts := map[string]int{}
	for _, d := range h.devices {
		n, ok := d.(*native)
		if !ok {
			continue
		}
		for _, c := range n.done {
			if c.status != "applied" {
				continue
			}
			counts[c.ID] += c.Add
			if head, known := h.w.heads[c.ID]; c.Op == "create" && h.w.floor == 0 && (!known || !head.deleted) {
				if _, ok := h.w.rows[c.ID]; !ok {
					h.errorf("%s, which %s created, is lost", c.ID, d.name())
				}
			}
		}
	}
	for id, n := range h.w.rows {
		if h.w.counts[id] != counts[id] && n.N == h.w.counts[id] {
			h.errorf("the counter of %s is %d, but %d was acknowledged", id, n.N, counts[id])
		}
	}
}

// fewer is how many of n histories are played: the race detector makes each of them ten times slower, so with it there are
// a few, and make test plays all of them without it.
func fewer(n int) int {
	if testing.Short() || raceEnabled {
		return (n + 19) / 20
	}
	return n
}

// replay is the command that plays a history again.
func replay(number uint64, name string) string {
	return fmt.Sprintf("go test ./extensions/sync/view -run TestReplay -v -sync.seed %d -sync.plan %q", number, name)
}

func TestConvergence(t *testing.T) {
	failed := 0
	for i := uint64(1); i <= uint64(fewer(*seeds)) && failed < 5; i++ {
		if errs := history(i, everything()); len(errs) > 0 {
			failed++
			t.Errorf("history %d (%s):\n%s", i, replay(i, ""), strings.Join(errs[:min(len(errs), 4)], "\n"))
		}
	}
}

// TestReplay plays the history that -sync.seed names, of the convergence test or with the plan of a mutation.
func TestReplay(t *testing.T) {
	p := everything()
	if i := slices.IndexFunc(mutations(), func(m mutation) bool { return m.name == *planName }); i >= 0 {
		p = mutations()[i].plan
	} else if *planName != "" {
		t.Fatalf("there is no mutation %q", *planName)
	}
	if errs := history(*seed, p); len(errs) > 0 {
		t.Errorf("history %d:\n%s", *seed, strings.Join(errs, "\n"))
	}
}
