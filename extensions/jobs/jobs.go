// Package jobs is a queue that never loses work. A job is a row that is written in the transaction of what asks for it, so
// that the one exists if, and only if, the other does; it is done by this process, again after a failure, and again at
// once when the process has died in the middle of it.
//
// Jobs are at-least-once: one that has succeeded is done again when the process dies before that is written, which is a
// few milliseconds later. What must happen once goes into [Job.Once] or [Job.Checkpoint], whose transactions prove that
// the job still belongs to this process. A process that works holds a lock on a file of its own, which the system drops
// however the process ends: what it left is taken up at once when another starts on the same machine, and what one on
// another machine left, when it has not been heard of for [lease].
//
// One goroutine, the pump, claims jobs and writes how they ended, up to a few hundred in a transaction. It sleeps until a
// commit, the next due time or another process's call wakes it, and asks the database for nothing in between but once in
// [lookEvery]. The tables change the version of no other, so the caches of reads stay good.
//
// Settings: SATCHEL_JOBS_*. Tables: jobs_queue, jobs_history, jobs_keys, jobs_queues, jobs_schedules. Folder: jobs in the
// data folder, with an empty file for each process. Route: GET /api/v1/jobs/{id}, for the owner. Operations for admins:
// jobs.list, jobs.show, jobs.queues, jobs.retry, jobs.retryDead, jobs.cancel, jobs.pause, jobs.resume. Commands: jobs.
// JavaScript hooks: $jobs. What operators and scripts use, and mails, are packages below this one. Failure modes: a job that
// fails is tried again with growing waits and is dead when its attempts are used up; dead jobs wait for somebody to retry,
// edit or cancel them, and the check "jobs" tells of them.
package jobs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs/meter"
	"github.com/satchelbase/satchel/extensions/jobs/presence"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// Config is read from SATCHEL_JOBS_*.
