// Package refresh holds the refresh token: its form, and the rule by which a presented one is rotated, answered again or
// taken as stolen. Nothing token-like is stored: a token is the session's id, a generation and a MAC, so the successor of
// a token is always the same text and a lost answer can be given again.
package refresh

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Grace is how long the token before the newest one is answered with the newest, whoever has used that meanwhile:
// parallel refreshes of one app arrive within it.
const Grace = 30 * time.Second

// version begins every token.
const version = "rt1"

// maxToken is longer than any token: prefix, id, generation and MAC.
const maxToken = 128

// ErrMalformed says that a text is no refresh token.
var ErrMalformed = errors.New("the refresh token is malformed")

// Token is a refresh token as presented.
type Token struct {
	Session    string
	Generation int64
	mac        []byte
}

// Mint returns the token "rt1.<session>.<generation>.<mac>". The key of the MAC is the session's own, derived from key
// and salt.
func Mint(key, salt []byte, session string, generation int64) string {
	return body(session, generation) + "." + base64.RawURLEncoding.EncodeToString(sum(key, salt, session, generation))
}

// Parse reads the form and proves nothing.
func Parse(text string) (Token, error) {
	if len(text) > maxToken {
		return Token{}, ErrMalformed
	}
	parts := strings.Split(text, ".")
	if len(parts) != 4 || parts[0] != version || parts[1] == "" {
		return Token{}, ErrMalformed
	}
	generation, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil || generation < 1 || strconv.FormatInt(generation, 10) != parts[2] {
		return Token{}, ErrMalformed
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || strings.ContainsAny(parts[3], "\r\n") {
		return Token{}, ErrMalformed
	}
	return Token{Session: parts[1], Generation: generation, mac: mac}, nil
}

// Authentic reports whether the token was minted with the key and salt.
func (t Token) Authentic(key, salt []byte) bool {
	return hmac.Equal(t.mac, sum(key, salt, t.Session, t.Generation))
}

func body(session string, generation int64) string {
	return version + "." + session + "." + strconv.FormatInt(generation, 10)
}

func sum(key, salt []byte, session string, generation int64) []byte {
	own := hmac.New(sha256.New, key)
	own.Write(salt)
	mac := hmac.New(sha256.New, own.Sum(nil))
	mac.Write([]byte(body(session, generation)))
	return mac.Sum(nil)
}

// Verdict is what becomes of an authentic token of a session that is neither ended nor expired.
type Verdict int

// Verdicts.
const (
	Rotate Verdict = iota // answer the next generation and make it the current one
	Resend                // answer the current generation once more
	Reuse                 // somebody else has a token of this session: end it
)

// State is what is known of a session's generations. Confirmed is the newest generation that the client has been seen to
// hold; it confirms one by using its refresh or access token.
type State struct {
	Generation int64
	Confirmed  int64
	RotatedAt  time.Time
}

// Judge decides about an authentic token of the given generation (confirm on use).
//
// The current generation rotates. The one before it is answered again while the current one has not been confirmed,
// without a limit of time: then the answer was lost and nobody else can hold it; and for [Grace] after the rotation in
// any case. Anything older has been confirmed away, so two parties hold tokens. A generation that is ahead of the
// state is genuine all the same, for nobody else can make the MAC: the state was restored from a backup, and goes on
// from there.
func Judge(s State, generation int64, now time.Time) Verdict {
	switch {
	case generation >= s.Generation:
		return Rotate
	case generation < s.Generation-1:
		return Reuse
	case s.Confirmed < s.Generation, now.Sub(s.RotatedAt) <= Grace:
		return Resend
	}
	return Reuse
}
