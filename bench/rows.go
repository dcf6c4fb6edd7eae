package main

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/satchelbase/satchel/bench/internal/pushes"
	"github.com/satchelbase/satchel/bench/internal/queue"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// syncDelay of the row about durable writes: what a commit costs on an ordinary network disk.
const slowSync = 2 * time.Millisecond

// foreignBound is how many processors others may keep busy beside a measurement.
const foreignBound = 0.3

// versioned is the lane of Satchel's own route.
const versioned = satchel + " /api/v1"

// rowSpec is a row of the scorecard before it is measured.
type rowSpec struct {
	id, title string
	count     int // connections that targets are judged at
	counts    []int
	op        operation
	version   *operation      // the same on Satchel's own route
	per       int             // what one request counts for, 0 for one
	differ    bool            // the answers of the lanes cannot be compared
	stretch   int             // how many times longer than usual its slices are, 0 for once
	columns   []report.Metric // nil for those of a repeated request
	compared  []report.Metric
	targets   []report.Target

	// run measures rows that are not a matter of one request in a loop.
	run func(ctx context.Context, b *bench, r *report.Row) error
}

func ids() []string {
	var list []string
	for _, r := range rows() {
		list = append(list, r.id)
	}
	return list
}

// rows is the scorecard. Its targets were set from the measured costs of the parts of a request, before the parts were
// written.
func rows() []rowSpec {
	return slices.Concat(reads(), writes(), others(), credentials(), []rowSpec{keyedRow()}, changeRows(), side())
}

func reads() []rowSpec {
	getVersion, list, totals, again := getOne(versionNotes), listVersion(), listVersionTotals(), repeated(listVersion())
	return []rowSpec{
		{
			id: "1", title: "trivial authenticated route", count: 8, counts: []int{1, 8, 64}, op: trivial(),
			targets: []report.Target{
				{Lane: satchel, Metric: report.CPU, Against: report.Stock, AtMost: 0.25},
				{Lane: satchel, Metric: report.CPU, Against: report.Limit, AtMost: 2.5},
			},
		},
		{
			id: "2", title: "get one record under its rule", count: 8, counts: []int{1, 8, 64}, op: getOne(stockNotes), version: &getVersion,
			targets: []report.Target{
				{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 2.5},
				{Lane: versioned, Metric: report.Rate, Against: report.Stock, AtLeast: 6},
				{Lane: versioned, Metric: report.Rate, Against: report.Limit, AtLeast: 0.7},
			},
		},
		{
			id: "3", title: "list 30 records under their rule, without totals", count: 8, counts: []int{1, 8, 64}, op: listStock(), version: &list,
			targets: []report.Target{
				{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 2},
				{Lane: versioned, Metric: report.Rate, Against: report.Stock, AtLeast: 6},
				{Lane: versioned, Metric: report.Rate, Against: report.Limit, AtLeast: 0.8},
			},
		},
		{
			id: "4", title: "list 30 records with totals", count: 8, counts: []int{1, 8, 64}, op: listTotals(), version: &totals,
			targets: []report.Target{{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 2.3}},
		},
		{
			id: "5", title: "the same list again, unchanged", count: 8, counts: []int{1, 8, 64}, op: repeated(listStock()), version: &again,
			targets: []report.Target{
				{Lane: versioned, Metric: report.Rate, Against: report.Stock, AtLeast: 10},
				{Lane: versioned, Metric: report.Rate, Against: report.Limit, AtLeast: 0.5},
			},
		},
	}
}

func writes() []rowSpec {
	return []rowSpec{
		{
			id: "6", title: "create under a rule", count: 64, counts: []int{1, 8, 64}, op: create(),
			targets: []report.Target{
				{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 1.9},
				{Lane: satchel, Metric: report.P99, Against: report.Stock, AtMost: 0.5},
				{Lane: satchel, Metric: report.Rate, Against: report.Limit, AtLeast: 0.35},
			},
		},
		{
			id: "7", title: "durable create, syncs 2 ms slower", count: 64, run: durable,
			targets: []report.Target{
				{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 5},
				{Lane: satchel, Metric: report.P99, Against: report.Stock, AtMost: 0.25},
				{Lane: satchel, Metric: report.Rate, Against: notDurable, AtLeast: 0.3},
			},
		},
		{
			id: "8", title: "chat: send a message under a membership rule", count: 64, op: message(),
			columns:  []report.Metric{report.CPU, report.Rate, report.Hundred, report.P50, report.P95, report.P99},
			compared: []report.Metric{report.CPU, report.Hundred},
			targets:  []report.Target{{Lane: satchel, Metric: report.Hundred, Against: report.Stock, AtMost: 0.55}},
		},
		{
			id: "9", title: "bulk: 50 records in one request", count: 8, op: bulk(), per: bulkSize,
			targets: []report.Target{
				{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 3},
				{Lane: satchel, Metric: report.Rate, Against: nodePG, AtLeast: 1},
				{Lane: satchel, Metric: report.Rate, Against: report.Limit, AtLeast: 0.25},
			},
		},
	}
}

