package meter

import (
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/tally"
)

// Messages counts the rows of a table of messages by their state, whose number there is the index of its name. Those that have
// ended are kept for long, so they are counted now and then.
func Messages[S ~string](app func() core.App, table string, states []S) extensions.Metric {
	var kept tally.Kept[[]int]
	count := func() ([]int, error) {
		var rows []struct{ State, N int }
		err := app().ConcurrentDB().NewQuery(`SELECT state, count(*) AS n FROM ` + table + ` GROUP BY state`).All(&rows)
		counts := make([]int, len(states))
		for _, r := range rows {
			counts[r.State] = r.N
		}
		return counts, err
	}
	return extensions.Metric{
		Name: "satchel_push_messages_count", Help: "Messages that are kept, by state.", Labels: []string{"state"},
		Series: func(add func(extensions.Sample)) {
			if app() == nil || !app().IsBootstrapped() {
				return
			}
			for number, n := range kept.Get(count) {
				add(extensions.Sample{Labels: []string{string(states[number])}, Value: float64(n)})
			}
		},
	}
}
