// Package expo stands in for Expo's push service on loopback: tickets, receipts, and the errors of both. It serves tests
// and `satchel dev stubs`.
package expo

import (
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
)

// Foreign begins the tokens of another project, which Expo refuses together with those of one.
const Foreign = "foreign"

// Limits of the service.
const (
	maxMessages = 100
	maxReceipts = 1000
	maxPayload  = 4096
	kept        = 20_000 // receipts that are remembered
)

// Server is the running service. It is safe for concurrent use.
type Server struct {
	loopback.Script
	*loopback.Server

	inbox *inbox.Inbox

	mu       sync.Mutex
	access   string
	receipts map[string]answer
	late     map[string]bool // tokens whose death shows in the receipt only
	pending  bool
	batches  []int
	message  map[string]any
}

// Start listens on a loopback address.
func Start(address string, authority *loopback.Authority, box *inbox.Inbox) (*Server, error) {
	s := &Server{inbox: box, receipts: map[string]answer{}, late: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /--/api/v2/push/send", s.send)
	mux.HandleFunc("POST /--/api/v2/push/getReceipts", s.getReceipts)
	server, err := loopback.Serve(address, authority, mux, false)
	if err != nil {
		return nil, err
	}
	s.Server = server
	return s, nil
}

// RequireAccess makes the service ask for an access token; an empty one ends that.
func (s *Server) RequireAccess(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = token
}

// DieLate lets the ticket of a token be good and its receipt say that the device is gone.
func (s *Server) DieLate(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late[token] = true
}

// HoldReceipts keeps receipts back, or not any more.
func (s *Server) HoldReceipts(hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = hold
}

// Batches are the sizes of the requests so far.
func (s *Server) Batches() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int{}, s.batches...)
}

// Message is the newest message in the form of its JSON.
func (s *Server) Message() map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.message
}

// answer is a ticket or a receipt.
type answer struct {
	Status  string         `json:"status"`
	ID      string         `json:"id,omitempty"`
	Message string         `json:"message,omitempty"`
	Details map[string]any `json:"details,omitempty"`
}

func failed(code, text string) answer {
	return answer{Status: "error", Message: text, Details: map[string]any{"error": code}}
}

func (s *Server) send(w http.ResponseWriter, r *http.Request) {
	var raw json.RawMessage
	if !s.open(w, r, &raw) {
		return
	}
	if len(raw) > 0 && raw[0] != '[' {
		raw = json.RawMessage("[" + string(raw) + "]")
	}
	var list []map[string]any
	if err := json.Unmarshal(raw, &list); err != nil {
		refuse(w, http.StatusBadRequest, "VALIDATION_ERROR", err.Error())
		return
	}
	type target struct {
		token   string
		message map[string]any
	}
	var targets []target
	for _, m := range list {
		for _, token := range tokens(m["to"]) {
			targets = append(targets, target{token, m})
		}
	}
	switch {
	case len(targets) > maxMessages:
		refuse(w, http.StatusBadRequest, "PUSH_TOO_MANY_NOTIFICATIONS", "Cannot send more than 100 push notifications in one request")
		return
	case len(targets) == 0:
		refuse(w, http.StatusBadRequest, "VALIDATION_ERROR", `"to" is required`)
		return
	}
	foreign := func(t target) bool { return strings.HasPrefix(inner(t.token), Foreign) }
	if slices.ContainsFunc(targets, func(t target) bool { return foreign(t) != foreign(targets[0]) }) {
		refuse(w, http.StatusBadRequest, "PUSH_TOO_MANY_EXPERIENCE_IDS", "All push notification messages in the same request must be for the same project")
		return
	}
	b := s.Next(inner(targets[0].token))
	if s.Break(w, r, b) || s.unwell(w, b) {
		return
	}
	s.mu.Lock()
	s.batches = append(s.batches, len(targets))
	s.message = targets[len(targets)-1].message
	s.mu.Unlock()
	tickets := make([]answer, len(targets))
	for i, t := range targets {
		if i > 0 {
			b = s.Next(inner(t.token))
		}
		tickets[i] = s.ticket(t.token, t.message, b)
		s.record(t.token, t.message, tickets[i])
	}
	write(w, http.StatusOK, map[string]any{"data": tickets})
}

