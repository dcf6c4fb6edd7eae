package passwords

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowd lets each key enter in this order and returns the order in which they were served, one second each.
func crowd(t *testing.T, q *queue, keys ...string) (served, refused []string) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, key := range keys {
		wg.Go(func() {
			err := q.enter(t.Context(), key)
			mu.Lock()
			if err != nil {
				refused = append(refused, key)
				mu.Unlock()
				return
			}
			served = append(served, key)
			mu.Unlock()
			time.Sleep(time.Second)
			q.leave()
		})
		synctest.Wait() // it stands in its place before the next one comes
	}
	wg.Wait()
	return served, refused
}

// One network's flood makes nobody wait but itself.
func TestLanesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 100, time.Hour)
		served, refused := crowd(t, q, "flood", "flood", "flood", "flood", "flood", "ann", "bob", "ann")
		if want := []string{"flood", "flood", "ann", "bob", "flood", "ann", "flood", "flood"}; !slices.Equal(served, want) || len(refused) > 0 {
			t.Errorf("served %v, refused %v", served, refused)
		}
		if q.free != 1 || q.waiting != 0 || len(q.lanes)+len(q.turns) != 0 {
			t.Errorf("left behind: %+v", q)
		}
	})
}

// When the queue is full, those who crowd are refused.
func TestFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 3, time.Hour)
		served, refused := crowd(t, q, "flood", "flood", "flood", "flood", "flood", "ann", "bob", "carl", "ann")
		// Three flood wait when the fifth comes and is refused. Ann and Bob each take the place of one; then every lane has
		// one waiter and nobody makes room for Carl, or for Ann again.
		if !slices.Equal(served, []string{"flood", "flood", "ann", "bob"}) {
			t.Errorf("served %v", served)
		}
		slices.Sort(refused)
		if !slices.Equal(refused, []string{"ann", "carl", "flood", "flood", "flood"}) {
			t.Errorf("refused %v", refused)
		}
	})
}

func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 10, 10*time.Second)
		if err := q.enter(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := q.enter(t.Context(), "b"); !errors.Is(err, errBusy) || time.Since(begin) != 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := q.enter(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		q.leave()
		if q.free != 1 || q.waiting != 0 || len(q.lanes)+len(q.turns) != 0 {
			t.Errorf("left behind: %+v", q)
		}
	})
}

// However they come and go, no slot is lost and none is made.
func TestQueueKeepsCount(t *testing.T) {
	const slots = 3
	q := newQueue(slots, 20, 2*time.Millisecond)
	var inside, most int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%5)*time.Millisecond)
				if q.enter(ctx, fmt.Sprint(i%7)) == nil {
					mu.Lock()
					inside++
					most = max(most, inside)
					mu.Unlock()
					time.Sleep(50 * time.Microsecond)
					mu.Lock()
					inside--
					mu.Unlock()
					q.leave()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if most > slots || q.free != slots || q.waiting != 0 || len(q.lanes)+len(q.turns) != 0 {
		t.Errorf("most %d, left behind: %+v", most, q)
	}
}
