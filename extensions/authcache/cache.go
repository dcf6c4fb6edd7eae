package authcache

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
)

// Lifetime is how long a token counts as verified at most. It bounds what a fault in the version function could do; a
// token that is used all the time is verified once a minute.
const Lifetime = time.Minute

// maxToken is the longest token that is remembered, in bytes. PocketBase's have 200 to 300.
const maxToken = 1024

// digest stands for a token: a dump of the memory shows no token that could be used.
type digest [sha256.Size]byte

// Verified is what a token turned out to stand for.
type Verified struct {
	Record *core.Record

	// Key is what [Cache.Revoke] drops the token by; an empty key means none.
	Key string

	// Until ends the verification, as the expiry of a token does; the zero time leaves that to [Lifetime].
	Until time.Time

	// Present tells the request who has signed in how, for a fresh verification and for a remembered one; nil tells
	// nothing. It must not keep the event.
	Present func(e *core.RequestEvent)
}

// Verifier verifies a token. Before it reads anything from a table, it must call watch with the table's name: a later
// write to the table ends the verification. Its errors are for the log; what a client should be told, it may leave on
// the event.
type Verifier func(e *core.RequestEvent, token string, watch func(table string)) (Verified, error)

// watched is a table that a verification has read, in the state before it did.
type watched struct {
	table   string
	version uint64
}

// Cache holds verified tokens. It is safe for concurrent use.
type Cache struct {
	version func(table string) uint64
	ask     Verifier
	size    int

	hits, misses atomic.Uint64

	// mu is held for the lookup of an entry and never while the database is asked.
	mu      sync.RWMutex
	entries map[digest]*entry
	keys    map[string]map[*entry]struct{}
	revoked uint64 // counts calls of Revoke

	// ring holds the entries for the clock that picks whom to evict: the hand passes over one that was used since its
	// last visit. Removed entries leave a hole, listed in free.
	ring []*entry
	free []int
	hand int
}

// entry is one verified token. All but used is fixed once it is in the cache, ring position included.
type entry struct {
	digest   digest
	key      string
	record   *core.Record // never handed out and never changed
	mutable  []mutable    // values of the record that a handler could change in place
	watched  []watched
	present  func(e *core.RequestEvent)
	from, to int64 // Unix nanoseconds between which the verification counts
	slot     int
	used     atomic.Bool
}

// NewCache returns an empty cache. version must return another value after any committed write to the table than before
// it, from the moment at which the write returns. verify decides about tokens; nil is [Stock]. A cache of size 0
// remembers nothing.
func NewCache(cfg Config, version func(table string) uint64, verify Verifier) *Cache {
	if verify == nil {
		verify = Stock
	}
	return &Cache{
		version: version, ask: verify, size: cfg.Size,
		entries: map[digest]*entry{}, keys: map[string]map[*entry]struct{}{},
		ring: make([]*entry, 0, cfg.Size),
	}
}

// Stock verifies PocketBase's own tokens.
func Stock(e *core.RequestEvent, token string, watch func(table string)) (Verified, error) {
	// The claims are not to be trusted until PocketBase has verified them; until then they only say which table to watch.
	claims, err := security.ParseUnverifiedJWT(token)
	if err != nil {
		return Verified{}, fmt.Errorf("read claims: %w", err)
	}
	id, _ := claims[core.TokenClaimCollectionId].(string)
	collection, err := e.App.FindCachedCollectionByNameOrId(id)
	if err != nil {
		return Verified{}, fmt.Errorf("find collection of token: %w", err)
	}
	watch(collection.Name)
	record, err := e.App.FindAuthRecordByToken(token, core.TokenTypeAuth)
	if err != nil {
		return Verified{}, fmt.Errorf("verify token: %w", err)
	}
	// PocketBase has just read the same claim, and takes a token without one as good for ever.
	v := Verified{Record: record}
	if exp, _ := claims.GetExpirationTime(); exp != nil {
		v.Until = exp.Time
	}
	return v, nil
}

// find sets the user of a token: a record that belongs to the caller.
func (c *Cache) find(e *core.RequestEvent, token string) error {
	if len(token) > maxToken || c.size == 0 {
		v, err := c.ask(e, token, func(string) {})
		if err != nil {
			return err
		}
		sign(e, v.Record, v.Present)
		return nil
	}
	var buf [maxToken]byte // keeps the copy off the heap
	d := digest(sha256.Sum256(buf[:copy(buf[:], token)]))
	c.mu.RLock()
	x := c.entries[d]
	c.mu.RUnlock()
	if x != nil && c.current(e.App, x, time.Now()) {
		if !x.used.Load() { // an unchanged flag is not written, so that cores do not fight over its cache line
			x.used.Store(true)
		}
		c.hits.Add(1)
		sign(e, x.clone(), x.present)
		return nil
	}
	c.misses.Add(1)
	if x != nil {
		c.remove(x)
	}
	return c.verify(e, token, d)
}

