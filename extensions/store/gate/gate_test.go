package gate

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func queued(g *Gate) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.queue.Len()
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

func TestGateServesInOrder(t *testing.T) {
	var g Gate
	if err := g.Lock(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	var (
		order []int
		all   sync.WaitGroup
	)
	for i := range 20 {
		all.Go(func() {
			if err := g.Lock(t.Context(), time.Minute); err != nil {
				t.Error(err)
			}
			order = append(order, i)
			g.Unlock()
		})
		waitFor(t, "a place in the queue", func() bool { return queued(&g) == i+1 })
	}
	if g.Try() {
		t.Fatal("somebody overtook the queue")
	}
	g.Unlock()
	all.Wait()
	for i, got := range order {
		if i != got {
			t.Fatalf("order %v", order)
		}
	}
	if !g.Try() || g.Wait() == 0 {
		t.Fatal("the gate is not free, or the waiting was not counted")
	}
}

func TestGateGivesUp(t *testing.T) {
	var g Gate
	g.Try()
	if err := g.Lock(t.Context(), time.Millisecond); !errors.Is(err, ErrPatience) {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if err := g.Lock(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if queued(&g) != 0 {
		t.Fatal("who gave up is still in the queue")
	}
	g.Unlock()
	if !g.Try() {
		t.Fatal("the gate was lost")
	}
}

// The gate must not get lost when it is handed to somebody who gives up at the same moment.
func TestGateHandOverRacesWithGivingUp(t *testing.T) {
	var (
		g   Gate
		in  int
		all sync.WaitGroup
	)
	for range 8 {
		all.Go(func() {
			for i := range 500 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%40)*time.Microsecond)
				if g.Lock(ctx, time.Duration(i%37)*time.Microsecond) == nil {
					in++
					if in != 1 {
						t.Error("two are in")
					}
					in--
					g.Unlock()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if !g.Try() {
		t.Fatal("the gate was lost")
	}
}

// Who has waited for a while asks once, on its own goroutine, and an error ends the wait. A short wait asks nothing.
func TestGateSuspects(t *testing.T) {
	cause := errors.New("the waiter has the gate itself")
	asked, answer := 0, cause
	g := Gate{Suspect: func() error {
		asked++
		return answer
	}}
	g.Try()
	if err := g.Lock(t.Context(), time.Minute); !errors.Is(err, cause) || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	if queued(&g) != 0 {
		t.Fatal("who gave up is still in the queue")
	}
	if err := g.Lock(t.Context(), time.Millisecond); !errors.Is(err, ErrPatience) || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	answer = nil
	if err := g.Lock(t.Context(), suspicion+50*time.Millisecond); !errors.Is(err, ErrPatience) || asked != 2 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	time.AfterFunc(suspicion+50*time.Millisecond, g.Unlock)
	if err := g.Lock(t.Context(), time.Minute); err != nil || asked != 3 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
}