type Config struct {
	Workers  int           `env:"WORKERS" default:"8" help:"jobs of a queue that are done at a time"`
	Queues   table.Workers `env:"QUEUES" default:"account=2,mail=4" help:"queues with another number of workers, as name=number"`
	Keep     time.Duration `env:"KEEP" default:"7d" help:"how long a job that has ended can be asked for"`
	KeepMost int           `env:"KEEP_MOST" default:"100000" help:"how many jobs that have ended are kept at most"`
	KeepDead time.Duration `env:"KEEP_DEAD" default:"90d" help:"how long dead jobs wait for a decision"`
	Drain    time.Duration `env:"DRAIN" default:"10s" help:"how long jobs may finish when the server stops"`
	Mail     bool          `env:"MAIL" default:"true" help:"send all mails through the queue, so that one that fails is tried again"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	var problems []error
	if c.Workers < 1 || c.Workers > 1000 {
		problems = append(problems, errors.New("WORKERS: must be 1 to 1000"))
	}
	if c.Keep < time.Hour || c.KeepDead < time.Hour {
		problems = append(problems, errors.New("KEEP: must be at least 1h, as KEEP_DEAD"))
	}
	if c.KeepMost < 0 {
		problems = append(problems, errors.New("KEEP_MOST: must not be negative"))
	}
	if c.Drain > 5*time.Minute {
		problems = append(problems, errors.New("DRAIN: must be at most 5m"))
	}
	return errors.Join(problems...)
}

// Deps is what the feature needs of others. The zero value works for a program without sealed kinds.
type Deps struct {
	// Vault seals what jobs of sealed kinds are given, and mails.
	Vault *secret.Vault

	// Leader reports whether this process enqueues what is scheduled; nil is yes.
	Leader func() bool
}

// Jobs is the feature. It is safe for concurrent use once it is bound to an application.
type Jobs struct {
	cfg   Config
	deps  Deps
	epoch string // of this process
	now   func() time.Time
	ids   serial.Counter
	kinds map[string]*Kind
	err   error // of declarations

	schedules int // kinds with one
	app       core.App
	logger    *slog.Logger

	present presence.Folder
	queues  map[string]*queue
	wake    chan struct{}
	nextDue atomic.Int64 // when to look at the scheduled jobs, in Unix milliseconds
	awake   atomic.Bool  // the pump works
	hasty   atomic.Bool  // it is to look at everything
	only    int64        // the job that this process works on alone; 0 is all

	// What follows is made by start. The pump's goroutine owns the line of inflight and all below it.
	stopping, idle, done chan struct{}
	workers              sync.WaitGroup
	work                 context.Context //nolint:containedctx // of all attempts
	endWork              context.CancelCauseFunc
	endPump              context.CancelFunc
	finished             chan result

	inflight                        map[int64]*Job
	pending                         []result
	looked, beaten, nextCron, swept time.Time
	sinceSweep                      int

	count struct{ ended, failed atomic.Int64 }
}

// New returns the feature. [Jobs.Extension] goes into the list.
func New(cfg Config) *Jobs {
	return &Jobs{
		cfg: cfg, epoch: strings.ToLower(rand.Text()), now: time.Now, kinds: map[string]*Kind{}, queues: map[string]*queue{}, wake: make(chan struct{}, 1),
	}
}

// Add declares kinds of jobs. It must be called before the server starts. Jobs of kinds that nobody has declared stay in
// the queue.
func (j *Jobs) Add(kinds ...Kind) {
	for _, k := range kinds {
		j.err = errors.Join(j.err, j.TryAdd(k))
	}
}

// TryAdd declares a kind and returns what is wrong with it, which otherwise stops the program when it starts.
func (j *Jobs) TryAdd(k Kind) error {
	switch {
	case k.err != nil:
		return k.err
	case j.kinds[k.name] != nil:
		return fmt.Errorf("job kind %s is declared twice", k.name)
	}
	j.kinds[k.name] = &k
	if k.schedule != nil {
		j.schedules++
	}
	if j.queues[k.queue] == nil {
		n := j.cfg.Queues[k.queue]
		if n == 0 {
			n = j.cfg.Workers
		}
		j.queues[k.queue] = &queue{name: k.queue, workers: n}
	}
	return nil
}

// Extension is the feature as the program lists it. It must come before the extensions that declare kinds, so that it
// stops after them.
func (j *Jobs) Extension(deps Deps) extensions.Extension {
	j.deps = deps
	return extensions.Extension{
		Name:     "jobs",
		Settings: j.cfg,
		Codes:    []*extensions.Code{ErrRunning, ErrNotWaiting, ErrKeyTaken},
		Tables:   Tables(),
		Migrations: []extensions.Migration{
			extensions.Tables(1795503000, "create_tables", table.Schema(), Tables()...),
			{Unix: 1795503001, What: "take_over_runs", Up: table.TakeOverRuns, Down: func(core.App) error { return nil }},
		},
		Bind: func(h *extensions.Host) error {
			j.app, j.logger = h.App, h.Logger
			for _, k := range j.kinds {
				if k.sealed && deps.Vault == nil {
					return fmt.Errorf("job kind %s is sealed, and there is no vault", k.name)
				}
			}
			return j.err
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) { g.GET("/{id}", j.handleGet) },
		Start:  j.start,
		Stop:   j.stop, StopTimeout: j.cfg.Drain + 10*time.Second,
	}
}

// App is the application that the feature is bound to.
func (j *Jobs) App() core.App { return j.app }

// Workers is how many jobs are done at a time, by queue.
func (j *Jobs) Workers() map[string]int {
	list := make(map[string]int, len(j.queues))
	for name, q := range j.queues {
		list[name] = q.workers
	}
	return list
}

// Meters is what was counted of the jobs of each kind that is declared.
func (j *Jobs) Meters() map[string]*meter.Meter {
	list := make(map[string]*meter.Meter, len(j.kinds))
	for name, k := range j.kinds {
		list[name] = k.meter
	}
	return list
}

func (j *Jobs) folder() string { return filepath.Join(j.app.DataDir(), "jobs") }

// ring calls the processes that work on jobs.
func (j *Jobs) ring() {
	if j.app == nil {
		return
	}
	if err := presence.Ring(j.folder()); err != nil {
		j.logger.Warn("the server was not told of a job; it will find it by itself", "error", err)
	}
}
