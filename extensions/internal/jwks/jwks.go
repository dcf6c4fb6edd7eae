// Package jwks keeps the public keys of one token issuer (RFC 7517) in memory.
//
// A token names its key, and whoever sends tokens can name keys that do not exist; so the cache asks the issuer at most
// once a minute whatever comes, all callers share one question, and a name that was not there is remembered. An answer
// lives as long as its Cache-Control says, between five minutes and a day; when the issuer cannot be reached, the last
// keys stay good for a day more.
//
// Bodies have at most 1 MiB and a set at most 100 keys. Keys that are not for signatures, of unknown types, or too weak
// are left out. No tables and no settings.
package jwks

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// Bounds of the cache. The minute between questions and the day of grace are policy; maxUnknown bounds the memory that
// made-up names can take (their length is bounded by maxKid).
const (
	interval   = time.Minute
	minAge     = 5 * time.Minute
	maxAge     = 24 * time.Hour
	defaultAge = time.Hour
	stale      = 24 * time.Hour
	unknownAge = 5 * time.Minute

	maxBody    = 1 << 20
	maxUnknown = 1000
	maxKid     = 256
)

// ErrUnknownKey says that the issuer has no key of this name for this algorithm, as far as is known.
var ErrUnknownKey = errors.New("the issuer has no such key")

// UnavailableError says that no usable keys are at hand. RetryAfter is when the issuer is asked again.
type UnavailableError struct {
	RetryAfter time.Duration
	Cause      error
}

// Error names the cause.
func (e *UnavailableError) Error() string {
	return "the issuer's keys cannot be had: " + e.Cause.Error()
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Cause }

// Source says where the keys are: at URL, or where the discovery document of Issuer says when URL is empty.
type Source struct {
	URL    string
	Issuer string
}

// Cache holds the keys of one issuer. It is safe for concurrent use.
type Cache struct {
	client *http.Client
	source Source
	now    func() time.Time

	mu      sync.Mutex
	keys    map[string]key
	fetched time.Time // of the keys at hand
	expires time.Time
	asked   time.Time // the last question, answered or not
	failure error     // of the last question
	unknown map[string]time.Time
	running chan struct{} // closed when the question under way is answered; nil when there is none
}

// New returns an empty cache. The client decides where it may go; now is the clock, nil for the system's.
func New(client *http.Client, source Source, now func() time.Time) *Cache {
	if now == nil {
		now = time.Now
	}
	return &Cache{client: client, source: source, now: now, unknown: map[string]time.Time{}}
}

// Key returns the key with this id for this algorithm (RFC 7518). Errors: ErrUnknownKey, *UnavailableError, and that of
// ctx, which bounds the wait but not the question, because others wait for it too.
func (c *Cache) Key(ctx context.Context, kid, alg string) (crypto.PublicKey, error) {
	if kid == "" || len(kid) > maxKid {
		return nil, ErrUnknownKey
	}
	for asked := false; ; asked = true {
		c.mu.Lock()
		k, known := c.keys[kid]
		now := c.now()
		fresh := now.Before(c.expires)
		switch wait := c.running; {
		case known && fresh, !c.mayAsk(now, kid, fresh) && wait == nil:
			defer c.mu.Unlock()
			return c.answer(now, kid, k, known, alg, asked)
		case wait == nil:
			c.ask(ctx, now)
			fallthrough
		default:
			wait = c.running
			c.mu.Unlock()
			select {
			case <-wait:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

// mayAsk reports whether a question could help and is not too early. c.mu is held.
func (c *Cache) mayAsk(now time.Time, kid string, fresh bool) bool {
	if !c.asked.IsZero() && now.Sub(c.asked) < interval {
		return false
	}
	until, seen := c.unknown[kid]
	return !fresh || !seen || !now.Before(until)
}

// answer is what the keys at hand say. A name is remembered as unknown only if the issuer was asked for its sake: one
// that came within the interval may be a new key. c.mu is held.
func (c *Cache) answer(now time.Time, kid string, k key, known bool, alg string, asked bool) (crypto.PublicKey, error) {
	if c.fetched.IsZero() || !now.Before(c.expires.Add(stale)) {
		cause := c.failure
		if cause == nil {
			cause = errors.New("the keys at hand are too old")
		}
		return nil, c.unavailable(now, cause)
	}
	if !known && c.failure != nil {
		return nil, c.unavailable(now, c.failure)
	}
	if !known && asked {
		c.remember(now, kid)
	}
	if !known || !k.fits(alg) {
		return nil, ErrUnknownKey
	}
	return k.public, nil
}

func (c *Cache) unavailable(now time.Time, cause error) error {
	return &UnavailableError{RetryAfter: max(time.Second, c.asked.Add(interval).Sub(now)), Cause: cause}
}

// remember notes a name that was not there. When the list is full it is emptied: the interval holds back the rest.
func (c *Cache) remember(now time.Time, kid string) {
	if until, seen := c.unknown[kid]; seen && now.Before(until) {
		return
	}
	if len(c.unknown) >= maxUnknown {
		clear(c.unknown)
	}
	c.unknown[kid] = now.Add(unknownAge)
}

// ask starts the one question to the issuer. c.mu is held.
func (c *Cache) ask(ctx context.Context, now time.Time) {
	done := make(chan struct{})
	c.running, c.asked = done, now
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outbound.Timeout)
		defer cancel()
		keys, age, err := c.fetch(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.failure = err; err == nil {
			c.keys, c.fetched = keys, c.now()
			c.expires = c.fetched.Add(age)
		}
		c.running = nil
		close(done)
	}()
}

func (c *Cache) fetch(ctx context.Context) (map[string]key, time.Duration, error) {
	url := c.source.URL
	if url == "" {
		found, err := c.discover(ctx)
		if err != nil {
			return nil, 0, err
		}
		url = found
	}
	raw, header, err := c.get(ctx, url)
	if err != nil {
		return nil, 0, fmt.Errorf("get keys: %w", err)
	}
	keys, err := parse(raw)
	if err != nil {
		return nil, 0, err
	}
	return keys, age(header.Get("Cache-Control")), nil
}

// discover reads jwks_uri from the discovery document, which must be the issuer's own (OpenID Connect Discovery 1.0
// section 4.3).
func (c *Cache) discover(ctx context.Context) (string, error) {
	raw, _, err := c.get(ctx, strings.TrimSuffix(c.source.Issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", fmt.Errorf("get discovery document: %w", err)
	}
	var doc struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", fmt.Errorf("parse discovery document: %w", err)
	}
	if doc.Issuer != c.source.Issuer || doc.JWKS == "" {
		return "", errors.New("the discovery document is that of another issuer or names no keys")
	}
	return doc.JWKS, nil
}

func (c *Cache) get(ctx context.Context, url string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	raw, err := outbound.Read(resp.Body, maxBody)
	return raw, resp.Header, err
}

// age is how long an answer lives (RFC 9111 section 5.2.2), within bounds.
func age(cacheControl string) time.Duration {
	for part := range strings.SplitSeq(cacheControl, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if strings.EqualFold(name, "no-store") || strings.EqualFold(name, "no-cache") {
			return minAge
		}
		if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil && strings.EqualFold(name, "max-age") {
			return min(max(time.Duration(seconds)*time.Second, minAge), maxAge)
		}
	}
	return defaultAge
}
