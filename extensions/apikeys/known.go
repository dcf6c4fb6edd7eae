package apikeys

import (
	"crypto/sha256"
	"sync"
	"sync/atomic"

	"github.com/pocketbase/pocketbase/core"
)

// maxKnown bounds the keys in memory, of a few hundred bytes each. Past it they are forgotten and read again.
const maxKnown = 10_000

// entry is a key as it was read. All but used is fixed.
type entry struct {
	key  *Key
	hash [sha256.Size]byte
	used atomic.Int64 // Unix seconds of the last use that was noted
}

// known holds keys that were read in one state of the table. The zero value is empty.
type known struct {
	mu      sync.RWMutex
	version uint64
	entries map[string]*entry
}

// lookUp returns the key as the table has it at this moment: an entry counts only while the table's version is that from
// before it was read.
func (s *service) lookUp(app core.App, id string) (*entry, error) {
	if s.deps.Version == nil {
		return read(app, id)
	}
	version := s.deps.Version(table)
	if x := s.known.get(id, version); x != nil {
		return x, nil
	}
	x, err := read(app, id)
	if err != nil {
		return nil, err
	}
	return s.known.put(id, version, x), nil
}

func (k *known) get(id string, version uint64) *entry {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if version != k.version {
		return nil
	}
	return k.entries[id]
}

// put keeps an entry and returns the one that counts: of two requests that have read the same key, the first. A version
// that is not the present one replaces all, for better or worse: what is out of date costs a query and no more.
func (k *known) put(id string, version uint64, x *entry) *entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	if version != k.version || len(k.entries) >= maxKnown || k.entries == nil {
		k.version, k.entries = version, map[string]*entry{}
	}
	if have := k.entries[id]; have != nil {
		return have
	}
	k.entries[id] = x
	return x
}

func read(app core.App, id string) (*entry, error) {
	r, err := find(app, id)
	if err != nil {
		return nil, err
	}
	k, err := r.key()
	if err != nil {
		return nil, err
	}
	x := &entry{key: &k}
	copy(x.hash[:], r.Hash)
	x.used.Store(r.LastUsed)
	return x, nil
}
