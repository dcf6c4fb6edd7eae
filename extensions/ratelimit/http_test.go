package ratelimit

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
	"github.com/satchelbase/satchel/extensions/settings"
)

// start runs a server behind a trusted proxy with the numbers that change sets.
func start(t testing.TB, change func(*Config)) *apptest.App {
	t.Helper()
	conventions := settings.Defaults[api.Config]()
	conventions.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	cfg := settings.Defaults[Config]()
	change(&cfg)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return apptest.New(t, api.New(conventions), laterRoutes(), New(cfg, nil, func(r *http.Request) int {
		cost, _ := strconv.Atoi(r.Header.Get("X-Test-Cost"))
		return cost
	}))
}

// laterRoutes stands for the session feature: routes that get tokens, and a middleware that knows the session.
func laterRoutes() extensions.Extension {
	done := func(e *core.RequestEvent) error { return e.NoContent(http.StatusNoContent) }
	return extensions.Extension{
		Name: "later", Group: "auth",
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Priority: -1001, Func: func(e *core.RequestEvent) error {
			e.Set("satchelSession", e.Request.Header.Get("X-Test-Session"))
			return e.Next()
		}}},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			for _, name := range []string{"exchange", "anonymous", "upgrade", "refresh", "token"} {
				g.POST("/"+name, done)
			}
		},
		Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
			e.Router.POST("/api/auth/sync", done)
			return nil
		},
	}
}

// from sends the request as a client with that address.
func from(address string, r apptest.Request) apptest.Request {
	header := map[string]string{"X-Forwarded-For": address}
	maps.Copy(header, r.Header)
	r.Header = header
	return r
}

func get(path string) apptest.Request { return apptest.Request{Path: path} }

// allowed sends the request n times and demands that none is refused.
func allowed(t testing.TB, app *apptest.App, n int, r apptest.Request) apptest.Response {
	t.Helper()
	var got apptest.Response
	for i := range n {
		if got = app.Do(t, r); got.Status == http.StatusTooManyRequests {
			t.Fatalf("%s %s: request %d of %d was refused: %s %v", r.Method, r.Path, i+1, n, got.Body, got.Header)
		}
	}
	return got
}

var (
	policyPattern = regexp.MustCompile(`^"([a-z-]+)";q=([0-9]{1,15});w=([0-9]{1,15})$`)
	limitPattern  = regexp.MustCompile(`^"([a-z-]+)";r=([0-9]{1,15});t=([0-9]{1,15})$`)
)

