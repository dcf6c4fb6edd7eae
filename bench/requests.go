package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/seed"
	"github.com/satchelbase/satchel/bench/internal/shape"
)

// How many different requests a lane has; they are sent in turn.
const (
	readVariants  = 500
	writeVariants = 250
	bulkVariants  = 10

	bulkSize = 50
	listSize = 30

	// signedIn is the number of users that send requests.
	signedIn = 10
)

// URLs of records.
const (
	stockNotes    = "/api/collections/" + seed.Notes + "/records"
	versionNotes  = "/api/v1/records/" + seed.Notes
	stockMessages = "/api/collections/message/records"
)

// account is a user with the tokens that one server has given out. Only Satchel has access and refresh.
type account struct{ id, email, token, access, refresh string }

func (a account) auth() load.Header { return load.Header{Name: "Authorization", Value: a.token} }

// operation is what a row repeats: it builds the k-th of a lane's different requests.
type operation struct {
	variants int
	request  func(p *plan, s *server, k int) load.Request
	accept   []int
	shape    shape.Shape

	// revalidates sends the ETag of a first answer along, if there is one.
	revalidates bool

	// follow builds the next request of a client from its last answer; request is then the first one of client k.
	follow func(s *server, body []byte) (load.Request, error)
}

// account returns the one that sends the k-th request.
func (s *server) account(k int) account { return s.accounts[k%len(s.accounts)] }

// signIn gets the tokens, in the place of those that there are.
func (s *server) signIn(ctx context.Context) error {
	s.accounts = nil
	for i := range signedIn {
		got, err := load.SignIn(ctx, s.addr, seed.Email(i), seed.Password)
		if err != nil || got.ID != seed.UserID(i) {
			return fmt.Errorf("sign in to %s as %q: %w", s.contender.name, got.ID, err)
		}
		s.accounts = append(s.accounts, account{id: got.ID, email: seed.Email(i), token: got.Token, access: got.Access, refresh: got.Refresh})
	}
	return nil
}

// loop connects the clients of an operation.
func (s *server) loop(ctx context.Context, p *plan, op operation, connections int) (*load.Loop, error) {
	if op.follow == nil {
		pool, err := s.pool(ctx, p, op)
		if err != nil {
			return nil, fmt.Errorf("build requests: %w", err)
		}
		return load.NewLoop(ctx, s.addr, connections, pool, op.accept...)
	}
	// A chain cannot be begun twice: its first token has been used.
	if err := s.signIn(ctx); err != nil {
		return nil, err
	}
	if connections > len(s.accounts) {
		return nil, fmt.Errorf("%d clients, but %d sessions", connections, len(s.accounts))
	}
	var first []load.Request
	for k := range connections {
		first = append(first, op.request(p, s, k))
	}
	return load.NewChains(ctx, s.addr, first, func(body []byte) (load.Request, error) { return op.follow(s, body) }, op.accept...)
}

// pool builds all requests of an operation.
func (s *server) pool(ctx context.Context, p *plan, op operation) ([]load.Request, error) {
	var pool []load.Request
	for k := range op.variants {
		pool = append(pool, op.request(p, s, k))
	}
	if op.revalidates {
		for k, r := range pool[:len(s.accounts)] {
			answer, err := load.Fetch(ctx, s.addr, r)
			if err != nil {
				return nil, err
			}
			if tag := answer.Header.Get("ETag"); tag != "" {
				pool[k] = r.With(load.Header{Name: "If-None-Match", Value: tag})
			}
		}
		pool = pool[:len(s.accounts)]
	}
	return pool, nil
}

// get builds an operation that reads; path may differ for each request.
func get(want shape.Shape, path func(p *plan, k int) string) operation {
	return operation{
		variants: readVariants, accept: []int{http.StatusOK}, shape: want,
		request: func(p *plan, s *server, k int) load.Request {
			return load.NewRequest(http.MethodGet, s.addr, path(p, k), nil, s.account(k).auth())
		},
	}
}

func getSame(want shape.Shape, path string) operation {
	return get(want, func(*plan, int) string { return path })
}

// trivial is the plainest authenticated route that all have: it touches no record.
func trivial() operation { return getSame(shape.Whole, "/api/collections/users/auth-methods") }

// getOne reads a note of the account that asks: note n belongs to user n modulo the number of users.
func getOne(base string) operation {
	return get(shape.Record, func(p *plan, k int) string {
		rounds := p.size.Notes / p.size.Users
		note := (k/signedIn)*7%rounds*p.size.Users + k%signedIn
		return base + "/" + seed.NoteID(note)
	})
}

func listStock() operation {
	return getSame(shape.List, fmt.Sprintf("%s?perPage=%d&skipTotal=1&sort=-updated", stockNotes, listSize))
}

func listVersion() operation {
	return getSame(shape.List, fmt.Sprintf("%s?limit=%d&sort=-updated", versionNotes, listSize))
}

func listTotals() operation {
	return getSame(shape.List, fmt.Sprintf("%s?perPage=%d&sort=-updated", stockNotes, listSize))
}

func listVersionTotals() operation {
	return getSame(shape.List, fmt.Sprintf("%s?limit=%d&sort=-updated&total=true", versionNotes, listSize))
}

// repeated is a list that the client has already.
func repeated(op operation) operation {
	op.revalidates = true
	op.accept = []int{http.StatusOK, http.StatusNotModified}
	return op
}

// post builds an operation that writes. JSON of these values cannot fail.
func post(want shape.Shape, variants int, path string, body func(s *server, k int) any) operation {
	return operation{
		variants: variants, accept: []int{http.StatusOK}, shape: want,
		request: func(_ *plan, s *server, k int) load.Request {
			text, err := json.Marshal(body(s, k))
			if err != nil {
				panic(err)
			}
			return load.NewRequest(http.MethodPost, s.addr, path, text, s.account(k).auth())
		},
	}
}

func newNote(owner string, k int) any {
	return map[string]any{
		"owner": owner, "title": fmt.Sprintf("new note %d", k), "body": seed.Body(), "meta": json.RawMessage(seed.Meta), "status": "open",
	}
}

func create() operation {
	return post(shape.Created, writeVariants, stockNotes, func(s *server, k int) any { return newNote(s.account(k).id, k) })
}

func message() operation {
	return post(shape.Created, writeVariants, stockMessages, func(s *server, k int) any {
		return map[string]any{"owner": s.account(k).id, "room": seed.Room, "data": fmt.Sprintf("a message from the benchmark, number %d", k)}
	})
}

func bulk() operation {
	return post(shape.Batch, bulkVariants, "/api/batch", func(s *server, k int) any {
		var items []any
		for i := range bulkSize {
			items = append(items, map[string]any{"method": http.MethodPost, "url": stockNotes, "body": newNote(s.account(k).id, k*bulkSize+i)})
		}
		return map[string]any{"requests": items}
	})
}

func refresh() operation {
	return post(shape.Tokens, readVariants, "/api/collections/users/auth-refresh", func(*server, int) any { return struct{}{} })
}

func login() operation {
	op := post(shape.Tokens, readVariants, "/api/collections/users/auth-with-password", func(s *server, k int) any {
		return map[string]string{"identity": s.account(k).email, "password": seed.Password}
	})
	return op
}
