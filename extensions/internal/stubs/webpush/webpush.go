// Package webpush stands in for a browser's push service, and for the browser behind it, on loopback: it makes
// subscriptions, checks what RFC 8030, 8188, 8291 and 8292 ask of a sender, and decrypts what arrives. It serves tests and
// `satchel dev stubs`.
package webpush

import (
	"cmp"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
)

const (
	// maxBody is what a push service must accept at least (RFC 8030 section 7.2), and what the services of browsers do.
	maxBody = 4096

	// maxSubscriptions bounds the memory of a stub that runs for weeks.
	maxSubscriptions = 20_000
)

// Subscription is what a browser gives to its page.
type Subscription struct {
	Endpoint string `json:"endpoint"`
	Keys     Keys   `json:"keys"`
}

// Keys are in base64url without padding.
type Keys struct {
	P256DH string `json:"p256dh"`
	Auth   string `json:"auth"`
}

// Delivery is one accepted message.
type Delivery struct {
	ID      string            `json:"id"`
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"` // encrypted
	Text    string            `json:"text"` // decrypted, where the stub has the key
}

// receiver is the browser's side of a subscription.
type receiver struct {
	private *ecdh.PrivateKey // nil when somebody else has it
	auth    []byte
	server  string // the only application server key that may send, in base64url; empty: any
}

// Server is the running service. It is safe for concurrent use.
type Server struct {
	loopback.Script
	*loopback.Server

	inbox *inbox.Inbox

	mu        sync.Mutex
	receivers map[string]receiver
	tokens    map[string]bool // VAPID headers that were good
	last      Delivery
}

// Start listens on a loopback address.
func Start(address string, authority *loopback.Authority, box *inbox.Inbox) (*Server, error) {
	s := &Server{inbox: box, receivers: map[string]receiver{}, tokens: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /subscribe", s.subscribe)
	mux.HandleFunc("POST /push/{id}", s.push)
	server, err := loopback.Serve(address, authority, mux, false)
	if err != nil {
		return nil, err
	}
	s.Server = server
	return s, nil
}

// Subscribe makes a subscription for an application server key (base64url), or for any. The id begins with prefix, which
// can choose a behaviour. Keys given are used instead of own ones; the stub cannot read what is sent to them.
func (s *Server) Subscribe(prefix, serverKey string, keys *Keys) (Subscription, error) {
	r := receiver{server: serverKey, auth: make([]byte, 16)}
	_, _ = rand.Read(r.auth)
	out := Subscription{}
	if keys != nil {
		out.Keys = *keys
	} else {
		private, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return out, err
		}
		r.private = private
		out.Keys = Keys{P256DH: text(private.PublicKey().Bytes()), Auth: text(r.auth)}
	}
	id := prefix + strings.ToLower(rand.Text())
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.receivers) >= maxSubscriptions {
		clear(s.receivers)
	}
	s.receivers[id] = r
	out.Endpoint = s.URL + "/push/" + id
	return out, nil
}

// Unsubscribe makes an endpoint unknown.
func (s *Server) Unsubscribe(endpoint string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.receivers, id(endpoint))
}

// Tokens counts the different VAPID tokens that clients have made.
func (s *Server) Tokens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tokens)
}

// Last is the newest accepted message.
func (s *Server) Last() Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func id(endpoint string) string { return endpoint[strings.LastIndex(endpoint, "/")+1:] }

// subscribe is for browsers without one: the body may have applicationServerKey, and p256dh and auth of somebody else.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request) {
	var in struct {
		ServerKey string `json:"applicationServerKey"`
		Prefix    string `json:"prefix"`
		Keys
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&in); err != nil || !regexp.MustCompile(`^[0-9a-f]{0,16}$`).MatchString(in.Prefix) {
		http.Error(w, "the body must be an object, such as {}", http.StatusBadRequest)
		return
	}
	var keys *Keys
	if in.P256DH != "" {
		keys = &in.Keys
	}
	out, err := s.Subscribe(in.Prefix, in.ServerKey, keys)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) push(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	s.Wait(r)
	name := r.PathValue("id")
	b := s.Next(name)
	if s.Break(w, r, b) {
		return
	}
	s.mu.Lock()
	to, found := s.receivers[name]
	s.mu.Unlock()
	status, reason := s.judge(r, to, body, b)
	if !found || b == loopback.Dead || b == loopback.Unknown {
		status, reason = http.StatusGone, "the subscription has ended"
		if b == loopback.Unknown {
			status = http.StatusNotFound
		}
	}
	plain := ""
	if status == http.StatusCreated && to.private != nil {
		opened, err := decrypt(to, body)
		if plain = string(opened); err != nil {
			// A push service could not know, but here the browser would drop the message without a word.
			status, reason = http.StatusBadRequest, "the browser cannot decrypt it: "+err.Error()
		}
	}
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", loopback.RetryAfter)
	}
	if status == http.StatusCreated {
		delivery := Delivery{ID: strings.ToLower(rand.Text()), Headers: headers(r.Header), Body: body, Text: plain}
		w.Header().Set("Location", s.URL+"/message/"+delivery.ID)
		s.mu.Lock()
		s.last = delivery
		s.mu.Unlock()
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, reason)
	s.record(name, status, reason, plain, body, r)
}