// limits reads the headers as structured fields: a string with integer parameters.
func limits(t testing.TB, h http.Header) (name string, q, w, r, reset int) {
	t.Helper()
	policy, limit := policyPattern.FindStringSubmatch(h.Get("RateLimit-Policy")), limitPattern.FindStringSubmatch(h.Get("RateLimit"))
	if policy == nil || limit == nil || policy[1] != limit[1] {
		t.Fatalf("headers %q and %q", h["Ratelimit-Policy"], h["Ratelimit"])
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return policy[1], number(policy[2]), number(policy[3]), number(limit[2]), number(limit[3])
}

// refused sends the request and demands a 429 that names the quotas.
func refused(t testing.TB, app *apptest.App, r apptest.Request, quotas string) {
	t.Helper()
	got := app.Do(t, r)
	if got.Status != http.StatusTooManyRequests {
		t.Fatalf("%s %s: status %d, want 429: %s", r.Method, r.Path, got.Status, got.Body)
	}
	// The stock error handler writes a capital letter and a full stop.
	if !regexp.MustCompile(`[Oo]ver the quota of: ` + quotas + `\.?"`).Match(got.Body) {
		t.Errorf("answer does not blame %q: %s", quotas, got.Body)
	}
	if strings.HasPrefix(r.Path, "/api/v1") && got.Code() != "ratelimit.exceeded" {
		t.Errorf("code %q: %s", got.Code(), got.Body)
	}
	_, _, _, _, wait := limits(t, got.Header)
	after, err := strconv.Atoi(got.Header.Get("Retry-After"))
	if err != nil || wait < 1 || after < wait || after > wait+wait/5 {
		t.Errorf("Retry-After %q for t=%d", got.Header.Get("Retry-After"), wait)
	}
}

func TestAddressQuota(t *testing.T) {
	few := func(c *Config) { c.IP = 2 }
	t.Run("IPv4", func(t *testing.T) {
		app := start(t, few)
		allowed(t, app, 1, from("192.0.2.1", get("/api/health")))
		allowed(t, app, 1, from("192.0.2.1", get("/api/v1/collections/users/auth-methods")))
		refused(t, app, from("192.0.2.1", get("/api/health")), "ip")
		refused(t, app, from("192.0.2.1", get("/api/v1/health")), "ip")
		allowed(t, app, 2, from("192.0.2.2", get("/api/health")))
	})
	t.Run("IPv4 in IPv6", func(t *testing.T) {
		app := start(t, few)
		allowed(t, app, 2, from("192.0.2.1", get("/api/health")))
		refused(t, app, from("::ffff:192.0.2.1", get("/api/health")), "ip")
	})
	t.Run("IPv6 by /64 and /48", func(t *testing.T) {
		app := start(t, few)
		allowed(t, app, 1, from("2001:db8:1:1::1", get("/api/health")))
		allowed(t, app, 1, from("2001:db8:1:1:ffff::2", get("/api/health")))
		refused(t, app, from("2001:db8:1:1::3", get("/api/health")), "ip")
		for i := range 14 {
			allowed(t, app, 1, from(fmt.Sprintf("2001:db8:1:%x::1", 2+i), get("/api/health")))
		}
		refused(t, app, from("2001:db8:1:fff::1", get("/api/health")), "ip-network")
		allowed(t, app, 2, from("2001:db8:2::1", get("/api/health")))
	})
	t.Run("a client cannot choose its address", func(t *testing.T) {
		app := apptest.New(t, api.New(settings.Defaults[api.Config]()), New(Config{
			IP: 2, User: 1, UserBurst: 1, Session: 1, Auth: 1, AuthWindow: 1e9, Refresh: 1, SuperuserFactor: 1, TableSize: minSlots,
		}, nil, nil))
		allowed(t, app, 1, from("192.0.2.1", get("/api/health")))
		allowed(t, app, 1, from("192.0.2.2", get("/api/health")))
		refused(t, app, from("192.0.2.3", get("/api/health")), "ip")
	})
	t.Run("everything counts before the token is looked at", func(t *testing.T) {
		app := start(t, few)
		allowed(t, app, 1, from("192.0.2.1", get("/")))
		allowed(t, app, 1, from("192.0.2.1", get("/_/")))
		refused(t, app, from("192.0.2.1", apptest.Request{Path: "/api/v1/collections/users/records", Token: "bad"}), "ip")
	})
	t.Run("strict preset", func(t *testing.T) {
		app := start(t, func(c *Config) { c.Preset = Strict })
		got := allowed(t, app, 100, from("192.0.2.1", get("/api/health")))
		if name, q, w, _, _ := limits(t, got.Header); name != "ip" || q != 100 || w != 900 {
			t.Errorf("policy %v", got.Header["Ratelimit-Policy"])
		}
		refused(t, app, from("192.0.2.1", get("/api/health")), "ip")
	})
	t.Run("a guest's costs count for the address", func(t *testing.T) {
		app := start(t, func(c *Config) { c.IP = 12 })
		write := apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/records", Body: "{}"}
		allowed(t, app, 2, from("192.0.2.1", write))
		refused(t, app, from("192.0.2.1", write), "ip")
	})
}

func TestUserQuota(t *testing.T) {
	app := start(t, func(c *Config) { c.User, c.UserBurst = 60, 20 })
	_, ann := app.User(t, "ann@example.test")
	_, bob := app.User(t, "bob@example.test")
	list := apptest.Request{Path: "/api/collections/users/records", Token: ann}

	got := app.Do(t, from("192.0.2.1", list))
	if name, q, w, r, reset := limits(t, got.Header); name != "user" || q != 60 || w != 60 || r != 19 || reset != 1 {
		t.Errorf("headers %v", got.Header)
	}
	list.Path = "/api/v1/collections/users/records"
	allowed(t, app, 19, from("192.0.2.2", list))
	refused(t, app, from("192.0.2.3", list), "user")
	list.Path = "/api/collections/users/records"
	refused(t, app, from("192.0.2.4", list), "user")
	missing := apptest.Request{Path: "/api/v1/nothing/here", Token: ann}
	refused(t, app, missing, "user")

	list.Token = bob
	allowed(t, app, 1, from("192.0.2.1", list))
	outside := from("192.0.2.5", apptest.Request{Path: "/api/health", Token: ann})
	got = allowed(t, app, 1, outside)
	if name, _, _, _, _ := limits(t, got.Header); name != "ip" {
		t.Errorf("a health check is charged to %q", name)
	}
}

func TestCosts(t *testing.T) {
	for _, c := range []struct {
		method, path string
		body         any
		cost         int
	}{
		{"GET", "/api/collections/users/records", nil, 1},
		{"HEAD", "/api/v1/collections/users/records", nil, 1},
		{"GET", "/api/collections/users/records?perPage=99", nil, 1},
		{"GET", "/api/v1/collections/users/records?perPage=100", nil, 2},
		{"GET", "/api/collections/users/records?limit=250", nil, 3},
		{"GET", "/api/collections/users/records?perPage=999999999", nil, 11},
		{"GET", "/api/collections/users/records?perPage=-100000", nil, 1},
		{"GET", "/api/collections/users/records?perPage=x&limit=%zz", nil, 1},
		{"GET", "/api/collections/nothing/records", nil, 1},
		{"POST", "/api/v1/collections/users/records", "{", 5},
		{"PATCH", "/api/collections/users/records/x", "{}", 5},
		{"DELETE", "/api/collections/users/records/x", nil, 5},
		{"POST", "/api/realtime", "{}", 1},
		{"POST", "/api/v1/batch", batchOf(1), 5},
		{"POST", "/api/v1/batch", batchOf(3), 15},
		{"POST", "/api/batch", batchOf(6), 30},
		{"OPTIONS", "/api/collections/users/records", nil, 0},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			app := start(t, func(*Config) {})
			_, token := app.User(t, "ann@example.test")
			allowed(t, app, 1, apptest.Request{Method: c.method, Path: c.path, Token: token, Body: c.body})
			got := allowed(t, app, 1, apptest.Request{Path: "/api/collections/users/records", Token: token})
			if name, _, _, r, _ := limits(t, got.Header); name != "user" || r < 60-1-c.cost || r > 60-c.cost {
				t.Errorf("%d of 60 left of quota %q after a cost of %d and 1", r, name, c.cost)
			}
		})
	}
}

