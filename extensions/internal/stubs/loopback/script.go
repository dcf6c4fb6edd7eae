package loopback

import (
	"net/http"
	"strings"
	"sync"
)

// Behaviour is how a provider answers for one token.
type Behaviour int

// The behaviours. Fine is the zero value: what was sent is judged as the provider would.
const (
	Fine      Behaviour = iota
	Dead                // the token is no longer good
	Unknown             // the token never was one
	Busy                // too many requests, with Retry-After: 7
	Down                // out of order
	Slow                // no answer until the request ends
	Reset               // the stream ends without an answer
	Huge                // an answer without an end, or nearly
	Gibberish           // a page in HTML where JSON belongs
	Denied              // the credentials are refused
	Refused             // the token is none for this sender, or what was sent is too large
)

// RetryAfter is what Busy tells the client to wait, in seconds.
const RetryAfter = "7"

// prefixes let a person choose a behaviour without code. They are hexadecimal, because device tokens of APNs are.
func prefixes() map[string]Behaviour {
	return map[string]Behaviour{"dead00": Dead, "bad000": Unknown, "429429": Busy, "503503": Down}
}

// Script decides on behaviours. The zero value asks the token's first letters. It is safe for concurrent use.
type Script struct {
	mu     sync.Mutex
	all    Behaviour
	tokens map[string][]Behaviour
}

// Behave makes the next requests for a token end like this, one after the other; later ones are as usual.
func (s *Script) Behave(token string, b ...Behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		s.tokens = map[string][]Behaviour{}
	}
	s.tokens[token] = b
}

// BehaveAll makes all requests end like this until it is called again.
func (s *Script) BehaveAll(b Behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = b
}

// Next is the behaviour for a request about a token.
func (s *Script) Next(token string) Behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	if queue := s.tokens[token]; len(queue) > 0 {
		s.tokens[token] = queue[1:]
		return queue[0]
	}
	if s.all != Fine {
		return s.all
	}
	for prefix, b := range prefixes() {
		if strings.HasPrefix(token, prefix) {
			return b
		}
	}
	return Fine
}

// Break does what a broken server does, the same for every provider, and reports whether it did.
func (s *Server) Break(w http.ResponseWriter, r *http.Request, b Behaviour) bool {
	switch b {
	case Slow:
		s.Stall(r)
	case Reset:
		panic(http.ErrAbortHandler)
	case Huge:
		w.Header().Set("Content-Type", "application/json")
		block := []byte(strings.Repeat(" ", 1<<16))
		for range 64 {
			if _, err := w.Write(block); err != nil {
				break
			}
		}
	case Gibberish:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<!doctype html><title>502 Bad Gateway</title>"))
	default:
		return false
	}
	return true
}
