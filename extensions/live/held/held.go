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
	known map[string]int64
	order []string // a ring of the known, with others that were removed since
	next  int
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
	at, ok := s.known[id]
	return ok && at <= version
}

// Add remembers a record; beyond the limit the oldest is forgotten.
func (s *Set) Add(id string, version int64, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[id]; ok || limit <= 0 {
		if ok {
			s.known[id] = version
		}
		return
	}
	if s.known == nil {
		s.known = map[string]int64{}
	}
	if len(s.order) < limit {
		s.order = append(s.order, id)
	} else {
		s.next %= len(s.order)
		delete(s.known, s.order[s.next])
		s.order[s.next] = id
		s.next++
	}
	s.known[id] = version
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
	s.order = slices.DeleteFunc(s.order, func(id string) bool { _, ok := s.known[id]; return !ok })
	s.next = 0
}

// Clear forgets everything.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.order, s.next = nil, nil, 0
}
