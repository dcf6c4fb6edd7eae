package feed

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live/judge"
	"github.com/satchelbase/satchel/extensions/rows"
)

// ErrNoRule says that a collection has no rule for anybody but superusers.
var ErrNoRule = errors.New("only superusers may watch this collection")

// groupKey stands for everything that decides which records a subscription gets.
type groupKey struct {
	collection string
	record     string
	answer     string // of a test in memory
	class      judge.ClassKey
	viewer     string // of a question
}

// group is the subscriptions that get the same records. A rule is evaluated once for a group.
type group struct {
	key    groupKey
	test   *judge.Test // nil: the class knows
	class  *judge.Class
	viewer string // id of the account, for the class

	views atomic.Pointer[[]*view] // replaced under the hub's lock, read without
}

// always reports that nothing ever leaves the group but by deletion.
func (g *group) always() bool { return g.test != nil && g.test.Always() }

// viewKey stands for everything that decides how a record is written.
type viewKey struct {
	collection     string
	superuser      bool
	fields, expand string
	viewer         string // where it depends on who reads
	options        string
}

// view is the subscriptions of a group for which a record is written once.
type view struct {
	key    viewKey
	like   *Sub         // whose request stands for all
	auth   *core.Record // whose eyes, nil where all see the same
	enrich bool

	subs atomic.Pointer[[]*Sub]
}

// encode writes a record as the view's subscribers may see it, the way the stock broadcast did: by the enrich hooks, with
// the expands that the viewer may see, and without hidden fields and addresses.
func (v *view) encode(app core.App, record *core.Record) (raw []byte, err error) {
	defer func() { // a hook that panics must not take the server with it
		if r := recover(); r != nil {
			raw, err = nil, fmt.Errorf("enrich record: panic: %v", r)
		}
	}()
	clean := record.Fresh()
	if v.key.superuser {
		clean.Unhide(record.Collection().Fields.FieldNames()...)
	}
	if v.enrich {
		auth := v.auth
		if auth != nil {
			auth = auth.Clone() // hooks may do with it what they like
		}
		if err := apis.EnrichRecords(v.like.Event(app, auth), []*core.Record{clean}); err != nil {
			return nil, fmt.Errorf("enrich record: %w", err)
		}
	}
	return v.like.Fields.Encode(nil, clean)
}

// placement is where a subscription belongs with its present account.
type placement struct {
	group *group // not registered
	view  *view
}

// place finds where a subscription belongs. It asks no rule.
func (h *Hub) place(s *Sub, auth *core.Record) (placement, error) {
	collection, err := h.app.FindCachedCollectionByNameOrId(s.Collection)
	if err != nil {
		return placement{}, fmt.Errorf("find collection: %w", err)
	}
	superuser := auth != nil && auth.IsSuperuser()
	rule := collection.ListRule
	if s.Record != "" {
		rule = collection.ViewRule
	}
	if rule == nil && !superuser {
		return placement{}, ErrNoRule
	}
	p := placement{group: &group{key: groupKey{collection: collection.Id, record: s.Record}}, view: h.viewOf(s, collection, auth)}
	if test, ok := judge.InMemory(collection, rule, s.Filter, auth); ok {
		p.group.test, p.group.key.answer = test, test.Key
		return p, nil
	}
	if p.group.class, err = h.classes.Of(h.app, &s.Watch, collection, rule, auth); err != nil {
		return p, err
	}
	if auth != nil {
		p.group.viewer = auth.Id
	}
	p.group.key.class, p.group.key.viewer = p.group.class.Key, p.group.viewer
	return p, nil
}

// Check finds mistakes in a subscription: a [*rows.FilterError] in the filter, [ErrNoRule], or another error if it cannot
// be evaluated. It asks no rule.
func (h *Hub) Check(s *Sub, auth *core.Record) error {
	if s.Filter != "" {
		collection, err := h.app.FindCachedCollectionByNameOrId(s.Collection)
		if err != nil {
			return fmt.Errorf("find collection: %w", err)
		}
		empty := ""
		if err := rows.Where(h.app.RecordQuery(collection), h.app, collection, s.Info(auth), &empty, s.Filter); err != nil {
			return err
		}
	}
	_, err := h.place(s, auth)
	return err
}

func (h *Hub) viewOf(s *Sub, collection *core.Collection, auth *core.Record) *view {
	v := &view{like: s, auth: auth}
	v.key = viewKey{collection: collection.Id, superuser: auth != nil && auth.IsSuperuser(), fields: s.Fields.String(), expand: s.Expand}
	v.enrich = s.Expand != "" || collection.IsAuth() || h.app.OnRecordEnrich().Length() > 0
	if v.enrich {
		v.key.options = s.Options()
		if auth != nil {
			v.key.viewer = auth.Collection().Id + "/" + auth.Id
		}
	}
	return v
}

// topic is the groups of one collection. The hub's lock guards it.
type topic struct {
	all      map[groupKey]*group
	byRecord map[string]map[groupKey]*group
}

func (t *topic) groups(record string) map[groupKey]*group {
	if record == "" {
		return t.all
	}
	return t.byRecord[record]
}

// add registers a subscription and returns its group.
func (t *topic) add(s *Sub, p placement) *group {
	groups := t.groups(s.Record)
	if groups == nil {
		groups = map[groupKey]*group{}
		t.byRecord[s.Record] = groups
	}
	g := groups[p.group.key]
	if g == nil {
		g = p.group
		g.views.Store(&[]*view{})
		groups[g.key] = g
	}
	views := *g.views.Load()
	i := slices.IndexFunc(views, func(v *view) bool { return v.key == p.view.key })
	if i < 0 {
		p.view.subs.Store(&[]*Sub{s})
		grown := append(slices.Clip(slices.Clone(views)), p.view)
		g.views.Store(&grown)
		return g
	}
	subs := append(*views[i].subs.Load(), s) // readers see no further than their own length
	views[i].subs.Store(&subs)
	return g
}

// remove takes a subscription out of its group.
func (t *topic) remove(s *Sub, g *group) {
	views := *g.views.Load()
	for i, v := range views {
		subs := *v.subs.Load()
		k := slices.Index(subs, s)
		if k < 0 {
			continue
		}
		rest := slices.Delete(slices.Clone(subs), k, k+1)
		v.subs.Store(&rest)
		if len(rest) == 0 {
			left := slices.Delete(slices.Clone(views), i, i+1)
			g.views.Store(&left)
		}
		break
	}
	if len(*g.views.Load()) > 0 {
		return
	}
	delete(t.groups(s.Record), g.key)
	if s.Record != "" && len(t.byRecord[s.Record]) == 0 {
		delete(t.byRecord, s.Record)
	}
}
