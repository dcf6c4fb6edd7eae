// Package held remembers which records a client was sent. It knows nothing of connections, and asks nobody.
package held

import (
	"maps"
	"slices"
	"sync"
)

// Set is the records that a client was sent and has not been told to forget, the last ones only, each with the version
// that it was sent. The zero value is ready; it is safe for concurrent use.
type Set struct {
	mu    sync.Mutex
	known map[string]place
	order []string // a ring of the known, with others that were removed since
	next  int
}

// place is the version that was sent, and where in the ring the record stands now: it may have stood in another place before
// it was removed.
type place struct {
	version int64
	at      int
}

// Has reports whether the client holds a record.
func (s *Set) Has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.known[id]
	return ok
}

// Until reports whether the client holds a record in a version that is not above.
func (s *Set) Until(id string, version int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.known[id]
	return ok && p.version <= version
}

// Add remembers a record; beyond the limit the oldest is forgotten.
func (s *Set) Add(id string, version int64, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.known[id]; ok || limit <= 0 {
		if ok {
			s.known[id] = place{version, p.at}
		}
		return
	}
	if s.known == nil {
		s.known = map[string]place{}
	}
	if len(s.order) < limit {
		s.known[id] = place{version, len(s.order)}
		s.order = append(s.order, id)
		return
	}
	s.next %= len(s.order)
	if s.current(s.next) {
		delete(s.known, s.order[s.next])
	}
	s.known[id] = place{version, s.next}
	s.order[s.next] = id
	s.next++
}

// current reports whether the record in a place of the ring is known, and stands there now.
func (s *Set) current(at int) bool {
	p, ok := s.known[s.order[at]]
	return ok && p.at == at
}

// Remove forgets a record that the client was told to forget.
func (s *Set) Remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}

// Told reports whether the client holds a record or was told lately that it leaves.
func (s *Set) Told(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.order, id)
}

// List is the ids.
func (s *Set) List() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.known))
}

// Relist follows a client that lists anew: what it was told to forget it may have again.
func (s *Set) Relist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := make([]string, 0, len(s.known))
	for i := range s.order {
		at := (s.next + i) % len(s.order) // the oldest first
		if id := s.order[at]; s.current(at) {
			s.known[id] = place{s.known[id].version, len(kept)}
			kept = append(kept, id)
		}
	}
	s.order, s.next = kept, 0
}

// Clear forgets everything.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.order, s.next = nil, nil, 0
}
