// Package memory sets how much memory the garbage collector may use. Go's default collects whenever the heap has
// doubled; a server with a heap of ten megabytes then collects many times a second and spends a tenth of its time on it.
// Collecting at five times the live heap costs 13 to 20 MB and gives most of that time back; a limit below what the
// machine or its control group has makes the collector work harder before the kernel ends the process.
//
// The environment variables GOGC and GOMEMLIMIT win over the settings. The limit covers Go's own memory: the page caches
// of SQLite are in it, the kernel's cache of files is not.
//
// Settings: SATCHEL_MEMORY_*. Routes, tables and codes: none. Metric: satchel_memory_limit_bytes. Where the memory cannot
// be found out, as outside Linux, no limit is set.
package memory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/settings"
)

// Config is read from SATCHEL_MEMORY_*.
type Config struct {
	GOGC int `env:"GOGC" default:"400" help:"growth of the heap, in percent, after which garbage is collected; less saves memory, more saves time"`

	Limit settings.Bytes `env:"LIMIT" default:"0" help:"memory that the program tries to stay below; 0 takes 70 % of what the machine or container has"`
}

const (
	// share leaves room for what Go does not count: the kernel's cache of the database files above all.
	share = 0.7

	// leastLimit is about what an idle server holds. Below it the collector would run all the time.
	leastLimit = 64 << 20

	leastGOGC, mostGOGC = 10, 10_000
)

// Validate reports values that cannot work.
func (c Config) Validate() error {
	switch {
	case c.GOGC < leastGOGC || c.GOGC > mostGOGC:
		return errors.New("GOGC: must be from 10 to 10000")
	case c.Limit != 0 && c.Limit < leastLimit:
		return errors.New("LIMIT: must be 0 or at least 64MiB")
	}
	return nil
}

// New returns the extension.
func New(cfg Config) extensions.Extension {
	plan := func() plan { return newPlan(cfg, os.Getenv, os.DirFS("/")) }
	return extensions.Extension{
		Name:     "memory",
		Settings: cfg,
		Start: func(context.Context, *extensions.Host) error {
			plan().apply()
			return nil
		},
		Checks: []extensions.Check{{
			Name: "memory", Offline: true,
			Run: func(context.Context, *extensions.Host) extensions.Result { return plan().check() },
		}},
		Metrics: []extensions.Metric{{
			Name: "satchel_memory_limit_bytes", Help: "Memory that the program tries to stay below; +Inf without a limit.",
			Read: limitInForce,
		}},
	}
}

// plan is what will be set, and why. A zero percentage or limit leaves what the environment has set.
type plan struct {
	gogc  int
	limit uint64

	total  uint64 // bytes that the machine or container has; 0 if unknown
	source string // where total comes from

	ownGOGC, ownLimit string // what the environment has set
}

// newPlan decides from the settings, the environment and the files of the root.
func newPlan(cfg Config, getenv func(string) string, root fs.FS) plan {
	p := plan{ownGOGC: getenv("GOGC"), ownLimit: getenv("GOMEMLIMIT")}
	p.total, p.source = available(root)
	if p.ownGOGC == "" {
		p.gogc = cfg.GOGC
	}
	if p.ownLimit != "" {
		return p
	}
	p.limit = uint64(cfg.Limit)
	if p.limit == 0 && p.total > 0 {
		p.limit = max(uint64(float64(p.total)*share), leastLimit)
	}
	return p
}

// apply sets the plan for the whole process, and gives back to the system what starting has left behind: with a higher
// percentage, an idle server might otherwise never collect it.
func (p plan) apply() {
	if p.gogc != 0 {
		debug.SetGCPercent(p.gogc)
	}
	if p.limit != 0 {
		debug.SetMemoryLimit(int64(min(p.limit, math.MaxInt64)))
	}
	debug.FreeOSMemory()
}

func (p plan) check() extensions.Result {
	percent, limit := fmt.Sprintf("GOGC %d", p.gogc), "no limit"
	if p.gogc == 0 {
		percent = "GOGC " + p.ownGOGC + " from the environment"
	}
	switch {
	case p.ownLimit != "":
		limit = "limit " + p.ownLimit + " from the environment"
	case p.limit > 0:
		limit = "limit " + mebibytes(p.limit)
	}
	r := extensions.Result{Message: percent + ", " + limit}
	if p.total == 0 {
		r.Level, r.Next = extensions.Info, "set SATCHEL_MEMORY_LIMIT"
		r.Message += "; how much memory there is cannot be found out"
		if p.limit > 0 || p.ownLimit != "" {
			r.Level, r.Next = extensions.OK, ""
		}
		return r
	}
	r.Message += " of " + mebibytes(p.total) + " (" + p.source + ")"
	if p.limit > p.total {
		r.Level, r.Next = extensions.Warn, "give the server more memory, or set a lower SATCHEL_MEMORY_LIMIT"
	}
	return r
}

func mebibytes(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }

// limitInForce reads the limit without changing it.
func limitInForce() float64 {
	if n := debug.SetMemoryLimit(-1); n != math.MaxInt64 {
		return float64(n)
	}
	return math.Inf(1)
}
