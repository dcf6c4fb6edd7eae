package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
	"github.com/satchelbase/satchel/extensions/ratelimit"
	"github.com/satchelbase/satchel/extensions/settings"
)

const tooMany = "guard.too_many_failures"

// flood fails n times to sign in to the account, each time from another address.
func (w *world) flood(t testing.TB, identity string, n int) {
	t.Helper()
	for i := range n {
		wantStatus(t, w.signIn(t, fmt.Sprintf("198.51.100.%d", i), "", identity, "wrong"), http.StatusBadRequest, "api.bad_request")
	}
}

func TestAccountIsClosedToUnknownDevices(t *testing.T) {
	w := start(t, nil)
	w.flood(t, "ann@example.test", 20)
	for _, c := range []struct{ name, device, identity string }{
		{"no device", "", "ann@example.test"},
		{"another device", another, "ann@example.test"},
		{"not a device id", "x", "ann@example.test"},
		{"another spelling", "", " Ann@Example.test "},
	} {
		r := w.signIn(t, "192.0.2.1", c.device, c.identity, apptest.Password)
		wantStatus(t, r, http.StatusTooManyRequests, tooMany)
		if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || s < 1 || s > 180 {
			t.Errorf("%s: Retry-After %q, want up to the 3 minutes in which one attempt grows back", c.name, r.Header.Get("Retry-After"))
		}
	}
	wantStatus(t, w.signIn(t, "192.0.2.1", phone, "ann@example.test", apptest.Password), http.StatusOK, "")
	w.User(t, "bob@example.test")
	wantStatus(t, w.signIn(t, "192.0.2.1", "", "bob@example.test", apptest.Password), http.StatusOK, "")
	if n := w.count(event{actionLockout, "began", "ann@example.test"}); n != 1 {
		t.Errorf("%d entries about one lockout", n)
	}
	if n := w.count(event{actionSignIn, "failed", "ann@example.test"}); n != 20 {
		t.Errorf("%d entries about 20 failures", n)
	}
	if n := w.count(event{actionSignIn, "ok", "ann@example.test"}); n != 1 {
		t.Errorf("%d entries about one success", n)
	}
}

// An attacker who goes on guessing, with a device id of his own, never locks a known device out.
func TestKnownDeviceIsNeverLockedOut(t *testing.T) {
	w := start(t, func(c *Config) { c.Account = 3 })
	w.flood(t, "ann@example.test", 3)
	for i := range 30 {
		wantStatus(t, w.signIn(t, fmt.Sprintf("198.51.100.%d", 100+i), another, "ann@example.test", "wrong"), http.StatusTooManyRequests, tooMany)
		wantStatus(t, w.signIn(t, "192.0.2.1", phone, "ann@example.test", apptest.Password), http.StatusOK, "")
	}
	// One that has stolen the id has the quota of the device, and locks out nobody else.
	for i := range 3 {
		wantStatus(t, w.signIn(t, fmt.Sprintf("203.0.113.%d", i), phone, "ann@example.test", "wrong"), http.StatusBadRequest, "api.bad_request")
	}
	wantStatus(t, w.signIn(t, "203.0.113.9", phone, "ann@example.test", "wrong"), http.StatusTooManyRequests, tooMany)
}

func TestRateLimiterLetsKnownDevicesPass(t *testing.T) {
	w := &world{}
	conventions := settings.Defaults[api.Config]()
	conventions.TrustedProxies = append(conventions.TrustedProxies, loopback())
	limits := settings.Defaults[ratelimit.Config]()
	w.App = apptest.New(t, api.New(conventions), ratelimit.New(limits, Familiar(w.known), nil),
		New(settings.Defaults[Config](), Deps{KnownDevice: w.known}))
	w.addAnn(t)
	w.flood(t, "ann@example.test", 10)
	wantStatus(t, w.signIn(t, "192.0.2.1", another, "ann@example.test", apptest.Password), http.StatusTooManyRequests, "ratelimit.exceeded")
	wantStatus(t, w.signIn(t, "192.0.2.1", phone, "ann@example.test", apptest.Password), http.StatusOK, "")
}

