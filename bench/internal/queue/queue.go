// Package queue measures Satchel's job queue in this process: how many jobs of no work it does in a second, each with its
// claim, its end and its line in the history on disk; how long another writer waits meanwhile; and what it costs at rest.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const (
	kind = "bench.noop"

	// writeEvery is the pace of the other writer.
	writeEvery = 2 * time.Millisecond
)

// Columns are what the row of the scorecard shows.
func Columns() []report.Metric {
	return []report.Metric{report.Rate, report.CPU, report.WriterQueue, report.IdleCPU}
}

// Targets are what the queue promises: nobody waits for it, and at rest it costs nothing.
func Targets() []report.Target {
	const lane = "satchel"
	return []report.Target{
		{Lane: lane, Metric: report.Rate, AtLeast: 10_000}, {Lane: lane, Metric: report.WriterQueue, AtMost: 50}, {Lane: lane, Metric: report.IdleCPU, AtMost: 5},
	}
}

// Row measures the row of the scorecard, in a folder below dir.
func Row(ctx context.Context, dir string, n int, row *report.Row) error {
	dir, err := os.MkdirTemp(dir, "queue-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r, err := Measure(ctx, dir, n, time.Second)
	if err != nil {
		return err
	}
	milliseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	row.Results = append(row.Results, report.Result{Lane: "satchel", Contender: "satchel", Operations: r.Jobs, Values: map[report.Metric]float64{
		report.Rate: r.Rate, report.CPU: float64(r.CPU) / float64(time.Microsecond), report.WriterQueue: milliseconds(r.Writer), report.IdleCPU: milliseconds(r.Idle),
	}})
	return nil
}

// Result is what was measured.
type Result struct {
	Jobs    int
	Enqueue float64       // jobs a second into the queue, 500 in a statement
	Rate    float64       // jobs a second out of it
	CPU     time.Duration // of the process, for one job, enqueueing left out
	Writer  time.Duration // p99 of a record saved beside a full queue
	Idle    time.Duration // CPU in a second of rest
}

// bench is an open application.
type bench struct {
	app   core.App
	queue *jobs.Jobs
	done  chan struct{}

	mu   sync.Mutex
	left int
}

// Measure does n jobs, and n more beside a writer, in a new database in dir. rest is how long the queue is watched at rest.
func Measure(ctx context.Context, dir string, n int, rest time.Duration) (r Result, err error) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: jobs.Tables()})
	if err != nil {
		return r, fmt.Errorf("open store: %w", err)
	}
	b := &bench{queue: jobs.New(settings.Defaults[jobs.Config]())}
	b.queue.Add(jobs.Define(jobs.Spec[int]{Kind: kind, Work: func(context.Context, *jobs.Job, int) error { b.count(); return nil }}))
	b.app = core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect})
	h := &extensions.Host{App: b.app, Logger: slog.New(slog.DiscardHandler)}
	x := b.queue.Extension(jobs.Deps{})
	if err := extensions.Install(h, []extensions.Extension{store.New(db), x}); err != nil {
		return r, fmt.Errorf("install: %w", err)
	}
	if err := b.app.Bootstrap(); err != nil {
		return r, fmt.Errorf("open application: %w", err)
	}
	defer func() { err = errors.Join(err, b.app.ClearBootstrap()) }()
	if err := b.app.RunAllMigrations(); err != nil {
		return r, fmt.Errorf("migrate: %w", err)
	}
	if err := x.Start(ctx, h); err != nil {
		return r, fmt.Errorf("start queue: %w", err)
	}
	defer func() { err = errors.Join(err, x.Stop(context.WithoutCancel(ctx))) }()

	r.Jobs = 2 * n
	if r.Enqueue, err = b.fill(n); err != nil {
		return r, err
	}
	cpu := processCPU()
	if r.Rate, err = b.drain(ctx, n); err != nil {
		return r, err
	}
	r.CPU = (processCPU() - cpu) / time.Duration(n)
	if _, err = b.fill(n); err != nil {
		return r, err
	}
	if r.Writer, err = b.beside(ctx, n); err != nil {
		return r, err
	}
	time.Sleep(2 * time.Second) // what ended is removed meanwhile, if it is too much to keep
	cpu = processCPU()
	time.Sleep(rest)
	r.Idle = time.Duration(float64(processCPU()-cpu) / rest.Seconds())
	return r, nil
}

func (b *bench) count() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left--; b.left == 0 {
		close(b.done)
	}
}

// fill enqueues while the queue is paused.
func (b *bench) fill(n int) (rate float64, err error) {
	if err := b.queue.Pause(b.app, "default"); err != nil {
		return 0, fmt.Errorf("pause: %w", err)
	}
	b.mu.Lock()
	b.left, b.done = n, make(chan struct{})
	b.mu.Unlock()
	begun := time.Now()
	const part = 500
	for at := 0; at < n; at += part {
		inputs := make([]any, min(part, n-at))
		for i := range inputs {
			inputs[i] = at + i
		}
		if _, err := b.queue.EnqueueAll(b.app, kind, inputs, jobs.Options{}); err != nil {
			return 0, fmt.Errorf("enqueue: %w", err)
		}
	}
	return float64(n) / time.Since(begun).Seconds(), nil
}

// drain resumes the queue and waits until all ends are written.
func (b *bench) drain(ctx context.Context, n int) (rate float64, err error) {
	begun := time.Now()
	if err := b.queue.Resume(b.app, "default"); err != nil {
		return 0, fmt.Errorf("resume: %w", err)
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	for left := 1; left > 0; time.Sleep(time.Millisecond) {
		if err := b.app.ConcurrentDB().NewQuery("SELECT EXISTS (SELECT 1 FROM jobs_queue)").Row(&left); err != nil {
			return 0, fmt.Errorf("count what is left: %w", err)
		}
	}
	return float64(n) / time.Since(begun).Seconds(), nil
}

// beside is how long the slowest hundredth of saves takes while the queue is drained.
func (b *bench) beside(ctx context.Context, n int) (time.Duration, error) {
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(&core.TextField{Name: "title"})
	if err := b.app.Save(notes); err != nil {
		return 0, fmt.Errorf("make collection: %w", err)
	}
	drained := make(chan error, 1)
	go func() {
		_, err := b.drain(ctx, n)
		drained <- err
	}()
	var took []time.Duration
	for {
		select {
		case err := <-drained:
			slices.Sort(took)
			if err != nil || len(took) == 0 {
				return 0, errors.Join(err, ctx.Err())
			}
			return took[len(took)*99/100], nil
		default:
		}
		note := core.NewRecord(notes)
		note.Set("title", "beside the queue")
		begun := time.Now()
		if err := b.app.Save(note); err != nil {
			return 0, fmt.Errorf("write beside the queue: %w", err)
		}
		took = append(took, time.Since(begun))
		time.Sleep(writeEvery)
	}
}

func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
