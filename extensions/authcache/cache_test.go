package authcache

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// TestWriteDuringVerification commits a change after the user was read and before the token is remembered.
func TestWriteDuringVerification(t *testing.T) {
	for name, change := range map[string]func(t testing.TB, f *fixture, user *core.Record){
		"token key": func(t testing.TB, f *fixture, user *core.Record) {
			user.RefreshTokenKey()
			f.save(t, user)
		},
		"SQL": func(t testing.TB, f *fixture, _ *core.Record) {
			f.exec(t, "UPDATE users SET tokenKey = '"+strings.Repeat("k", 50)+"'")
		},
		"secret": func(t testing.TB, f *fixture, _ *core.Record) {
			users := f.users(t)
			users.AuthToken.Secret = security.RandomString(50)
			f.save(t, users)
		},
		"delete": func(t testing.TB, f *fixture, user *core.Record) {
			if err := f.Delete(user); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, Config{Size: 100})
			user, token := f.User(t, "ann@example.test")
			var once sync.Once
			f.verified = func() { once.Do(func() { change(t, f, user) }) }
			if f.who(t, token) == nil {
				t.Fatal("the request came before the change and must pass")
			}
			if got := f.who(t, token); got != nil {
				t.Errorf("the next request passes as well: %v", got)
			}
		})
	}
}