// tokens reads the field "to", which is a token or a list of them.
func tokens(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var list []string
		for _, one := range v {
			if text, ok := one.(string); ok {
				list = append(list, text)
			}
		}
		return list
	}
	return nil
}

// ticket judges one message.
func (s *Server) ticket(token string, message map[string]any, b loopback.Behaviour) answer {
	var size strings.Builder
	encoder := json.NewEncoder(&size)
	encoder.SetEscapeHTML(false) // they are no bytes of the message
	_ = encoder.Encode(message)
	switch {
	case !regexp.MustCompile(`^Expo(nent)?PushToken\[[^\]]+\]$`).MatchString(token), b == loopback.Dead, b == loopback.Unknown:
		t := failed("DeviceNotRegistered", `"`+token+`" is not a registered push notification recipient`)
		t.Details["expoPushToken"] = token
		return t
	case size.Len()-1 > maxPayload, b == loopback.Refused:
		return failed("MessageTooBig", "The message is over 4096 bytes")
	}
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.receipts) >= kept {
		clear(s.receipts)
	}
	s.receipts[id] = answer{Status: "ok"}
	if s.late[token] {
		s.receipts[id] = failed("DeviceNotRegistered", "The device cannot receive push notifications anymore")
	}
	return answer{Status: "ok", ID: id}
}

func (s *Server) record(token string, message map[string]any, t answer) {
	if s.inbox == nil {
		return
	}
	a := inbox.Arrival{Provider: "expo", To: token, Status: http.StatusOK}
	if code, ok := t.Details["error"].(string); ok {
		a.Status, a.Reason = http.StatusBadRequest, code
	}
	a.Title, _ = message["title"].(string)
	a.Text, _ = message["body"].(string)
	body, _ := json.Marshal(message)
	a.Body = string(body)
	s.inbox.Add(a)
}

func (s *Server) getReceipts(w http.ResponseWriter, r *http.Request) {
	var in struct {
		IDs []string `json:"ids"`
	}
	if !s.open(w, r, &in) || s.unwell(w, s.Next("")) {
		return
	}
	if len(in.IDs) > maxReceipts {
		refuse(w, http.StatusBadRequest, "PUSH_TOO_MANY_RECEIPTS", "Cannot get more than 1000 receipts in one request")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]answer{}
	for _, id := range in.IDs {
		if receipt, ok := s.receipts[id]; ok && !s.pending {
			found[id] = receipt
		}
	}
	write(w, http.StatusOK, map[string]any{"data": found})
}

// open reads the body, which may be compressed, and asks for the access token.
func (s *Server) open(w http.ResponseWriter, r *http.Request, into any) bool {
	s.Wait(r)
	s.mu.Lock()
	access := s.access
	s.mu.Unlock()
	if access != "" && r.Header.Get("Authorization") != "Bearer "+access {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "The bearer token is invalid")
		return false
	}
	body, err := io.Reader(r.Body), error(nil)
	if strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip") {
		body, err = gzip.NewReader(r.Body)
	}
	if err == nil {
		err = json.NewDecoder(io.LimitReader(body, 4<<20)).Decode(into)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		refuse(w, http.StatusBadRequest, "VALIDATION_ERROR", err.Error())
		return false
	}
	return true
}

// unwell answers for the whole request what is wrong with the service.
func (s *Server) unwell(w http.ResponseWriter, b loopback.Behaviour) bool {
	switch b {
	case loopback.Busy:
		w.Header().Set("Retry-After", loopback.RetryAfter)
		refuse(w, http.StatusTooManyRequests, "TOO_MANY_REQUESTS", "Too many requests")
	case loopback.Down:
		refuse(w, http.StatusServiceUnavailable, "INTERNAL_SERVER_ERROR", "Out of order")
	case loopback.Denied:
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "The bearer token is invalid")
	default:
		return false
	}
	return true
}

func inner(token string) string {
	_, rest, _ := strings.Cut(token, "[")
	return strings.TrimSuffix(rest, "]")
}

func refuse(w http.ResponseWriter, status int, code, text string) {
	write(w, status, map[string]any{"errors": []map[string]any{{"code": code, "message": text, "isTransient": status >= 500}}})
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
