package apikeys

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
	"github.com/satchelbase/satchel/extensions/internal/quota"
)

// usedEvery is how exact the time of the last use is. A key that is used a hundred times a second must not cost a
// hundred writes.
const usedEvery = time.Minute

const (
	// prefix is how every key starts.
	prefix = "sk_"

	// keyKey is where the middleware leaves a good key.
	keyKey = "satchelAPIKey"

	introspectPath = api.Prefix + "/auth/introspect"
)

// Current is the key that the request was authenticated by, nil if it has none. It is shared and never changed.
func Current(e *core.RequestEvent) *Key {
	k, _ := e.Get(keyKey).(*Key)
	return k
}

// KeyID is the id of the request's key, empty if it has none.
func KeyID(e *core.RequestEvent) string {
	if k := Current(e); k != nil {
		return k.ID
	}
	return ""
}

// Presented is the id of the request's key and what it may, for features that take a function; the id is empty without
// one.
func Presented(e *core.RequestEvent) (id string, may func(scope string) bool) {
	k := Current(e)
	if k == nil {
		return "", func(string) bool { return false }
	}
	return k.ID, k.May
}

// May is nil if the request has a key with the scope. Otherwise it is the problem to answer: [ErrInvalid] without a key,
// [ErrScopeMissing] with one.
func May(e *core.RequestEvent, scope string) error {
	k := Current(e)
	switch {
	case k == nil:
		return challenge(ErrInvalid, "Bearer") // no error is named when nothing was presented (RFC 6750 section 3.1)
	case !k.May(scope):
		return challenge(ErrScopeMissing, `Bearer error="insufficient_scope", scope="`+scope+`"`)
	}
	return nil
}

// Allow is [May] for features that take a function.
func Allow(scope string) func(e *core.RequestEvent) error {
	return func(e *core.RequestEvent) error { return May(e, scope) }
}

func challenge(code *extensions.Code, header string) *api.Problem {
	return &api.Problem{Code: code, Header: http.Header{"Www-Authenticate": {header}}}
}

func invalid(detail string) *api.Problem {
	p := challenge(ErrInvalid, `Bearer error="invalid_token"`)
	p.Detail = detail
	return p
}

// load judges the key of a request on a route that takes keys.
func (s *service) load(e *core.RequestEvent) error {
	header := e.Request.Header["Authorization"]
	if len(header) == 0 || !s.takes(e.Request.URL.Path) {
		return e.Next()
	}
	presented := fromRequest(e.Request)
	if presented == "" {
		return e.Next()
	}
	k, err := s.judge(e, presented)
	if err != nil {
		s.refused.Add(1)
		return err
	}
	s.accepted.Add(1)
	e.Set(keyKey, k)
	e.Set(audit.ActorKey, audit.Party{Kind: audit.Key, ID: k.ID})
	e.Request.Header.Del("Authorization") // it has served, and is nobody else's business
	return e.Next()
}

func (s *service) takes(path string) bool {
	return path == introspectPath || slices.ContainsFunc(s.deps.Routes, func(route string) bool {
		return path == route || strings.HasSuffix(route, "/") && strings.HasPrefix(path, route)
	})
}

// judge takes a key, or says why not. Whoever does not hold the secret learns nothing but that it is wrong.
func (s *service) judge(e *core.RequestEvent, presented string) (*Key, error) {
	if e.Request.Header.Get("Origin") != "" {
		return nil, invalid("a page in a browser has no business with keys")
	}
	k, err := s.authenticate(e.App, presented)
	if err != nil {
		return nil, err
	}
	if !k.from(e.RemoteIP()) {
		return nil, api.Fail(ErrNetwork, "")
	}
	policy := gcra.Policy{Name: "key", Limit: k.Rate, Window: time.Minute}
	if k.Rate == 0 {
		policy.Limit = s.cfg.Rate
	}
	quota.Own(e)
	if err := quota.Answer(e, quota.Admit(s.quotas, []quota.Charge{{Policy: policy, Key: []byte(k.ID), Cost: 1}}), ErrRateExceeded); err != nil {
		return nil, err
	}
	return k, nil
}

// from reports whether the key may be used from the address. One that cannot be told is in no network.
func (k *Key) from(address string) bool {
	if len(k.Networks) == 0 {
		return true
	}
	addr, err := netip.ParseAddr(address)
	return err == nil && slices.ContainsFunc(k.Networks, func(n netip.Prefix) bool { return n.Contains(addr.Unmap()) })
}

// fromRequest returns the key that the request presents, as a Bearer token or as the password of HTTP Basic, which is how
// clients of RFC 7662 authenticate; empty when what it presents is no key.
func fromRequest(r *http.Request) string {
	presented := ""
	if _, password, ok := r.BasicAuth(); ok {
		presented = password
		// Clients that follow RFC 6749 section 2.3.1 encode it first, and some encode the underscores. No key has a
		// percent sign.
		if decoded, err := url.QueryUnescape(password); err == nil {
			presented = decoded
		}
	} else if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		presented = strings.TrimSpace(token)
	}
	if !strings.HasPrefix(presented, prefix) {
		return ""
	}
	return presented
}

// authenticate returns the presented key if it is good. It takes the same time for every wrong secret.
func (s *service) authenticate(app core.App, presented string) (*Key, error) {
	parts := keyPattern.FindStringSubmatch(presented)
	if parts == nil {
		return nil, invalid("")
	}
	x, err := s.lookUp(app, parts[1])
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, fmt.Errorf("read key: %w", err)
	}
	hash := sha256.Sum256([]byte(parts[2]))
	var stored [sha256.Size]byte // for an unknown id, so that it is compared as well
	if x != nil {
		stored = x.hash
	}
	now := s.now()
	if subtle.ConstantTimeCompare(hash[:], stored[:]) != 1 || x == nil || !x.key.live(now) {
		return nil, invalid("")
	}
	s.noteUse(app, x, now)
	return x.key, nil
}

// noteUse writes the time of the use if the last one is long ago, by one of the requests that come at that moment.
func (s *service) noteUse(app core.App, x *entry, now time.Time) {
	last := x.used.Load()
	if now.Unix()-last < int64(usedEvery.Seconds()) || !x.used.CompareAndSwap(last, now.Unix()) {
		return
	}
	_, err := app.NonconcurrentDB().NewQuery(`INSERT INTO {{` + Uses + `}} ([[key]], [[at]]) VALUES ({:key}, {:at})
		ON CONFLICT ([[key]]) DO UPDATE SET [[at]] = max([[at]], excluded.[[at]])`).
		Bind(dbx.Params{"key": x.key.ID, "at": now.Unix()}).Execute()
	if err != nil {
		app.Logger().Warn("the last use of an API key was not noted", slog.String("key", x.key.ID), slog.Any("error", err))
	}
}
