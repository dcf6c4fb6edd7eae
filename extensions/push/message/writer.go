package message

import (
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

const (
	// maxRows is how many results one transaction writes, and writeWithin how long the first of them waits for others.
	maxRows     = 500
	writeWithin = 50 * time.Millisecond
)

// batch is results that are written together, and what goes with them.
type batch struct {
	rows []result
	also func(tx core.App) error // nil is nothing
	done chan error
}

// writer joins the results of chunks that end at about the same time: a transaction for each of many small messages would
// cost more than sending them. It writes at once when everybody who works waits for it. It needs no start and no stop.
type writer struct {
	save func(list []*batch) error

	mu      sync.Mutex
	pending []*batch
	rows    int
	working int // chunks that may bring more
	waiting int // of them, those that wait
	writing bool
	kick    chan struct{}
}

// enter says that a chunk is at work, and leave that it is not any more.
func (w *writer) enter() { w.mu.Lock(); w.working++; w.mu.Unlock() }

func (w *writer) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.working--
	w.look()
}

// look wakes the goroutine that writes when there is nothing to wait for. The caller holds the lock.
func (w *writer) look() {
	if w.writing && len(w.pending) > 0 && (w.rows >= maxRows || w.waiting >= w.working) {
		select {
		case w.kick <- struct{}{}:
		default:
		}
	}
}

// add hands a batch over. The error of the transaction arrives at its channel.
func (w *writer) add(rows []result, also func(tx core.App) error) *batch {
	b := &batch{rows, also, make(chan error, 1)}
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

// wait returns how the batches ended. The caller is at work.
func (w *writer) wait(batches ...*batch) (err error) {
	w.mu.Lock()
	w.waiting++
	w.look()
	w.mu.Unlock()
	for _, b := range batches {
		if e := <-b.done; e != nil && err == nil {
			err = e
		}
	}
	w.mu.Lock()
	w.waiting--
	w.mu.Unlock()
	return err
}

// write writes until there is nothing left.
func (w *writer) write() {
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
			err := w.save(list)
			for _, b := range list {
				b.done <- err
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
func (w *writer) take() []*batch {
	n, rows := 0, 0
	for n < len(w.pending) && (n == 0 || rows+len(w.pending[n].rows) <= maxRows) {
		rows += len(w.pending[n].rows)
		n++
	}
	list := w.pending[:n:n]
	w.pending = w.pending[n:]
	w.rows -= rows
	return list
}
