// Package changes is the one log of what changed: every insert, update and delete of a record gets a number, in the
// order of the commits. Live updates, sync, webhooks and caches read it; nothing runs in a writer but one append.
//
// Changes are captured by SQLite triggers, so that no way of writing is missed: the API, batches, hooks, imports, the SQL
// console, cascades, rewrites of a column, raw SQL, other processes. The bodies of the triggers name no column but id,
// because one that names another would block the removal of that field. All base and auth collections are captured but
// PocketBase's own, whose names begin with an underscore, and those of SATCHEL_CHANGES_EXCLUDE. Views have no triggers.
//
//   - The log ([Log.Since], [Log.Wait]) holds the events: short-lived, shared in memory by all readers.
//   - The heads ([Log.HeadsAfter], [Log.HeadsOf]) hold the state: per record the number of its last write, which is its
//     version, and whether it is deleted. The log is folded into them in batches; see docs/adr/0004.
//   - Readers ([Log.Reader]) have a position in the database, for work that must not be forgotten.
//   - The epoch changes when the data may have gone back in time, as by a restored backup. A position of another epoch,
//     or from before what is kept, is answered with a [ResetError].
//
// Numbers become visible in the order of commits and without gaps, because SQLite lets one transaction write at a time.
// What readers are shown is on disk, so that a number never comes again after a power failure.
//
// Tables: changes_log, changes_state, changes_collections, changes_heads, changes_marks, changes_readers. Outside the
// database: changes.mark in the data folder. Settings: SATCHEL_CHANGES_*. Routes: none. Metrics: satchel_changes_*.
//
// Failure modes: a program that writes to the database without recursive_triggers, such as the sqlite3 shell, loses the
// deletion of rows that REPLACE evicts; "satchel changes doctor --deep" finds them. When changes_log is dropped by hand,
// every write of a captured collection fails.
package changes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes/capture"
	"github.com/satchelbase/satchel/extensions/changes/dependency"
)

// Config is read from SATCHEL_CHANGES_*.
type Config struct {
	Exclude            []string      `env:"EXCLUDE" default:"" help:"collections whose changes are not recorded; they can be neither synced nor watched"`
	LogRetention       time.Duration `env:"LOG_RETENTION" default:"24h" help:"how long single changes are kept"`
	ReaderRetention    time.Duration `env:"READER_RETENTION" default:"7d" help:"how long they are kept for a durable reader that lags behind"`
	TombstoneRetention time.Duration `env:"TOMBSTONE_RETENTION" default:"60d" help:"how long it is known that a record was deleted; who was away for longer starts over"`
	Tail               int           `env:"TAIL" default:"16384" help:"changes kept in memory for readers; about 80 bytes each"`
}

// Validate refuses periods that contradict each other, and a tail that is no help or does not fit in memory.
func (c Config) Validate() error {
	var problems []error
	if c.LogRetention < time.Minute {
		problems = append(problems, errors.New("LOG_RETENTION: must be at least 1m"))
	}
	if c.ReaderRetention < c.LogRetention {
		problems = append(problems, errors.New("READER_RETENTION: must not be less than LOG_RETENTION"))
	}
	if c.TombstoneRetention < c.LogRetention {
		problems = append(problems, errors.New("TOMBSTONE_RETENTION: must not be less than LOG_RETENTION"))
	}
	if c.Tail < 64 || c.Tail > 1<<22 {
		problems = append(problems, errors.New("TAIL: must lie between 64 and 4194304"))
	}
	return errors.Join(problems...)
}

// Store is what the log must know of the commits of the database. *store.Store is one.
type Store interface {
	// Notify makes fn be called after each commit that may have changed data, before the writer returns.
	Notify(fn func())

	// Durable returns when everything committed before the call is on disk.
	Durable() error

	// Version notices commits of other processes, and then calls what Notify was given.
	Version() (version string, exact bool)
}

// Action is what happened.
type Action = capture.Action

// The actions. The last three concern a whole collection and have no record.
const (
	Create = capture.Create
	Update = capture.Update
	Delete = capture.Delete
	Schema = capture.Schema // the collection's definition, which includes its rules
	Reset  = capture.Reset  // capture began: anything may have changed before
	Gone   = capture.Gone   // the collection was deleted, or is no longer captured
)

// Collection is a collection that is, or was, captured.
type Collection = capture.Collection

// Dependencies are what the answer of a rule depends on.
type Dependencies = dependency.Set

// RuleDependencies finds out what a rule of the collection reads for a caller, nil being a guest.
func RuleDependencies(app core.App, collection *core.Collection, rule string, auth *core.Record) (Dependencies, error) {
	return dependency.Of(app, collection, rule, auth)
}

// Change is one entry of the log. Seq is also the version of the record that the write made.
type Change struct {
	Seq        int64
	Collection string // its id
	Record     string // empty when the action concerns the collection
	Action     Action
}

// Position is a place in the log: behind the change with the number.
type Position struct {
	Epoch string
	Seq   int64
}

// String is a form for cursors.
func (p Position) String() string { return p.Epoch + "." + strconv.FormatInt(p.Seq, 36) }

