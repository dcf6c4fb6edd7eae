package jwks_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/satchelbase/satchel/extensions/internal/jwks"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

type fixture struct {
	*idp.Server
	clock *clock
	cache *jwks.Cache
}

func start(t *testing.T) *fixture {
	t.Helper()
	provider, err := idp.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = provider.Close() })
	c := &clock{at: time.Now()}
	return &fixture{provider, c, jwks.New(client(provider), jwks.Source{Issuer: provider.Issuer}, c.now)}
}

func client(provider *idp.Server) *http.Client {
	return outbound.NewClient(outbound.Options{Root: provider.CA, AllowLoopback: true})
}

// check verifies a fresh token of the provider through the cache.
func (f *fixture) check(t *testing.T, alg string) error {
	t.Helper()
	token, err := f.Sign(alg, f.Claims("ada", nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = jwt.Parse(token, func(tok *jwt.Token) (any, error) {
		kid, _ := tok.Header["kid"].(string)
		return f.cache.Key(t.Context(), kid, tok.Method.Alg())
	})
	return err
}

func (f *fixture) fetches(t *testing.T, want int) {
	t.Helper()
	if got := f.KeySets(); got != want {
		t.Errorf("%d requests for keys, want %d", got, want)
	}
}

func TestAlgorithms(t *testing.T) {
	f := start(t)
	for _, alg := range []string{"ES256", "RS256", "EdDSA"} {
		if err := f.check(t, alg); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
	f.fetches(t, 1)
	token, _ := f.Sign("RS256", f.Claims("ada", nil), nil)
	parsed, _, _ := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	for _, alg := range []string{"ES256", "HS256", "none", "RS512", "PS256", ""} { // the key says RS256
		if _, err := f.cache.Key(t.Context(), parsed.Header["kid"].(string), alg); !errors.Is(err, jwks.ErrUnknownKey) {
			t.Errorf("%s with the RSA key: %v", alg, err)
		}
	}
}

// Whoever makes up key names must not make this server an amplifier.
func TestUnknownKeysAskOnce(t *testing.T) {
	f := start(t)
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			if _, err := f.cache.Key(t.Context(), "made-up-"+strconv.Itoa(i), "ES256"); !errors.Is(err, jwks.ErrUnknownKey) {
				t.Errorf("unknown key: %v", err)
			}
		})
	}
	group.Wait()
	f.fetches(t, 1)
	f.clock.add(61 * time.Second)
	for i := range 200 { // those of before are remembered
		_, _ = f.cache.Key(t.Context(), "made-up-"+strconv.Itoa(i), "ES256")
	}
	if n := f.KeySets(); n > 2 {
		t.Errorf("%d requests for keys", n)
	}
	before := f.KeySets()
	f.clock.add(61 * time.Second)
	for i := range 5000 {
		_, _ = f.cache.Key(t.Context(), "another-"+strconv.Itoa(i), "ES256")
	}
	f.fetches(t, before+1)
	if err := f.check(t, "ES256"); err != nil {
		t.Errorf("a good token after the storm: %v", err)
	}
}

func TestRotation(t *testing.T) {
	f := start(t)
	if err := f.check(t, "ES256"); err != nil {
		t.Fatal(err)
	}
	if err := f.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := f.check(t, "ES256"); !errors.Is(err, jwks.ErrUnknownKey) {
		t.Errorf("within the minute: %v", err)
	}
	f.clock.add(61 * time.Second) // and the refusal was not remembered
	if err := f.check(t, "ES256"); err != nil {
		t.Errorf("after a minute: %v", err)
	}
	f.fetches(t, 2)
}

func TestAge(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"max-age=600": 10 * time.Minute, "public, max-age=\"900\"": 15 * time.Minute, "max-age=1": 5 * time.Minute, "no-store": 5 * time.Minute,
		"max-age=99999999": 24 * time.Hour, "": time.Hour, "max-age=soon": time.Hour, "max-age=-5": time.Hour,
	} {
		t.Run(header, func(t *testing.T) {
			f := start(t)
			f.CacheControl(header)
			for _, step := range []struct {
				add  time.Duration
				want int
			}{{0, 1}, {want - time.Second, 1}, {2 * time.Second, 2}} {
				f.clock.add(step.add)
				if err := f.check(t, "ES256"); err != nil {
					t.Fatal(err)
				}
				f.fetches(t, step.want)
			}
		})
	}
}

func TestStaleIfError(t *testing.T) {
	f := start(t)
	if err := f.check(t, "ES256"); err != nil {
		t.Fatal(err)
	}
	f.Behave(idp.Down)
	f.clock.add(time.Hour + 23*time.Hour)
	if err := f.check(t, "ES256"); err != nil {
		t.Errorf("within the day of grace: %v", err)
	}
	f.fetches(t, 2)
	if err := f.check(t, "ES256"); err != nil {
		t.Errorf("again: %v", err)
	}
	f.fetches(t, 2)
	var unavailable *jwks.UnavailableError
	if _, err := f.cache.Key(t.Context(), "new", "ES256"); !errors.As(err, &unavailable) {
		t.Errorf("a new key while the issuer is down: %v", err)
	}
	f.clock.add(2 * time.Hour)
	if err := f.check(t, "ES256"); !errors.As(err, &unavailable) {
		t.Fatalf("after the day of grace: %v", err)
	}
	f.Behave(idp.Fine)
	f.clock.add(61 * time.Second)
	if err := f.check(t, "ES256"); err != nil {
		t.Errorf("recovered: %v", err)
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, behaviour := range map[string]idp.Behaviour{
		"huge": idp.Huge, "many keys": idp.ManyKeys, "redirect": idp.Redirect, "wrong content": idp.Wrong, "down": idp.Down,
		"no keys": idp.NoKeys, "another issuer": idp.Stranger, "http": idp.Downgrade,
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			f.Behave(behaviour)
			var unavailable *jwks.UnavailableError
			if err := f.check(t, "ES256"); !errors.As(err, &unavailable) || unavailable.RetryAfter <= 0 || unavailable.RetryAfter > time.Minute {
				t.Fatalf("error %v", err)
			}
			before := f.KeySets()
			f.Behave(idp.Fine)
			if err := f.check(t, "ES256"); !errors.As(err, &unavailable) {
				t.Errorf("within the minute: %v", err)
			}
			f.fetches(t, before)
			f.clock.add(61 * time.Second)
			if err := f.check(t, "ES256"); err != nil {
				t.Errorf("recovered: %v", err)
			}
		})
	}
}

// One who waits may leave; the question goes on for the others.
func TestSlow(t *testing.T) {
	f := start(t)
	f.Behave(idp.Slow)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.cache.Key(ctx, "any", "ES256"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
