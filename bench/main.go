// Command bench measures Satchel beside stock PocketBase, beside what HTTP and SQLite could do at best, and beside the
// usual Express stacks: all in one run, in turns, on copies of one database. See docs/benchmarks.md for the method.
//
//	go run ./bench                              all rows, about ten minutes
//	go run ./bench -rows 2,3 -quick             some rows, under a minute
//	go run ./bench -md docs/benchmarks.md       and write the page
//	go run ./bench -smoke                       does everything still work? numbers mean nothing
//
// It needs Linux with /proc, Go, and, for the Express stacks, Node with npm and PostgreSQL; what is missing is skipped
// and named. It starts servers on loopback, works in a temporary folder and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// options are the command line.
type options struct {
	rows, contenders   []string
	json, markdown, in string
	plan               plan
}

// plan is how long and how much is measured.
type plan struct {
	size        seed.Size
	slice       time.Duration
	rounds      int
	allCounts   bool // 1, 8 and 64 connections, not only the scored number
	install     bool // npm ci when it has not been done
	node        bool // the Express stacks take part unless they are named otherwise
	subscribers int
	messages    int // sent to the subscribers, in each of rounds
	logins      time.Duration
	starts      int
	load        time.Duration
}

func full() plan {
	return plan{
		size: seed.Size{Users: 100, Notes: 20_000}, slice: 150 * time.Millisecond, rounds: 8, allCounts: true, install: true, node: true,
		subscribers: 1000, messages: 5, logins: 3 * time.Second, starts: 5, load: 2 * time.Second,
	}
}

func quick() plan {
	return plan{
		size: seed.Size{Users: 100, Notes: 20_000}, slice: 100 * time.Millisecond, rounds: 3,
		subscribers: 1000, messages: 2, logins: time.Second, starts: 3, load: 300 * time.Millisecond,
	}
}

func smoke() plan {
	return plan{
		size: seed.Size{Users: 20, Notes: 1000}, slice: 20 * time.Millisecond, rounds: 1, node: true,
		subscribers: 40, messages: 2, logins: 300 * time.Millisecond, starts: 1, load: 50 * time.Millisecond,
	}
}

func parse(args []string, out io.Writer) (options, error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(out)
	rows := f.String("rows", "", "rows to measure, such as 2,3 or logins (default all)")
	contenders := f.String("contenders", "", "contenders that take part: "+strings.Join(names(), ",")+" (default all that can)")
	isQuick := f.Bool("quick", false, "few and short rounds, without the Express stacks: under a minute")
	isSmoke := f.Bool("smoke", false, "one round with few requests, to see that everything works")
	o := options{plan: full()}
	f.StringVar(&o.json, "json", "", "file for the results as JSON")
	f.StringVar(&o.markdown, "md", "", "file for the results as a Markdown page")
	f.StringVar(&o.in, "dir", os.TempDir(), "folder for the databases; it should be on the disk to be measured")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case *isSmoke:
		o.plan = smoke()
	case *isQuick:
		o.plan = quick()
	}
	var err error
	if o.rows, err = report.Choose(*rows, ids()); err != nil {
		return options{}, fmt.Errorf("read -rows: %w", err)
	}
	if o.contenders, err = report.Choose(*contenders, names()); err != nil {
		return options{}, fmt.Errorf("read -contenders: %w", err)
	}
	if *contenders == "" && !o.plan.node {
		o.contenders = []string{satchel, report.Stock, report.Limit}
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := measure(ctx, o, out)
	if err != nil {
		return err
	}
	if o.json != "" {
		if err := machine.WriteFile(o.json, r.JSON); err != nil {
			return err
		}
	}
	failed, void := r.Failures()
	if len(failed) > 0 {
		return fmt.Errorf("the run is worthless:\n  %s", strings.Join(failed, "\n  "))
	}
	if o.markdown != "" {
		if err := machine.WriteFile(o.markdown, r.Markdown); err != nil {
			return err
		}
	}
	for _, v := range void {
		fmt.Fprintln(out, "void:", v)
	}
	return nil
}

// measure does all the work.
func measure(ctx context.Context, o options, out io.Writer) (r *report.Report, err error) {
	root, err := machine.ModuleRoot(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.in, "satchel-bench-")
	if err != nil {
		return nil, fmt.Errorf("create folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{plan: o.plan, root: root, dir: dir, out: out}
	defer b.stop()

	r = &report.Report{Date: time.Now().UTC(), Slice: float64(o.plan.slice.Milliseconds()), Rounds: o.plan.rounds, Users: o.plan.size.Users, Notes: o.plan.size.Notes}
	if err := b.prepare(ctx, o.contenders); err != nil {
		return nil, err
	}
	r.Pinned, r.Skipped = b.pinned(), b.skipped
	if r.Versions, err = b.versions(ctx); err != nil {
		return nil, err
	}
	if r.Machine, err = machine.Describe(dir); err != nil {
		return nil, err
	}
	for _, spec := range rows() {
		if !slices.Contains(o.rows, spec.id) {
			continue
		}
		row, err := b.row(ctx, spec)
		if err != nil {
			return nil, fmt.Errorf("row %s: %w", spec.id, err)
		}
		r.Rows = append(r.Rows, row)
		if err := row.Text(out); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// pinned reports whether servers and generator have a core each.
func (b *bench) pinned() bool { return b.taskset != "" && runtime.NumCPU() >= 2 }