// sign puts the user into the request.
func sign(e *core.RequestEvent, record *core.Record, present func(e *core.RequestEvent)) {
	e.Auth = record
	if present != nil {
		present(e)
	}
}

// current reports whether verifying the token again would give the same answer.
func (c *Cache) current(app core.App, x *entry, now time.Time) bool {
	if t := now.UnixNano(); t < x.from || t >= x.to {
		return false
	}
	if !current(app, x.record.Collection()) {
		return false
	}
	for _, w := range x.watched {
		if c.version(w.table) != w.version {
			return false
		}
	}
	return true
}

// current reports whether PocketBase still uses this very collection.
func current(app core.App, collection *core.Collection) bool {
	cached, err := app.FindCachedCollectionByNameOrId(collection.Id)
	return err == nil && cached == collection
}

// verify asks the verifier and remembers a good answer. What the answer depends on is read before it: a write that commits
// meanwhile leaves an entry that is out of date already.
func (c *Cache) verify(e *core.RequestEvent, token string, d digest) error {
	x := &entry{digest: d, from: time.Now().UnixNano()}
	x.to = x.from + int64(Lifetime)
	c.mu.RLock()
	revoked := c.revoked
	c.mu.RUnlock()
	v, err := c.ask(e, token, func(table string) {
		x.watched = append(x.watched, watched{table, c.version(table)})
	})
	if err != nil {
		return err
	}
	// A collection that was changed meanwhile, or a value that cannot be copied: accepted, but not remembered.
	mutable, ok := mutableValues(v.Record)
	if !ok || !current(e.App, v.Record.Collection()) {
		sign(e, v.Record, v.Present)
		return nil
	}
	if !v.Until.IsZero() {
		x.to = min(x.to, v.Until.UnixNano())
	}
	x.key, x.present, x.record, x.mutable = v.Key, v.Present, v.Record, mutable
	c.add(x, revoked)
	sign(e, x.clone(), x.present)
	return nil
}

// add keeps an entry, unless something was revoked since its verification began: that may have been its key.
func (c *Cache) add(x *entry, revoked uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if revoked != c.revoked {
		return
	}
	if old := c.entries[x.digest]; old != nil {
		c.drop(old)
	}
	switch {
	case len(c.free) > 0:
		x.slot = c.free[len(c.free)-1]
		c.free = c.free[:len(c.free)-1]
		c.ring[x.slot] = x
	case len(c.ring) < c.size:
		x.slot = len(c.ring)
		c.ring = append(c.ring, x)
	default:
		victim := c.victim()
		c.drop(victim)
		c.free = c.free[:0]
		x.slot = victim.slot
		c.ring[x.slot] = x
	}
	c.entries[x.digest] = x
	if x.key != "" {
		if c.keys[x.key] == nil {
			c.keys[x.key] = map[*entry]struct{}{}
		}
		c.keys[x.key][x] = struct{}{}
	}
}

// victim is the entry under the clock's hand that was not used lately. The ring is full and has no holes.
func (c *Cache) victim() *entry {
	for {
		x := c.ring[c.hand]
		c.hand = (c.hand + 1) % len(c.ring)
		if !x.used.Swap(false) {
			return x
		}
	}
}

// remove forgets an entry, if it has not been replaced meanwhile.
func (c *Cache) remove(x *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[x.digest] == x {
		c.drop(x)
	}
}

// drop takes an entry out of everything. The lock is held.
func (c *Cache) drop(x *entry) {
	delete(c.entries, x.digest)
	c.ring[x.slot] = nil
	c.free = append(c.free, x.slot)
	if same := c.keys[x.key]; same != nil {
		delete(same, x)
		if len(same) == 0 {
			delete(c.keys, x.key)
		}
	}
}

func (c *Cache) removeExpired(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.entries {
		if now.UnixNano() >= x.to {
			c.drop(x)
		}
	}
}

// Revoke forgets every token with the key, those that are being verified at this moment included. The next request with
// such a token is verified again, so whoever revokes must first have made that verification fail.
func (c *Cache) Revoke(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoked++
	for x := range c.keys[key] {
		c.drop(x)
	}
}

// Len is the number of remembered tokens.
func (c *Cache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.entries)
}
