// Package idp is an identity provider on loopback: OpenID Connect discovery, a key set and signed tokens over real TLS
// with a certificate authority of its own. It serves tests and `satchel dev idp`, and can misbehave in the ways that a
// broken or hostile provider would.
//
// It signs whatever it is asked to: it must never listen on anything but loopback.
package idp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
)

// Audience is the client id of tokens that name no other.
const Audience = "satchel-dev"

// lifetime of tokens from [Server.Claims].
const lifetime = time.Hour

// Behaviour is what the key set's route does.
type Behaviour int

// The behaviours. Fine is the zero value.
const (
	Fine      Behaviour = iota
	Huge                // a body over 1 MiB
	ManyKeys            // 101 keys
	Slow                // no answer until the request ends
	Redirect            // 302 to the right place
	Wrong               // 200 with a page in HTML
	Down                // 500
	NoKeys              // a set without keys
	Stranger            // the discovery document of another issuer
	Downgrade           // the discovery document names keys at http
)

// Server is a running provider. It is safe for concurrent use.
type Server struct {
	// Issuer is the provider's URL; tokens carry it and discovery starts from it.
	Issuer string

	// CA is the root of the server's certificate.
	CA *x509.Certificate

	authority *loopback.Authority
	server    *loopback.Server
	behaviour atomic.Int64
	keySets   atomic.Int64

	mu      sync.Mutex
	keys    []signingKey
	age     string
	codes   map[string]grant
	revoked []string
}

type signingKey struct {
	kid, alg string
	private  crypto.Signer
}

// Start listens on address, which must be loopback; "127.0.0.1:0" is any free port.
func Start(address string) (*Server, error) {
	authority, err := loopback.NewAuthority()
	if err != nil {
		return nil, err
	}
	s := &Server{CA: authority.Root, authority: authority, age: "max-age=3600", codes: map[string]grant{}}
	if err := s.Rotate(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /jwks.json", s.keySet)
	mux.HandleFunc("GET /moved.json", s.keySet)
	mux.HandleFunc("POST /token-for", s.tokenFor)
	mux.HandleFunc("POST /auth/token", s.token)
	mux.HandleFunc("POST /auth/revoke", s.revoke)
	s.server, err = loopback.Serve(address, authority, mux, false)
	if err != nil {
		return nil, err
	}
	s.Issuer = s.server.URL
	return s, nil
}

// Close ends the server and the requests that it keeps waiting.
func (s *Server) Close() error { return s.server.Close() }

// CAPEM is the certificate authority in the form that settings and curl read.
func (s *Server) CAPEM() []byte { return s.authority.PEM() }

// JWKS is the address of the key set.
func (s *Server) JWKS() string { return s.Issuer + "/jwks.json" }

// Behave changes what the key set's route does from now on.
func (s *Server) Behave(b Behaviour) { s.behaviour.Store(int64(b)) }

// KeySets counts the requests for the key set so far.
func (s *Server) KeySets() int { return int(s.keySets.Load()) }

// CacheControl sets the header of that name on the key set.
func (s *Server) CacheControl(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age = value
}

// Rotate replaces all signing keys: one each for ES256, RS256 and EdDSA.
func (s *Server) Rotate() error {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = nil
	for alg, private := range map[string]crypto.Signer{"ES256": ec, "RS256": rs, "EdDSA": ed} {
		s.keys = append(s.keys, signingKey{kid: strings.ToLower(alg) + "-" + rand.Text()[:8], alg: alg, private: private})
	}
	return nil
}

// Claims are those of a good ID token, with extra ones laid over; a nil value removes a claim.
func (s *Server) Claims(subject string, extra map[string]any) map[string]any {
	now := time.Now()
	claims := map[string]any{
		"iss": s.Issuer, "aud": Audience, "sub": subject, "iat": now.Unix(), "exp": now.Add(lifetime).Unix(),
		"jti": rand.Text(), // two tokens of one second must differ
	}
	maps.Copy(claims, extra)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// Sign signs the claims with the current key of the algorithm (ES256, RS256, EdDSA). Members of header are laid over.
func (s *Server) Sign(alg string, claims, header map[string]any) (string, error) {
	k, ok := s.key(alg)
	if !ok {
		return "", fmt.Errorf("sign: no key for %q", alg)
	}
	token := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims(claims))
	token.Header["kid"] = k.kid
	maps.Copy(token.Header, header)
	return token.SignedString(k.private)
}

// None is a token with the algorithm "none", which no receiver may accept.
func (s *Server) None(claims map[string]any) (string, error) {
	k, _ := s.key("RS256")
	token := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims(claims))
	token.Header["kid"] = k.kid
	return token.SignedString(jwt.UnsafeAllowNoneSignatureType)
}

