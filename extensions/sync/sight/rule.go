package sight

import (
	"context"
	"errors"
	"slices"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// ruleKey names a rule and the kind of caller. PocketBase replaces all cached collections when one changes, so the
// pointers name the state of the schema, too.
type ruleKey struct{ collection, caller *core.Collection }

// dependencies are what a list rule depends on.
type dependencies struct {
	others []string // ids of the collections whose changes matter; the own one if the rule reads other rows of it
	auth   bool     // the caller's own record matters
	never  bool     // the answer may change without any change of records
}

// Exact implements [view.Source].
func (s *Sight) Exact(ctx context.Context, vc view.Collection, after int64) (bool, error) {
	c, k, err := s.find(ctx, vc.Name)
	if err != nil || c.ListRule == nil {
		return false, goneIsEmpty(err)
	}
	if k.Changed > after {
		return false, nil
	}
	d, err := s.dependencies(c)
	if err != nil || d.never {
		return false, err
	}
	last, err := s.log.LastChange(ctx, d.others...)
	if errors.Is(err, changes.ErrNotCaptured) {
		return false, nil
	}
	if err != nil || last > after {
		return false, err
	}
	if !d.auth || s.auth == nil {
		return true, nil
	}
	return s.unchanged(ctx, s.auth, after)
}

// unchanged reports whether the caller's own record is as it was.
func (s *Sight) unchanged(ctx context.Context, auth *core.Record, after int64) (bool, error) {
	id := auth.Collection().Id
	last, err := s.log.LastChange(ctx, id)
	if errors.Is(err, changes.ErrNotCaptured) {
		return false, nil
	}
	if err != nil || last <= after {
		return err == nil, err
	}
	heads, err := s.log.HeadsOf(ctx, id, []string{auth.Id})
	if err != nil {
		return false, err
	}
	h, ok := heads[auth.Id]
	return ok && h.Version <= after, nil
}

// dependencies finds out once for each state of the schema what a list rule depends on.
func (s *Sight) dependencies(c *core.Collection) (dependencies, error) {
	key := ruleKey{collection: c}
	if s.auth != nil {
		key.caller = s.auth.Collection()
	}
	if d, ok := s.rules.Get(key); ok {
		return d, nil
	}
	found, err := changes.RuleDependencies(s.app, c, *c.ListRule, s.auth)
	if err != nil {
		return dependencies{}, err
	}
	d := dependencies{auth: found.Auth, never: found.Volatile || len(found.Tables) > 0}
	for _, id := range found.Collections {
		if id != c.Id || found.Self {
			d.others = append(d.others, id)
		}
	}
	s.rules.Put(key, d)
	return d, nil
}

// Depends names what makes a pull of the collection look at all visible rows, for reports: volatile reports that it is so
// every time.
func (s *Sights) Depends(app core.App, c *core.Collection) (others []string, volatile bool, err error) {
	sight := &Sight{Sights: s, app: app, info: &core.RequestInfo{Context: core.RequestInfoContextDefault, Method: "GET"}}
	d, err := sight.dependencies(c)
	return slices.Clone(d.others), d.never, err
}
