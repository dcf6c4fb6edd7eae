package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// deliveryLimit is how long a message may take to reach everybody.
const deliveryLimit = 30 * time.Second

// chatRoom is a server with those who listen to it.
type chatRoom struct {
	server   *server
	audience *load.Audience
	writer   []time.Duration // of creates with everybody listening
	cpu      time.Duration
}

// realtime measures messages to subscribers. The servers take turns here, too.
func realtime(ctx context.Context, b *bench, r *report.Row) error {
	var rooms []*chatRoom
	defer func() {
		for _, room := range rooms {
			room.audience.Close()
		}
	}()
	for _, s := range b.servers {
		if name := s.contender.name; name != satchel && name != report.Stock && name != report.Limit {
			continue
		}
		room := &chatRoom{server: s, audience: load.NewAudience(s.addr, "message/*")}
		rooms = append(rooms, room)
		result, err := b.open(ctx, room)
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", s.contender.name, err)
		}
		r.Results = append(r.Results, result)
	}
	r.Title = fmt.Sprintf("%s (%d)", r.Title, b.plan.subscribers)
	for round := range b.plan.rounds + 1 {
		for k := range rooms {
			room := rooms[(k+round)%len(rooms)]
			before := room.server.cpu()
			times, err := b.send(ctx, room, b.plan.messages)
			if err != nil {
				return fmt.Errorf("send to %s: %w", room.server.contender.name, err)
			}
			time.Sleep(settle)
			if round == 0 {
				room.audience.Forget()
				continue
			}
			room.cpu += room.server.cpu() - before
			room.writer = append(room.writer, times...)
		}
	}
	for i, room := range rooms {
		latency := room.audience.Latency()
		r.Results[i].Operations = latency.Count()
		values := r.Results[i].Values
		values[report.CPU] = float64(room.cpu.Microseconds()) / float64(max(latency.Count(), 1))
		values[report.P50], values[report.P99] = milliseconds(latency.Quantile(0.5)), milliseconds(latency.Quantile(0.99))
		values[report.Writer] = median(room.writer)
	}
	return nil
}

// open measures a room that is empty, and fills it with the same number of subscribers for each account.
func (b *bench) open(ctx context.Context, room *chatRoom) (report.Result, error) {
	s := room.server
	alone, err := b.send(ctx, room, b.plan.messages*b.plan.rounds)
	if err != nil {
		return report.Result{}, err
	}
	before := s.memory()
	for i := range b.plan.subscribers {
		if err := room.audience.Join(ctx, s.account(i).auth()); err != nil {
			return report.Result{}, fmt.Errorf("subscriber %d: %w", i, err)
		}
	}
	return report.Result{Lane: s.contender.name, Contender: s.contender.name, Values: map[report.Metric]float64{
		report.WriterAlone: median(alone),
		report.PerClient:   (s.memory() - before) * 1024 / float64(b.plan.subscribers),
	}}, nil
}

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return milliseconds(times[len(times)/2])
}

// send creates messages one after another, each when all have got the one before, and returns how long each create took.
func (b *bench) send(ctx context.Context, room *chatRoom, n int) ([]time.Duration, error) {
	var times []time.Duration
	op := message()
	for k := range n {
		request := op.request(&b.plan, room.server, k)
		done := room.audience.Expect()
		start := time.Now()
		answer, err := load.Fetch(ctx, room.server.addr, request)
		if err != nil {
			return nil, err
		}
		if answer.Status != http.StatusOK {
			return nil, fmt.Errorf("create message: status %d: %s", answer.Status, answer.Body)
		}
		times = append(times, time.Since(start))
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(deliveryLimit):
			return nil, fmt.Errorf("not everybody got the message within %v", deliveryLimit)
		}
	}
	return times, nil
}
