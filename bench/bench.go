package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

// Cores of the two sides.
const (
	serverCore    = "0"
	generatorCore = "1"
)

// bench is one run: what has been built, and which servers are up.
type bench struct {
	plan    plan
	root    string // of the module
	dir     string // of this run
	out     io.Writer
	taskset string // the program, empty when there is none

	contenders []*contender
	skipped    []report.Skipped
	servers    []*server     // those that take part in the rows, in the order of contenders
	guests     []*server     // those of the row that is measured
	past       time.Duration // processor time of guests that have ended
}

func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(b.out, format+"\n", args...)
}

// prepare builds the contenders, makes the database and starts a server of each.
func (b *bench) prepare(ctx context.Context, names []string) error {
	if runtime.GOOS != "linux" {
		return errors.New("only Linux tells what the measurement needs, in /proc")
	}
	for _, c := range contenders() {
		if !slices.Contains(names, c.name) {
			continue
		}
		b.progress("building %s", c.name)
		err := c.build(ctx, b)
		var missing unavailableError
		switch {
		case errors.As(err, &missing):
			b.progress("skipping %s: %s", c.name, missing)
			b.skipped = append(b.skipped, report.Skipped{Name: c.name, Reason: missing.Error()})
		case err != nil:
			return fmt.Errorf("build %s: %w", c.name, err)
		default:
			b.contenders = append(b.contenders, c)
		}
	}
	b.progress("making the database")
	if err := seed.Create(b.seeded(), b.plan.size); err != nil {
		return fmt.Errorf("make database: %w", err)
	}
	if err := b.pin(ctx); err != nil {
		return err
	}
	for _, c := range b.contenders {
		s, err := b.start(ctx, c, startOptions{})
		if err != nil {
			return err
		}
		b.servers = append(b.servers, s)
	}
	return nil
}

// seeded is the data folder that is copied for every server.
func (b *bench) seeded() string { return filepath.Join(b.dir, "seed") }

// binary is where a contender's program is put.
func (b *bench) binary(name string) string { return filepath.Join(b.dir, "bin", name) }

// pin moves this program to its core; servers are started on theirs.
func (b *bench) pin(ctx context.Context) error {
	b.taskset, _ = exec.LookPath("taskset") // without it nothing is pinned, and the page says so
	if !b.pinned() {
		b.progress("not pinned: this needs two processors and the program taskset")
		return nil
	}
	if _, err := machine.Output(ctx, "", b.taskset, "--all-tasks", "--cpu-list", "--pid", generatorCore, strconv.Itoa(os.Getpid())); err != nil {
		return fmt.Errorf("pin the generator: %w", err)
	}
	runtime.GOMAXPROCS(1)
	return nil
}

// stop ends all servers that are still up.
func (b *bench) stop() {
	for _, s := range b.servers {
		s.stop()
	}
}

// versions names what took part.
func (b *bench) versions(ctx context.Context) ([]report.Version, error) {
	list := []report.Version{{Name: "Go", Version: strings.TrimPrefix(runtime.Version(), "go")}}
	if v, err := machine.Output(ctx, b.root, "git", "describe", "--tags", "--always", "--dirty"); err == nil {
		list = append(list, report.Version{Name: "Satchel", Version: v})
	}
	for _, c := range b.contenders {
		if c.name == report.Stock {
			for _, path := range []string{"github.com/pocketbase/pocketbase", "modernc.org/sqlite"} {
				v, err := machine.Dependency(b.binary(c.name), path)
				if err != nil {
					return nil, fmt.Errorf("read version of stock: %w", err)
				}
				list = append(list, report.Version{Name: path, Version: v})
			}
		}
		if c.versions != nil {
			more, err := c.versions(ctx, b)
			if err != nil {
				return nil, err
			}
			list = append(list, more...)
		}
	}
	return list, nil
}