func (s *Server) record(name string, status int, reason, plain string, body []byte, r *http.Request) {
	if s.inbox == nil {
		return
	}
	var p struct{ Title, Body string }
	_ = json.Unmarshal([]byte(plain), &p) // whatever it is, it is shown
	s.inbox.Add(inbox.Arrival{Provider: "webpush", To: name, Title: p.Title, Text: p.Body, Status: status, Reason: reason, Headers: headers(r.Header), Body: plain, Raw: body})
}

// headers are those of the request that mean something, without the credentials.
func headers(h http.Header) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"TTL", "Urgency", "Topic", "Content-Encoding", "Content-Type"} {
		if v := h.Get(name); v != "" {
			out[name] = v
		}
	}
	return out
}

// judge returns 201, or what a push service answers to a request that is not as it must be.
func (s *Server) judge(r *http.Request, to receiver, body []byte, b loopback.Behaviour) (status int, reason string) {
	if status, reason := s.vapid(r.Header.Get("Authorization"), to.server); status != 0 {
		return status, reason
	}
	h := r.Header
	ttl, err := strconv.Atoi(h.Get("TTL"))
	switch {
	case b == loopback.Denied, b == loopback.Refused:
		return http.StatusForbidden, "the key is refused"
	case b == loopback.Busy:
		return http.StatusTooManyRequests, "too many requests"
	case b == loopback.Down:
		return http.StatusServiceUnavailable, "out of order"
	case err != nil || ttl < 0:
		return http.StatusBadRequest, "TTL is missing or no number (RFC 8030 section 5.2)"
	case !slices.Contains([]string{"", "very-low", "low", "normal", "high"}, h.Get("Urgency")):
		return http.StatusBadRequest, "Urgency is none of very-low, low, normal, high (RFC 8030 section 5.3)"
	case !isTopic(h.Get("Topic")):
		return http.StatusBadRequest, "Topic is not up to 32 characters of base64url (RFC 8030 section 5.4)"
	case len(body) > maxBody:
		return http.StatusRequestEntityTooLarge, "the body is over 4096 bytes"
	case len(body) > 0 && h.Get("Content-Encoding") != "aes128gcm":
		return http.StatusUnsupportedMediaType, "Content-Encoding is not aes128gcm (RFC 8291 section 4)"
	}
	return http.StatusCreated, ""
}

// vapid checks the sender's token (RFC 8292) and that its key is the one of the subscription.
func (s *Server) vapid(header, serverKey string) (status int, reason string) {
	_, key, _ := strings.Cut(header, "k=")
	if serverKey != "" && strings.TrimRight(serverKey, "=") != strings.TrimRight(key, "=") {
		return http.StatusForbidden, "the subscription is for another application server key"
	}
	s.mu.Lock()
	known := s.tokens[header]
	s.mu.Unlock()
	if known { // checking a signature costs more than all the rest
		return 0, ""
	}
	if status, reason := s.verify(header); status != 0 {
		return status, reason
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tokens) >= maxSubscriptions {
		clear(s.tokens)
	}
	s.tokens[header] = true
	return 0, ""
}

// verify checks a token's audience, age, subject and signature.
func (s *Server) verify(header string) (status int, reason string) {
	parts := regexp.MustCompile(`^(?i:vapid) +t=([^, ]+) *, *k=([^, ]+)$`).FindStringSubmatch(header)
	if parts == nil {
		return http.StatusUnauthorized, "Authorization is not: vapid t=..., k=..."
	}
	point, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[2], "="))
	if err != nil {
		return http.StatusForbidden, "k is not base64url"
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return http.StatusForbidden, "k is no point of P-256"
	}
	claims := jwt.RegisteredClaims{}
	_, err = jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithAudience(s.URL), jwt.WithExpirationRequired()).
		ParseWithClaims(parts[1], &claims, func(*jwt.Token) (any, error) { return key, nil })
	subject, subjectErr := url.Parse(claims.Subject)
	switch {
	case err != nil:
		return http.StatusForbidden, err.Error()
	case time.Until(claims.ExpiresAt.Time) > 24*time.Hour:
		return http.StatusForbidden, "the token is good for more than 24 hours"
	case subjectErr != nil || !slices.Contains([]string{"mailto", "https"}, subject.Scheme) || strings.HasSuffix(cmp.Or(subject.Hostname(), subject.Opaque), "localhost") || strings.Contains(subject.Opaque, ":"):
		return http.StatusForbidden, "the subject is no mailto: or https: address of the internet"
	}
	return 0, ""
}

func isTopic(text string) bool {
	odd := func(r rune) bool {
		return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", r)
	}
	return len(text) <= 32 && strings.IndexFunc(text, odd) < 0
}

func text(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }
