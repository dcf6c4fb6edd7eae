// Package fcm stands in for Firebase Cloud Messaging's HTTP v1 interface on loopback, with the OAuth 2.0 server that
// trades a service account's signature for an access token. It serves tests and `satchel dev stubs`.
package fcm

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
)

// Project is the one that the stub knows.
const Project = "satchel-dev"

const (
	account    = "sender@satchel-dev.iam.gserviceaccount.com"
	scope      = "https://www.googleapis.com/auth/firebase.messaging"
	maxPayload = 4096 // bytes of notification and data
	tokenAge   = time.Hour
)

// Server is the running service. It is safe for concurrent use.
type Server struct {
	loopback.Script
	*loopback.Server

	inbox  *inbox.Inbox
	grants atomic.Int64
	number atomic.Int64

	mu      sync.Mutex
	key     *rsa.PrivateKey
	kid     string
	access  map[string]time.Time // until when
	refuse  bool
	message map[string]any // the newest
}

// Options say where to listen. Account is a service account that [Server.Account] once made; without it the stub makes one.
type Options struct {
	Address   string
	Authority *loopback.Authority
	Inbox     *inbox.Inbox
	Account   []byte
}

// Start listens on a loopback address.
func Start(o Options) (*Server, error) {
	s := &Server{inbox: o.Inbox, access: map[string]time.Time{}}
	if len(o.Account) == 0 {
		if err := s.Rotate(); err != nil {
			return nil, err
		}
	} else if err := s.adopt(o.Account); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", s.token)
	mux.HandleFunc("POST /v1/projects/{project}/{call}", s.send)
	server, err := loopback.Serve(o.Address, o.Authority, mux, false)
	if err != nil {
		return nil, err
	}
	s.Server = server
	return s, nil
}

// Rotate makes a new service account key; the old one, and the access tokens it got, are refused from now on.
func (s *Server) Rotate() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key, s.kid, s.access = key, strings.ToLower(rand.Text()), map[string]time.Time{}
	return nil
}

// Forget makes every access token invalid, while the key stays good.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.access = map[string]time.Time{}
}

// RefuseGrants makes the OAuth server fail with 503, or not any more.
func (s *Server) RefuseGrants(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// Grants counts the access tokens that were asked for.
func (s *Server) Grants() int { return int(s.grants.Load()) }

// Message is the newest message in the form of its JSON.
func (s *Server) Message() map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.message
}

// Account is the service account file as a developer downloads it.
func (s *Server) Account() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return nil // the key is an RSA one that this package made or read
	}
	text, _ := json.MarshalIndent(map[string]string{
		"type": "service_account", "project_id": Project, "private_key_id": s.kid, "client_email": account, "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": s.URL + "/token",
	}, "", "  ")
	return text
}

func (s *Server) adopt(file []byte) error {
	var a struct {
		Kid string `json:"private_key_id"`
		Key string `json:"private_key"`
	}
	if err := json.Unmarshal(file, &a); err != nil {
		return fmt.Errorf("read account: %w", err)
	}
	block, _ := pem.Decode([]byte(a.Key))
	if block == nil {
		return errors.New("read account: its key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("read account: %w", err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return errors.New("read account: its key is not RSA")
	}
	s.key, s.kid = key, a.Kid
	return nil
}

// token grants access (RFC 7523).
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	s.grants.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse {
		http.Error(w, "unavailable", http.StatusServiceUnavailable)
		return
	}
	var claims struct {
		jwt.RegisteredClaims
		Scope string `json:"scope"`
	}
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithAudience(s.URL+"/token"), jwt.WithExpirationRequired()).
		ParseWithClaims(r.FormValue("assertion"), &claims, func(*jwt.Token) (any, error) { return &s.key.PublicKey, nil })
	if err != nil || r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || claims.Issuer != account || !slices.Contains(strings.Fields(claims.Scope), scope) {
		write(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
		return
	}
	text := "stub." + rand.Text()
	s.access[text] = time.Now().Add(tokenAge)
	write(w, http.StatusOK, map[string]any{"access_token": text, "token_type": "Bearer", "expires_in": int(tokenAge.Seconds()) - 1})
}

// message is what the stub reads; other fields of the interface are refused as unknown, like the service does with
// names that it does not have.
type message struct {
	Token        string            `json:"token"`
	Topic        string            `json:"topic"`
	Condition    string            `json:"condition"`
	Data         map[string]string `json:"data"`
	Notification *notification     `json:"notification"`
	FCMOptions   map[string]any    `json:"fcm_options"`
	Webpush      map[string]any    `json:"webpush"`
	APNS         *struct {
		Headers    map[string]string `json:"headers"`
		Payload    map[string]any    `json:"payload"`
		FCMOptions map[string]any    `json:"fcm_options"`
	} `json:"apns"`
	Android *struct {
		CollapseKey  string         `json:"collapse_key"`
		Priority     string         `json:"priority"`
		TTL          string         `json:"ttl"`
		Notification map[string]any `json:"notification"`
	} `json:"android"`
}

type notification struct {
	Title string `json:"title"`
	Body  string `json:"body"`
	Image string `json:"image"`
}

