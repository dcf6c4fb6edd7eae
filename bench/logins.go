package main

import (
	"context"
	"sync"

	"github.com/satchelbase/satchel/bench/internal/report"
)

// Clients of the row about logins.
const (
	loginClients  = 4
	readerClients = 8
)

// logins measures reads alone, then reads while others log in. limit checks no passwords and does not take part.
func logins(ctx context.Context, b *bench, r *report.Row) error {
	for _, s := range b.servers {
		if s.contender.name == report.Limit {
			continue
		}
		result, err := b.readBesideLogins(ctx, s)
		if err != nil {
			return err
		}
		r.Results = append(r.Results, result)
	}
	return nil
}

func (b *bench) readBesideLogins(ctx context.Context, s *server) (report.Result, error) {
	readers, err := s.loop(ctx, &b.plan, getOne(stockNotes), readerClients)
	if err != nil {
		return report.Result{}, err
	}
	defer readers.Close()
	others, err := s.loop(ctx, &b.plan, login(), loginClients)
	if err != nil {
		return report.Result{}, err
	}
	defer others.Close()

	readers.Run(ctx, b.plan.slice)
	readers.Forget()
	readers.Run(ctx, b.plan.logins)
	alone := readers.Tally()
	readers.Forget()
	var wg sync.WaitGroup
	wg.Go(func() { others.Run(ctx, b.plan.logins) })
	readers.Run(ctx, b.plan.logins)
	wg.Wait()
	beside, loggedIn := readers.Tally(), others.Tally()
	return report.Result{
		Lane: s.contender.name, Contender: s.contender.name,
		Operations: alone.Ops + beside.Ops + loggedIn.Ops,
		Failures:   alone.Failures + beside.Failures + loggedIn.Failures,
		Failure:    alone.Failure + beside.Failure + loggedIn.Failure,
		Values: map[report.Metric]float64{
			report.ReadAlone:  milliseconds(alone.Latency.Quantile(0.99)),
			report.ReadLogins: milliseconds(beside.Latency.Quantile(0.99)),
			report.Logins:     float64(loggedIn.Ops) / b.plan.logins.Seconds(),
		},
	}, nil
}
