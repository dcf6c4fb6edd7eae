package statement

import (
	"hash/maphash"
	"sync"
)

// textsRemembered bounds the texts that were seen once. It must exceed the number of random texts between two uses of a
// regular one.
const textsRemembered = 1024

// Sightings remembers which texts were seen before, for all connections of a file. PocketBase puts random names into
// some of its SQL (the dummy record of create rules, aliases of multi-match filters, temporary columns and views); these
// texts never come twice, so a text is worth a place in the cache when it comes for the second time.
type Sightings struct {
	seed maphash.Seed

	mu    sync.Mutex
	known map[uint64]bool
	order []uint64 // ring
	at    int
}

// NewSightings remembers nothing yet.
func NewSightings() *Sightings {
	return &Sightings{seed: maphash.MakeSeed(), known: make(map[uint64]bool, textsRemembered), order: make([]uint64, textsRemembered)}
}

// Again reports whether the text was seen before, and remembers it.
func (s *Sightings) Again(text string) bool {
	hash := maphash.String(s.seed, text)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[hash] {
		return true
	}
	delete(s.known, s.order[s.at])
	s.order[s.at] = hash
	s.known[hash] = true
	s.at = (s.at + 1) % len(s.order)
	return false
}