// A feature may say what a request of its own costs.
func TestDeclaredCost(t *testing.T) {
	app := start(t, func(*Config) {})
	_, token := app.User(t, "ann@example.test")
	got := allowed(t, app, 1, apptest.Request{Path: "/api/collections/users/records", Token: token, Header: map[string]string{"X-Test-Cost": "50"}})
	if name, _, _, r, _ := limits(t, got.Header); name != "user" || r != 10 {
		t.Errorf("%d of 60 left of quota %q after a cost of 50", r, name)
	}
}

func batchOf(items int) any {
	requests := make([]any, items)
	for i := range requests {
		requests[i] = map[string]any{"method": "DELETE", "url": "/api/v1/collections/users/records/none"}
	}
	return map[string]any{"requests": requests}
}

func TestBatch(t *testing.T) {
	app := start(t, func(*Config) {})
	_, token := app.User(t, "ann@example.test")
	send := func(items int) apptest.Request {
		return apptest.Request{Method: http.MethodPost, Path: "/api/v1/batch", Token: token, Body: batchOf(items)}
	}
	t.Run("more than the burst passes on a whole quota and is paid for", func(t *testing.T) {
		got := allowed(t, app, 1, send(20))
		if _, _, _, r, reset := limits(t, got.Header); r != 0 || reset != 20 {
			t.Errorf("headers %v", got.Header)
		}
		refused(t, app, send(1), "user")
		refused(t, app, apptest.Request{Path: "/api/v1/collections/users/records", Token: token}, "user")
	})
	t.Run("one that cannot pass is refused without its body", func(t *testing.T) {
		broken := send(1)
		broken.Body = "{"
		refused(t, app, broken, "user")
	})
	t.Run("a part of the quota is not enough", func(t *testing.T) {
		_, token = app.User(t, "bob@example.test")
		allowed(t, app, 1, send(8))
		refused(t, app, send(8), "user")
		allowed(t, app, 1, send(3))
	})
	t.Run("too many items cost nothing", func(t *testing.T) {
		_, token = app.User(t, "cid@example.test")
		if got := app.Do(t, send(51)); got.Status != http.StatusBadRequest {
			t.Fatalf("status %d: %s", got.Status, got.Body)
		}
		allowed(t, app, 1, send(12))
	})
}

