package metrics

import (
	"strings"
	"sync"
)

const (
	// maxVersions is how many versions of the app are told apart; that is more than an app keeps alive.
	maxVersions = 20

	// maxVersionLength fits 1000.1000.1000.1000.
	maxVersionLength = 19

	noVersion    = "none"
	otherVersion = "other"
)

// versions bounds the values of a label that clients choose. The first come are told apart until there are enough, the
// rest is "other". Half of the room is kept for requests of users who have signed in, so that a stranger with a script
// cannot fill it.
type versions struct {
	mu    sync.RWMutex
	known map[string]struct{}
}

// label is the value for what a client sent. admitted says that the request was a user's and succeeded.
func (v *versions) label(sent string, admitted bool) string {
	if sent == "" {
		return noVersion
	}
	version, ok := normal(sent)
	if !ok {
		return otherVersion
	}
	room := maxVersions
	if !admitted {
		room /= 2
	}
	v.mu.RLock()
	_, known := v.known[version]
	full := len(v.known) >= room
	v.mu.RUnlock()
	switch {
	case known:
		return version
	case full:
		return otherVersion
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= room {
		return otherVersion
	}
	if v.known == nil {
		v.known = map[string]struct{}{}
	}
	version = strings.Clone(version) // the header it was cut from need not be kept
	v.known[version] = struct{}{}
	return version
}

// normal is the numbers of a version: v1.4.0-beta.2+77 is 1.4.0. It reports false for what is not a version.
func normal(sent string) (string, bool) {
	version := strings.TrimPrefix(strings.TrimSpace(sent), "v")
	if i := strings.IndexAny(version, "-+"); i >= 0 {
		version = version[:i]
	}
	if version == "" || len(version) > maxVersionLength {
		return "", false
	}
	digits, dots := 0, 0
	for _, c := range []byte(version) {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c == '.' && digits > 0 && dots < 3:
			digits, dots = 0, dots+1
		default:
			return "", false
		}
	}
	return version, digits > 0
}
