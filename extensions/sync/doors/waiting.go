package doors

import (
	"sync"
	"time"
)

const (
	// patience is how long a document waits for the record that it refers to, and a change that could not be judged for
	// another try. Collections are replicated one by one, and the other one comes within seconds or never.
	patience = time.Minute

	// maxWaiting bounds what is remembered. What comes then drives out something else, which waits anew: the other way round
	// one client could make others lose theirs.
	maxWaiting = 10_000
)

// waiting remembers what waits, and documents that were refused, for which nobody should wait. It is
// safe for concurrent use.
type waiting struct {
	mu      sync.Mutex
	since   map[string]time.Time
	refused map[string]time.Time
}

func newWaiting() *waiting {
	return &waiting{since: map[string]time.Time{}, refused: map[string]time.Time{}}
}

// refuse notes that there will be no such record.
func (w *waiting) refuse(key string, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	room(w.refused)
	w.refused[key] = now
}

// done forgets a change that was judged: when it cannot be judged another day, it waits as long.
func (w *waiting) done(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.since, key)
}

// wait reports whether the change should come again later, because the records that it lacks, if any, may still come.
func (w *waiting) wait(key string, lacks []string, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range lacks {
		if at, ok := w.refused[other]; ok && now.Sub(at) < patience {
			delete(w.since, key)
			return false
		}
	}
	at, ok := w.since[key]
	if !ok {
		room(w.since)
		w.since[key] = now
		return true
	}
	return now.Sub(at) < patience
}

// room drives out any one if there are too many.
func room(m map[string]time.Time) {
	if len(m) < maxWaiting {
		return
	}
	for key := range m {
		delete(m, key)
		return
	}
}
