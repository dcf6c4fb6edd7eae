package main

import (
	"context"

	"github.com/satchelbase/satchel/bench/internal/fanout"
	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

// Rules that subscribers are under.
const (
	membership = "message"
	ownership  = seed.Notes
)

// listeners measures subscribers of one collection. Many times the usual number are Satchel's alone: stock would be busy
// for minutes.
func listeners(collection string, times int) func(ctx context.Context, b *bench, r *report.Row) error {
	return func(ctx context.Context, b *bench, r *report.Row) error {
		var servers []fanout.Server
		for _, s := range b.servers {
			name := s.contender.name
			if name == satchel || times == 1 && (name == report.Stock || name == report.Limit && collection == membership) {
				servers = append(servers, b.fanning(s, collection))
			}
		}
		return fanout.Measure(ctx, servers, b.audience(collection, times), r)
	}
}

func (b *bench) audience(collection string, times int) fanout.Plan {
	return fanout.Plan{
		Topic: collection + "/*", Own: collection == ownership, Subscribers: times * b.plan.subscribers, Messages: b.plan.messages, Rounds: b.plan.rounds,
	}
}

// storm is Satchel's alone: the stock contract has no cursor.
func storm(ctx context.Context, b *bench, r *report.Row) error {
	for _, s := range b.servers {
		if s.contender.name == satchel {
			return fanout.Storm(ctx, b.fanning(s, membership), membership, b.audience(membership, 10), r)
		}
	}
	return nil
}

func (b *bench) fanning(s *server, collection string) fanout.Server {
	op := message()
	if collection == ownership {
		op = create()
	}
	return fanout.Server{
		Name: s.contender.name, Addr: s.addr, CPU: s.cpu, Memory: s.memory, Accounts: len(s.accounts),
		Auth:   func(k int) load.Header { return s.account(k).auth() },
		Create: func(k int) load.Request { return op.request(&b.plan, s, k) },
	}
}
