// Package store opens the database files of the application: the one place below PocketBase where reading, writing and
// durability are decided. It wraps the SQLite driver in a connector of database/sql, so that PocketBase, the features
// and the hooks use it without knowing.
//
//   - Durability. With full, the default, a transaction or single write on data.db returns when it is on disk. It is
//     committed without a sync, gives the write lock to the next writer, and waits for one fsync of the write-ahead log
//     that it shares with all who wait; see the type wal for why that is enough. auxiliary.db holds logs and may lose
//     the last of them with the power.
//   - Writers. All sessions of the write pool share one real connection, in the order of their arrival; see session.
//   - Statements are kept prepared, unless their text contains random names.
//   - Version. A number for the state of data.db that repeated reads can be answered by, see [Store.Version].
//   - Checkpoints can be owned by a replicator, see [Store.OwnCheckpoints].
//   - Errors. What is not the client's fault is a [Failure], which the HTTP edge answers with 503 and Retry-After.
//
// The build tag mattn replaces the SQLite driver, modernc.org/sqlite, by the C library behind github.com/mattn/go-sqlite3.
//
// Settings: SATCHEL_DB_DURABILITY. The section is "db", not the name of the package, because operators look for the
// database there. There are no tables and no routes. Codes: store.unavailable. Metrics: satchel_store_*.
//
// Failure modes: a writer that waits more than ten seconds for the write lock fails, as does one whose fsync fails.
// After a failed fsync the process refuses all writes and its readiness fails until it is restarted, because only the
// recovery of SQLite tells what the disk really holds. Reads go on.
package store

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions/store/notify"
)

const dataFile = "data.db"

// Values of [Config.Durability].
const (
	Full   = "full"
	Normal = "normal"
)

// Config is the section "db" of the settings.
type Config struct {
	Durability string `env:"DURABILITY" default:"full" help:"full: an answered write survives a power failure; normal: the last ones may be lost"`
}

// Validate refuses an unknown mode.
func (c Config) Validate() error {
	if c.Durability != Full && c.Durability != Normal {
		return errors.New("DURABILITY: must be full or normal")
	}
	return nil
}

// Options are what the program, not the operator, decides.
type Options struct {
	// Quiet lists tables of data.db whose writes do not change the version: hot plain tables that no rule, collection or
	// view reads. A trigger that writes to nothing else leaves the versions of tables exact, see [Store.TableVersion].
	Quiet []string

	// Sync makes the write-ahead log durable; default (*os.File).Sync. Benchmarks slow it down, tests make it fail.
	Sync func(*os.File) error
}

func (o Options) quiet(table string) bool { return table != "" && slices.Contains(o.Quiet, table) }

// Store opens database files. It is safe for concurrent use.
type Store struct {
	cfg     Config
	options Options
	keep    atomic.Bool
	unknown atomic.Uint64 // numbers of TableVersion that stand for nothing
	waits   atomic.Pointer[func() error]
	notify  notify.List

	// data is the file that versions are asked for.
	data atomic.Pointer[file]

	mu    sync.Mutex
	files map[string]*opened
}

// opened is a file and how many of its two pools have been handed out.
type opened struct {
	*file
	pools int
}

// Open prepares a store; the files are opened when PocketBase asks for them.
func Open(cfg Config, options Options) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	quiet := make([]string, len(options.Quiet))
	for i, table := range options.Quiet {
		quiet[i] = strings.ToLower(table)
	}
	options.Quiet = quiet
	return &Store{cfg: cfg, options: options, files: map[string]*opened{}}, nil
}

// Connect is PocketBase's DBConnect. PocketBase asks twice for each file, first for the pool that it reads through and
// then for the one that it writes through; a third call begins anew, as after a restore.
func (s *Store) Connect(path string) (*dbx.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolve database path: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[path]
	if f == nil || f.pools == 2 {
		f = &opened{file: s.newFile(path)}
		s.files[path] = f
		if filepath.Base(path) == dataFile {
			s.data.Store(f.file)
		}
	}
	f.pools++
	if f.pools == 1 {
		return dbx.NewFromDB(sql.OpenDB(readPool{f.file}), "sqlite"), nil
	}
	return dbx.NewFromDB(sql.OpenDB(writePool{f.file}), "sqlite"), nil
}

