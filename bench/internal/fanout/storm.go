package fanout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

const (
	// atOnce is how many clients connect at the same time: all phones of a mobile network do when it is back.
	atOnce = 256

	// probeEvery is how often somebody else asks for something.
	probeEvery = 20 * time.Millisecond

	stormLimit = 3 * time.Minute
)

// phone is a client that comes back.
type phone struct {
	socket *load.Socket
	cursor string
}

// Storm lets all subscribers lose their connections at once, misses them some messages, and lets them come back as fast as
// they can, each from its cursor, while somebody else goes on to use the server. Every one of them must get what it missed.
func Storm(ctx context.Context, s Server, collection string, plan Plan, r *report.Row) error {
	ctx, cancel := context.WithTimeout(ctx, stormLimit)
	defer cancel()
	phones := make([]phone, plan.Subscribers)
	defer func() {
		for _, p := range phones {
			if p.socket != nil {
				p.socket.Close()
			}
		}
	}()
	memory := s.Memory()
	if err := all(ctx, len(phones), func(i int) error { return phones[i].open(ctx, s, collection, i, 0) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	for i := range phones {
		phones[i].socket.Close()
	}
	room := &room{Server: s, plan: plan, audience: load.NewAudience(s.Addr, plan.Topic)}
	if _, err := room.send(ctx, plan.Messages, 0); err != nil {
		return err
	}
	probing, stop := context.WithCancel(ctx)
	defer stop()
	probed := make(chan probes, 1)
	go func() { probed <- probe(probing, s) }()
	cpu, start := s.CPU(), time.Now()
	if err := all(ctx, len(phones), func(i int) error { return phones[i].open(ctx, s, collection, i, plan.Messages) }); err != nil {
		return fmt.Errorf("come back: %w", err)
	}
	took := time.Since(start)
	cpu, memory = s.CPU()-cpu, s.Memory()-memory
	stop()
	p := <-probed
	if p.err != nil {
		return fmt.Errorf("use the server meanwhile: %w", p.err)
	}
	r.Title = fmt.Sprintf("%s (%d)", r.Title, plan.Subscribers)
	r.Results = append(r.Results, report.Result{Lane: s.Name, Contender: s.Name, Operations: len(phones), Values: map[report.Metric]float64{
		report.CPU: float64(cpu.Microseconds()) / float64(len(phones)), report.Seconds: took.Seconds(),
		report.P50: p.at(0.5), report.P99: p.at(0.99), report.PerClient: memory * 1024 / float64(len(phones)),
	}})
	return nil
}

// all runs do for each number, some of them at once.
func all(ctx context.Context, n int, do func(i int) error) error {
	next := make(chan int)
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range min(atOnce, n) {
		group.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					mu.Lock()
					failed = errors.Join(failed, fmt.Errorf("client %d: %w", i, err))
					mu.Unlock()
					return
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
		mu.Lock()
		err := failed
		mu.Unlock()
		if err != nil || ctx.Err() != nil {
			break
		}
	}
	close(next)
	group.Wait()
	return errors.Join(failed, ctx.Err())
}

// open connects, subscribes from the cursor on, and reads until that many events and the cursor behind them have come.
func (p *phone) open(ctx context.Context, s Server, collection string, i, events int) error {
	socket, err := load.OpenSocket(ctx, s.Addr, "/api/v1/live", "satchel.rt.v1")
	if err != nil {
		return err
	}
	p.socket = socket
	sub := map[string]any{"type": "sub", "sub": "s", "collection": collection}
	if p.cursor != "" {
		sub["cursor"] = p.cursor
	}
	for _, f := range []map[string]any{{"type": "auth", "token": s.Auth(i).Value}, sub} {
		raw, err := json.Marshal(f)
		if err != nil {
			return err
		}
		if err := socket.Write(raw); err != nil {
			return err
		}
	}
	for got := 0; ; {
		raw, err := socket.Read()
		if err != nil {
			return err
		}
		var f struct{ Type, Cursor, Code string }
		if err := json.Unmarshal(raw, &f); err != nil {
			return fmt.Errorf("read frame: %w", err)
		}
		switch f.Type {
		case "error", "reset":
			return fmt.Errorf("the server says %s", raw)
		case "event":
			got++
		case "subbed":
			p.cursor = f.Cursor
		}
		if f.Type != "ready" && f.Type != "error" && got >= events {
			return nil
		}
	}
}

// probes is how long others waited.
type probes struct {
	times []time.Duration
	err   error
}

func (p probes) at(quantile float64) float64 {
	if len(p.times) == 0 {
		return 0
	}
	slices.Sort(p.times)
	return milliseconds(p.times[int(quantile*float64(len(p.times)-1))])
}

// probe reads with a token until ctx ends.
func probe(ctx context.Context, s Server) probes {
	var p probes
	request := load.NewRequest(http.MethodGet, s.Addr, "/api/collections/users/auth-methods", nil, s.Auth(0))
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		start := time.Now()
		answer, err := load.Fetch(context.WithoutCancel(ctx), s.Addr, request)
		if err == nil && answer.Status != http.StatusOK {
			err = fmt.Errorf("status %d", answer.Status)
		}
		if err != nil {
			p.err = err
			return p
		}
		p.times = append(p.times, time.Since(start))
		select {
		case <-ctx.Done():
			return p
		case <-ticker.C:
		}
	}
}
