package judge

import (
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// Rules remembers by which rules collections that somebody has watched are listed and viewed. The zero value is ready; it is
// safe for concurrent use.
type Rules struct {
	mu    sync.Mutex
	known map[string][2]string
}

// Moved reports whether the rules of a collection are others than those that are remembered. They are when that was told,
// or if none were.
func (r *Rules) Moved(app core.App, collection string, told bool) bool {
	c, err := app.FindCachedCollectionByNameOrId(collection)
	if err != nil {
		return false
	}
	text := func(rule *string) string {
		if rule == nil {
			return "@" // no rule is that
		}
		return *rule
	}
	now := [2]string{text(c.ListRule), text(c.ViewRule)}
	r.mu.Lock()
	defer r.mu.Unlock()
	was, known := r.known[c.Id]
	if r.known == nil {
		r.known = map[string][2]string{}
	}
	if told || !known {
		r.known[c.Id] = now
	}
	return known && was != now
}
