package signing

import (
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// Type is the header "typ" of access tokens (RFC 9068 section 2.1). It keeps them apart from every other JWT.
const Type = "at+jwt"

// maxToken is the longest token that is looked at, in bytes. Ours have about 600.
const maxToken = 4096

// Errors of [Ring.Verify].
var (
	ErrInvalid = errors.New("the access token is not valid")
	ErrExpired = errors.New("the access token has expired")
)

// Actor says who acts for the subject (RFC 8693 section 4.1).
type Actor struct {
	Subject    string `json:"sub"`
	Collection string `json:"col"`
}

// Claims are those of an access token: RFC 9068, and the session behind it. There is deliberately none of the names that
// PocketBase's own tokens use (id, type, collectionId, refreshable): with "refreshable" its auth-refresh would trade an
// access token for a token of five days.
type Claims struct {
	jwt.RegisteredClaims
	ClientID   string           `json:"client_id"`
	Session    string           `json:"sid"`
	Generation int64            `json:"gen"`
	Collection string           `json:"col"`
	Device     string           `json:"device_id,omitempty"`
	Methods    []string         `json:"amr,omitempty"`
	AuthTime   *jwt.NumericDate `json:"auth_time,omitempty"`
	Actor      *Actor           `json:"act,omitempty"`
}

// Sign returns the token in compact form.
func (r *Ring) Sign(c Claims) (string, error) {
	k, err := r.current()
	if err != nil {
		return "", err
	}
	token := jwt.NewWithClaims(method(k.active.public), c)
	token.Header["typ"] = Type
	token.Header["kid"] = k.active.ID
	out, err := token.SignedString(k.active.private)
	if err != nil {
		return "", fmt.Errorf("sign access token: %w", err)
	}
	return out, nil
}

// IsAccessToken reports whether a text says that it is an access token. It proves nothing.
func IsAccessToken(text string) bool {
	if len(text) > maxToken {
		return false
	}
	token, _, err := jwt.NewParser().ParseUnverified(text, jwt.MapClaims{})
	if err != nil {
		return false
	}
	typ, _ := token.Header["typ"].(string)
	return isType(typ)
}

// isType accepts the full media type too (RFC 9068 section 4).
func isType(typ string) bool { return typ == Type || typ == "application/"+Type }

// Verify checks signature, algorithm, type, issuer, audience and time (RFC 9068 section 4, RFC 8725). The error is
// [ErrExpired] for a token that was good once, [ErrInvalid] for any other, and something else if the keys cannot be read.
func (r *Ring) Verify(text, issuer, audience string) (*Claims, error) {
	if len(text) > maxToken {
		return nil, ErrInvalid
	}
	k, err := r.current()
	if err != nil {
		return nil, err
	}
	claims := &Claims{}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{ES256, EdDSA}), jwt.WithIssuer(issuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(Leeway), jwt.WithStrictDecoding(), jwt.WithTimeFunc(r.now),
	)
	_, err = parser.ParseWithClaims(text, claims, func(t *jwt.Token) (any, error) {
		typ, _ := t.Header["typ"].(string)
		id, _ := t.Header["kid"].(string)
		key := k.byID[id]
		if !isType(typ) || key == nil || key.State == Standby || key.Algorithm != t.Method.Alg() {
			return nil, ErrInvalid
		}
		return key.public, nil
	})
	switch {
	case err == nil && claims.Session != "" && claims.Subject != "" && claims.Collection != "":
		return claims, nil
	case err != nil && errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenInvalidAudience) && !errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return nil, ErrExpired
	}
	return nil, ErrInvalid
}
