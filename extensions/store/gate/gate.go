// Package gate holds the lock that writers of a database file queue for.
package gate

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// ErrPatience says that a place in the queue was given up because the wait was too long.
var ErrPatience = errors.New("waited too long")

// suspicion is how long a wait lasts before [Gate.Suspect] is asked: longer than a healthy writer holds the gate, and short
// enough that a request which waits for itself still fails within a second.
const suspicion = 200 * time.Millisecond

// Gate is a mutual exclusion lock whose waiters are served in the order of their arrival and may give up. It is handed
// over directly: whoever arrives while others wait cannot overtake them. The zero value is open.
type Gate struct {
	// Suspect, if set, is asked once by everybody who has waited for a while, on the goroutine that waits. Its error ends
	// the wait. It must be set before the first use.
	Suspect func() error

	mu     sync.Mutex
	held   bool
	queue  list.List // of chan struct{}, closed when the gate is theirs
	waited time.Duration
}

// Try takes the gate if nobody has it.
func (g *Gate) Try() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held {
		return false
	}
	g.held = true
	return true
}

// Lock waits for the gate until the context ends or patience runs out.
func (g *Gate) Lock(ctx context.Context, patience time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	if !g.held {
		g.held = true
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	place := g.queue.PushBack(turn)
	g.mu.Unlock()

	start := time.Now()
	err := g.wait(ctx, turn, patience)

	g.mu.Lock()
	g.waited += time.Since(start)
	granted := err == nil
	select {
	case <-turn: // also when it came together with the end of the wait
		granted = true
	default:
		g.queue.Remove(place)
	}
	g.mu.Unlock()
	if granted && err != nil {
		g.Unlock()
	}
	return err
}

// wait returns nil when the turn has come, and otherwise why the wait is over.
func (g *Gate) wait(ctx context.Context, turn <-chan struct{}, patience time.Duration) error {
	first := patience
	if g.Suspect != nil {
		first = min(patience, suspicion)
	}
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-turn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		if patience -= first; patience <= 0 {
			return ErrPatience
		}
		if err := g.Suspect(); err != nil {
			return err
		}
		first = patience
		timer.Reset(first)
	}
}

// Unlock gives the gate to the first in the queue.
func (g *Gate) Unlock() {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := g.queue.Front()
	if first == nil {
		g.held = false
		return
	}
	if turn, ok := g.queue.Remove(first).(chan struct{}); ok {
		close(turn)
	}
}

// Wait is the sum of the time that callers have spent in the queue.
func (g *Gate) Wait() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waited
}
