package webpush

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// tokenLife is half of what RFC 8292 section 2 allows, because clocks differ.
	tokenLife = 12 * time.Hour

	// renewBefore is how long a token that is handed out is still good for.
	renewBefore = time.Hour

	// maxOrigins bounds the memory for push services that clients name.
	maxOrigins = 1024
)

// Credentials are the server's own: nobody issues them.
type Credentials struct {
	PrivateKey string `json:"privateKey"` // 32 bytes in base64url
	Subject    string `json:"subject"`    // whom push services may write to: mailto: or https:
}

// Generate makes credentials. Whoever replaces them loses all subscriptions, which name the public key.
func Generate(subject string) (Credentials, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Credentials{}, fmt.Errorf("make key: %w", err)
	}
	raw, err := key.Bytes()
	if err != nil {
		return Credentials{}, fmt.Errorf("encode key: %w", err)
	}
	c := Credentials{base64.RawURLEncoding.EncodeToString(raw), subject}
	return c, c.Validate()
}

// Validate tells what is wrong with credentials.
func (c Credentials) Validate() error {
	_, keyErr := c.parse()
	return errors.Join(keyErr, c.checkSubject())
}

func (c Credentials) parse() (*ecdsa.PrivateKey, error) {
	raw, err := decode(c.PrivateKey)
	if err == nil {
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), raw); err == nil {
			return key, nil
		}
	}
	return nil, errors.New("privateKey: must be the 32 bytes of a P-256 key in base64url")
}

// checkSubject refuses what Apple's push service refuses, which does not say why: 403 BadJwtToken.
func (c Credentials) checkSubject() error {
	wrong := errors.New("subject: must be mailto: with one address, or an https address, of a name on the internet")
	u, err := url.Parse(c.Subject)
	if err != nil || strings.TrimSpace(c.Subject) != c.Subject {
		return wrong
	}
	host := u.Hostname()
	switch u.Scheme {
	case "mailto":
		name, domain, found := strings.Cut(u.Opaque, "@")
		if !found || name == "" || strings.ContainsAny(u.Opaque, " :,<>") {
			return wrong
		}
		host = domain
	case "https":
	default:
		return wrong
	}
	if !strings.Contains(host, ".") || strings.ContainsAny(host, "@ ") {
		return wrong
	}
	for _, reserved := range []string{".local", ".invalid", ".test", ".localhost", ".example"} {
		if strings.HasSuffix(host, reserved) {
			return wrong
		}
	}
	return nil
}

// vapid signs, once for each push service and half a day. It is safe for concurrent use.
type vapid struct {
	key     *ecdsa.PrivateKey
	public  string
	subject string

	mu      sync.Mutex
	headers map[string]signed
}

type signed struct {
	header string
	until  time.Time
}

func newVAPID(c Credentials) (*vapid, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	key, err := c.parse()
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return &vapid{key: key, public: base64.RawURLEncoding.EncodeToString(point), subject: c.Subject, headers: map[string]signed{}}, nil
}

// header is the value of Authorization for a push service (RFC 8292 section 3).
func (v *vapid) header(origin string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if s, ok := v.headers[origin]; ok && now.Before(s.until.Add(-renewBefore)) {
		return s.header, nil
	}
	until := now.Add(tokenLife)
	// The audience is a text and not a list, which some push services do not read.
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"aud": origin, "exp": until.Unix(), "sub": v.subject})
	text, err := token.SignedString(v.key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	if len(v.headers) >= maxOrigins {
		clear(v.headers)
	}
	header := "vapid t=" + text + ", k=" + v.public
	v.headers[origin] = signed{header, until}
	return header, nil
}
