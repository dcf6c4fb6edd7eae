package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// keyedLane is the lane of Satchel in which each create has an Idempotency-Key of its own.
const keyedLane = satchel + ", Idempotency-Key"

// keyedRow is what a client pays that may repeat its request.
func keyedRow() rowSpec {
	return rowSpec{
		id: "16", title: "create with an Idempotency-Key, beside create without", count: 8, run: keyed,
		targets: []report.Target{
			{Lane: keyedLane, Metric: report.CPU, Against: satchel, AtMost: 2},
			{Lane: keyedLane, Metric: report.Rate, Against: satchel, AtLeast: 0.42},
		},
	}
}

func keyed(ctx context.Context, b *bench, r *report.Row) error {
	var lanes []*lane
	for _, s := range b.servers {
		switch s.contender.name {
		case satchel:
			lanes = append(lanes, &lane{name: satchel, server: s, op: create()}, &lane{name: keyedLane, server: s, op: keyedCreate()})
		case report.Stock:
			lanes = append(lanes, &lane{name: report.Stock, server: s, op: create()})
		}
	}
	return b.loop(ctx, r, rowSpec{count: r.Connections, counts: []int{1, 8}, differ: true}, lanes)
}

// keyedCreate is create with a new key for each request: the owner of the last note writes the next one.
func keyedCreate() operation {
	plain := create()
	withKey := func(s *server, k int) load.Request {
		return plain.request(nil, s, k).With(load.Header{Name: "Idempotency-Key", Value: rand.Text()})
	}
	return operation{
		accept:  []int{http.StatusOK},
		request: func(_ *plan, s *server, k int) load.Request { return withKey(s, k) },
		follow: func(s *server, body []byte) (load.Request, error) {
			var note struct{ Owner string }
			if err := json.Unmarshal(body, &note); err != nil {
				return load.Request{}, fmt.Errorf("read created note: %w", err)
			}
			for k, a := range s.accounts {
				if a.id == note.Owner {
					return withKey(s, k), nil
				}
			}
			return load.Request{}, errors.New("a note was created for nobody who is signed in")
		},
	}
}
