package judge

import (
	"iter"
	"maps"
	"sync/atomic"
)

// Uses is the classes that have viewers, and which collections these depend on. Its user guards it by a lock, but for
// [Uses.Needs].
type Uses struct {
	viewers map[*Class]int
	classes map[string]int // by collection
	needed  atomic.Pointer[map[string]struct{}]
}

// Needs reports whether a class with viewers watches a collection. It is for writers, and waits for nobody.
func (u *Uses) Needs(collection string) bool {
	needed := u.needed.Load()
	if needed == nil {
		return false
	}
	_, ok := (*needed)[collection]
	return ok
}

// All are the classes that have viewers.
func (u *Uses) All() iter.Seq[*Class] { return maps.Keys(u.viewers) }

// Come counts a viewer, who knows the present state.
func (u *Uses) Come(k *Class) {
	if k == nil {
		return
	}
	if u.viewers == nil {
		u.viewers, u.classes = map[*Class]int{}, map[string]int{}
	}
	k.listed = true // what changes from now on is compared with that
	if u.viewers[k]++; u.viewers[k] == 1 {
		u.watch(k, 1)
	}
}

// Go is for one who has come.
func (u *Uses) Go(k *Class) {
	if k == nil {
		return
	}
	if u.viewers[k]--; u.viewers[k] == 0 {
		delete(u.viewers, k)
		k.Shifted = nil
		u.watch(k, -1)
	}
}

// watch is cheap for all but the first and the last class that watches a collection: there may be as many as viewers.
func (u *Uses) watch(k *Class, n int) {
	moved := false
	for _, id := range k.Watches {
		was := u.classes[id]
		u.classes[id] += n
		moved = moved || (was == 0) != (u.classes[id] == 0)
		if u.classes[id] == 0 {
			delete(u.classes, id)
		}
	}
	if !moved {
		return
	}
	needed := make(map[string]struct{}, len(u.classes))
	for id := range u.classes {
		needed[id] = struct{}{}
	}
	u.needed.Store(&needed)
}