func (s *Server) send(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	s.Wait(r)
	var request struct {
		ValidateOnly bool     `json:"validate_only"`
		Message      *message `json:"message"`
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&request)
	if err != nil || request.Message == nil {
		refuse(w, http.StatusBadRequest, "INVALID_ARGUMENT", "", fmt.Sprintf("Invalid JSON payload received. %v", err), "")
		return
	}
	b := s.Next(request.Message.Token)
	if s.Break(w, r, b) {
		return
	}
	e := s.judge(r, request.Message, b)
	if e.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", loopback.RetryAfter)
	}
	if e.status != 0 {
		refuse(w, e.status, e.name, e.code, e.text, e.field)
	} else {
		write(w, http.StatusOK, map[string]string{"name": fmt.Sprintf("projects/%s/messages/0:%d", Project, s.number.Add(1))})
	}
	s.record(body, request.Message, e)
}

func (s *Server) record(body []byte, m *message, e failure) {
	if s.inbox == nil {
		return
	}
	var kept struct {
		Message map[string]any `json:"message"`
	}
	_ = json.Unmarshal(body, &kept) // it was decoded before
	s.mu.Lock()
	s.message = kept.Message
	s.mu.Unlock()
	a := inbox.Arrival{Provider: "fcm", To: m.Token, Status: cmp.Or(e.status, http.StatusOK), Reason: cmp.Or(e.code, e.name), Body: string(body)}
	if m.Notification != nil {
		a.Title, a.Text = m.Notification.Title, m.Notification.Body
	}
	s.inbox.Add(a)
}

// failure is an error answer; the zero value is none.
type failure struct {
	status                  int
	name, code, text, field string
}

func (s *Server) judge(r *http.Request, m *message, b loopback.Behaviour) failure {
	invalid := func(field, text string) failure {
		return failure{http.StatusBadRequest, "INVALID_ARGUMENT", "INVALID_ARGUMENT", text, field}
	}
	s.mu.Lock()
	until := s.access[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	s.mu.Unlock()
	switch {
	case time.Now().After(until) || b == loopback.Denied:
		return failure{status: http.StatusUnauthorized, name: "UNAUTHENTICATED", text: "Request had invalid authentication credentials."}
	case r.PathValue("project") != Project || r.PathValue("call") != "messages:send":
		return failure{status: http.StatusForbidden, name: "PERMISSION_DENIED", code: "SENDER_ID_MISMATCH", text: "SenderId mismatch"}
	}
	if field, text := m.mistake(); text != "" {
		return invalid(field, text)
	}
	switch b {
	case loopback.Dead:
		return failure{http.StatusNotFound, "NOT_FOUND", "UNREGISTERED", "Requested entity was not found.", ""}
	case loopback.Unknown:
		return invalid("message.token", "The registration token is not a valid FCM registration token")
	case loopback.Refused:
		return failure{http.StatusForbidden, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", "SenderId mismatch", ""}
	case loopback.Busy:
		return failure{http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "Quota exceeded.", ""}
	case loopback.Down:
		return failure{http.StatusServiceUnavailable, "UNAVAILABLE", "UNAVAILABLE", "The service is currently unavailable.", ""}
	default:
		return failure{}
	}
}

// mistake finds what the service would refuse in a message.
func (m *message) mistake() (field, text string) {
	targets := 0
	for _, t := range []string{m.Token, m.Topic, m.Condition} {
		if t != "" {
			targets++
		}
	}
	if targets != 1 {
		return "message", "Exactly one of token, topic or condition must be specified"
	}
	if m.Token != "" && len(m.Token) < 20 {
		return "message.token", "The registration token is not a valid FCM registration token"
	}
	size := 0
	for k, v := range m.Data {
		size += len(k) + len(v)
		if k == "from" || k == "message_type" || strings.HasPrefix(k, "google") || strings.HasPrefix(k, "gcm") {
			return "message.data", "Invalid data payload key: " + k
		}
	}
	if n := m.Notification; n != nil {
		size += len(n.Title) + len(n.Body) + len(n.Image)
	}
	if size > maxPayload {
		return "message", "Message too big"
	}
	if m.Android != nil {
		if !slices.Contains([]string{"", "HIGH", "NORMAL"}, strings.ToUpper(m.Android.Priority)) {
			return "message.android.priority", "Invalid value"
		}
		if d, err := time.ParseDuration(cmp.Or(m.Android.TTL, "0s")); err != nil || d < 0 || d > 28*24*time.Hour || !strings.HasSuffix(cmp.Or(m.Android.TTL, "0s"), "s") {
			return "message.android.ttl", "Invalid value"
		}
	}
	return "", ""
}

// refuse writes an error in Google's form.
func refuse(w http.ResponseWriter, status int, name, code, text, field string) {
	details := []map[string]any{}
	if code != "" {
		details = append(details, map[string]any{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code})
	}
	if field != "" {
		details = append(details, map[string]any{
			"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": []map[string]string{{"field": field, "description": text}},
		})
	}
	write(w, status, map[string]any{"error": map[string]any{"code": status, "message": text, "status": name, "details": details}})
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