// Confused is a token whose HMAC key is the public RSA key, which fools a receiver that takes the algorithm from the
// token (RFC 8725 section 2.1).
func (s *Server) Confused(claims map[string]any) (string, error) {
	k, _ := s.key("RS256")
	der, err := x509.MarshalPKIXPublicKey(k.private.Public())
	if err != nil {
		return "", err
	}
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims(claims))
	token.Header["kid"] = k.kid
	return token.SignedString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s *Server) key(alg string) (signingKey, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k.alg == alg {
			return k, true
		}
	}
	return signingKey{}, false
}

func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) {
	issuer, keys := s.Issuer, s.JWKS()
	switch Behaviour(s.behaviour.Load()) {
	case Stranger:
		issuer = "https://stranger.example"
	case Downgrade:
		keys = strings.Replace(keys, "https:", "http:", 1)
	default:
	}
	write(w, map[string]any{
		"issuer": issuer, "jwks_uri": keys, "response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256", "RS256", "EdDSA"},
	})
}

func (s *Server) keySet(w http.ResponseWriter, r *http.Request) {
	s.keySets.Add(1)
	s.mu.Lock()
	keys, age := make([]map[string]string, 0, len(s.keys)), s.age
	for _, k := range s.keys {
		keys = append(keys, public(k))
	}
	s.mu.Unlock()
	w.Header().Set("Cache-Control", age)
	switch Behaviour(s.behaviour.Load()) {
	case Huge:
		keys = append(keys, map[string]string{"kty": "oct", "k": strings.Repeat("A", 1<<20)})
	case ManyKeys:
		for i := len(keys); i < 101; i++ {
			k := maps.Clone(keys[0])
			k["kid"] = "extra-" + strconv.Itoa(i)
			keys = append(keys, k)
		}
	case Slow:
		s.server.Stall(r)
		return
	case Redirect:
		if r.URL.Path != "/moved.json" {
			http.Redirect(w, r, "/moved.json", http.StatusFound)
			return
		}
	case Wrong:
		_, _ = w.Write([]byte("<!doctype html><title>Sign in</title>"))
		return
	case Down:
		http.Error(w, "down", http.StatusInternalServerError)
		return
	case NoKeys:
		keys = keys[:0]
	default:
	}
	write(w, map[string]any{"keys": keys})
}

// tokenFor mints a token: ?sub= is required; email (verified unless email_verified=false), name, nonce, aud and alg
// (default ES256) are optional.
func (s *Server) tokenFor(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("sub") == "" {
		http.Error(w, "sub is missing: POST /token-for?sub=ada&email=ada@example.com", http.StatusBadRequest)
		return
	}
	extra := map[string]any{}
	for _, name := range []string{"email", "name", "nonce", "aud"} {
		if v := q.Get(name); v != "" {
			extra[name] = v
		}
	}
	if q.Has("email") {
		extra["email_verified"] = q.Get("email_verified") != "false"
	}
	alg := q.Get("alg")
	if alg == "" {
		alg = "ES256"
	}
	token, err := s.Sign(alg, s.Claims(q.Get("sub"), extra), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	write(w, map[string]any{"idToken": token, "expiresIn": int(lifetime.Seconds())})
}

func write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
