package main

import (
	"context"
	"fmt"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// notDurable is the lane of limit as it is in the other rows.
const notDurable = "limit, not durable"

// guest starts a server for one row only.
func (b *bench) guest(ctx context.Context, c *contender, o startOptions) (*server, error) {
	s, err := b.start(ctx, c, o)
	if err != nil {
		return nil, err
	}
	b.guests = append(b.guests, s)
	return s, nil
}

// dismiss ends the servers of guest.
func (b *bench) dismiss() {
	for _, s := range b.guests {
		b.past += s.cpu()
		s.stop()
	}
	b.guests = nil
}

// durable measures creates that are on disk when they are acknowledged, on a disk that is slower than this one.
func durable(ctx context.Context, b *bench, r *report.Row) error {
	defer b.dismiss()
	var lanes []*lane
	for _, s := range b.servers {
		name := s.contender.name
		if name != satchel && name != report.Stock && name != report.Limit {
			continue
		}
		slow, err := b.guest(ctx, s.contender, startOptions{durable: slowSync})
		if err != nil {
			return err
		}
		if err := slow.signIn(ctx); err != nil {
			return err
		}
		l := &lane{name: name, server: slow, op: create()}
		waits, err := l.waits(ctx, &b.plan)
		if err != nil {
			return err
		}
		if !waits {
			r.Notes = append(r.Notes, fmt.Sprintf("%s answers sooner than the disk would let it, so it is left out.", name))
			continue
		}
		lanes = append(lanes, l)
		if name == report.Limit {
			lanes = append(lanes, &lane{name: notDurable, server: s, op: create()})
		}
	}
	// In a slice of the usual length a client that waits its turn at a slow disk would get one or two answers.
	return b.loop(ctx, r, rowSpec{count: r.Connections, counts: []int{8, 64}, stretch: 4}, lanes)
}

// waits reports whether single creates take as long as the slow disk does. Otherwise the delay is not where it should
// be, and the lane would win without work.
func (l *lane) waits(ctx context.Context, p *plan) (bool, error) {
	const tries = 5
	for k := range tries {
		start := time.Now()
		answer, err := load.Fetch(ctx, l.server.addr, l.op.request(p, l.server, k))
		if err != nil {
			return false, err
		}
		if answer.Status/100 != 2 {
			return false, fmt.Errorf("create on %s: status %d: %s", l.name, answer.Status, answer.Body)
		}
		if time.Since(start) < slowSync {
			return false, nil
		}
	}
	return true, nil
}
