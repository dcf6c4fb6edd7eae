package sync_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

var (
	realSeeds = flag.Int("sync.real-seeds", 4, "histories on the real application")
	realSeed  = flag.Uint64("sync.real-seed", 0, "replay one history on the real application")
)

// TestHistories plays random histories on the real thing: rules, triggers, SQLite and HTTP. The engine alone is tested
// with thousands of them in package view.
func TestHistories(t *testing.T) {
	first, last := uint64(1), uint64(*realSeeds)
	if *realSeed != 0 {
		first, last = *realSeed, *realSeed
	}
	if raceEnabled {
		last = min(last, first+1)
	}
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("go test ./extensions/sync -run TestHistories -v -sync.real-seed %d", seed)
				}
			})
			h := newHistory(t, seed)
			for h.step = 1; h.step <= 150; h.step++ {
				h.play()
			}
			for range 2 {
				for _, p := range h.phones {
					p.queue = h.send(p, false)
				}
			}
			for _, p := range h.phones {
				if len(p.queue) > 0 {
					t.Errorf("%s still has %v", p.id, p.queue)
				}
				p.equalsList()
			}
			for id, n := range h.counted {
				if r, err := h.FindRecordById("notes", id); err == nil && r.GetInt("likes") != n {
					t.Errorf("the counter of %s is %d, %d was acknowledged", id, r.GetInt("likes"), n)
				}
			}
		})
	}
}

type phone struct {
	*device
	user  *core.Record
	queue []map[string]any
	n     int
	seen  map[string]bool // cids whose outcome is known
	sweep map[string]bool // what a running snapshot has mentioned; stored with the cursor
}

