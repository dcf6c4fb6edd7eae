// Package apns stands in for Apple's push service on loopback: HTTP/2 alone, provider tokens whose signature is checked,
// and the refusals of a request that the service documents. It serves tests and `satchel dev stubs`.
package apns

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
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

// What the stub's credentials say.
const (
	KeyID  = "SATCHELDEV"
	TeamID = "SATCHELTM1"
	Topic  = "com.example.app"
)

// Limits of the service, in bytes: of a payload, and of the identifier that collapses notifications.
const (
	maxPayload  = 4096
	maxVoIP     = 5120
	maxCollapse = 64
)

// tokenAge is how long a provider token is good.
const tokenAge = time.Hour

// Server is the running pair of hosts: APNs has one for apps of the store and one for apps under development. It is safe
// for concurrent use.
type Server struct {
	loopback.Script

	Production, Sandbox *loopback.Server

	inbox *inbox.Inbox

	mu     sync.Mutex
	key    *ecdsa.PrivateKey
	tokens map[string]seen   // provider tokens that were good
	last   map[string]string // the headers of the newest request
}

// seen is a provider token: when it was made, and with which key.
type seen struct {
	made time.Time
	key  *ecdsa.PrivateKey
}

// Options say where to listen. Key is a signing key in PEM; without it the stub makes one.
type Options struct {
	Address, SandboxAddress string
	Authority               *loopback.Authority
	Inbox                   *inbox.Inbox
	Key                     []byte
}

// Start listens on loopback addresses.
func Start(o Options) (*Server, error) {
	s := &Server{inbox: o.Inbox, tokens: map[string]seen{}}
	if len(o.Key) == 0 {
		if err := s.Rotate(); err != nil {
			return nil, err
		}
	} else if err := s.adopt(o.Key); err != nil {
		return nil, err
	}
	var err error
	if s.Production, err = loopback.Serve(o.Address, o.Authority, s.handler(true), true); err != nil {
		return nil, err
	}
	if s.Sandbox, err = loopback.Serve(o.SandboxAddress, o.Authority, s.handler(false), true); err != nil {
		_ = s.Production.Close()
		return nil, err
	}
	return s, nil
}

// Close ends both servers.
func (s *Server) Close() error { return errors.Join(s.Production.Close(), s.Sandbox.Close()) }

// Rotate makes a new signing key; the old one is refused from now on.
func (s *Server) Rotate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
	return nil
}

func (s *Server) adopt(text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("read key: it is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("read key: it is not an elliptic one")
	}
	s.key = key
	return nil
}

// P8 is the signing key as a developer downloads it.
func (s *Server) P8() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return nil // the key is an elliptic one that this package made or read
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// ProviderTokens counts the different provider tokens that clients have made.
func (s *Server) ProviderTokens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tokens)
}

// Headers are those of the newest request.
func (s *Server) Headers() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// handler serves one of the two hosts.
func (s *Server) handler(production bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		server, name := s.Production, "apns"
		if !production {
			server, name = s.Sandbox, "apns sandbox"
		}
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		server.Wait(r)
		device := strings.TrimPrefix(r.URL.Path, "/3/device/")
		b := s.Next(device)
		if server.Break(w, r, b) {
			return
		}
		s.note(r)
		refused := s.judge(r, device, body, b)
		id := cmp.Or(r.Header.Get("apns-id"), uuid())
		w.Header().Set("apns-id", id)
		w.Header().Set("Content-Type", "application/json")
		if refused.status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", loopback.RetryAfter)
		}
		w.WriteHeader(cmp.Or(refused.status, http.StatusOK))
		if refused.status != 0 {
			answer := map[string]any{"reason": refused.reason}
			if refused.status == http.StatusGone {
				answer["timestamp"] = time.Now().Add(-time.Hour).UnixMilli()
			}
			_ = json.NewEncoder(w).Encode(answer)
		}
		s.record(name, device, body, refused, r)
	})
}

