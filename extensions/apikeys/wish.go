package apikeys

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what a key may be.
const (
	maxName     = 100 // characters
	maxNetworks = 20
	minLife     = time.Minute
	maxLife     = 10 * 365 * 24 * time.Hour
)

// wish is a key that somebody wants to have.
type wish struct {
	name     string
	scopes   []string
	expires  time.Time // zero: never
	rate     int       // 0: the setting
	networks []netip.Prefix
}

// mistake is what is wrong with a wish: the member, and why, for people.
type mistake struct{ field, text string }

// check puts the wish into form and returns everything that is wrong with it. networks are as text.
func (s *service) check(w *wish, networks []string) []mistake {
	var wrong []mistake
	bad := func(field, format string, args ...any) {
		wrong = append(wrong, mistake{field, fmt.Sprintf(format, args...)})
	}
	w.name = strings.TrimSpace(w.name)
	if w.name == "" || utf8.RuneCountInString(w.name) > maxName || !utf8.ValidString(w.name) || strings.ContainsFunc(w.name, unicode.IsControl) {
		bad("name", "it must have 1 to %d printable characters", maxName)
	}
	slices.Sort(w.scopes)
	w.scopes = slices.Compact(w.scopes)
	switch i := slices.IndexFunc(w.scopes, func(scope string) bool { return !s.grantable(scope) }); {
	case len(w.scopes) == 0:
		bad("scopes", "a key without a scope may do nothing")
	case len(w.scopes) > maxScopes:
		bad("scopes", "there may be %d", maxScopes)
	case i >= 0:
		bad("scopes", "there is no scope %.100q; there are: %s", w.scopes[i], strings.Join(s.scopes(), ", "))
	}
	if now := s.now(); !w.expires.IsZero() && (w.expires.Before(now.Add(minLife-time.Second)) || w.expires.After(now.Add(maxLife))) {
		bad("expiresAt", "it must lie between a minute and ten years ahead")
	}
	if w.rate != 0 && (w.rate < minRate || w.rate > maxRate) {
		bad("rate", "it must be from %d to %d requests a minute", minRate, maxRate)
	}
	if len(networks) > maxNetworks {
		bad("networks", "there may be %d", maxNetworks)
		return wrong
	}
	w.networks = make([]netip.Prefix, 0, len(networks))
	for _, text := range networks {
		n, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			n, err = addr.Prefix(addr.BitLen())
		}
		if err != nil || n.Addr().Is4In6() {
			bad("networks", "%.50q is no network such as 192.0.2.0/24 or 2001:db8::/32", text)
			continue
		}
		w.networks = append(w.networks, n.Masked())
	}
	return wrong
}
