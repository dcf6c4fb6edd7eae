package totp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"
)

// What every authenticator app supports: 6 digits every 30 s of HMAC-SHA-1 (RFC 6238), and 160 bits of secret, which
// RFC 4226 section 4 recommends.
const (
	digits     = otp.DigitsSix
	period     = 30 * time.Second
	secretSize = 20

	// skew is how many steps the phone's clock may be off (RFC 6238 section 5.2 recommends one).
	skew = 1
)

const (
	recoveryCodes = 10

	// recoverySize is in base32 characters: 50 bits, far beyond what five tries for one mfaId can find.
	recoverySize = 10
)

// match returns the time step of a code that has not been used. last is the step of the newest code that was. The time
// it takes tells nothing about the code.
func match(secret, code string, now time.Time, last int64) (step int64, ok bool, err error) {
	current := now.Unix() / int64(period/time.Second)
	for at := current - skew; at <= current+skew; at++ {
		want, err := hotp.GenerateCodeCustom(secret, uint64(at), hotp.ValidateOpts{Digits: digits, Algorithm: otp.AlgorithmSHA1})
		if err != nil {
			return 0, false, fmt.Errorf("compute code: %w", err)
		}
		if equal := subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1; equal && at > last {
			step, ok = at, true
		}
	}
	return step, ok, nil
}

// newRecoveryCodes returns codes as a person writes them down, ABCDE-FGHIJ.
func newRecoveryCodes() []string {
	codes := make([]string, recoveryCodes)
	for i := range codes {
		text := rand.Text()
		codes[i] = text[:recoverySize/2] + "-" + text[recoverySize/2:recoverySize]
	}
	return codes
}

// canonical forgives what people do to codes: lower case, spaces, other dashes, and digits that base32 does not have.
func canonical(code string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '2' && r <= '7':
			return r
		case r == '0':
			return 'O'
		case r == '1':
			return 'I'
		case r == '8':
			return 'B'
		}
		return -1
	}, code)
}

// hash is what is stored of a recovery code. It is of no use to somebody who holds the database alone, and no hash of
// one user fits another.
func (f *factor) hash(record *core.Record, code string) []byte {
	mac := hmac.New(sha256.New, f.deps.Vault.Key("totp recovery codes"))
	_, _ = mac.Write([]byte(record.Collection().Id + "\x00" + record.Id + "\x00" + canonical(code))) // never fails
	return mac.Sum(nil)
}

func (f *factor) hashes(record *core.Record, codes []string) [][]byte {
	out := make([][]byte, len(codes))
	for i, code := range codes {
		out[i] = f.hash(record, code)
	}
	return out
}

// sealedFor binds a sealed secret to its row, so that it cannot be moved to another user's.
func sealedFor(record *core.Record) string {
	return secretsTable + "|secret|" + record.Collection().Id + "/" + record.Id
}
