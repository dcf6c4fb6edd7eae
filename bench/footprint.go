package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/satchelbase/satchel/bench/internal/report"
)

const (
	// calm is how long a server rests after its start before its idle memory is read.
	calm = 2 * time.Second

	loadClients = 64
)

// footprint starts each contender anew, on a database that it has opened before.
func footprint(ctx context.Context, b *bench, r *report.Row) error {
	for _, s := range b.servers {
		result, err := b.footprintOf(ctx, s.contender)
		b.dismiss()
		if err != nil {
			return fmt.Errorf("measure %s: %w", s.contender.name, err)
		}
		r.Results = append(r.Results, result)
	}
	return nil
}

func (b *bench) footprintOf(ctx context.Context, c *contender) (report.Result, error) {
	s, err := b.guest(ctx, c, startOptions{})
	if err != nil {
		return report.Result{}, err
	}
	var starts []time.Duration
	for range b.plan.starts {
		b.past += s.process.CPU()
		s.halt()
		if err := b.launch(ctx, s, startOptions{}); err != nil {
			return report.Result{}, err
		}
		starts = append(starts, s.ready)
	}
	slices.Sort(starts)
	time.Sleep(min(calm, 10*b.plan.load))
	idle := s.memory()
	if err := s.signIn(ctx); err != nil {
		return report.Result{}, err
	}
	result := report.Result{Lane: c.name, Contender: c.name, Values: map[report.Metric]float64{
		report.Start: milliseconds(starts[len(starts)/2]), report.Idle: idle,
	}}
	for _, op := range []operation{listStock(), create()} {
		loop, err := s.loop(ctx, &b.plan, op, loadClients)
		if err != nil {
			return report.Result{}, err
		}
		loop.Run(ctx, b.plan.load)
		tally := loop.Tally()
		result.Values[report.Loaded] = max(result.Values[report.Loaded], s.memory())
		loop.Close()
		result.Operations += tally.Ops
		result.Failures += tally.Failures
		result.Failure += tally.Failure
	}
	if info, err := os.Stat(filepath.Join(b.dir, "bin", c.name)); err == nil { // the Express programs have none
		result.Values[report.Binary] = float64(info.Size()) / (1 << 20)
	}
	return result, nil
}
