package rows

import (
	"errors"
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// cacheSize bounds the entries of a cache. An entry is a SQL text and its arguments, some 2 KB; a filter is at most
// 3,500 bytes.
const cacheSize = 512

// Cache keeps what was compiled. The zero value is ready; it is safe for concurrent use.
//
// A key must hold the *core.Collection that PocketBase's cache of collections returned: PocketBase replaces all of its
// cached collections whenever one changes, so that whatever depends on the schema is never found again. An entry keeps
// the collection in memory until others drive it out, so that its address stays unique.
type Cache[K comparable, V any] struct {
	mu      sync.RWMutex
	entries map[K]V
}

// Get returns the entry of a key.
func (c *Cache[K, V]) Get(key K) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v, ok := c.entries[key]
	return v, ok
}

// Put keeps an entry, in the place of an arbitrary one if the cache is full.
func (c *Cache[K, V]) Put(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = make(map[K]V)
	}
	for victim := range c.entries {
		if len(c.entries) < cacheSize {
			break
		}
		delete(c.entries, victim)
	}
	c.entries[key] = value
}

// Compiled returns the entry of the key, or what build makes of the request. If the conditions last, build sees the
// account with a mark in the place of its id, and the outcome is kept; otherwise it sees the request as it is, and the
// outcome serves once.
func Compiled[K comparable, V any](
	c *Cache[K, *V], key K, e *core.RequestEvent, lasts func() bool, build func(info *core.RequestInfo, mark string) (*V, error),
) (*V, error) {
	kept, known := c.Get(key)
	if kept != nil {
		return kept, nil
	}
	mark := NewMark()
	if !known && lasts() {
		made, err := build(markedInfo(e, mark), mark)
		if err == nil {
			c.Put(key, made)
		}
		if !errors.Is(err, errMarkLost) {
			return made, err
		}
	}
	info, err := e.RequestInfo()
	if err != nil {
		return nil, err
	}
	made, err := build(info, mark)
	if err == nil && !known {
		c.Put(key, nil) // so that the conditions are not looked at again
	}
	return made, err
}

// markedInfo is a request of the account with a mark in the place of its id.
func markedInfo(e *core.RequestEvent, mark string) *core.RequestInfo {
	info := &core.RequestInfo{Context: core.RequestInfoContextDefault, Method: e.Request.Method}
	if e.Auth != nil {
		info.Auth = e.Auth.Clone()
		info.Auth.SetRaw(core.FieldNameId, mark) // the field alone is not what every reader looks at
	}
	return info
}
