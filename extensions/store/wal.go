package store

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
)

// errReplaced says that the write-ahead log under its name is not the one that SQLite writes to.
var errReplaced = errors.New("the write-ahead log was removed or replaced while in use")

// wal makes commits durable: one fsync of the write-ahead log for all commits that wait when it starts.
//
// Why this is enough. With synchronous=NORMAL a COMMIT has written its frames to the log, in the page cache, when it
// returns. The log is a prefix log: a frame counts only if all before it are there, so an fsync that starts after the
// COMMIT covers it and everything it depends on. Between the COMMIT and the fsync the log may be checkpointed or
// restarted by any connection. A checkpoint in NORMAL mode first syncs the log itself, then copies pages to the
// database, and declares frames as copied only after it has synced the database too; the log is restarted, or cut to
// zero length, only when all its frames are copied so. Whatever the fsync no longer finds in the log is therefore on
// disk in the database file. The file is created by SQLite, which syncs the folder with the first header, and stays
// the same file as long as a connection is open; the writer's connection is opened before and closed after the handle
// here, so the handle cannot go stale on its own.
//
// Why the handle is kept. Linux reports a failed write-back once to every open file description. A handle that was
// open before the write cannot miss the failure, even when a checkpoint's fsync has seen it too.
//
// After a failed fsync the pages may be marked clean without being on disk, so a second attempt proves nothing: the
// failure is final until the process restarts and SQLite recovers from what the disk really holds.
type wal struct {
	path  string
	flush func(*os.File) error

	mu     sync.Mutex
	file   *os.File
	next   *round // collects those who wait for the fsync that has not started
	busy   bool   // somebody runs an fsync now
	rounds uint64
	failed error
}

// round is one fsync. The first who waits runs it at once, or is handed the lead by the round before.
type round struct {
	lead chan struct{}
	done chan struct{}
	err  error
}

// open begins to watch the log of a connection that has just been opened and read from.
func (w *wal) open() error {
	file, err := os.OpenFile(w.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open write-ahead log: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file = file
	return nil
}

// close must run before the connection is closed: Windows cannot delete an open file.
func (w *wal) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
}

// wait returns when everything committed before the call is on disk.
func (w *wal) wait() error {
	w.mu.Lock()
	if w.next == nil {
		w.next = &round{lead: make(chan struct{}, 1), done: make(chan struct{})}
	}
	mine := w.next
	if !w.busy {
		w.busy = true
		mine.lead <- struct{}{}
	}
	w.mu.Unlock()

	select {
	case <-mine.lead:
		w.run(mine)
	case <-mine.done:
	}
	return mine.err
}

// run syncs for all who joined the round before it starts, then hands the lead on.
func (w *wal) run(mine *round) {
	// Whoever can run reaches his commit first and shares the round. On one processor an fsync stops everybody else, so
	// without this a round would be for one: 1,650 creates a second instead of 4,100 with 64 clients.
	runtime.Gosched()

	w.mu.Lock()
	w.next = nil
	file, err := w.file, w.failed
	w.mu.Unlock()

	if err == nil {
		err = w.sync(file)
	}
	mine.err = err

	w.mu.Lock()
	w.rounds++
	if w.next != nil {
		w.next.lead <- struct{}{}
	} else {
		w.busy = false
	}
	w.mu.Unlock()
	close(mine.done)
}

func (w *wal) sync(file *os.File) error {
	if file == nil {
		return errReplaced
	}
	have, err := file.Stat()
	if err != nil {
		return fmt.Errorf("inspect write-ahead log: %w", err)
	}
	if named, err := os.Stat(w.path); err != nil || !os.SameFile(have, named) {
		return errReplaced
	}
	if err := w.flush(file); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = fmt.Errorf("sync write-ahead log: %w", err)
		return w.failed
	}
	return nil
}

// failure is the failed fsync, if there was one.
func (w *wal) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// syncs counts the rounds.
func (w *wal) syncs() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rounds
}
