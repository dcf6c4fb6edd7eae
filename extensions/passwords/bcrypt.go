package passwords

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/crypto/blowfish" //nolint:staticcheck // deprecated for new ciphers; bcrypt is made of this one
)

// Hashing keeps its processor for a slice before others may have it. The scheduler itself takes a processor away only
// after 10 ms, which is how long every other request behind a login would wait, again and again. On a server that never
// idles a slice becomes as long as the wait before it was, up to the longest, so that logins are slow and not starved.
const (
	slice        = 500 * time.Microsecond
	longestSlice = 2 * time.Millisecond
)

// restEvery is after how many slices hashing sleeps on a machine with one processor; see breathe.
const restEvery = 8

const (
	// saltSize and sumSize are bcrypt's, in bytes; the last of 24 bytes is dropped by all implementations.
	saltSize = 16
	sumSize  = 23

	// magic is what bcrypt encrypts.
	magic = "OrpheanBeholderScryDoubt"

	alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

// hashPattern is a stored hash: version, cost, salt, sum.
var hashPattern = regexp.MustCompile(`^\$2[abxy]?\$(\d\d)\$([./A-Za-z0-9]{22})([./A-Za-z0-9]{31})$`)

// hash is a bcrypt hash, taken apart.
type hash struct {
	cost int
	salt []byte
	sum  string
}

func parseHash(text string) (hash, bool) {
	parts := hashPattern.FindStringSubmatch(text)
	if parts == nil {
		return hash{}, false
	}
	cost, err := strconv.Atoi(parts[1])
	if err != nil || cost < minCost || cost > 31 { // 31 is the most that bcrypt knows
		return hash{}, false
	}
	salt, err := encoding().DecodeString(parts[2])
	if err != nil {
		return hash{}, false
	}
	return hash{cost: cost, salt: salt, sum: parts[3]}, true
}

// String is the hash as it is stored.
func (h hash) String() string {
	return fmt.Sprintf("$2a$%02d$%s%s", h.cost, encoding().EncodeToString(h.salt), h.sum)
}

// newHash hashes a password with a salt of its own. It is bcrypt as golang.org/x/crypto/bcrypt has it, from the same
// cipher, except that it makes room for others and ends with ctx.
func newHash(ctx context.Context, password string, cost int) (hash, error) {
	h := hash{cost: cost, salt: make([]byte, saltSize)}
	_, _ = rand.Read(h.salt) // never fails
	var err error
	h.sum, err = sum(ctx, password, h.salt, h.cost)
	return h, err
}

// matches compares in constant time; what takes time depends on the cost alone.
func (h hash) matches(ctx context.Context, password string) (bool, error) {
	got, err := sum(ctx, password, h.salt, h.cost)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare([]byte(got), []byte(h.sum)) == 1, nil
}

func encoding() *base64.Encoding { return base64.NewEncoding(alphabet).WithPadding(base64.NoPadding) }

// sum is the last part of a hash. Its error is that of ctx.
func sum(ctx context.Context, password string, salt []byte, cost int) (string, error) {
	key := append([]byte(password), 0) // all implementations take the end of the C string for a part of the key
	cipher, err := blowfish.NewSaltedCipher(key, salt)
	if err != nil {
		return "", fmt.Errorf("start cipher: %w", err)
	}
	var pauses int
	last, length := time.Now(), slice
	for range uint64(1) << cost {
		blowfish.ExpandKey(key, cipher)
		blowfish.ExpandKey(salt, cipher)
		if time.Since(last) < length {
			continue
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		pauses++
		before := time.Now()
		breathe(pauses)
		last = time.Now()
		length = min(max(slice, last.Sub(before)), longestSlice)
	}
	text := []byte(magic)
	for i := 0; i < len(text); i += blowfish.BlockSize {
		for range 64 {
			cipher.Encrypt(text[i:], text[i:])
		}
	}
	return encoding().EncodeToString(text[:sumSize]), nil
}

// breathe lets everything that is ready to run go first. With several processors another one looks after the network
// meanwhile. With one, the scheduler looks there only when nothing is left to run, which hashing prevents: so it sleeps
// now and then, for the millisecond that is the least the poller waits for.
func breathe(pauses int) {
	if runtime.GOMAXPROCS(0) == 1 && pauses%restEvery == 0 {
		time.Sleep(50 * time.Microsecond)
		return
	}
	runtime.Gosched()
}
