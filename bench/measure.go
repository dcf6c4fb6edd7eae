package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// settle is how long after a slice work still counts for its contender, such as writing logs.
const settle = 15 * time.Millisecond

// lane is one server with one operation.
type lane struct {
	name   string
	server *server
	op     operation
}

// row measures one row of the scorecard.
func (b *bench) row(ctx context.Context, spec rowSpec) (report.Row, error) {
	r := report.Row{ID: spec.id, Title: spec.title, Connections: spec.count, Columns: spec.columns, Compared: spec.compared}
	if r.Columns == nil {
		r.Columns = []report.Metric{report.CPU, report.Rate, report.P50, report.P95, report.P99, report.Bytes}
		r.Compared = []report.Metric{report.CPU, report.Rate}
	}
	for _, s := range b.servers {
		if s.accounts == nil {
			if err := s.signIn(ctx); err != nil {
				return report.Row{}, err
			}
		}
	}
	run := spec.run
	if run == nil {
		run = func(ctx context.Context, b *bench, r *report.Row) error { return b.loop(ctx, r, spec, b.lanes(spec)) }
	}
	foreign, err := b.watch()
	if err != nil {
		return report.Row{}, err
	}
	if err := run(ctx, b, &r); err != nil {
		return report.Row{}, err
	}
	if err := ctx.Err(); err != nil {
		return report.Row{}, err
	}
	if r.ForeignCPU, err = foreign(); err != nil {
		return report.Row{}, err
	}
	r.Void = r.ForeignCPU > foreignBound
	r.Judge(spec.targets)
	return r, nil
}

// lanes are the contenders of a row, Satchel twice when it has a route of its own.
func (b *bench) lanes(spec rowSpec) []*lane {
	var list []*lane
	for _, s := range b.servers {
		list = append(list, &lane{name: s.contender.name, server: s, op: spec.op})
		if s.contender.name == satchel && spec.version != nil {
			list = append(list, &lane{name: versioned, server: s, op: *spec.version})
		}
	}
	return list
}

// loop measures lanes that repeat requests, with every number of connections of the row.
func (b *bench) loop(ctx context.Context, r *report.Row, spec rowSpec, lanes []*lane) error {
	if len(lanes) == 0 {
		return nil
	}
	if !spec.differ {
		if err := b.verify(ctx, lanes); err != nil {
			return err
		}
	}
	counts := spec.counts
	if !b.plan.allCounts || len(counts) == 0 {
		counts = []int{spec.count}
	}
	for _, connections := range counts {
		results, err := b.turns(ctx, lanes, connections, max(spec.per, 1), b.plan.slice*time.Duration(max(spec.stretch, 1)))
		if err != nil {
			return err
		}
		r.Results = append(r.Results, results...)
	}
	return nil
}

// turns gives the lanes slices of time in rotation. The first round warms up and does not count.
func (b *bench) turns(ctx context.Context, lanes []*lane, connections, per int, slice time.Duration) ([]report.Result, error) {
	loops := make([]*load.Loop, len(lanes))
	cpu, busy := make([]time.Duration, len(lanes)), make([]time.Duration, len(lanes))
	for i, l := range lanes {
		var err error
		if loops[i], err = l.server.loop(ctx, &b.plan, l.op, connections); err != nil {
			return nil, fmt.Errorf("connect to %s: %w", l.name, err)
		}
		defer loops[i].Close()
	}
	for round := range b.plan.rounds + 1 {
		for k := range lanes {
			i := (k + round) % len(lanes)
			before, begin := lanes[i].server.cpu(), time.Now()
			loops[i].Run(ctx, slice)
			took := time.Since(begin)
			time.Sleep(settle)
			if round == 0 {
				loops[i].Forget()
				continue
			}
			cpu[i] += lanes[i].server.cpu() - before
			busy[i] += took
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	var results []report.Result
	for i, l := range lanes {
		results = append(results, report.Measured(l.name, l.server.contender.name, connections, per, loops[i].Tally(), cpu[i], busy[i]))
	}
	return results, nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// watch observes what else runs on the machine, see [machine.Watch]. Processor time of servers that come and go meanwhile
// must be reported by account.
func (b *bench) watch() (func() (float64, error), error) {
	self := machine.Process{PID: os.Getpid()}
	return machine.Watch(func() time.Duration {
		sum := self.CPU() + b.past
		for _, s := range slices.Concat(b.servers, b.guests) {
			sum += s.cpu()
		}
		return sum
	})
}