func TestSessionQuota(t *testing.T) {
	app := start(t, func(c *Config) { c.Session = 3 })
	_, token := app.User(t, "ann@example.test")
	phone := apptest.Request{Path: "/api/v1/collections/users/records", Token: token, Header: map[string]string{"X-Test-Session": "phone"}}
	allowed(t, app, 3, phone)
	refused(t, app, phone, "session")
	tablet := phone
	tablet.Header = map[string]string{"X-Test-Session": "tablet"}
	allowed(t, app, 3, tablet)
}

func TestRefreshQuota(t *testing.T) {
	few := func(c *Config) { c.Refresh = 2 }
	post := func(path, token, session string) apptest.Request {
		return apptest.Request{Method: http.MethodPost, Path: path, Token: token, Header: map[string]string{"X-Test-Session": session}}
	}
	t.Run("by user", func(t *testing.T) {
		app := start(t, few)
		_, ann := app.User(t, "ann@example.test")
		_, bob := app.User(t, "bob@example.test")
		allowed(t, app, 1, post("/api/collections/users/auth-refresh", ann, ""))
		allowed(t, app, 1, post("/api/v1/collections/users/auth-refresh", ann, ""))
		refused(t, app, post("/api/v1/auth/refresh", ann, ""), "refresh")
		allowed(t, app, 2, post("/api/collections/users/auth-refresh", bob, ""))
	})
	t.Run("by session", func(t *testing.T) {
		app := start(t, few)
		_, ann := app.User(t, "ann@example.test")
		allowed(t, app, 2, post("/api/collections/users/auth-refresh", ann, "phone"))
		refused(t, app, post("/api/v1/auth/token", ann, "phone"), "refresh")
		allowed(t, app, 2, post("/api/v1/auth/refresh", ann, "tablet"))
	})
	t.Run("by address", func(t *testing.T) {
		app := start(t, few)
		allowed(t, app, 2, from("192.0.2.1", post("/api/v1/auth/refresh", "", "")))
		refused(t, app, from("192.0.2.1", post("/api/v1/auth/token", "", "")), "refresh")
		allowed(t, app, 2, from("192.0.2.2", post("/api/v1/auth/refresh", "", "")))
	})
	// Phones behind one address do not share a quota, and nobody uses up that of a session elsewhere.
	t.Run("by the session of the refresh token", func(t *testing.T) {
		app := start(t, few)
		with := func(path, body, contentType string) apptest.Request {
			return apptest.Request{Method: http.MethodPost, Path: path, Body: body, Header: map[string]string{"Content-Type": contentType}}
		}
		first := with("/api/v1/auth/refresh", `{"refreshToken":"rt1.first.1.mac"}`, "application/json")
		allowed(t, app, 1, from("192.0.2.1", first))
		allowed(t, app, 1, from("192.0.2.1", with("/api/v1/auth/token", "refresh_token=rt1.first.2.mac", "application/x-www-form-urlencoded")))
		refused(t, app, from("192.0.2.1", first), "refresh")
		allowed(t, app, 2, from("192.0.2.1", with("/api/v1/auth/refresh", `{"refreshToken":"rt1.second.1.mac"}`, "application/json")))
		allowed(t, app, 2, from("192.0.2.2", first))
	})
}

func TestSuperuserQuota(t *testing.T) {
	app := start(t, func(c *Config) { c.IP, c.User, c.UserBurst = 8, 2, 2 })
	_, root := app.Superuser(t)
	_, ann := app.User(t, "ann@example.test")
	list := apptest.Request{Path: "/api/v1/collections/users/records", Token: root}
	got := allowed(t, app, 1, list)
	if got.Status != http.StatusOK {
		t.Fatalf("status %d: %s", got.Status, got.Body)
	}
	allowed(t, app, 19, list) // ten times the user's, and more than the address has
	refused(t, app, list, "user")
	list.Token = ann
	allowed(t, app, 2, list)
	refused(t, app, list, "user")
}

