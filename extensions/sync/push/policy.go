package push

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/pocketbase/pocketbase/core"
)

// Policies of collections.
const (
	PolicyMerge      = "merge"       // fields that only one side has changed are kept of both; the later arrival wins the others
	PolicyServerWins = "server-wins" // as merge, but what is there already wins
	PolicyReject     = "reject"      // a change of anything but the present version is a conflict
)

// Dispute is what a [Resolver] decides on. App is the transaction.
type Dispute struct {
	App        core.App
	Auth       *core.Record
	Collection *core.Collection
	Op         string         // Update or Delete
	Base       map[string]any // what the client says that its user saw; nil if it does not say
	Incoming   map[string]any // the fields that it sets
	Current    *core.Record   // a copy
	Stale      bool           // the client's version is not the present one, or unknown
}

// Resolver decides about updates and deletions of one collection. It returns the fields to set instead of those that came
// in, which the rules then judge, or an error that refuses the change as a conflict. For a deletion the fields do not
// matter.
type Resolver func(d Dispute) (map[string]any, error)

// settled is what a policy leaves of a change.
type settled struct {
	set    map[string]jsontext.Value
	fields []string // that collided
	merged bool
}

// settle applies the policy of the collection to an update.
func (p *Pusher) settle(w *writing, record *core.Record, version int64) (settled, error) {
	c := w.change
	stale := c.Base == nil || c.Base.V == 0 || c.Base.V != version
	out := settled{set: c.Set, merged: c.Base != nil && c.Base.V != 0 && c.Base.V != version}
	if resolve := p.resolvers[w.collection.Name]; resolve != nil {
		set, err := resolve(w.dispute(record, stale))
		if err != nil {
			return out, w.conflict(version, err.Error())
		}
		if out.set, err = encode(set); err != nil {
			return out, err
		}
		out.merged = out.merged || !sameKeys(out.set, c.Set)
		return out, nil
	}
	policy := p.policy(w.collection.Name)
	if policy == PolicyReject {
		if stale && len(c.Set) > 0 {
			return out, w.conflict(version, "")
		}
		return out, nil
	}
	out.set = maps.Clone(c.Set)
	for _, name := range slices.Sorted(maps.Keys(c.Set)) {
		same, err := Holds(record, name, c.Set[name])
		if err != nil {
			return out, err
		}
		if same {
			continue
		}
		collides := false
		if c.Base != nil {
			if seen, ok := c.Base.Set[name]; ok {
				unchanged, err := Holds(record, name, seen)
				if err != nil {
					return out, err
				}
				collides = !unchanged
			} else {
				collides = policy == PolicyServerWins && out.merged
			}
		}
		if collides {
			out.fields = append(out.fields, name)
			if policy == PolicyServerWins {
				delete(out.set, name)
			}
		}
	}
	out.merged = out.merged || len(out.fields) > 0
	return out, nil
}

// settleDelete applies the policy to a deletion, which otherwise wins over edits.
func (p *Pusher) settleDelete(w *writing, record *core.Record, version int64) error {
	c := w.change
	stale := c.Base == nil || c.Base.V == 0 || c.Base.V != version
	if resolve := p.resolvers[w.collection.Name]; resolve != nil {
		if _, err := resolve(w.dispute(record, stale)); err != nil {
			return w.conflict(version, err.Error())
		}
		return nil
	}
	if stale && p.policy(w.collection.Name) == PolicyReject {
		return w.conflict(version, "")
	}
	return nil
}

func (w *writing) conflict(version int64, detail string) *refusal {
	r := refuse(Conflict, ErrConflict, detail)
	r.v = version
	return r
}

func (w *writing) dispute(record *core.Record, stale bool) Dispute {
	d := Dispute{
		App: w.tx, Auth: w.auth, Collection: w.collection, Op: w.change.Op, Incoming: decode(w.change.Set),
		Current: record.Clone(), Stale: stale,
	}
	if w.change.Base != nil {
		d.Base = decode(w.change.Base.Set)
	}
	return d
}

func decode(values map[string]jsontext.Value) map[string]any {
	out := make(map[string]any, len(values))
	for name, v := range values {
		var value any
		_ = jsonv2.Unmarshal(v, &value) // was parsed before
		out[name] = value
	}
	return out
}

func encode(values map[string]any) (map[string]jsontext.Value, error) {
	out := make(map[string]jsontext.Value, len(values))
	for name, v := range values {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", name, err)
		}
		out[name] = raw
	}
	return out, nil
}

func sameKeys(a, b map[string]jsontext.Value) bool {
	return maps.EqualFunc(a, b, func(x, y jsontext.Value) bool { return string(x) == string(y) })
}

// Holds reports whether a field of a record has the value, after PocketBase has made of it what it makes of values of
// that field.
func Holds(record *core.Record, name string, value jsontext.Value) (bool, error) {
	probe := core.NewRecord(record.Collection())
	var v any
	if err := jsonv2.Unmarshal(value, &v); err != nil {
		return false, fmt.Errorf("decode %s: %w", name, err)
	}
	probe.Set(name, v)
	a, err := plain(record.Get(name))
	if err != nil {
		return false, err
	}
	b, err := plain(probe.Get(name))
	if err != nil {
		return false, err
	}
	return reflect.DeepEqual(a, b), nil
}

// plain makes values comparable that look the same to a client.
func plain(v any) (any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("compare values: %w", err)
	}
	var out any
	err = json.Unmarshal(raw, &out)
	return out, err
}
