package batch_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/satchelbase/satchel/extensions/push/batch"
)

// Everything is written once, in few transactions, and each caller gets the error of its own.
func TestJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, rows atomic.Int64
		bad := errors.New("bad")
		w := &batch.Writer[int]{Save: func(list []*batch.Batch[int]) error {
			calls.Add(1)
			time.Sleep(time.Millisecond)
			for _, b := range list {
				rows.Add(int64(len(b.Rows)))
				for _, n := range b.Rows {
					if n < 0 {
						return bad
					}
				}
			}
			return nil
		}}
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				w.Enter()
				defer w.Leave()
				first := w.Add([]int{1, 2}, nil)
				if err := errors.Join(w.Wait(first, w.Add([]int{3}, nil)), w.Wait(first)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if rows.Load() != 600 || calls.Load() > 20 {
			t.Errorf("%d rows in %d transactions", rows.Load(), calls.Load())
		}
		w.Enter()
		if err := w.Wait(w.Add([]int{-1}, nil)); !errors.Is(err, bad) {
			t.Errorf("the error is %v", err)
		}
		w.Leave()
	})
}

// Who is alone waits for nobody; who is not waits no longer than 25 ms.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &batch.Writer[int]{Save: func([]*batch.Batch[int]) error { return nil }}
		write := func() time.Duration {
			begun := time.Now()
			if err := w.Wait(w.Add([]int{1}, nil)); err != nil {
				t.Error(err)
			}
			return time.Since(begun)
		}
		w.Enter()
		if took := write(); took != 0 {
			t.Errorf("alone: %v", took)
		}
		w.Enter() // and does something else
		if took := write(); took != 25*time.Millisecond {
			t.Errorf("beside another: %v", took)
		}
		w.Leave()
		if took := write(); took != 0 {
			t.Errorf("alone again: %v", took)
		}
		w.Leave()
	})
}
