package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/satchelbase/satchel/extensions/store/gate"
	"github.com/satchelbase/satchel/extensions/store/notify"
	"github.com/satchelbase/satchel/extensions/store/statement"
)

// defaultPatience is how long a writer waits for the write lock: PocketBase's busy_timeout.
const defaultPatience = 10 * time.Second

// file is one database file as opened by one application: a pool of reading connections and one writing connection
// that all sessions of the write pool share.
type file struct {
	path     string
	patience time.Duration
	durable  bool
	options  Options
	keep     *atomic.Bool // somebody else owns checkpoints
	epoch    string

	gate   gate.Gate   // the right to write, and to use writer
	writer *connection // guarded by gate; nil until used
	closed bool        // guarded by gate
	wal    wal

	// word is the version: a counter, and in the lowest bit whether it is known to be exact without asking SQLite. It is
	// stored by the holder of the gate only. See [Store.Version].
	word    atomic.Uint64
	foreign int64        // guarded by gate: the writer's last PRAGMA data_version
	polled  atomic.Int64 // when that was, in Unix nanoseconds
	polls   sync.Mutex   // held by readers that ask SQLite, so that they do not take each other for writers

	tables tables
	notify *notify.List // nil unless this is data.db

	seen                  *statement.Sightings
	hits, misses, commits atomic.Uint64
}

// connection returns the writing connection; the caller holds the gate.
func (f *file) connection(ctx context.Context) (*connection, error) {
	if f.closed {
		return nil, &Failure{Reason: ErrClosed, RetryAfter: retryBusy}
	}
	if f.writer != nil {
		return f.writer, nil
	}
	c, err := f.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.adopt(ctx, c); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// adopt makes c the writing connection. Reading its data version is also what makes SQLite open the log.
func (f *file) adopt(ctx context.Context, c *connection) error {
	foreign, err := c.number(ctx, "PRAGMA data_version")
	if err != nil {
		return mapped(fmt.Errorf("read %s: %w", f.path, err))
	}
	if f.durable {
		if _, err := c.number(ctx, "SELECT count(*) FROM sqlite_schema"); err != nil {
			return mapped(fmt.Errorf("read %s: %w", f.path, err))
		}
		if err := f.wal.open(); err != nil {
			return &Failure{Reason: ErrStorage, RetryAfter: retryStorage, Cause: fmt.Errorf("%s is not in WAL mode: %w", f.path, err)}
		}
	}
	f.writer, f.foreign = c, foreign
	f.bump() // nobody watched the file before
	return nil
}

// drop closes the writing connection; the caller holds the gate.
func (f *file) drop() error {
	if f.writer == nil {
		return nil
	}
	f.wal.close()
	err := f.writer.Close()
	f.writer = nil
	return err
}

// Close ends the writing connection when the write pool is closed.
func (f *file) Close() error {
	if err := f.gate.Lock(context.Background(), f.patience); err != nil {
		return fmt.Errorf("close %s: a transaction is still open: %w", f.path, err)
	}
	defer f.gate.Unlock()
	f.closed = true
	return f.drop()
}

// release gives the right to write back.
func (f *file) release() {
	if f.writer != nil && !f.writer.alive(context.Background()) {
		_ = f.drop()
	}
	f.gate.Unlock()
}

// refusal is why no write may begin: after a failed fsync nobody knows what is on the disk.
func (f *file) refusal() error {
	if err := f.wal.failure(); err != nil {
		return notDurable(err)
	}
	return nil
}

// sync returns when everything committed so far is on disk, if that is what the file promises.
func (f *file) sync() error {
	f.commits.Add(1)
	if !f.durable {
		return nil
	}
	if err := f.wal.wait(); err != nil {
		return notDurable(err)
	}
	return nil
}

// advance increases the version and tells those who want to know; the caller holds the gate.
func (f *file) advance() {
	f.word.Store((f.word.Load()>>1 + 1) << 1)
	if f.notify != nil {
		f.notify.Call()
	}
}

// settle says that from now on only the holder of the gate can change data, because it holds SQLite's write lock too.
func (f *file) settle() { f.word.Store(f.word.Load() | 1) }

// unsettle ends that.
func (f *file) unsettle() { f.word.Store(f.word.Load() &^ 1) }

// poll notices commits of other connections, which are other processes or writes on the read pool. The writing
// connection's own commits do not change its data version. The caller holds the gate.
func (f *file) poll(ctx context.Context) error {
	c, err := f.connection(ctx)
	if err != nil {
		return err
	}
	foreign, err := c.number(ctx, "PRAGMA data_version")
	if err != nil {
		return err
	}
	if foreign != f.foreign {
		f.foreign = foreign
		f.bump()
	}
	f.polled.Store(time.Now().UnixNano())
	return nil
}

// How long a commit of another process can stay unnoticed by [Store.TableVersion]: asking SQLite costs five microseconds,
// too much for every request, and cannot be done while this process writes.
const (
	pollEvery     = time.Millisecond
	pollUnderLoad = 10 * time.Millisecond
)

func (f *file) polledWithin(d time.Duration) bool {
	return time.Now().UnixNano()-f.polled.Load() < int64(d)
}

// version is the counter, and whether it is exact.
func (f *file) version() (uint64, bool) {
	if word := f.word.Load(); word&1 == 1 {
		return word >> 1, true
	}
	f.polls.Lock()
	defer f.polls.Unlock()
	if !f.gate.Try() {
		word := f.word.Load()
		return word >> 1, word&1 == 1
	}
	defer f.release()
	// Without a context: one that ends would interrupt the connection of the next writer.
	if err := f.poll(context.Background()); err != nil {
		return 0, false
	}
	return f.word.Load() >> 1, true
}

// dirties reports whether the statement may change what a collection's query returns.
func (f *file) dirties(st statement.Statement) bool {
	return st.Script || st.Verb != statement.Write || !f.options.quiet(st.Table)
}

// newFile describes the file; nothing is opened yet.
func (s *Store) newFile(path string) *file {
	data := filepath.Base(path) == dataFile
	f := &file{
		path: path, patience: defaultPatience, durable: s.cfg.Durability == Full && data, options: s.options, keep: &s.keep,
		epoch: newEpoch(), seen: statement.NewSightings(), wal: wal{path: path + "-wal", flush: s.flush()},
	}
	if data {
		f.gate.Suspect, f.notify = s.suspect, &s.notify
	}
	return f
}

// SuspectWaits sets what is asked by every writer of data.db that has waited for its turn for a fifth of a second, on the
// goroutine that waits. Its error is that of the write. So somebody who knows which goroutine has a transaction open can
// end a wait that would never end.
func (s *Store) SuspectWaits(ask func() error) { s.waits.Store(&ask) }

func (s *Store) suspect() error {
	if ask := s.waits.Load(); ask != nil {
		return (*ask)()
	}
	return nil
}

// flush is os.File.Sync unless the options replace it. On macOS Sync uses F_FULLFSYNC, which empties the drive's cache.
func (s *Store) flush() func(*os.File) error {
	if s.options.Sync != nil {
		return s.options.Sync
	}
	return (*os.File).Sync
}