func TestStockLimiterCannotBeTurnedOn(t *testing.T) {
	app := start(t, func(*Config) {})
	_, root := app.Superuser(t)
	// PocketBase's request log reads the settings in the background while the next request changes them.
	s := app.Settings()
	s.Logs.MaxDays = 0
	if err := app.Save(s); err != nil {
		t.Fatal(err)
	}
	change := func(enabled bool) apptest.Response {
		return app.Do(t, apptest.Request{
			Method: http.MethodPatch, Path: "/api/settings", Token: root,
			Body: map[string]any{"rateLimits": map[string]any{"enabled": enabled, "rules": stockRules()}},
		})
	}
	if got := change(true); got.Status != http.StatusBadRequest || !strings.Contains(string(got.Body), "SATCHEL_RATELIMIT_") {
		t.Fatalf("turning it on: %d %s", got.Status, got.Body)
	}
	if got := change(false); got.Status != http.StatusOK {
		t.Fatalf("saving it as off: %d %s", got.Status, got.Body)
	}
}

func stockRules() []core.RateLimitRule {
	return []core.RateLimitRule{{Label: "/api/", MaxRequests: 1, Duration: 60}}
}

// Settings that were stored elsewhere, such as by the stock binary, are overruled.
func TestStockLimiterStaysOff(t *testing.T) {
	app := start(t, func(*Config) {})
	check := New(settings.Defaults[Config](), nil, nil).Checks[1].Run
	s := app.Settings()
	s.RateLimits.Enabled, s.RateLimits.Rules = true, stockRules()
	if r := check(t.Context(), app.Host); r.Level != extensions.Warn {
		t.Errorf("check while it is on: %+v", r)
	}
	if err := app.Save(s); err != nil || app.Settings().RateLimits.Enabled {
		t.Fatalf("saved settings turn it on (%v)", err)
	}
	if err := app.ReloadSettings(); err != nil || app.Settings().RateLimits.Enabled {
		t.Fatalf("stored settings turn it on (%v)", err)
	}
	if r := check(t.Context(), app.Host); r.Level != extensions.OK || !strings.Contains(r.Message, "SATCHEL_RATELIMIT_") {
		t.Errorf("check: %+v", r)
	}
	allowed(t, app, 3, get("/api/health"))
}

func TestByAddress(t *testing.T) {
	for _, c := range []struct {
		remote string
		want   []string // name of the quota and key in hexadecimal
	}{
		{"192.0.2.1:5000", []string{"ip c0000201"}},
		{"[::ffff:192.0.2.1]:5000", []string{"ip c0000201"}},
		{"[2001:db8:1:2:3::4]:5000", []string{"ip 20010db800010002", "ip-network 20010db80001"}},
		{"[fe80::1%eth0]:5000", []string{"ip fe80000000000000", "ip-network fe8000000000"}},
		{"@", []string{"ip "}},
		{"", []string{"ip "}},
	} {
		e := &core.RequestEvent{}
		e.Request = &http.Request{RemoteAddr: c.remote}
		var got []string
		for _, charge := range byAddress(nil, e, gcra.Policy{Name: "ip", Limit: 600, Window: time.Minute}, 1) {
			got = append(got, fmt.Sprintf("%s %x", charge.Policy.Name, charge.Key))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.remote, got, c.want)
		}
	}
}

func TestChecksAndMetrics(t *testing.T) {
	cfg := settings.Defaults[Config]()
	cfg.IP = 1
	x := New(cfg, nil, nil)
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), x)
	allowed(t, app, 1, get("/api/health"))
	refused(t, app, get("/api/health"), "ip")
	want := map[string]float64{"satchel_ratelimit_refused_total": 1, "satchel_ratelimit_keys": 1}
	for _, m := range x.Metrics {
		if m.Read() != want[m.Name] {
			t.Errorf("%s is %v, want %v", m.Name, m.Read(), want[m.Name])
		}
	}
	const line = "address 1 per 1m, user 300 per 1m (60 at once), session 300 per 1m (60 at once), " +
		"sign-in 10 per 15m by address and account, refresh 30 per 1m, superusers 10-fold; table 4.2 MiB"
	if r := x.Checks[0].Run(t.Context(), nil); r.Level != extensions.OK || r.Message != line {
		t.Errorf("check: %+v", r)
	}
}
