package passwords

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// errBusy says that the queue is full, or that the turn did not come in time.
var errBusy = errors.New("too many passwords are being hashed")

// queue hands out the right to hash, to a few at once. Who must wait stands in the lane of their network, and lanes take
// turns: a flood from one network makes its own lane long and nobody else's. It is safe for concurrent use.
type queue struct {
	limit int           // waiters in all lanes
	wait  time.Duration // longest time in a lane

	mu      sync.Mutex
	free    int
	waiting int
	lanes   map[string]*lane
	turns   []*lane // lanes with waiters, the next one first
}

type lane struct {
	key     string
	waiters []*waiter
}

// waiter is told once what came of it: nil is the right to hash.
type waiter struct{ told chan error }

func newQueue(slots, limit int, wait time.Duration) *queue {
	return &queue{limit: limit, wait: wait, free: slots, lanes: map[string]*lane{}}
}

// enter waits for the right to hash. After nil the caller must call leave, once.
func (q *queue) enter(ctx context.Context, key string) error {
	w, err := q.join(key)
	if w == nil {
		return err
	}
	timer := time.NewTimer(q.wait)
	defer timer.Stop()
	select {
	case err := <-w.told:
		return err
	case <-timer.C:
		err = errBusy
	case <-ctx.Done():
		err = ctx.Err()
	}
	if q.quit(key, w) {
		return err
	}
	// The turn came at the same moment.
	if told := <-w.told; told != nil {
		return told
	}
	if ctx.Err() != nil {
		q.leave()
		return ctx.Err()
	}
	return nil
}

// join takes a free slot, or returns a waiter. When the queue is full, the last of the longest lane makes room, provided
// that the newcomer's own lane is shorter even then; so those who crowd are refused, and not those who come next.
func (q *queue) join(key string) (*waiter, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.free > 0 {
		q.free--
		return nil, nil //nolint:nilnil // neither a waiter nor an error: go ahead
	}
	own := q.lanes[key]
	if q.waiting >= q.limit {
		longest := q.longest()
		if longest == nil || len(longest.waiters) <= own.length()+1 {
			return nil, errBusy
		}
		last := longest.waiters[len(longest.waiters)-1]
		q.remove(longest, len(longest.waiters)-1)
		last.told <- errBusy
	}
	if own == nil {
		own = &lane{key: key}
		q.lanes[key] = own
		q.turns = append(q.turns, own)
	}
	w := &waiter{told: make(chan error, 1)}
	own.waiters = append(own.waiters, w)
	q.waiting++
	return w, nil
}

// quit takes a waiter out and reports false when it has been told already.
func (q *queue) quit(key string, w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	own := q.lanes[key]
	if own == nil {
		return false
	}
	i := slices.Index(own.waiters, w)
	if i < 0 {
		return false
	}
	q.remove(own, i)
	return true
}

// leave passes the slot on to the first of the next lane.
func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.turns) == 0 {
		q.free++
		return
	}
	next := q.turns[0]
	w := next.waiters[0]
	q.turns = append(q.turns[1:], next)
	q.remove(next, 0)
	w.told <- nil
}

func (q *queue) remove(l *lane, i int) {
	l.waiters = slices.Delete(l.waiters, i, i+1)
	q.waiting--
	if len(l.waiters) == 0 {
		delete(q.lanes, l.key)
		q.turns = slices.DeleteFunc(q.turns, func(other *lane) bool { return other == l })
	}
}

func (q *queue) longest() *lane {
	var longest *lane
	for _, l := range q.turns {
		if longest == nil || len(l.waiters) > len(longest.waiters) {
			longest = l
		}
	}
	return longest
}

func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

func (l *lane) length() int {
	if l == nil {
		return 0
	}
	return len(l.waiters)
}