func TestFailuresOfAnAddress(t *testing.T) {
	w := start(t, func(c *Config) { c.Address, c.Pair, c.Account = 4, 2, 100 })
	for range 2 {
		wantStatus(t, w.signIn(t, "192.0.2.1", phone, "ann@example.test", "wrong"), http.StatusBadRequest, "api.bad_request")
	}
	// The pair is held up, known device or not; other addresses and other accounts are not.
	wantStatus(t, w.signIn(t, "192.0.2.1", phone, "ann@example.test", apptest.Password), http.StatusTooManyRequests, tooMany)
	wantStatus(t, w.signIn(t, "192.0.2.2", "", "ann@example.test", apptest.Password), http.StatusOK, "")
	for i := range 2 {
		wantStatus(t, w.signIn(t, "192.0.2.1", "", fmt.Sprintf("nobody%d@example.test", i), "wrong"), http.StatusBadRequest, "api.bad_request")
	}
	wantStatus(t, w.signIn(t, "192.0.2.1", "", "somebody@example.test", "wrong"), http.StatusTooManyRequests, tooMany)
	wantStatus(t, w.signIn(t, "192.0.2.2", "", "somebody@example.test", "wrong"), http.StatusBadRequest, "api.bad_request")

	for i := range 32 {
		wantStatus(t, w.signIn(t, fmt.Sprintf("2001:db8:0:%x::1", i), "", fmt.Sprintf("v6-%d@example.test", i), "wrong"), http.StatusBadRequest, "api.bad_request")
	}
	wantStatus(t, w.signIn(t, "2001:db8:0:ffff::1", "", "v6@example.test", "wrong"), http.StatusTooManyRequests, tooMany)
}

// Successes, and requests that nobody looked at, count for nothing.
func TestOnlyFailuresCount(t *testing.T) {
	w := start(t, func(c *Config) { c.Account, c.Pair, c.Address = 1, 1, 1 })
	for range 3 {
		wantStatus(t, w.signIn(t, "192.0.2.1", "", "ann@example.test", apptest.Password), http.StatusOK, "")
		wantStatus(t, w.signIn(t, "192.0.2.1", "", "ann@example.test", ""), http.StatusBadRequest, "api.validation_failed")
	}
	w.change(t, func(c *core.Collection) { *c.AuthRule = "name = 'x'" })
	for range 3 { // the password is right, and the account is verified
		wantStatus(t, w.signIn(t, "192.0.2.1", "", "ann@example.test", apptest.Password), http.StatusForbidden, "api.forbidden")
	}
}

// A hundred guesses at once do not get more tries than a hundred one after another.
func TestParallelGuesses(t *testing.T) {
	w := start(t, func(c *Config) { c.Account, c.Pair, c.Address = 5, 100, 1000 })
	var wg sync.WaitGroup
	var mu sync.Mutex
	looked := 0
	for i := range 60 {
		wg.Go(func() {
			r := w.signIn(t, fmt.Sprintf("198.51.100.%d", i), "", "ann@example.test", "wrong")
			mu.Lock()
			defer mu.Unlock()
			if r.Status == http.StatusBadRequest {
				looked++
			}
		})
	}
	wg.Wait()
	if looked != 5 {
		t.Errorf("%d guesses were looked at, want 5", looked)
	}
}

// Known and unknown accounts give the same answers in the same order, through all limits.
func TestUnknownAccountsAnswerAlike(t *testing.T) {
	w := start(t, func(c *Config) { c.Account, c.Pair = 4, 2 })
	type answer struct {
		status int
		body   string
		retry  bool
	}
	ask := func(identity string, i int, device string) answer {
		r := w.signIn(t, fmt.Sprintf("198.51.100.%d", i/2), device, identity, "wrong")
		body := r.JSON(t)
		delete(body, "requestId")
		return answer{r.Status, fmt.Sprint(body), r.Header.Get("Retry-After") != ""}
	}
	for i := range 12 {
		for _, device := range []string{"", another} {
			if known, unknown := ask("ann@example.test", i, device), ask("nobody@example.test", i, device); known != unknown {
				t.Fatalf("attempt %d: known %v, unknown %v", i, known, unknown)
			}
		}
	}
	// The devices of an account that does not exist are looked up like others.
	w.mu.Lock()
	defer w.mu.Unlock()
	byAccount := map[bool]int{}
	for _, id := range w.asked {
		byAccount[id == w.ann.Id]++
	}
	if byAccount[true] == 0 || byAccount[true] != byAccount[false] {
		t.Errorf("devices were looked up %d times for the known and %d times for the unknown account", byAccount[true], byAccount[false])
	}
	known, unknown := 0, 0
	for _, e := range w.events {
		if e.subject == "" {
			unknown++
		} else {
			known++
		}
	}
	if known != unknown {
		t.Errorf("%d audit entries about the known, %d about the unknown account", known, unknown)
	}
}