// OwnCheckpoints says whether somebody else, such as a replicator, decides when the write-ahead log is cut. As long as
// it does, checkpoints asked for in SQL are made PASSIVE: they copy what they can and wait for nobody.
func (s *Store) OwnCheckpoints(own bool) { s.keep.Store(own) }

// Healthy returns why writes are refused, or nil.
func (s *Store) Healthy() error {
	var failed []error
	for _, f := range s.list() {
		if err := f.wal.failure(); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", filepath.Base(f.path), err))
		}
	}
	return errors.Join(failed...)
}

// Notify makes fn be called whenever the version of data.db grows: after each commit of this process that may have
// changed data, when it is visible and before the writer returns, and when a commit of another process is noticed, by a
// write or by [Store.Version]. The commit need not be on disk yet, see [Store.Durable]. fn must neither block nor use the
// database. Call Notify before the files are opened.
func (s *Store) Notify(fn func()) { s.notify.Add(fn) }

// Durable returns when everything that was committed to data.db before the call is on disk, if that is promised at all.
// It shares its fsync with the writers that wait.
func (s *Store) Durable() error {
	if f := s.data.Load(); f != nil && f.durable {
		if err := f.wal.wait(); err != nil {
			return notDurable(err)
		}
	}
	return nil
}

// Version names the state of data.db, for answers that need not be computed again. Two equal versions, both exact, mean
// that nothing but quiet tables was changed between the two calls, by this or any other process. The label of an answer
// is a version from before its query, which may be that of [Store.LastVersion]:
//
//	if version, exact := store.Version(); exact && version == presented { /* 304 */ }
//	label := store.LastVersion()
//	/* run the query, answer with the label */
//
// Why this cannot label new data with an old version for good, nor miss a change: a writer makes the version inexact
// before its COMMIT, and increases it after the COMMIT and before it lets anybody else write. A reader that took the old
// version before the COMMIT and sees the data after it labels new data with a version that never comes again. A reader
// that finds an exact version sees it at a moment when nothing is being committed: it comes from a transaction that
// holds SQLite's write lock, or from SQLite itself while no writer is active. While a commit is on its way the version
// is inexact, and the caller does the work. It costs about five microseconds while nobody writes and nothing while a
// transaction is open; nothing is written and no writer is kept waiting longer than that.
func (s *Store) Version() (version string, exact bool) {
	f := s.data.Load()
	if f == nil {
		return "", false
	}
	n, exact := f.version()
	return f.named(n), exact
}

// LastVersion is the version as it was last known, at no cost. It may be behind, so it can label an answer, whose label
// then never comes again, but not tell that nothing has changed.
func (s *Store) LastVersion() string {
	f := s.data.Load()
	if f == nil {
		return ""
	}
	return f.named(f.word.Load() >> 1)
}

// list returns the open files, data.db first.
func (s *Store) list() []*file {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*file, 0, len(s.files))
	for _, f := range s.files {
		list = append(list, f.file)
	}
	slices.SortFunc(list, func(a, b *file) int { return strings.Compare(filepath.Base(b.path), filepath.Base(a.path)) })
	return list
}

func (f *file) named(n uint64) string { return f.epoch + "-" + strconv.FormatUint(n, 36) }

// newEpoch keeps the versions of different runs, and of the files before and after a restore, apart.
func newEpoch() string { return strings.ToLower(rand.Text()[:12]) }

// statistics are sums over all files since the start.
type statistics struct {
	commits, syncs, hits, misses uint64
	wait                         time.Duration
}

func (s *Store) statistics() statistics {
	var sum statistics
	for _, f := range s.list() {
		sum.commits += f.commits.Load()
		sum.syncs += f.wal.syncs()
		sum.hits += f.hits.Load()
		sum.misses += f.misses.Load()
		sum.wait += f.gate.Wait()
	}
	return sum
}
