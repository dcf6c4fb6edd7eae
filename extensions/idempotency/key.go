package idempotency

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

var (
	keyPattern = regexp.MustCompile(`^[A-Za-z0-9._:~-]{16,255}$`)

	// hexPattern has four bits in a character, other keys have six.
	hexPattern = regexp.MustCompile(`^[0-9A-Fa-f-]+$`)
)

// Characters in which 128 bits fit.
const (
	strongHex  = 32
	strongText = 22
)

// parseKey returns the key without the quotes that the draft of the header wants and many clients leave out.
func parseKey(values []string) (string, error) {
	if len(values) != 1 {
		return "", api.Fail(ErrKeyInvalid, "send one Idempotency-Key")
	}
	key := values[0]
	if inner, ok := strings.CutPrefix(key, `"`); ok {
		if key, ok = strings.CutSuffix(inner, `"`); !ok {
			return "", api.Fail(ErrKeyInvalid, "the closing quote is missing")
		}
	}
	if !keyPattern.MatchString(key) {
		return "", api.Fail(ErrKeyInvalid, `a key has 16 to 255 letters, digits or one of "._:~-", such as a UUID`)
	}
	return key, nil
}

// isStrong reports whether a key can have 128 bits.
func isStrong(key string) bool {
	if hexPattern.MatchString(key) {
		return len(strings.ReplaceAll(key, "-", "")) >= strongHex
	}
	return len(key) >= strongText
}

// caller is who makes a request: scope keeps the keys of callers apart, and counted is what its keys are counted by.
type caller struct {
	scope   string
	counted []byte
	guest   bool
}

func (k *keeper) caller(e *core.RequestEvent) caller {
	if k.deps.Key != nil {
		if id := k.deps.Key(e); id != "" {
			scope := "key\x00" + id
			return caller{scope: scope, counted: countedAs(scope)}
		}
	}
	if e.Auth != nil {
		scope := userScope(e.Auth)
		return caller{scope: scope, counted: countedAs(scope)}
	}
	// A phone changes its address between two attempts, so the address is no part of the scope.
	return caller{scope: "guest", counted: countedAs("guest\x00" + api.Network(e.RealIP())), guest: true}
}

func userScope(record *core.Record) string {
	return "user\x00" + record.Collection().Id + "\x00" + record.Id
}

// callerBytes is the length of a caller's name in the table.
const callerBytes = 16

// countedAs names a caller in the table, where nobody reads who it is.
func countedAs(scope string) []byte {
	sum := sha256.Sum256([]byte("caller\x00" + scope))
	return sum[:callerBytes]
}

// lookup is the id of the row: of this key from this caller.
func (c caller) lookup(key string) [sha256.Size]byte {
	return sha256.Sum256([]byte(c.scope + "\x00" + key))
}

// writes reports the methods that keys are for.
func writes(method string) bool {
	switch method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return true
	}
	return false
}

// routeOf is the path of the pattern that the router matched. A pattern, unlike a path, cannot be spelled in two ways.
func routeOf(r *http.Request) string {
	if i := strings.IndexByte(r.Pattern, '/'); i >= 0 {
		return r.Pattern[i:]
	}
	return "/"
}

// takesNoPart reports routes that ignore keys; the package comment says why.
func takesNoPart(route string) bool {
	switch route {
	case "/", "/api/auth/sync", "/api/files/token", "/api/oauth2-redirect":
		return true
	}
	if strings.HasPrefix(route, "/api/collections") {
		return !strings.HasPrefix(route, "/api/collections/{collection}/records")
	}
	for _, prefix := range []string{
		"/api/v1/auth/", "/api/v1/live", "/api/v1/sync", "/api/v1/uploads", "/api/realtime", "/api/backups", "/api/sql", "/api/crons", "/api/logs", "/api/settings/",
	} {
		if strings.HasPrefix(route, prefix) {
			return true
		}
	}
	return false
}

// flights are the keys that this process is answering.
type flights struct {
	mu  sync.Mutex
	ids map[[sha256.Size]byte]struct{}
}

// take reports whether the id was free. land makes it free again.
func (f *flights) take(id [sha256.Size]byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, busy := f.ids[id]; busy {
		return false
	}
	if f.ids == nil {
		f.ids = map[[sha256.Size]byte]struct{}{}
	}
	f.ids[id] = struct{}{}
	return true
}

func (f *flights) land(id [sha256.Size]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ids, id)
}

func (r *row) sameRequest(fingerprint []byte) bool { return bytes.Equal(r.Fingerprint, fingerprint) }