// Names that an account does not answer to share no counter with it.
func TestSpellingsTellNothing(t *testing.T) {
	for _, identity := range []string{"ann@example.test", "nobody@example.test"} {
		w := start(t, func(c *Config) { c.Account = 2 })
		w.flood(t, identity, 2)
		for _, spelling := range []string{identity, strings.ToUpper(identity), " " + identity} {
			wantStatus(t, w.signIn(t, "192.0.2.1", "", spelling, "wrong"), http.StatusTooManyRequests, tooMany)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	clock := time.Hour
	cfg := settings.Defaults[Config]()
	g := &guard{policies: cfg.policies(), table: gcra.NewTableWithClock(cfg.TableSize, func() time.Duration { return clock })}
	before := g.table.Bytes()
	users := core.NewAuthCollection("users")
	users.Id = "users"
	attempt := func(ip, account string) error {
		e := &core.RequestEvent{}
		e.Request = &http.Request{RemoteAddr: ip + ":1", Header: http.Header{}}
		_, err := g.begin(e, users, account, nil)
		return err
	}
	for i := range 20 {
		if err := attempt(fmt.Sprintf("198.51.100.%d", i), "ann@example.test"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200_000 {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], 0x0a000000+uint32(i))
		if err := attempt(fmt.Sprintf("%d.%d.%d.%d", ip[0], ip[1], ip[2], ip[3]), fmt.Sprintf("user%d@example.test", i)); err != nil {
			t.Fatalf("account %d: %v", i, err)
		}
	}
	if after := g.table.Bytes(); after != before || after > 2<<20 {
		t.Errorf("the table has %d bytes, %d before", after, before)
	}
	if err := attempt("192.0.2.1", "ann@example.test"); !errors.Is(err, ErrTooManyFailures) {
		t.Errorf("the flood made the table forget the account that was held up: %v", err)
	}
	clock += cfg.Window
	if err := attempt("192.0.2.1", "ann@example.test"); err != nil {
		t.Errorf("after the window: %v", err)
	}
}

func TestAuditIsBounded(t *testing.T) {
	n := 0
	cfg := settings.Defaults[Config]()
	g := &guard{policies: cfg.policies(), table: gcra.NewTable(cfg.TableSize)}
	g.Audit = func(core.App, *core.RequestEvent, string, string, *core.Record, map[string]any) error {
		n++
		return nil
	}
	for range 10 * eventsPerWindow {
		g.audit(&core.RequestEvent{}, actionSignIn, "failed", nil, nil)
	}
	if n < eventsPerWindow || n > eventsPerWindow+10 {
		t.Errorf("%d entries, want about %d", n, eventsPerWindow)
	}
}

func TestChecks(t *testing.T) {
	w := start(t, nil)
	x := New(settings.Defaults[Config](), Deps{})
	if r := x.Checks[0].Run(t.Context(), w.Host); r.Level != extensions.OK || !strings.Contains(r.Message, "account 20 per 60m") {
		t.Errorf("%+v", r)
	}
	if r := x.Checks[1].Run(t.Context(), w.Host); r.Level != extensions.Info || !strings.Contains(r.Message, "in users a new account") {
		t.Errorf("%+v", r)
	}
	w.change(t, func(c *core.Collection) { *c.AuthRule = "verified = true" })
	if r := x.Checks[1].Run(t.Context(), w.Host); r.Level != extensions.OK {
		t.Errorf("%+v", r)
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"ACCOUNT": func(c *Config) { c.Account = 0 }, "PAIR": func(c *Config) { c.Pair = maxLimit + 1 }, "ADDRESS": func(c *Config) { c.Address = -1 },
		"WINDOW": func(c *Config) { c.Window = time.Second }, "TABLE_SIZE": func(c *Config) { c.TableSize = 1 },
	} {
		cfg := settings.Defaults[Config]()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), name+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
	var mode EmailTaken
	if err := mode.UnmarshalText([]byte("maybe")); err == nil {
		t.Error("an unknown answer to taken addresses is accepted")
	}
}
