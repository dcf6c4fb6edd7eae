// Package stock binds PocketBase's own tokens to this server. Their signing keys are in the database in the clear, so
// whoever has a copy of it can sign them; the seal that is added here needs the master key.
package stock

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
)

// Claims that are added to a token.
const (
	ClaimSession = "sid"
	claimSeal    = "smac"
)

// Sealer seals tokens; it returns the key of the seals.
type Sealer func() []byte

// Bind signs a stock token anew, with the session and the seal in it.
func (s Sealer) Bind(record *core.Record, token, session string) (string, error) {
	claims, err := security.ParseUnverifiedJWT(token) // made by this process
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	key, err := signingKey(record, claims)
	if err != nil {
		return "", err
	}
	delete(claims, ClaimSession)
	if session != "" {
		claims[ClaimSession] = session
	}
	seal, err := s.sealOf(record, claims)
	if err != nil {
		return "", err
	}
	claims[claimSeal] = seal
	out, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(key))
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return out, nil
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
// JSON objects are written with sorted names, and numbers the same whether they were just made or read.
func (s Sealer) sealOf(record *core.Record, claims jwt.MapClaims) (string, error) {
	rest := jwt.MapClaims{}
	for name, value := range claims {
		if name != claimSeal {
			rest[name] = value
		}
	}
	text, err := json.Marshal(rest)
	if err != nil {
		return "", fmt.Errorf("seal token: %w", err)
	}
	mac := hmac.New(sha256.New, s())
	mac.Write([]byte(record.TokenKey()))
	mac.Write([]byte{0})
	mac.Write(text)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// Sealed reports whether verified claims carry this server's seal.
func (s Sealer) Sealed(record *core.Record, claims jwt.MapClaims) bool {
	presented, _ := claims[claimSeal].(string)
	want, err := s.sealOf(record, claims)
	return err == nil && hmac.Equal([]byte(presented), []byte(want))
}