type history struct {
	*fixture
	r       *rand.Rand
	step    int
	users   []*core.Record
	teams   []*core.Record
	phones  []*phone
	counted map[string]int
	rules   []string
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{fixture: start(t, options{}), r: rand.New(rand.NewPCG(seed, 1)), counted: map[string]int{}}
	h.rules = []string{teamRule, ownerRule, teamRule + ` || title ~ "open"`, teamRule + ` && @now > "2000-01-01"`, `owner.name != "hidden" && (` + teamRule + `)`}
	for i := range 3 {
		u, token := h.User(t, fmt.Sprintf("u%d@example.test", i))
		h.users = append(h.users, u)
		for j := range 2 {
			h.phones = append(h.phones, &phone{device: h.device(token, fmt.Sprintf("p%d%d", i, j)), user: u, seen: map[string]bool{}})
		}
	}
	for i := range 2 {
		h.teams = append(h.teams, h.record("teams", map[string]any{"name": fmt.Sprint(i)}))
	}
	for _, p := range h.phones {
		p.limit = 3
	}
	return h
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (h *history) play() {
	p := pick(h.r, h.phones)
	switch x := h.r.Float64(); {
	case x < .4:
		h.local(p)
	case x < .5:
		h.members()
	case x < .6:
		h.server()
	case x < .63:
		h.notes.ListRule = new(pick(h.r, h.rules))
		h.save(h.notes)
	case x < .65:
		h.lose()
	default:
		p.queue = h.send(p, true)
	}
}

func (h *history) local(p *phone) {
	p.n++
	cid := fmt.Sprint(p.n)
	ids := make([]string, 0, len(p.rows))
	for id := range p.rows {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) == 0 || h.r.Float64() < .35 {
		p.queue = append(p.queue, create(cid, id(fmt.Sprintf("r%dx", h.step)), map[string]any{
			"title": fmt.Sprint("t", h.step), "owner": p.user.Id, "team": pick(h.r, h.teams).Id,
		}))
		return
	}
	target := pick(h.r, ids)
	switch x := h.r.Float64(); {
	case x < .3:
		p.queue = append(p.queue, update(cid, target, map[string]any{"title": pick(h.r, []string{"open", "x", "y"})}))
	case x < .5:
		p.queue = append(p.queue, with(update(cid, target, nil), "apply", map[string]any{"likes+": 1}))
	case x < .65:
		p.queue = append(p.queue, update(cid, target, map[string]any{"owner": pick(h.r, h.users).Id}))
	case x < .85:
		p.queue = append(p.queue, update(cid, target, map[string]any{"team": pick(h.r, h.teams).Id}))
	default:
		p.queue = append(p.queue, remove(cid, target))
	}
}

func (h *history) members() {
	u, team := pick(h.r, h.users), pick(h.r, h.teams)
	found, err := h.FindFirstRecordByFilter("members", "user = {:u} && team = {:t}", map[string]any{"u": u.Id, "t": team.Id})
	if err == nil {
		h.delete(found)
		return
	}
	h.record("members", map[string]any{"user": u.Id, "team": team.Id})
}

func (h *history) server() {
	switch x := h.r.Float64(); {
	case x < .3:
		if _, err := h.NonconcurrentDB().NewQuery("UPDATE notes SET body = 'raw' WHERE rowid % 3 = 0").Execute(); err != nil {
			h.t.Fatal(err)
		}
	case x < .5:
		u := pick(h.r, h.users)
		h.edit(u, map[string]any{"name": pick(h.r, []string{"hidden", "shown"})})
	default:
		list, err := h.FindAllRecords("notes")
		if err != nil {
			h.t.Fatal(err)
		}
		if len(list) > 0 {
			h.delete(pick(h.r, list))
		}
	}
}

// lose loses the views, lets the server find them again, or begins another epoch.
func (h *history) lose() {
	var err error
	switch x := h.r.Float64(); {
	case x < .3:
		_, err = h.log.BeginEpoch()
	case x < .6:
		err = h.feat.LoseViews(h.DataDir(), func(name string) error {
			if err := os.Remove(filepath.Join(h.DataDir(), name)); !os.IsNotExist(err) {
				return err
			}
			return nil
		})
	default:
		err = h.feat.LoseViews(h.DataDir(), func(string) error { return nil })
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// send syncs until there is no more, and returns what is left of the queue. On a bad network answers are lost, requests
// come twice, and the app dies before it has stored the cursor.
func (h *history) send(p *phone, bad bool) []map[string]any {
	for range 100 {
		batch := p.queue[:min(len(p.queue), 4)]
		if bad && h.r.Float64() < .2 {
			p.ask(p.cursor, []string{"notes"}, batch...) // and the answer is lost
			if h.r.Float64() < .5 {
				return p.queue
			}
		}
		got := p.ask(p.cursor, []string{"notes"}, batch...)
		for i, r := range got.Results {
			if r.Status == "retry" {
				h.t.Errorf("retry: %+v", r)
			}
			applied := r.Status == "applied" || r.Status == "merged" || r.Original == "applied" || r.Original == "merged"
			if batch[i]["apply"] != nil && applied && !p.seen[r.CID] {
				h.counted[fmt.Sprint(batch[i]["id"])]++
			}
			p.seen[r.CID] = true
		}
		p.queue = p.queue[len(batch):]
		sweep := maps.Clone(p.sweep)
		if len(got.Reset) > 0 {
			sweep = map[string]bool{}
		}
		for _, row := range got.Collections["notes"].Upserts {
			p.rows[fmt.Sprint(row["id"])] = row
			if sweep != nil {
				sweep[fmt.Sprint(row["id"])] = true
			}
		}
		for _, id := range got.Collections["notes"].Removes {
			delete(p.rows, id)
		}
		if bad && h.r.Float64() < .1 {
			return p.queue
		}
		p.cursor, p.sweep = got.Cursor, sweep
		if got.More {
			continue
		}
		if sweep != nil {
			for id := range p.rows {
				if !sweep[id] {
					delete(p.rows, id)
				}
			}
			p.sweep = nil
		}
		if len(p.queue) == 0 {
			return nil
		}
	}
	h.t.Fatal("there is always more")
	return nil
}