func TestRevoke(t *testing.T) {
	f := start(t, Config{Size: 100})
	ann, token := f.User(t, "ann@example.test")
	_, other := f.User(t, "ben@example.test")
	second, err := ann.NewStaticAuthToken(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{token, second, other} {
		f.remembered(t, s)
	}
	f.cache.Revoke(ann.Id)
	if n := f.cache.Len(); n != 1 {
		t.Errorf("%d tokens are remembered, want that of the other user", n)
	}
	f.cache.Revoke("") // tokens without a key do not share the empty one
	misses := f.cache.misses.Load()
	f.who(t, other)
	f.who(t, token)
	if got := f.cache.misses.Load() - misses; got != 1 {
		t.Errorf("%d tokens were verified again, want 1", got)
	}
	// A verification that was under way when its key was revoked leaves nothing behind.
	f.cache.Revoke(ann.Id)
	f.verified = func() { f.cache.Revoke(ann.Id) }
	f.who(t, token)
	if n := f.cache.Len(); n != 1 {
		t.Errorf("%d tokens are remembered, want 1", n)
	}
}

// TestOtherTables shows that only the user's own table counts.
func TestOtherTables(t *testing.T) {
	app := apptest.New(t)
	_, token := app.User(t, "ann@example.test")
	versions := map[string]uint64{}
	cache := NewCache(Config{Size: 10}, func(table string) uint64 { return versions[table] }, nil)
	hits := func() uint64 {
		t.Helper()
		if _, err := cache.found(app.App, token); err != nil {
			t.Fatal(err)
		}
		return cache.hits.Load()
	}
	hits()
	versions["notes"]++
	versions[core.CollectionNameSuperusers]++
	if n := hits(); n != 1 {
		t.Errorf("%d hits after writes to other tables, want 1", n)
	}
	versions["users"]++
	if n := hits(); n != 1 {
		t.Errorf("%d hits after a write to the table, want 1", n)
	}
	if n := hits(); n != 2 {
		t.Errorf("%d hits when nothing changed, want 2", n)
	}
	// The options of the collection are in no user's row.
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.AuthToken.Secret = security.RandomString(50)
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.found(app.App, token); err == nil {
		t.Error("a token with the old secret passes")
	}
}

// TestFirstRequest is the one that fills the cache: its handler owns its record as well.
func TestFirstRequest(t *testing.T) {
	app := apptest.New(t)
	_, token := app.User(t, "ann@example.test")
	cache := NewCache(Config{Size: 10}, func(string) uint64 { return 1 }, nil)
	first, err := cache.found(app.App, token)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range cache.entries {
		if x.record == first {
			t.Error("the remembered record was handed out")
		}
	}
}

// TestEviction keeps to the size and spares what is in use.
func TestEviction(t *testing.T) {
	const size = 4
	f := start(t, Config{Size: size})
	_, busy := f.User(t, "busy@example.test")
	tokens := make([]string, 3*size)
	for i := range tokens {
		_, tokens[i] = f.User(t, fmt.Sprintf("user%d@example.test", i))
	}
	f.remembered(t, busy)
	for _, token := range tokens {
		f.who(t, token)
		hits := f.cache.hits.Load()
		f.who(t, busy)
		if f.cache.hits.Load() != hits+1 {
			t.Error("the token in use was evicted")
		}
		if n := f.cache.Len(); n > size {
			t.Errorf("%d tokens are remembered, the size is %d", n, size)
		}
	}
	// Holes are filled before anything is evicted.
	f.cache.Revoke(func() (key string) {
		for _, x := range f.cache.entries {
			key = x.key
		}
		return key
	}())
	f.who(t, tokens[0])
	f.who(t, tokens[1])
	if len(f.cache.ring) != size || f.cache.Len() != size || len(f.cache.free) != 0 || len(f.cache.keys) != size {
		t.Errorf("ring %d, entries %d, free %d, keys %d", len(f.cache.ring), f.cache.Len(), len(f.cache.free), len(f.cache.keys))
	}
}

func TestOff(t *testing.T) {
	f := start(t, Config{})
	_, token := f.User(t, "ann@example.test")
	if f.who(t, token) == nil || f.cache.Len() != 0 || f.cache.misses.Load() != 0 {
		t.Error("the cache is in the way though it is off")
	}
}

func TestConfig(t *testing.T) {
	for size, good := range map[int]bool{-1: false, 0: true, 10_000: true, maxSize + 1: false} {
		if err := (Config{Size: size}).Validate(); (err == nil) != good {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if n := settings.Defaults[Config]().Size; n != 10_000 {
		t.Errorf("default size %d", n)
	}
}

// TestPlace holds the seam to PocketBase: the middleware takes the place of its own.
func TestPlace(t *testing.T) {
	f := start(t, Config{Size: 10})
	router, err := apis.NewRouter(f.App.App)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range router.Middlewares {
		if m.Id == apis.DefaultLoadAuthTokenMiddlewareId {
			found++
			if m.Priority != apis.DefaultLoadAuthTokenMiddlewarePriority {
				t.Errorf("priority %d", m.Priority)
			}
		}
	}
	if found != 1 {
		t.Errorf("PocketBase has %d middlewares with the id", found)
	}
	_, token := f.User(t, "ann@example.test")
	if f.who(t, token); f.cache.misses.Load() != 1 {
		t.Error("the token was not verified by the cache")
	}
}

// TestHitIsCheap guards what the cache is for. The copy of the record makes up all but two of the allocations.
func TestHitIsCheap(t *testing.T) {
	f := start(t, Config{Size: 10})
	_, token := f.User(t, "ann@example.test")
	cache := NewCache(Config{Size: 10}, func(string) uint64 { return 1 }, nil)
	n := testing.AllocsPerRun(100, func() {
		if _, err := cache.found(f.App.App, token); err != nil {
			t.Fatal(err)
		}
	})
	if n > 20 {
		t.Errorf("%v allocations for a hit, want at most 20", n)
	}
}

// TestConcurrentChanges lets readers use tokens while their key is changed over and over: a request that begins after
// the change has returned must not pass with the token from before it, and the newest token must always pass.
func TestConcurrentChanges(t *testing.T) {
	const rounds, readers = 40, 4
	f := start(t, Config{Size: 100})
	user, first := f.User(t, "ann@example.test")
	tokens := [rounds + 1]string{first}
	var newest atomic.Int64 // tokens before this one are void
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range readers {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				at := newest.Load()
				use := at
				if i%2 == 1 && at > 0 {
					use = at - 1
				}
				status, err := request(f.URL+"/api/v1/who", tokens[use])
				if err != nil {
					t.Error(err)
					return
				}
				if use < at && status == http.StatusOK {
					t.Errorf("token %d passes after change %d has returned", use, at)
				}
				// The key may change while the request is under way, but then newest is about to.
				if use == at && status != http.StatusOK {
					group.Go(func() { f.mustChange(t, &newest, at, stop) })
				}
			}
		})
	}
	for i := range rounds {
		user.RefreshTokenKey()
		if i%2 == 0 {
			f.save(t, user)
		} else {
			f.exec(t, "UPDATE users SET tokenKey = '"+user.TokenKey()+"' WHERE id = '"+user.Id+"'")
		}
		token, err := user.NewAuthToken()
		if err != nil {
			t.Fatal(err)
		}
		tokens[i+1] = token
		newest.Store(int64(i + 1))
		if f.who(t, token) == nil {
			t.Errorf("token %d is refused", i+1)
		}
	}
	close(stop)
	group.Wait()
	if f.cache.hits.Load() < rounds {
		t.Errorf("only %d hits", f.cache.hits.Load())
	}
}

// mustChange waits until the newest token is another one than at.
func (f *fixture) mustChange(t testing.TB, newest *atomic.Int64, at int64, stop <-chan struct{}) {
	for newest.Load() == at {
		select {
		case <-stop:
			if newest.Load() == at { // it may have changed since the loop looked
				t.Errorf("token %d was refused though nothing changed", at)
			}
			return
		default:
		}
	}
}

// Tokens come for the first time while others are looked up; the race detector watches.
func TestConcurrentFirstUses(t *testing.T) {
	f := start(t, settings.Defaults[Config]())
	var tokens []string
	for i := range 30 {
		_, token := f.User(t, fmt.Sprintf("user%d@example.test", i))
		tokens = append(tokens, token)
	}
	var wg sync.WaitGroup
	for _, token := range tokens {
		wg.Go(func() {
			if status, err := request(f.URL+"/api/v1/who", token); err != nil || status != http.StatusOK {
				t.Errorf("%d, %v", status, err)
			}
		})
	}
	wg.Wait()
	if n := f.cache.Len(); n != len(tokens) {
		t.Errorf("%d tokens are remembered, want %d", n, len(tokens))
	}
}
