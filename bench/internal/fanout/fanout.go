// Package fanout measures what it costs to tell many subscribers of a write, and what it costs the one who writes.
package fanout

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

const (
	// deliveryLimit is how long a message may take to reach everybody.
	deliveryLimit = time.Minute

	// settle lets the rest of a burst end before the processor time is read.
	settle = 50 * time.Millisecond
)

// Server is one that takes part.
type Server struct {
	Name, Addr string
	CPU        func() time.Duration // so far
	Memory     func() float64       // resident, in MiB

	Accounts int
	Auth     func(k int) load.Header  // of account k, modulo their number
	Create   func(k int) load.Request // the k-th write, by account k
}

// Plan is how much is measured.
type Plan struct {
	Topic       string
	Own         bool // a message is seen by the account that sends it; otherwise by all
	Subscribers int
	Messages    int // in each round
	Rounds      int
}

// room is a server with those who listen to it.
type room struct {
	Server
	plan     Plan
	audience *load.Audience
	sent     int
	writer   []time.Duration // of creates with everybody listening
	cpu      time.Duration
}

// Measure lets the servers take turns.
func Measure(ctx context.Context, servers []Server, plan Plan, r *report.Row) error {
	var rooms []*room
	defer func() {
		for _, room := range rooms {
			room.audience.Close()
		}
	}()
	for _, s := range servers {
		room := &room{Server: s, plan: plan, audience: load.NewAudience(s.Addr, plan.Topic)}
		rooms = append(rooms, room)
		result, err := room.open(ctx)
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", s.Name, err)
		}
		r.Results = append(r.Results, result)
	}
	r.Title = fmt.Sprintf("%s (%d)", r.Title, plan.Subscribers)
	for round := range plan.Rounds + 1 {
		for k := range rooms {
			room := rooms[(k+round)%len(rooms)]
			before := room.CPU()
			times, err := room.send(ctx, plan.Messages, plan.Subscribers)
			if err != nil {
				return fmt.Errorf("send to %s: %w", room.Name, err)
			}
			time.Sleep(settle)
			if round == 0 {
				room.audience.Forget()
				continue
			}
			room.cpu += room.CPU() - before
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
func (r *room) open(ctx context.Context) (report.Result, error) {
	alone, err := r.send(ctx, r.plan.Messages*r.plan.Rounds, 0)
	if err != nil {
		return report.Result{}, err
	}
	before := r.Memory()
	for i := range r.plan.Subscribers {
		if err := r.audience.Join(ctx, r.Auth(i)); err != nil {
			return report.Result{}, fmt.Errorf("subscriber %d: %w", i, err)
		}
	}
	return report.Result{Lane: r.Name, Contender: r.Name, Values: map[report.Metric]float64{
		report.WriterAlone: median(alone),
		report.PerClient:   (r.Memory() - before) * 1024 / float64(r.plan.Subscribers),
	}}, nil
}

// send creates messages one after another, each when all have got the one before, and returns how long each create took.
func (r *room) send(ctx context.Context, n, subscribers int) ([]time.Duration, error) {
	var times []time.Duration
	for range n {
		k := r.sent
		r.sent++
		hearing := subscribers
		if r.plan.Own {
			own := k % r.Accounts
			hearing = (subscribers - own + r.Accounts - 1) / r.Accounts
		}
		done := r.audience.Expect(hearing)
		start := time.Now()
		answer, err := load.Fetch(ctx, r.Addr, r.Create(k))
		if err != nil {
			return nil, err
		}
		if answer.Status != http.StatusOK {
			return nil, fmt.Errorf("create: status %d: %s", answer.Status, answer.Body)
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

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return milliseconds(times[len(times)/2])
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
