package console

import (
	"maps"
	"slices"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/tally"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/meter"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// otherKinds is the label of jobs whose kinds this program does not know: there may be any number of those.
const otherKinds = "other"

// byKind are the metrics of each kind that is declared. What this process does is counted as it does it; what waits is read
// when somebody asks.
func byKind(j *jobs.Jobs) []extensions.Metric {
	var kept tally.Kept[[]table.KindCount]
	waiting := func() []table.KindCount {
		if j.App() == nil || !j.App().IsBootstrapped() {
			return nil
		}
		return merged(j, kept.Get(func() ([]table.KindCount, error) { return table.CountKinds(j.App()) }))
	}
	meters := func(read func(kind string, m *meter.Meter)) {
		all := j.Meters()
		for _, kind := range slices.Sorted(maps.Keys(all)) {
			read(kind, all[kind])
		}
	}
	of := func(pick func(m *meter.Meter) *tally.Histogram) func(add func(extensions.Sample)) {
		return func(add func(extensions.Sample)) {
			meters(func(kind string, m *meter.Meter) {
				if d := pick(m).Read(); d.Count > 0 {
					add(extensions.Sample{Labels: []string{kind}, Distribution: d})
				}
			})
		}
	}
	kind := []string{"kind"}
	return []extensions.Metric{
		{Name: "satchel_jobs_depth_count", Help: "Jobs in the queue, by kind and state.", Labels: []string{"kind", "state"}, Series: func(add func(extensions.Sample)) {
			for _, c := range waiting() {
				add(extensions.Sample{Labels: []string{c.Kind, string(table.States()[c.State])}, Value: float64(c.N)})
			}
		}},
		{Name: "satchel_jobs_kind_oldest_seconds", Help: "How long the oldest ready job of a kind has been waiting.", Labels: kind, Series: func(add func(extensions.Sample)) {
			for _, c := range waiting() {
				if c.State == table.IsReady {
					age := 0.0
					if c.N > 0 {
						age = max(time.Since(time.UnixMilli(c.First)).Seconds(), 0)
					}
					add(extensions.Sample{Labels: []string{c.Kind}, Value: age})
				}
			}
		}},
		{Name: "satchel_jobs_wait_seconds", Help: "Time from when a job is due until a worker begins it.", Labels: kind, Series: of(func(m *meter.Meter) *tally.Histogram { return m.Wait })},
		{Name: "satchel_jobs_run_seconds", Help: "Time that attempts take.", Labels: kind, Series: of(func(m *meter.Meter) *tally.Histogram { return m.Run })},
		{Name: "satchel_jobs_outcomes_total", Help: "Attempts that have ended, by kind and how.", Counter: true, Labels: []string{"kind", "outcome"}, Series: func(add func(extensions.Sample)) {
			meters(func(kind string, m *meter.Meter) {
				m.Each(func(o meter.Outcome, n uint64) {
					if n > 0 {
						add(extensions.Sample{Labels: []string{kind, o.String()}, Value: float64(n)})
					}
				})
			})
		}},
	}
}

// merged are the counts of every declared kind, zeros too, so that an alarm sees that a number has gone, and of all others
// together.
func merged(j *jobs.Jobs, counts []table.KindCount) []table.KindCount {
	type key struct {
		kind  string
		state int
	}
	sums := map[key]table.KindCount{}
	known := j.Meters()
	for kind := range known {
		for state := range table.States() {
			sums[key{kind, state}] = table.KindCount{}
		}
	}
	for _, c := range counts {
		at := key{otherKinds, c.State}
		if known[c.Kind] != nil {
			at.kind = c.Kind
		}
		sum := sums[at]
		if sum.N == 0 || c.First < sum.First {
			sum.First = c.First
		}
		sum.N += c.N
		sums[at] = sum
	}
	list := make([]table.KindCount, 0, len(sums))
	for at, sum := range sums {
		sum.Kind, sum.State = at.kind, at.state
		list = append(list, sum)
	}
	return list
}