// note keeps the headers of a request, but for the credentials.
func (s *Server) note(r *http.Request) {
	last := map[string]string{}
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "apns-") {
			last[lower] = r.Header.Get(name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = last
}

func (s *Server) record(name, device string, body []byte, refused refusal, r *http.Request) {
	if s.inbox == nil {
		return
	}
	a := inbox.Arrival{Provider: name, To: device, Status: cmp.Or(refused.status, http.StatusOK), Reason: refused.reason, Body: string(body), Headers: map[string]string{}}
	for header := range r.Header {
		if lower := strings.ToLower(header); strings.HasPrefix(lower, "apns-") {
			a.Headers[lower] = r.Header.Get(header)
		}
	}
	var p struct {
		APS struct {
			Alert struct{ Title, Body string } `json:"alert"`
		} `json:"aps"`
	}
	if json.Unmarshal(body, &p) == nil {
		a.Title, a.Text = p.APS.Alert.Title, p.APS.Alert.Body
	}
	s.inbox.Add(a)
}

// refusal is an error answer; the zero value is none.
type refusal struct {
	status int
	reason string
}

// judge applies the documented checks in an order that puts the credentials first, as the service does.
func (s *Server) judge(r *http.Request, device string, body []byte, b loopback.Behaviour) refusal {
	if r.Method != http.MethodPost {
		return refusal{http.StatusMethodNotAllowed, "MethodNotAllowed"}
	}
	if !strings.HasPrefix(r.URL.Path, "/3/device/") {
		return refusal{http.StatusNotFound, "BadPath"}
	}
	if b == loopback.Denied {
		return refusal{http.StatusForbidden, "InvalidProviderToken"}
	}
	if reason := s.provider(r.Header.Get("Authorization")); reason != "" {
		return refusal{http.StatusForbidden, reason}
	}
	if refused := headers(r.Header, body); refused.status != 0 {
		return refused
	}
	switch b {
	case loopback.Dead:
		return refusal{http.StatusGone, "Unregistered"}
	case loopback.Unknown:
		return refusal{http.StatusBadRequest, "BadDeviceToken"}
	case loopback.Refused:
		return refusal{http.StatusBadRequest, "DeviceTokenNotForTopic"}
	case loopback.Busy:
		return refusal{http.StatusTooManyRequests, "TooManyRequests"}
	case loopback.Down:
		return refusal{http.StatusServiceUnavailable, "ServiceUnavailable"}
	default:
	}
	if raw, err := hex.DecodeString(device); err != nil || len(raw) < 8 || len(raw) > 100 {
		return refusal{http.StatusBadRequest, "BadDeviceToken"}
	}
	return refusal{}
}

// provider checks the token that says who sends.
func (s *Server) provider(header string) string {
	scheme, text, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return "MissingProviderToken"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	token, known := s.tokens[text]
	if !known || token.key != s.key { // checking a signature costs more than all the rest
		made, ok := s.verify(text)
		if !ok {
			return "InvalidProviderToken"
		}
		token = seen{made, s.key}
	}
	if age := time.Since(token.made); age > tokenAge || age < -tokenAge {
		return "ExpiredProviderToken"
	}
	if !known {
		maps.DeleteFunc(s.tokens, func(_ string, old seen) bool { return time.Since(old.made) > tokenAge })
	}
	s.tokens[text] = token
	return ""
}

// verify returns when a token was made. The caller holds the lock.
func (s *Server) verify(text string) (time.Time, bool) {
	claims := jwt.RegisteredClaims{}
	token, err := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithoutClaimsValidation()).
		ParseWithClaims(text, &claims, func(*jwt.Token) (any, error) { return &s.key.PublicKey, nil })
	if err != nil || token.Header["kid"] != KeyID || claims.Issuer != TeamID || claims.IssuedAt == nil {
		return time.Time{}, false
	}
	return claims.IssuedAt.Time, true
}

// headers checks everything but the credentials and the device.
func headers(h http.Header, body []byte) refusal {
	bad := func(reason string) refusal { return refusal{http.StatusBadRequest, reason} }
	kind, priority := h.Get("apns-push-type"), h.Get("apns-priority")
	limit := maxPayload
	if kind == "voip" {
		limit = maxVoIP
	}
	known := []string{"alert", "background", "location", "voip", "complication", "fileprovider", "mdm", "liveactivity", "pushtotalk", "widgets", "controls"}
	var payload struct {
		APS map[string]any `json:"aps"`
	}
	switch {
	case h.Get("apns-topic") == "":
		return bad("MissingTopic")
	case !strings.HasPrefix(h.Get("apns-topic"), "com.example."):
		return bad("TopicDisallowed") // another team's
	case !strings.HasPrefix(h.Get("apns-topic")+".", Topic+"."):
		return bad("DeviceTokenNotForTopic")
	case !slices.Contains(known, kind):
		return bad("InvalidPushType")
	case !slices.Contains([]string{"", "1", "5", "10"}, priority), kind == "background" && priority != "5" && priority != "1":
		return bad("BadPriority")
	case len(h.Get("apns-collapse-id")) > maxCollapse:
		return bad("BadCollapseId")
	case h.Get("apns-id") != "" && !isUUID(h.Get("apns-id")):
		return bad("BadMessageId")
	case len(body) == 0:
		return bad("PayloadEmpty")
	case len(body) > limit:
		return refusal{http.StatusRequestEntityTooLarge, "PayloadTooLarge"}
	}
	if _, err := strconv.ParseUint(cmp.Or(h.Get("apns-expiration"), "0"), 10, 63); err != nil {
		return bad("BadExpirationDate")
	}
	if err := json.Unmarshal(body, &payload); err != nil || payload.APS == nil {
		return bad("PayloadEmpty")
	}
	// A background notification carries nothing to show; the device would drop it.
	if kind == "background" && (payload.APS["content-available"] != 1.0 || payload.APS["alert"] != nil || payload.APS["badge"] != nil || payload.APS["sound"] != nil) {
		return bad("InvalidPushType")
	}
	return refusal{}
}

func isUUID(text string) bool {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`).MatchString(text)
}

// uuid is a random one (RFC 9562 section 5.4).
func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
