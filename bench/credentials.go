package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// accessLane is the lane of Satchel with its own access tokens. In the lane satchel it gets PocketBase's.
const accessLane = satchel + ", access token"

// grant is what Satchel gives out beside PocketBase's token.
type grant struct{ AccessToken, RefreshToken string }

// credentials are the rows about what a request pays for its token, and what a new one costs.
func credentials() []rowSpec {
	return []rowSpec{
		{
			id: "13", title: "get one record, with either kind of token", count: 8, run: remembered,
			targets: []report.Target{
				{Lane: accessLane, Metric: report.CPU, Against: satchel, AtMost: 1.05},
				{Lane: accessLane, Metric: report.CPU, Against: report.Stock, AtMost: 0.5},
			},
		},
		{
			id: "14", title: "the same, the token verified each time", count: 8, run: verifiedEachTime,
			targets: []report.Target{
				{Lane: accessLane, Metric: report.CPU, Against: report.Stock, AtMost: 1},
				{Lane: satchel, Metric: report.CPU, Against: report.Stock, AtMost: 1},
			},
		},
		{
			id: "15", title: "refresh of a session, beside stock's refresh of its token", count: 8, run: refreshes,
			targets: []report.Target{
				{Lane: satchel, Metric: report.CPU, Against: report.Stock, AtMost: 2},
				{Lane: satchel, Metric: report.Rate, Against: report.Stock, AtLeast: 0.5},
			},
		},
	}
}

// remembered measures a read with the tokens in Satchel's cache, as it is by default.
func remembered(ctx context.Context, b *bench, r *report.Row) error {
	return b.eitherToken(ctx, r, func(s *server) (*server, error) { return s, nil })
}

// verifiedEachTime measures it without the cache, which is what the first request with a token costs.
func verifiedEachTime(ctx context.Context, b *bench, r *report.Row) error {
	defer b.dismiss()
	return b.eitherToken(ctx, r, func(s *server) (*server, error) {
		return b.guest(ctx, s.contender, startOptions{settings: []string{"SATCHEL_AUTHCACHE_SIZE=0"}})
	})
}

// eitherToken compares reads with an access token and with a stock token on Satchel, on a server that choose may replace,
// with those on stock.
func (b *bench) eitherToken(ctx context.Context, r *report.Row, choose func(*server) (*server, error)) error {
	var lanes []*lane
	for _, s := range b.servers {
		switch s.contender.name {
		case satchel:
			chosen, err := choose(s)
			if err != nil {
				return err
			}
			// Anew: an access token lives for a quarter of an hour, and the rows before may have taken longer.
			if err := chosen.signIn(ctx); err != nil {
				return err
			}
			lanes = append(lanes, &lane{name: satchel, server: chosen, op: getOne(stockNotes)},
				&lane{name: accessLane, server: chosen, op: withAccess(getOne(stockNotes))})
		case report.Stock:
			lanes = append(lanes, &lane{name: report.Stock, server: s, op: getOne(stockNotes)})
		}
	}
	return b.loop(ctx, r, rowSpec{count: r.Connections, counts: []int{1, 8, 64}}, lanes)
}

// withAccess sends the access tokens of the accounts.
func withAccess(op operation) operation {
	inner := op.request
	op.request = func(p *plan, s *server, k int) load.Request {
		bearer := *s
		bearer.accounts = nil
		for _, a := range s.accounts {
			a.token = "Bearer " + a.access
			bearer.accounts = append(bearer.accounts, a)
		}
		return inner(p, &bearer, k)
	}
	return op
}

// refreshes measures chains: each client has a session of its own and presents the refresh token that it was given last.
// Stock, which has no sessions, renews the same token again and again.
func refreshes(ctx context.Context, b *bench, r *report.Row) error {
	var lanes []*lane
	for _, s := range b.servers {
		switch s.contender.name {
		case satchel:
			lanes = append(lanes, &lane{name: satchel, server: s, op: chain()})
		case report.Stock:
			lanes = append(lanes, &lane{name: report.Stock, server: s, op: refresh()})
		}
	}
	return b.loop(ctx, r, rowSpec{count: r.Connections, counts: []int{1, 8}, differ: true}, lanes)
}

// chain refreshes a session with the token of the answer before.
func chain() operation {
	return operation{
		accept:  []int{http.StatusOK},
		request: func(_ *plan, s *server, k int) load.Request { return refreshRequest(s, s.account(k).refresh) },
		follow: func(s *server, body []byte) (load.Request, error) {
			var answer struct{ Data grant }
			if err := json.Unmarshal(body, &answer); err != nil {
				return nil, fmt.Errorf("parse refresh: %w", err)
			}
			if answer.Data.RefreshToken == "" || answer.Data.AccessToken == "" {
				return nil, errors.New("the answer to the refresh has no tokens")
			}
			return refreshRequest(s, answer.Data.RefreshToken), nil
		},
	}
}

// refreshRequest presents a refresh token. JSON of a text cannot fail.
func refreshRequest(s *server, token string) load.Request {
	body, err := json.Marshal(map[string]string{"refreshToken": token})
	if err != nil {
		panic(err)
	}
	return load.NewRequest(http.MethodPost, s.addr, "/api/v1/auth/refresh", body)
}
