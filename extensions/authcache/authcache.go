// Package authcache remembers tokens that PocketBase has verified, so that the signature and the user behind a token are
// not looked up again for every request. It decides nothing itself: what it hands out is what its [Verifier] returned for
// the same token, for as long as the verifier would return the same again.
//
// A remembered token counts only while all of this holds:
//
//   - the versions of the tables that the verifier reads, the user's above all, are the ones from before it read them, so
//     any committed write to them, made in any way (records, raw SQL, the SQL console, another process), makes the next
//     request look again;
//   - PocketBase still uses the very collection that the lookup used: a change of its rules, fields or secrets, its
//     deletion, and a restart on restored files all load the collections anew;
//   - the token has not expired, and it was verified no longer than [Lifetime] ago;
//   - its key has not been revoked ([Cache.Revoke]).
//
// So there are no hooks that could miss a write, and nothing can be wrong for longer than the version function is. When
// several processes share the files, that function must count the writes of the others as well.
//
// A handler may do with e.Auth what it likes: every request gets a record of its own. Only verified tokens are kept, so
// hostile ones cost a lookup, as without the cache, and take no room.
//
// Settings: SATCHEL_AUTHCACHE_*. Routes, tables and codes: none. Metrics: satchel_authcache_hits_total,
// satchel_authcache_misses_total, satchel_authcache_tokens_count.
package authcache

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
)

// Config is read from SATCHEL_AUTHCACHE_*.
type Config struct {
	Size int `env:"SIZE" default:"10000" help:"verified tokens that are remembered, about 2 KB each; 0 turns the cache off"`
}

// maxSize keeps a typing mistake from taking all memory: a million entries are some 2 GB.
const maxSize = 1_000_000

// Validate reports values that cannot work.
func (c Config) Validate() error {
	if c.Size < 0 || c.Size > maxSize {
		return errors.New("SIZE: must be from 0 to 1000000")
	}
	return nil
}

// New returns the extension around a cache, which other features may share to revoke what is in it.
func New(cfg Config, cache *Cache) extensions.Extension {
	x := extensions.Extension{
		Name:     "authcache",
		Settings: cfg,
		Metrics: []extensions.Metric{
			{Name: "satchel_authcache_hits_total", Help: "Requests whose token was remembered.", Counter: true, Read: func() float64 { return float64(cache.hits.Load()) }},
			{Name: "satchel_authcache_misses_total", Help: "Requests whose token had to be verified.", Counter: true, Read: func() float64 { return float64(cache.misses.Load()) }},
			{Name: "satchel_authcache_tokens_count", Help: "Tokens that are remembered.", Read: func() float64 { return float64(cache.Len()) }},
		},
	}
	// The id is PocketBase's: this middleware takes the place of its own, so that a failed token is not verified twice
	// and a route that unbinds the loading of tokens still does without.
	x.Middlewares = []*hook.Handler[*core.RequestEvent]{{
		Id: apis.DefaultLoadAuthTokenMiddlewareId, Priority: apis.DefaultLoadAuthTokenMiddlewarePriority, Func: cache.load,
	}}
	x.Start = func(ctx context.Context, _ *extensions.Host) error {
		go cache.sweep(ctx)
		return nil
	}
	return x
}

// load sets e.Auth. A token that fails leaves the request a guest, as PocketBase does.
func (c *Cache) load(e *core.RequestEvent) error {
	if e.Auth != nil { // another kind of credential was accepted before
		return e.Next()
	}
	token := bearer(e.Request.Header.Get("Authorization"))
	if token == "" {
		return e.Next()
	}
	if err := c.find(e, token); err != nil {
		e.App.Logger().Debug("the token was not accepted", "error", err)
	}
	return e.Next()
}

// bearer is the token in an Authorization header; as in PocketBase, the scheme may be missing.
func bearer(header string) string {
	if len(header) > 7 && strings.EqualFold(header[:7], "Bearer ") {
		return header[7:]
	}
	return header
}

// sweep returns the memory of users who have gone. It ends with ctx.
func (c *Cache) sweep(ctx context.Context) {
	ticker := time.NewTicker(Lifetime)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			c.removeExpired(now)
		}
	}
}
