// Package stock binds PocketBase's own tokens to this server. Their signing keys are in the database in the clear, so
// whoever has a copy of it can sign them; the seal that is added here needs the master key.
package stock

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
)

// Claims that are added to a token.
const (
	ClaimSession = "sid"
	claimSeal    = "smac"
)

// Sealer seals tokens; it returns the key of the seals.
type Sealer func() []byte

// header is that of PocketBase's tokens, {"alg":"HS256","typ":"JWT"}.
const header = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"

// Bind signs a stock token anew, with the session and the seal in it. The token is put together as text: with the
// library, which reads and writes the claims twice more, it took six times as long as PocketBase's own.
func (s Sealer) Bind(record *core.Record, token, session string) (string, error) {
	claims, err := payload(token) // made by this process
	if err != nil {
		return "", err
	}
	key, err := signingKey(record, claims)
	if err != nil {
		return "", err
	}
	delete(claims, claimSeal)
	delete(claims, ClaimSession)
	if session != "" {
		claims[ClaimSession] = session
	}
	text, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("write token: %w", err)
	}
	body := append(text[:len(text)-1:len(text)-1], `,"`+claimSeal+`":"`+s.sealOf(record, text)+`"}`...)
	signed := header + "." + base64.RawURLEncoding.EncodeToString(body)
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// payload reads the claims of a token and proves nothing.
func payload(token string) (jwt.MapClaims, error) {
	_, rest, _ := strings.Cut(token, ".")
	encoded, _, found := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if err == nil && !found {
		err = errors.New("it has not three parts")
	}
	claims := jwt.MapClaims{}
	if err == nil {
		err = json.Unmarshal(raw, &claims)
	}
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	return claims, nil
}

// signingKey is the key that PocketBase verifies a token of this kind with.
func signingKey(record *core.Record, claims jwt.MapClaims) (string, error) {
	c := record.Collection()
	kind, _ := claims[core.TokenClaimType].(string)
	var secret string
	switch kind {
	case core.TokenTypeAuth:
		secret = c.AuthToken.Secret
	case core.TokenTypeFile:
		secret = c.FileToken.Secret
	case core.TokenTypeVerification:
		secret = c.VerificationToken.Secret
	case core.TokenTypePasswordReset:
		secret = c.PasswordResetToken.Secret
	case core.TokenTypeEmailChange:
		secret = c.EmailChangeToken.Secret
	default:
		return "", fmt.Errorf("%q is no kind of token", kind)
	}
	return record.TokenKey() + secret, nil
}

// sealOf is a MAC over all other claims and the user's token key, so that a seal is of no use after the key has changed.
// text is a JSON object with sorted names and without the seal.
func (s Sealer) sealOf(record *core.Record, text []byte) string {
	mac := hmac.New(sha256.New, s())
	mac.Write([]byte(record.TokenKey()))
	mac.Write([]byte{0})
	mac.Write(text)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Sealed reports whether verified claims carry this server's seal. Names are sorted when JSON is written, and numbers
// look the same whether they were just made or read.
func (s Sealer) Sealed(record *core.Record, claims jwt.MapClaims) bool {
	presented, _ := claims[claimSeal].(string)
	rest := maps.Clone(claims)
	delete(rest, claimSeal)
	text, err := json.Marshal(rest)
	return err == nil && hmac.Equal([]byte(presented), []byte(s.sealOf(record, text)))
}
