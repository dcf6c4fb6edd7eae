package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

// Headers by which an app tells what it is.
const (
	AppVersionHeader  = "X-App-Version"
	AppPlatformHeader = "X-App-Platform"
)

// anyPlatform is the key of a version that holds for platforms without one of their own.
const anyPlatform = ""

// Versions is a version for each platform: "1.4.0" for all, or "ios=1.4.0,android=1.2.0".
type Versions map[string]version

type version []int

// UnmarshalText parses the form of the setting.
func (v *Versions) UnmarshalText(text []byte) error {
	*v = Versions{}
	if len(text) == 0 {
		return nil
	}
	for part := range strings.SplitSeq(string(text), ",") {
		platform, number, found := strings.Cut(strings.TrimSpace(part), "=")
		if !found {
			platform, number = anyPlatform, platform
		}
		parsed, ok := parseVersion(number)
		if !ok {
			return fmt.Errorf("%q is not a version such as 1.4.0", number)
		}
		(*v)[strings.ToLower(platform)] = parsed
	}
	return nil
}

// String is the form that UnmarshalText reads.
func (v Versions) String() string {
	var parts []string
	for _, platform := range sortedKeys(v) {
		if platform == anyPlatform {
			parts = append(parts, v[platform].String())
			continue
		}
		parts = append(parts, platform+"="+v[platform].String())
	}
	return strings.Join(parts, ",")
}

// of is the version for a platform, the general one if it has none; nil if there is neither.
func (v Versions) of(platform string) version {
	if own, ok := v[strings.ToLower(platform)]; ok {
		return own
	}
	return v[anyPlatform]
}

func (v version) String() string {
	parts := make([]string, len(v))
	for i, n := range v {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ".")
}

// parseVersion reads up to four dotted numbers and ignores a pre-release or build suffix: 1.4.0-beta.2+77 is 1.4.0.
func parseVersion(s string) (version, bool) {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "+")
	s, _, _ = strings.Cut(s, "-")
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return nil, false
	}
	out := make(version, len(parts))
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil {
			return nil, false
		}
		out[i] = int(n)
	}
	return out, true
}

// less compares number by number; a missing number is 0.
func (v version) less(other version) bool {
	for i := range max(len(v), len(other)) {
		var a, b int
		if i < len(v) {
			a = v[i]
		}
		if i < len(other) {
			b = other[i]
		}
		if a != b {
			return a < b
		}
	}
	return false
}

// versionGate answers 426 to builds that are too old. A build that sends no version, or one that cannot be read, is
// served: the gate is there to move people on, not to guard anything.
func versionGate(cfg Config) *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id: "satchelVersionGate", Priority: versionGatePriority,
		Func: func(e *core.RequestEvent) error {
			req := RequestOf(e.Request.Context())
			have, ok := parseVersion(e.Request.Header.Get(AppVersionHeader))
			if !req.Versioned || !ok {
				return e.Next()
			}
			platform := e.Request.Header.Get(AppPlatformHeader)
			if least := cfg.MinVersion.of(platform); least != nil && have.less(least) && !neverGated(e.Request) {
				return upgradeRequired(cfg, platform, least)
			}
			if best := cfg.RecommendedVersion.of(platform); best != nil && have.less(best) {
				e.Response.Header().Set("X-App-Upgrade", "recommended")
			}
			return e.Next()
		},
	}
}

func upgradeRequired(cfg Config, platform string, least version) error {
	p := Fail(ErrAppUpgrade, "version "+least.String()+" or newer is needed")
	p.Header = http.Header{"X-App-Minimum-Version": {least.String()}}
	if url := storeURL(cfg.StoreURL, platform); url != "" {
		p.Header.Set("Link", "<"+url+`>; rel="latest-version"`)
	}
	return p
}

func storeURL(urls []string, platform string) string {
	general := ""
	for _, u := range urls {
		name, url, found := strings.Cut(u, "=")
		switch {
		case !found || strings.Contains(name, ":"):
			general = u
		case strings.EqualFold(name, platform):
			return url
		}
	}
	return general
}

// neverGated lists what an old build must still be able to do: renew its session, drain its queue of offline changes,
// delete or take along the account and see how far that is, and ask how the server is. The path is the canonical one.
func neverGated(r *http.Request) bool {
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, Prefix+"/health"), strings.HasPrefix(path, Prefix+"/sync"), strings.HasPrefix(path, Prefix+"/account"):
		return true
	case strings.HasPrefix(path, Prefix+"/operations/account."), strings.HasPrefix(path, Prefix+"/jobs/"):
		return true
	case path == Prefix+"/auth/refresh", path == Prefix+"/auth/token", path == Prefix+"/auth/logout", path == Prefix+"/auth/revoke":
		return true
	case !strings.HasPrefix(path, "/api/collections/"):
		return false
	case r.Method == http.MethodDelete:
		// A user deletes the account by deleting the own record; other deletes are as harmless.
		return true
	default:
		return strings.HasSuffix(path, "/auth-refresh")
	}
}
