package judge

import (
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
)

// Happened is the last state of a record in the stretch.
type Happened struct {
	changes.Change
	Row  *core.Record // as it is now, or was before it was deleted; nil if that is not known
	Gone bool
}

// Coalesce keeps the last change of each record, in the order of these. A record that was created and then updated is one
// that was created.
func Coalesce(list []changes.Change) map[string][]Happened {
	type place struct {
		seq int64
		new bool
	}
	last := make(map[[2]string]place, len(list))
	for _, c := range list {
		if c.Record == "" {
			continue
		}
		key := [2]string{c.Collection, c.Record}
		was, seen := last[key]
		last[key] = place{c.Seq, c.Action == changes.Create || seen && was.new && c.Action == changes.Update}
	}
	out := map[string][]Happened{}
	for _, c := range list {
		at, ok := last[[2]string{c.Collection, c.Record}]
		if !ok || at.seq != c.Seq {
			continue
		}
		if at.new {
			c.Action = changes.Create
		}
		out[c.Collection] = append(out[c.Collection], Happened{Change: c, Gone: c.Action == changes.Delete})
	}
	return out
}

// Resets are the collections of which anything may have changed, up to a number.
func Resets(list []changes.Change, to int64) map[string]bool {
	var out map[string]bool
	for _, k := range list {
		if k.Seq <= to && (k.Action == changes.Reset || k.Action == changes.Gone) {
			if out == nil {
				out = map[string]bool{}
			}
			out[k.Collection] = true
		}
	}
	return out
}
