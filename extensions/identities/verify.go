package identities

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
)

// Bounds of tokens. A subject has at most 255 characters (OpenID Connect Core 1.0 section 2).
const (
	maxToken   = 16 << 10
	maxSubject = 255
	maxEmail   = 255
	maxAge     = 10 * time.Minute // since iat
	leeway     = 5 * time.Second  // between two clocks
)

// claims are what a good token says about a person.
type claims struct {
	provider  *provider
	issuer    string
	subject   string
	audience  string // the first of the token's that is in the list
	email     string // only if the provider is believed that the person owns it
	named     string // the address as the token has it, for the person to recognise; no decision depends on it
	verified  bool   // as the token says, for show as well
	name      string
	anonymous bool
	actor     any // who acts in the person's name (RFC 8693 section 4.1), nil for nobody
	hash      []byte
	expires   time.Time // when the token cannot be used any more, for whatever reason comes first
}

// verifier checks the tokens of one provider. It is safe for concurrent use.
type verifier struct {
	*provider
	cache  *jwks.Cache
	parser *jwt.Parser
}

func newVerifier(p *provider, cache *jwks.Cache) *verifier {
	return &verifier{provider: p, cache: cache, parser: jwt.NewParser(
		jwt.WithValidMethods(p.algorithms), jwt.WithStrictDecoding(), jwt.WithLeeway(leeway), jwt.WithExpirationRequired(), jwt.WithIssuedAt(),
	)}
}

// verify checks everything that can be said without the database. Its errors are problems that are safe to answer.
func (v *verifier) verify(ctx context.Context, in input) (*claims, error) {
	refuse := func(err error) error {
		return api.Fail(ErrTokenInvalid, "get a new token from the provider").Because(err)
	}
	if len(in.IDToken) > maxToken {
		return nil, refuse(errors.New("too long"))
	}
	var alg string
	got := jwt.MapClaims{}
	_, err := v.parser.ParseWithClaims(in.IDToken, got, func(token *jwt.Token) (any, error) {
		alg = token.Method.Alg()
		if err := checkHeader(token.Header); err != nil {
			return nil, err
		}
		kid, _ := token.Header["kid"].(string)
		return v.cache.Key(ctx, kid, alg)
	})
	if unavailable, ok := errors.AsType[*jwks.UnavailableError](err); ok {
		p := api.Fail(ErrProviderUnavailable, "the provider's keys cannot be had, try again").Because(err)
		p.RetryAfter = unavailable.RetryAfter
		return nil, p
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, refuse(err)
	}
	if err := v.checkClaims(got); err != nil {
		return nil, refuse(err)
	}
	if in.AccessToken != "" && !accessTokenMatches(alg, text(got, "at_hash"), in.AccessToken) {
		return nil, refuse(errors.New("at_hash does not belong to the access token"))
	}
	if !v.checkNonce(got, in.Nonce) {
		return nil, api.Fail(ErrNonceInvalid, "send the nonce that the app made for this sign-in")
	}
	return v.person(got, in.IDToken)
}

// checkHeader refuses tokens that were made for another purpose (RFC 8725 section 3.11) and extensions that a receiver
// has to understand (RFC 7515 section 4.1.11).
func checkHeader(header map[string]any) error {
	if _, ok := header["crit"]; ok {
		return errors.New("crit is not understood")
	}
	typ, _ := header["typ"].(string)
	if typ = strings.TrimPrefix(strings.ToLower(typ), "application/"); typ != "" && typ != "jwt" {
		return fmt.Errorf("typ %q is not that of an ID token", typ)
	}
	return nil
}

// checkClaims checks what the parser does not: it has seen exp, nbf and an iat in the future.
func (v *verifier) checkClaims(got jwt.MapClaims) error {
	if !slices.Contains(v.issuers, text(got, "iss")) {
		return fmt.Errorf("issuer %q", text(got, "iss"))
	}
	audiences, err := got.GetAudience()
	if err != nil || !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(v.audiences, a) }) {
		return fmt.Errorf("audience %q", audiences)
	}
	if azp, present := got["azp"]; present || len(audiences) > 1 {
		if party, _ := azp.(string); !slices.Contains(v.azp, party) {
			return fmt.Errorf("authorized party %q", azp)
		}
	}
	issued, err := got.GetIssuedAt()
	if err != nil || issued == nil || time.Since(issued.Time) > maxAge+leeway {
		return errors.New("iat is missing or too long ago")
	}
	if sub := text(got, "sub"); sub == "" || len(sub) > maxSubject {
		return errors.New("sub is empty or too long")
	}
	if v.refuse != nil {
		if reason := v.refuse(got); reason != "" {
			return errors.New(reason)
		}
	}
	return nil
}

// checkNonce wants a nonce in both the token and the request or in neither, and in both where the provider requires it.
func (v *verifier) checkNonce(got jwt.MapClaims, nonce string) bool {
	claim, present := got["nonce"]
	if !present && nonce == "" {
		return !v.nonce.required
	}
	value, _ := claim.(string)
	return value != "" && nonce != "" && v.nonce.matches(value, nonce)
}

func (v *verifier) person(got jwt.MapClaims, token string) (*claims, error) {
	sum := sha256.Sum256([]byte(token))
	audiences, err := got.GetAudience()
	if err != nil {
		return nil, fmt.Errorf("read audience of a token: %w", err)
	}
	c := &claims{
		provider: v.provider, audience: audiences[slices.IndexFunc(audiences, func(a string) bool { return slices.Contains(v.audiences, a) })], issuer: v.issuers[0], subject: text(got, "sub"), name: text(got, "name"), actor: got["act"], hash: sum[:],
		anonymous: v.anonymous != nil && v.anonymous(got),
	}
	if v.subject != nil {
		if c.subject = v.subject(got); c.subject == "" {
			return nil, api.Fail(ErrTokenInvalid, "get a new token from the provider").Because(errors.New("the claims name no person"))
		}
	}
	// Both are there: the parser and checkClaims have seen them.
	expires, errExp := got.GetExpirationTime()
	issued, errIat := got.GetIssuedAt()
	if err := errors.Join(errExp, errIat); err != nil {
		return nil, fmt.Errorf("read times of a token: %w", err)
	}
	c.expires = earlier(expires.Time, issued.Add(maxAge)).Add(2 * leeway)
	if email := text(got, "email"); len(email) <= maxEmail && !c.anonymous {
		c.named, c.verified = email, isTrue(got["email_verified"])
		if c.verified && v.trustEmail && (v.ownsEmail == nil || v.ownsEmail(got)) {
			c.email = email
		}
	}
	return c, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// isTrue takes Apple's form, a string, as well.
func isTrue(v any) bool { return v == true || v == "true" }

// accessTokenMatches checks at_hash: the left half of the access token's hash, by the hash of the token's algorithm
// (OpenID Connect Core 1.0 section 3.1.3.6; SHA-512 for Ed25519).
func accessTokenMatches(alg, claim, accessToken string) bool {
	var sum []byte
	switch {
	case alg == "EdDSA" || strings.HasSuffix(alg, "512"):
		s := sha512.Sum512([]byte(accessToken))
		sum = s[:]
	case strings.HasSuffix(alg, "384"):
		s := sha512.Sum384([]byte(accessToken))
		sum = s[:]
	default:
		s := sha256.Sum256([]byte(accessToken))
		sum = s[:]
	}
	want := base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
	return subtle.ConstantTimeCompare([]byte(claim), []byte(want)) == 1
}
