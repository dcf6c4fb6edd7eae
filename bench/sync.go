package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/satchelbase/satchel/bench/internal/device"
	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

// unrecorded is the lane of Satchel that leaves the notes out of its change log.
const unrecorded = satchel + ", changes not recorded"

// changeRows are what the change log costs a writer, and what sync makes of it.
func changeRows() []rowSpec {
	capture := func(id, title string, op operation, most float64) rowSpec {
		return rowSpec{
			id: id, title: title, count: 8, targets: []report.Target{{Lane: satchel, Metric: report.CPU, Against: unrecorded, AtMost: most}},
			run: func(ctx context.Context, b *bench, r *report.Row) error { return recorded(ctx, b, r, op) },
		}
	}
	return []rowSpec{
		capture("capture-create", "create with and without the change log", create(), 1.15),
		capture("capture-update", "update with and without the change log", update(), 1.20),
		{
			id: "sync", title: "offline sync out of a large table", count: 1, run: syncing,
			columns: []report.Metric{report.CPU, report.Rate, report.P50, report.P95, report.P99, report.Bytes},
			targets: []report.Target{
				{Lane: device.Pull, Metric: report.P50, AtMost: 10},
				{Lane: device.Pull, Metric: report.Bytes, Against: device.List, AtMost: 0.15},
				{Lane: device.First, Metric: report.Rate, AtLeast: 25_000},
			},
		},
	}
}

// alone starts a guest like the Satchel that takes part, with some more settings and perhaps on another folder.
func (b *bench) alone(ctx context.Context, o startOptions) (*server, error) {
	i := slices.IndexFunc(b.servers, func(s *server) bool { return s.contender.name == satchel })
	if i < 0 {
		return nil, errors.New("satchel does not take part")
	}
	s, err := b.guest(ctx, b.servers[i].contender, o)
	if err != nil {
		return nil, err
	}
	return s, s.signIn(ctx)
}

func recorded(ctx context.Context, b *bench, r *report.Row, op operation) error {
	defer b.dismiss()
	var lanes []*lane
	for name, settings := range map[string][]string{satchel: nil, unrecorded: {"SATCHEL_CHANGES_EXCLUDE=" + seed.Notes}} {
		s, err := b.alone(ctx, startOptions{settings: settings})
		if err != nil {
			return err
		}
		lanes = append(lanes, &lane{name: name, server: s, op: op})
	}
	return b.loop(ctx, r, rowSpec{count: r.Connections, differ: true, stretch: 2}, lanes)
}

// update changes the title of a note of the account that asks.
func update() operation {
	one := getOne(stockNotes)
	one.request = func(p *plan, s *server, k int) load.Request {
		path := stockNotes + "/" + seed.NoteID(k/signedIn%(p.size.Notes/p.size.Users)*p.size.Users+k%signedIn)
		return load.NewRequest(http.MethodPatch, s.addr, path, fmt.Appendf(nil, `{"title":"title %d"}`, k), s.account(k).auth())
	}
	return one
}

func syncing(ctx context.Context, b *bench, r *report.Row) error {
	defer b.dismiss()
	total := b.plan.size.Notes * min(50, 1+50*(b.plan.rounds/2)) // a million, but when only smoke is looked for
	dir, err := device.Prepare(ctx, b.seeded(), b.dir, total)
	if err != nil {
		return err
	}
	s, err := b.alone(ctx, startOptions{dir: dir})
	if err != nil {
		return err
	}
	r.Title = fmt.Sprintf("%s (%d rows)", r.Title, total)
	r.Results, err = device.Measure(ctx, device.Server{Addr: s.addr, Few: s.accounts[0].access, Many: s.accounts[1].access, CPU: s.cpu, Total: total}, 10*b.plan.rounds)
	return err
}
