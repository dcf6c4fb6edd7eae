// Package batch joins what many goroutines want to write at about the same time into one transaction, which costs much less
// than one for each.
package batch

import (
	"cmp"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

const (
	// maxRows is how many results one transaction writes: they take some milliseconds, for which all other writers wait.
	maxRows = 200

	// writeWithin is how long the first of them waits for others.
	writeWithin = 25 * time.Millisecond
)

// Batch is rows that are written together, and what goes with them.
type Batch[R any] struct {
	Rows []R
	Also func(tx core.App) error // nil is nothing
	done chan struct{}
	err  error // once done is closed
}

// Writer joins batches. It writes at once when everybody who works waits for it. It needs no start and no stop, and is safe
// for concurrent use; Save is set before that.
type Writer[R any] struct {
	Save func(list []*Batch[R]) error

	mu      sync.Mutex
	pending []*Batch[R]
	rows    int
	working int // who may bring more
	waiting int // of them, those that wait
	writing bool
	kick    chan struct{}
}

// Enter says that somebody is at work who may bring batches.
func (w *Writer[R]) Enter() { w.mu.Lock(); w.working++; w.mu.Unlock() }

// Leave says that somebody is not any more.
func (w *Writer[R]) Leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.working--
	w.look()
}

// look wakes the goroutine that writes when there is nothing to wait for. The caller holds the lock.
func (w *Writer[R]) look() {
	if w.writing && len(w.pending) > 0 && (w.rows >= maxRows || w.waiting >= w.working) {
		select {
		case w.kick <- struct{}{}:
		default:
		}
	}
}

// Add hands a batch over; Wait tells how it ended.
func (w *Writer[R]) Add(rows []R, also func(tx core.App) error) *Batch[R] {
	b := &Batch[R]{Rows: rows, Also: also, done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = append(w.pending, b)
	w.rows += len(rows)
	if !w.writing {
		w.writing, w.kick = true, make(chan struct{}, 1)
		go w.write()
	}
	w.look()
	return b
}

// Wait returns how the batches ended, as often as it is asked. The caller is at work.
func (w *Writer[R]) Wait(batches ...*Batch[R]) (err error) {
	w.mu.Lock()
	w.waiting++
	w.look()
	w.mu.Unlock()
	for _, b := range batches {
		<-b.done
		err = cmp.Or(err, b.err)
	}
	w.mu.Lock()
	w.waiting--
	w.mu.Unlock()
	return err
}

// write writes until there is nothing left.
func (w *Writer[R]) write() {
	timer := time.NewTimer(writeWithin)
	defer timer.Stop()
	for {
		timer.Reset(writeWithin)
		select {
		case <-timer.C:
		case <-w.kick:
		}
		w.mu.Lock()
		list := w.take()
		w.mu.Unlock()
		if len(list) > 0 {
			err := w.Save(list)
			for _, b := range list {
				b.err = err
				close(b.done)
			}
		}
		w.mu.Lock()
		if len(w.pending) == 0 {
			w.writing = false
			w.mu.Unlock()
			return
		}
		w.look()
		w.mu.Unlock()
	}
}

// take removes the batches of the next transaction.
func (w *Writer[R]) take() []*Batch[R] {
	n, rows := 0, 0
	for n < len(w.pending) && (n == 0 || rows+len(w.pending[n].Rows) <= maxRows) {
		rows += len(w.pending[n].Rows)
		n++
	}
	list := w.pending[:n:n]
	w.pending = w.pending[n:]
	w.rows -= rows
	return list
}
