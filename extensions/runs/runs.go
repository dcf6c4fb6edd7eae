// Package runs does long work in the background, so that it survives the end of the process: a run is a row that is
// written in the transaction of what asked for it, and is worked on until it has succeeded or failed for good.
//
// A run is at-least-once. What it must not do twice goes into a transaction with [Run.Checkpoint], which moves its resume
// position and proves that the run still belongs to this process. A process that works holds a lock on a file of its own,
// which the system drops however the process ends: what a crashed process left is taken up at once when a process starts
// on the same machine, and what one on another machine left, when it has not been heard of for [staleAfter]. Two
// processes never work on the same run.
//
// Settings: SATCHEL_RUNS_*. Table: runs_runs. Folder: runs in the data folder, with an empty file for each process.
// Route: GET /api/v1/runs/{id}, for the owner. Failure modes: a run that fails is tried again with growing waits and is
// given up after [maxAttempts] attempts; the check "runs" tells of that.
package runs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// Config is read from SATCHEL_RUNS_*.
type Config struct {
	Concurrency int           `env:"CONCURRENCY" default:"2" help:"background runs at a time"`
	Keep        time.Duration `env:"KEEP" default:"7d" help:"how long a run that has ended can be asked for"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	if c.Concurrency < 1 || c.Concurrency > 16 {
		return errors.New("CONCURRENCY: must be 1 to 16")
	}
	if c.Keep < time.Hour {
		return errors.New("KEEP: must be at least 1h")
	}
	return nil
}

// Work does what a kind of run is about. It returns soon after ctx has ended, which means that the server stops; the run
// is taken up again later. An error is tried again unless it is [Permanent].
type Work func(ctx context.Context, r *Run) error

const (
	// beatEvery is how often a process says that it still works, and how far it is.
	beatEvery = 2 * time.Second

	// staleAfter is how long a process on another machine may be silent before its runs are taken from it.
	staleAfter = 30 * time.Second

	// pollEvery is how late a run may start that another process has asked for, or that becomes due.
	pollEvery = time.Second

	// sweepEvery is how often old rows are removed.
	sweepEvery = time.Hour

	// stopTimeout is how long work may take to notice that the server stops.
	stopTimeout = 10 * time.Second
)

// Runs is the feature. It is safe for concurrent use once it is bound to an application.
type Runs struct {
	cfg   Config
	kinds map[string]Work
	epoch string // of this process
	now   func() time.Time

	app    core.App
	logger *slog.Logger
	wake   chan struct{}

	present presence
	slots   chan struct{}
	working sync.WaitGroup
	running atomic.Int64
	end     context.CancelFunc // of the work; nil before Start
}

// New returns the feature. [Runs.Extension] goes into the list.
func New(cfg Config) *Runs {
	return &Runs{
		cfg: cfg, kinds: map[string]Work{}, epoch: newID(), now: time.Now,
		wake: make(chan struct{}, 1), slots: make(chan struct{}, max(cfg.Concurrency, 1)),
	}
}

// Register says how runs of a kind are done. It must be called before the application is opened, and panics if the kind is
// known already. Runs of kinds that nobody has registered stay in the queue.
func (r *Runs) Register(kind string, work Work) {
	if _, known := r.kinds[kind]; known || kind == "" {
		panic(fmt.Sprintf("runs: the kind %q is empty or registered twice", kind))
	}
	r.kinds[kind] = work
}

// Extension is the feature as the program lists it. It must come before the extensions that register kinds, so that it
// stops after them.
func (r *Runs) Extension() extensions.Extension {
	return extensions.Extension{
		Name:       "runs",
		Settings:   r.cfg,
		Tables:     []string{table},
		Migrations: []extensions.Migration{extensions.Tables(1795430000, "create_runs", schema(), table)},
		Bind: func(h *extensions.Host) error {
			r.app, r.logger = h.App, h.Logger
			return nil
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) { g.GET("/{id}", r.handleGet) },
		Start:  r.start,
		Stop:   r.stop, StopTimeout: stopTimeout,
		Checks: []extensions.Check{{Name: "runs", Run: r.check}},
		Metrics: []extensions.Metric{
			{Name: "satchel_runs_running_count", Help: "Background runs that this process works on.", Read: func() float64 { return float64(r.running.Load()) }},
			{Name: "satchel_runs_waiting_count", Help: "Background runs that are due and wait.", Read: r.waiting},
		},
	}
}

// handleGet shows a run to its owner. To anybody else it does not exist.
func (r *Runs) handleGet(e *core.RequestEvent) error {
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	row, err := find(e.App, e.Request.PathValue("id"))
	if errors.Is(err, ErrNotFound) || err == nil && row.owner() != OwnerOf(e.Auth) {
		return api.ErrNotFound
	}
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, row.status())
}

// check tells of runs that were given up.
func (r *Runs) check(_ context.Context, h *extensions.Host) extensions.Result {
	var failed, waiting int
	err := h.App.ConcurrentDB().NewQuery(`SELECT count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state = 'queued')
		FROM `+table+` WHERE state IN ('failed', 'queued')`).Row(&failed, &waiting)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Fail, Message: fmt.Sprintf("runs cannot be read: %v", err)}
	case failed > 0:
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("%d background runs were given up", failed),
			Next: "look for \"a background run was given up\" in the log",
		}
	}
	return extensions.Result{Message: fmt.Sprintf("%d waiting, none given up", waiting)}
}

func (r *Runs) waiting() float64 {
	if r.app == nil || !r.app.IsBootstrapped() {
		return 0
	}
	var n float64
	_ = r.app.ConcurrentDB().NewQuery(`SELECT count(*) FROM ` + table + ` WHERE state = 'queued' AND due_at <= {:now}`).
		Bind(map[string]any{"now": r.now().UnixMilli()}).Row(&n) // a metric has nobody to tell an error to
	return n
}
