package view

import (
	"strings"
	"testing"
)

// mutation is one way to get sync wrong that was found by getting it wrong.
type mutation struct {
	name   string
	set    func(w *world)
	plan   plan
	budget int    // histories within which the test must notice
	first  uint64 // where to begin, when it is rare
}

// small is a busy little world: rare coincidences are frequent in it.
func small(kinds string) plan { return plan{kinds: kinds, steps: 150, hostile: 1.8, rows: 3} }

func mutations() []mutation {
	fault := func(set func(f *faults)) func(w *world) {
		return func(w *world) { set(&w.engine.faults) }
	}
	with := func(p plan, change func(p *plan)) plan { change(&p); return p }
	return []mutation{
		{"pushed ids are not looked at again", fault(func(f *faults) { f.noPushed = true }), small("mmdd"), 100, 1},
		{"pushed ids are kept with the view only", fault(func(f *faults) { f.noRecheck = true }), plan{kinds: "ddd", steps: 60, hostile: 2}, 2000, 1},
		{"older positions are forgotten", fault(func(f *faults) { f.lastOnly = true }), small("nnn"), 100, 1},
		{"rows stored without their cursor are forgotten", fault(func(f *faults) { f.noDoubt, f.noMaybe = true, true }), small("nnn"), 500, 1},
		{"a repeated page with another outcome is believed", fault(func(f *faults) { f.noFlip = true }), small("nn"), 3000, 1170},
		{"membership does not matter", fault(func(f *faults) { f.noDeps = true }), small("nnm"), 100, 1},
		{"only deleted rows are removed", fault(func(f *faults) { f.tombstones = true }), small("nnm"), 100, 1},
		{"no dedupe of changes", func(w *world) { w.noDedupe = true }, small("nnn"), 100, 1},
		{"melon's late pushes are merged", func(w *world) { w.laxPush = true }, small("mm"), 2000, 1},
		{"the last document wins", func(w *world) { w.lastWrite = true }, small("ddd"), 3000, 1},
		{"the epoch is ignored", fault(func(f *faults) { f.noEpoch = true }), with(small("nnm"), func(p *plan) { p.restore = true }), 500, 1},
		{"a lost file is not noticed", fault(func(f *faults) { f.loseNonce = true }), with(small("nnm"), func(p *plan) { p.lose = true }), 5000, 1},
		{"changed fields do not matter", fault(func(f *faults) { f.noSchema = true }), small("nnm"), 100, 1},
	}
}

// A test of convergence that does not notice these notices nothing. With the race detector only those are tried that are
// noticed soon.
func TestMutations(t *testing.T) {
	for _, m := range mutations() {
		if m.budget > 500 && fewer(m.budget) < m.budget {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for seed := m.first; seed < m.first+uint64(m.budget); seed++ {
				p := m.plan
				p.setup = m.set
				if errs := history(seed, p); len(errs) > 0 {
					t.Logf("noticed in history %d: %s", seed, errs[0])
					return
				}
			}
			t.Errorf("not noticed in %d histories", m.budget)
		})
	}
}

// The plans of the mutations hold when nothing is wrong.
func TestMutationPlansHold(t *testing.T) {
	for _, m := range mutations() {
		for seed := uint64(1); seed <= uint64(fewer(20)); seed++ {
			if errs := history(seed, m.plan); len(errs) > 0 {
				t.Errorf("%s: history %d (%s): %s", m.name, seed, replay(seed, m.name), strings.Join(errs[:min(3, len(errs))], "\n"))
				break
			}
		}
	}
}
