package main

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// verify sends the first request of every lane and compares the records in the answers with those of the reference:
// stock's, or the first lane's when stock does not take part. A server that answers less must not look faster.
func (b *bench) verify(ctx context.Context, lanes []*lane) error {
	reference := slices.IndexFunc(lanes, func(l *lane) bool { return l.server.contender.name == report.Stock })
	var want []map[string]any
	for i, l := range append([]*lane{lanes[max(reference, 0)]}, lanes...) {
		got, err := l.sample(ctx, &b.plan)
		if err != nil {
			return fmt.Errorf("check the answer of %s: %w", l.name, err)
		}
		if i == 0 {
			want = got
		}
		if len(got) != len(want) {
			return fmt.Errorf("check the answer of %s: %d records, %s has %d", l.name, len(got), lanes[max(reference, 0)].name, len(want))
		}
		for n := range got {
			if !reflect.DeepEqual(got[n], want[n]) {
				return fmt.Errorf("check the answer of %s: record %d is\n%v\nbut that of %s is\n%v", l.name, n, got[n], lanes[max(reference, 0)].name, want[n])
			}
		}
	}
	return nil
}

// sample is the records in the answer to the lane's first request.
func (l *lane) sample(ctx context.Context, p *plan) ([]map[string]any, error) {
	answer, err := load.Fetch(ctx, l.server.addr, l.op.request(p, l.server, 0))
	if err != nil {
		return nil, err
	}
	if !slices.Contains(l.op.accept, answer.Status) {
		return nil, fmt.Errorf("status %d: %s", answer.Status, answer.Body)
	}
	return l.op.shape.Records(answer.Body)
}
