package logs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

const (
	// tickInterval is how long a row waits, at most, for others to be stored with it.
	tickInterval = time.Second

	// reportInterval spaces the lines about what a log has lost.
	reportInterval = 10 * time.Second
)

// pipeline takes a finished request to standard error and from there to auxiliary.db. Each step has its own queue and
// goroutine, so that a busy database does not hold up the lines.
type pipeline struct {
	cfg     Config
	entries sync.Pool
	lines   *queue
	records *queue
	sample  sample // of the goroutine of lines

	stored, skipped atomic.Uint64
}

func newPipeline(cfg Config) *pipeline {
	return &pipeline{cfg: cfg, lines: newQueue(), records: newQueue(), sample: sample{rate: float64(cfg.StorePerSecond)}}
}

func (p *pipeline) dropped() uint64 { return p.lines.dropped.Load() + p.records.dropped.Load() }

func (p *pipeline) start(ctx context.Context, h *extensions.Host) {
	go p.lines.run(tickInterval, func(x *entry) { p.write(ctx, h, x) }, p.reporter(h.Logger))
	t := &table{host: h, maxSize: int64(p.cfg.MaxSize), stored: &p.stored, lost: &p.records.dropped}
	go p.records.run(tickInterval, func(x *entry) {
		t.add(ctx, x)
		p.release(x)
	}, func() { t.tick(ctx) })
}

// stop writes what is left, as long as ctx allows.
func (p *pipeline) stop(ctx context.Context) error {
	return errors.Join(p.lines.close(ctx), p.records.close(ctx))
}

// write puts out the line and passes the entry on, if it is to be stored.
func (p *pipeline) write(ctx context.Context, h *extensions.Host, x *entry) {
	shown := x.wanted(p.cfg) && h.Logger.Enabled(ctx, x.level())
	kept := p.keeps(x, h.App.Settings().Logs)
	if shown || kept {
		x.prepare()
	}
	if shown {
		// There is nowhere to report that the log cannot be written.
		_ = h.Logger.Handler().Handle(ctx, x.record())
	}
	if !kept || !p.records.push(x) {
		p.release(x)
	}
}

// keeps reports whether the request is to be stored. PocketBase's settings decide first, so that what they leave out
// does not use up the sample.
func (p *pipeline) keeps(x *entry, cfg core.LogsConfig) bool {
	if cfg.MaxDays == 0 || int(x.storedLevel()) < cfg.MinLevel || x.err == nil && x.quiet {
		return false
	}
	if x.failed() || p.sample.take(x.at) {
		return true
	}
	p.skipped.Add(1)
	return false
}

// reporter returns a function that logs how many requests a log has lost since it was called before.
func (p *pipeline) reporter(l *slog.Logger) func() {
	var reported uint64
	var reportedAt time.Time
	return func() {
		if n := p.dropped(); n != reported && time.Since(reportedAt) >= reportInterval {
			l.Warn("request lines were dropped", slog.Uint64("count", n-reported))
			reported, reportedAt = n, time.Now()
		}
	}
}

// take returns an empty entry.
func (p *pipeline) take() *entry {
	if x, ok := p.entries.Get().(*entry); ok {
		return x
	}
	return &entry{}
}

// release gives back an entry that nobody else holds.
func (p *pipeline) release(x *entry) {
	*x = entry{}
	p.entries.Put(x)
}

// sample lets through so many requests a second, evenly spread while there are more, and what was not used in the last
// ten seconds at once: pages of the dashboard make a burst of requests.
type sample struct {
	rate   float64
	tokens float64
	at     time.Time
}

const sampleBurst = 10 * time.Second

func (s *sample) take(now time.Time) bool {
	if elapsed := now.Sub(s.at); elapsed > 0 {
		s.tokens = min(s.tokens+s.rate*elapsed.Seconds(), s.rate*sampleBurst.Seconds())
		s.at = now
	}
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}