// ParsePosition reads what String wrote.
func ParsePosition(text string) (Position, bool) {
	epoch, number, found := strings.Cut(text, ".")
	seq, err := strconv.ParseInt(number, 36, 64)
	if !found || err != nil || seq < 0 || len(epoch) != capture.EpochLength {
		return Position{}, false
	}
	p := Position{epoch, seq}
	return p, p.String() == text
}

// Reason is why a position cannot be continued.
type Reason string

// The reasons.
const (
	Floor      Reason = "floor" // what follows it is no longer kept
	OtherEpoch Reason = "epoch" // the data has gone back in time since
	Ahead      Reason = "ahead" // it has never been given out
)

// ResetError says that a position cannot be continued: its holder must read the present state anew, from Now on.
type ResetError struct {
	Reason Reason
	Now    Position
}

// Error names the reason.
func (e *ResetError) Error() string { return "the position cannot be continued: " + string(e.Reason) }

// ErrNotCaptured says that the changes of a collection are not recorded.
var ErrNotCaptured = errors.New("the changes of this collection are not recorded")

// Log is the log. It is safe for concurrent use once the application is open.
type Log struct {
	cfg   Config
	store Store
	app   core.App     // set by Bind
	log   *slog.Logger // set by Bind
	now   func() time.Time

	noted atomic.Uint64 // commits that the store has told of, and pokes
	poke  chan struct{} // wakes the pump

	refresh sync.Mutex // held while the log is read
	tail    atomic.Pointer[tail]
	polled  atomic.Int64 // when the store was last asked, in Unix nanoseconds

	watched atomic.Bool // somebody holds wake.changed
	wake    struct {
		sync.Mutex
		changed chan struct{}
	}

	last struct {
		sync.Mutex
		by map[int64]int64 // number of the last change by internal number of the collection
	}

	fold   sync.Mutex
	folded atomic.Int64 // the heads contain everything up to here, at least
	filled sync.Map     // internal numbers of collections whose heads are complete

	mark    mark
	readers sync.Map // names
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// New makes the log. cfg must be valid.
func New(cfg Config, s Store) *Log {
	l := &Log{cfg: cfg, store: s, now: time.Now, poke: make(chan struct{}, 1)}
	l.wake.changed = make(chan struct{})
	s.Notify(l.note)
	return l
}

// Tables are the tables that only this package and its triggers write to. They must be quiet in the store's options.
func Tables() []string { return capture.Tables() }

// Installed reports whether the database has the tables.
func Installed(app core.App) bool { return capture.Installed(app) }

// Extension makes the log a feature.
func (l *Log) Extension() extensions.Extension {
	return extensions.Extension{
		Name:       "changes",
		Settings:   l.cfg,
		Tables:     Tables(),
		Migrations: []extensions.Migration{capture.Migration(), capture.Covering()},
		Bind:       l.bind,
		Serve:      func(_ *extensions.Host, e *core.ServeEvent) error { return l.open(e.App) },
		Start:      l.start,
		Stop:       l.end,
		Checks:     []extensions.Check{{Name: "change capture", Offline: true, Run: l.check}},
		Metrics:    l.metrics(),
		Commands:   func(*extensions.Host) []*cobra.Command { return []*cobra.Command{l.command()} },
	}
}

func (l *Log) bind(h *extensions.Host) error {
	l.app, l.log = h.App, h.Logger
	capture.Bind(h.App, l.excluded)
	l.bindBackups(h.App)
	return nil
}

// open runs before the server listens: it begins a new epoch if the data may have gone back in time, and brings the
// triggers in order.
func (l *Log) open(app core.App) error {
	if err := l.examine(app); err != nil {
		return fmt.Errorf("open change log: %w", err)
	}
	if err := capture.Sync(app, l.excluded); err != nil {
		return fmt.Errorf("capture changes: %w", err)
	}
	return nil
}

func (l *Log) start(context.Context, *extensions.Host) error {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.stopped.Go(func() { l.pump(ctx) })
	l.stopped.Go(func() { l.maintain(ctx) })
	return nil
}

func (l *Log) end(ctx context.Context) error {
	if l.stop == nil {
		return nil
	}
	l.stop()
	done := make(chan struct{})
	go func() {
		l.stopped.Wait()
		close(done)
	}()
	select {
	case <-done:
		return l.writeMark(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Log) metrics() []extensions.Metric {
	number := func(query string) func() float64 {
		return func() float64 {
			var n float64
			_ = l.app.ConcurrentDB().NewQuery(query).Row(&n) // a metric cannot report an error
			return n
		}
	}
	return []extensions.Metric{
		{Name: "satchel_changes_recorded_total", Help: "Changes recorded in this database.", Counter: true, Read: number("SELECT " + capture.HorizonSQL)},
		{Name: "satchel_changes_unfolded_count", Help: "Changes that the heads do not contain yet.", Read: number("SELECT " + capture.HorizonSQL + " - folded FROM changes_state")},
		{Name: "satchel_changes_reader_lag_count", Help: "Changes that the slowest durable reader has before it.", Read: number(
			"SELECT coalesce(max(" + capture.HorizonSQL + " - seq), 0) FROM changes_readers")},
	}
}

// excluded reports whether the operator does not want the collection to be captured.
func (l *Log) excluded(c *core.Collection) bool {
	return slices.ContainsFunc(l.cfg.Exclude, func(name string) bool { return name == c.Id || strings.EqualFold(name, c.Name) })
}