func others() []rowSpec {
	return []rowSpec{
		{
			id: "10", title: "realtime: messages to subscribers under a membership rule", run: listeners(membership, 1),
			columns:  []report.Metric{report.CPU, report.P50, report.P99, report.WriterAlone, report.Writer, report.PerClient},
			compared: []report.Metric{report.CPU},
			targets: []report.Target{
				{Lane: satchel, Metric: report.CPU, Against: report.Stock, AtMost: 0.2},
				{Lane: satchel, Metric: report.CPU, Against: report.Limit, AtMost: 2},
				{Lane: satchel, Metric: report.Writer, Against: satchel, Base: report.WriterAlone, AtMost: 2},
			},
		},
		{
			id: "17", title: "realtime: messages to subscribers under an owner rule", run: listeners(ownership, 1),
			columns:  []report.Metric{report.CPU, report.P50, report.P99, report.WriterAlone, report.Writer},
			compared: []report.Metric{report.CPU},
			targets: []report.Target{
				{Lane: satchel, Metric: report.CPU, Against: report.Stock, AtMost: 0.2},
				{Lane: satchel, Metric: report.Writer, Against: satchel, Base: report.WriterAlone, AtMost: 2},
			},
		},
		{
			id: "18", title: "realtime: ten times as many subscribers, membership rule", run: listeners(membership, 10),
			columns: []report.Metric{report.CPU, report.P50, report.P99, report.WriterAlone, report.Writer, report.PerClient},
			targets: []report.Target{{Lane: satchel, Metric: report.Writer, Against: satchel, Base: report.WriterAlone, AtMost: 2}},
		},
		{
			id: "19", title: "realtime: ten times as many subscribers, owner rule", run: listeners(ownership, 10),
			columns: []report.Metric{report.CPU, report.P50, report.P99, report.WriterAlone, report.Writer, report.PerClient},
			targets: []report.Target{{Lane: satchel, Metric: report.Writer, Against: satchel, Base: report.WriterAlone, AtMost: 2}},
		},
		{
			id: "20", title: "realtime: all subscribers come back at once, each from its cursor; p50 and p99 of another client's reads", run: storm,
			columns: []report.Metric{report.Seconds, report.CPU, report.P50, report.P99, report.PerClient},
			targets: []report.Target{{Lane: satchel, Metric: report.Seconds, AtMost: 30}, {Lane: satchel, Metric: report.P99, AtMost: 250}},
		},
		{
			id: "11", title: "token refresh", count: 8, op: refresh(),
			targets: []report.Target{{Lane: satchel, Metric: report.CPU, Against: report.Stock, AtMost: 0.35}},
		},
		{
			id: "12", title: "footprint", run: footprint,
			columns: []report.Metric{report.Start, report.Idle, report.Loaded, report.Binary},
			targets: []report.Target{
				{Lane: satchel, Metric: report.Start, AtMost: 150},
				{Lane: satchel, Metric: report.Idle, AtMost: 45},
				{Lane: satchel, Metric: report.Loaded, AtMost: 150},
				{Lane: satchel, Metric: report.Binary, AtMost: 75},
			},
		},
	}
}

func jobs(ctx context.Context, b *bench, r *report.Row) error {
	return queue.Row(ctx, b.dir, b.plan.size.Notes, r)
}

func push(ctx context.Context, b *bench, r *report.Row) error {
	o := pushes.Options{Dir: b.dir, Devices: b.plan.size.Notes / 2, Stubs: []string{b.binary(satchel)}}
	if b.pinned() {
		o.Stubs = []string{b.taskset, "--cpu-list", serverCore, b.binary(satchel)}
	}
	if b.plan.node {
		o.Node = filepath.Join(b.root, "bench", "node")
	}
	spent, err := pushes.Row(ctx, o, r)
	b.past += spent
	return err
}

func side() []rowSpec {
	return []rowSpec{
		{id: "pushes", title: pushes.Title, run: push, columns: pushes.Columns(), targets: pushes.Targets()},
		{id: "jobs", title: queue.Title, run: jobs, columns: queue.Columns(), targets: queue.Targets()},
		{
			id: "logins", title: "side row: reads while four clients log in", run: logins,
			columns: []report.Metric{report.ReadAlone, report.ReadLogins, report.Logins},
			targets: []report.Target{{Lane: satchel, Metric: report.ReadLogins, Against: satchel, Base: report.ReadAlone, AtMost: 3}},
		},
	}
}
