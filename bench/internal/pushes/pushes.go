// Package pushes measures how fast one notification reaches many devices: ten thousand in the scorecard, of which one in a
// hundred is dead, each with a row that says what became of it, by a stand-in for Apple's push service that takes 50 ms for
// each, while somebody saves a record every few milliseconds. Satchel does it in this process; the contender is what people
// write with the usual library for Node and rows in SQLite. The stand-in is a process of its own.
package pushes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/satchelbase/satchel/bench/internal/report"
)

const (
	// latency is that of the stand-in, for each push.
	latency = 50 * time.Millisecond

	// deadEvery is how many devices there are for each dead one.
	deadEvery = 100

	// writeEvery is the pace of the writer.
	writeEvery = 5 * time.Millisecond
)

const satchelLane = "satchel"

// Node is the lane of the contender.
const Node = "@parse/node-apn"

// Title of the row.
const Title = "side row: one notification to all devices, with a delivery row for each"

// Columns are what the row of the scorecard shows.
func Columns() []report.Metric {
	return []report.Metric{report.Seconds, report.Rate, report.CPU, report.WriterPush, report.Growth}
}

// Targets are what is promised: 10,000 in five seconds, and nobody notices. The contender may be somewhat quicker: its rows
// are on disk later than they say, its tokens are not sealed, and it signs no deliveries.
func Targets() []report.Target {
	return []report.Target{
		{Lane: satchelLane, Metric: report.Rate, AtLeast: 2000},
		{Lane: satchelLane, Metric: report.WriterPush, AtMost: 50},
		{Lane: satchelLane, Metric: report.Growth, AtMost: 60},
		{Lane: satchelLane, Metric: report.Rate, Against: Node, AtLeast: 0.8},
		{Lane: satchelLane, Metric: report.WriterPush, Against: Node, AtMost: 0.5},
	}
}

// Options say what takes part.
type Options struct {
	Dir     string // for databases
	Devices int
	Stubs   []string // the program that has the stand-in, and what pins it to its processor
	Node    string   // the folder with the contender; empty: it does not take part
}

// Row measures the row of the scorecard and returns the processor time of the programs that have come and gone.
func Row(ctx context.Context, o Options, row *report.Row) (spent time.Duration, err error) {
	dir, err := os.MkdirTemp(o.Dir, "pushes-")
	if err != nil {
		return 0, fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := startProvider(ctx, o.Stubs, dir)
	if err != nil {
		return 0, err
	}
	defer func() {
		cpu, stopErr := p.stop()
		spent, err = spent+cpu, errors.Join(err, stopErr)
	}()
	r, err := measure(ctx, filepath.Join(dir, "pb_data"), p, o.Devices)
	if err != nil {
		return 0, fmt.Errorf("measure satchel: %w", err)
	}
	row.Results = append(row.Results, r.result(satchelLane, o.Devices))
	if _, err := os.Stat(filepath.Join(o.Node, "node_modules", Node)); err != nil || o.Node == "" {
		row.Notes = append(row.Notes, Node+" did not take part: it is not asked for, or not installed (npm ci in bench/node).")
		return 0, nil
	}
	r, spent, err = contend(ctx, o.Node, filepath.Join(dir, "node.db"), p, o.Devices)
	if err != nil {
		return spent, fmt.Errorf("measure %s: %w", Node, err)
	}
	row.Results = append(row.Results, r.result(Node, o.Devices))
	return spent, nil
}

// outcome is what was measured.
type outcome struct {
	Accepted int     `json:"accepted"`
	Dead     int     `json:"dead"`
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpuSeconds"` // without that of the stand-in
	Writer   float64 `json:"writerMs"`   // p99
	Growth   float64 `json:"growthMiB"`  // of what is resident, at its most
}

func (o outcome) result(lane string, devices int) report.Result {
	dead := (devices + deadEvery - 1) / deadEvery
	r := report.Result{Lane: lane, Contender: lane, Operations: devices, Values: map[report.Metric]float64{
		report.Seconds: o.Seconds, report.Rate: float64(devices) / o.Seconds, report.CPU: o.CPU / float64(devices) * 1e6,
		report.WriterPush: o.Writer, report.Growth: o.Growth,
	}}
	if o.Accepted != devices-dead || o.Dead != dead {
		r.Failures, r.Failure = 1, fmt.Sprintf("%d were accepted and %d dead of %d", o.Accepted, o.Dead, devices)
	}
	return r
}

// p99 is what the slowest hundredth takes, in milliseconds.
func p99(took []time.Duration) float64 {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)*99/100].Seconds() * 1000
}
