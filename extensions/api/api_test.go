package api_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// probe is an extension with a route for every way a handler can end.
func probe() extensions.Extension {
	return extensions.Extension{
		Name: "probe",
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("/ok", func(e *core.RequestEvent) error { return api.Write(e, http.StatusOK, map[string]string{"a": "b"}) })
			g.GET("/markup", func(e *core.RequestEvent) error { return api.Write(e, http.StatusOK, map[string]string{"a": "<b>&"}) })
			g.GET("/big", func(e *core.RequestEvent) error {
				return api.Write(e, http.StatusOK, strings.Repeat("compressible ", 1000))
			})
			g.GET("/unmarshallable", func(e *core.RequestEvent) error { return api.Write(e, http.StatusOK, func() {}) })
			g.GET("/unknown", func(*core.RequestEvent) error { return errors.New("disk on fire at /secret/path") })
			g.GET("/panic", func(*core.RequestEvent) error { panic("boom") })
			g.GET("/problem", func(*core.RequestEvent) error {
				return &api.Problem{
					Code: api.ErrConflict, Detail: "it is taken", RetryAfter: 1500 * time.Millisecond,
					Errors: []api.FieldError{{Field: "name", Code: "api.taken", Message: "Choose another"}},
				}
			})
			g.GET("/ip", func(e *core.RequestEvent) error { return api.Write(e, http.StatusOK, e.RealIP()) })
			g.GET("/slow", func(e *core.RequestEvent) error {
				<-e.Request.Context().Done()
				return e.Request.Context().Err()
			})
			g.GET("/old", func(e *core.RequestEvent) error { return api.Write(e, http.StatusOK, nil) }).
				Bind(api.Deprecated(time.Unix(1767225600, 0), time.Unix(1798761600, 0), "https://example.test/old", "https://example.test/new"))
			g.POST("/echo", func(e *core.RequestEvent) error {
				body, err := io.ReadAll(e.Request.Body)
				if err != nil {
					return err
				}
				return api.Write(e, http.StatusCreated, len(body))
			})
		},
	}
}

func start(change ...func(*api.Config)) func(testing.TB) *apptest.App {
	return func(t testing.TB) *apptest.App {
		cfg := settings.Defaults[api.Config]()
		for _, c := range change {
			c(&cfg)
		}
		app := apptest.New(t, api.New(cfg), probe())
		return app
	}
}

func TestAnswers(t *testing.T) {
	apptest.Run(t, start(), []apptest.Scenario{
		{
			Name: "envelope", Request: apptest.Request{Path: "/api/v1/probe/ok", Header: map[string]string{"X-Request-Id": "phone-12345678"}},
			Status: 200, Contains: []string{`"success":true,"data":{"a":"b"},"timestamp":"`, `"requestId":"phone-12345678"`},
			After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
				if got := r.Header.Get("X-Request-Id"); got != "phone-12345678" {
					t.Errorf("request id %q", got)
				}
				for name, want := range map[string]string{"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"} {
					if got := r.Header.Get(name); got != want {
						t.Errorf("%s is %q, want %q", name, got, want)
					}
				}
				stamp, _ := r.JSON(t)["timestamp"].(string)
				if at, err := time.Parse(time.RFC3339, stamp); err != nil || at.Location() != time.UTC {
					t.Errorf("timestamp %q is not RFC 3339 UTC", stamp)
				}
			},
		},
		{Name: "markup is not escaped", Request: apptest.Request{Path: "/api/v1/probe/markup"}, Status: 200, Contains: []string{`"data":{"a":"<b>&"}`}},
		{
			Name: "HEAD has the validators of GET", Request: apptest.Request{Method: "HEAD", Path: "/api/v1/probe/ok"}, Status: 200,
			After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
				if r.Header.Get("ETag") == "" || len(r.Body) > 0 {
					t.Errorf("ETag %q, body %q", r.Header.Get("ETag"), r.Body)
				}
			},
		},
		{
			Name: "an id that could break a log line is replaced", Request: apptest.Request{Path: "/api/v1/probe/ok", Header: map[string]string{"X-Request-Id": "a b"}},
			Status: 200, NotContains: []string{"a b"},
		},
		{Name: "unknown error is the server's fault and stays inside", Request: apptest.Request{Path: "/api/v1/probe/unknown"}, Status: 500, Code: "api.internal", NotContains: []string{"secret"}},
		{Name: "panic", Request: apptest.Request{Path: "/api/v1/probe/panic"}, Status: 500, Code: "api.internal", NotContains: []string{"boom"}},
		{Name: "value that cannot be marshalled is no half answer", Request: apptest.Request{Path: "/api/v1/probe/unmarshallable"}, Status: 500, Code: "api.internal"},
		{
			Name: "problem", Request: apptest.Request{Path: "/api/v1/probe/problem"}, Status: 409, Code: "api.conflict",
			Contains: []string{
				`"type":"urn:satchel:problem:api.conflict"`, `"detail":"it is taken"`, `"success":false`, `"message":"it is taken"`,
				`"errors":[{"field":"name","code":"api.taken","message":"Choose another"}]`, `"status":409`, `"data":{"name":{"code":"api.taken","message":"Choose another"}}`,
			},
			After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
				if r.Header.Get("Retry-After") != "2" || r.Header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("headers %v", r.Header)
				}
			},
		},
		{Name: "unknown path", Request: apptest.Request{Path: "/api/v1/nothing/here"}, Status: 404, Code: "api.not_found"},
		{Name: "unknown method", Request: apptest.Request{Method: "DELETE", Path: "/api/v1/probe/ok"}, Status: 404, Code: "api.not_found"},
		{Name: "unknown stock path stays stock", Request: apptest.Request{Path: "/api/nothing"}, Status: 404, NotContains: []string{"code", "requestId"}},
		{
			Name: "deprecated", Request: apptest.Request{Path: "/api/v1/probe/old"}, Status: 200, Contains: []string{`"data":null`},
			After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
				if r.Header.Get("Deprecation") != "@1767225600" || r.Header.Get("Sunset") != "Fri, 01 Jan 2027 00:00:00 GMT" || len(r.Header.Values("Link")) != 2 {
					t.Errorf("headers %v", r.Header)
				}
			},
		},
	})
}

func TestDeadline(t *testing.T) {
	apptest.Run(t, start(func(c *api.Config) { c.Deadline = 50 * time.Millisecond }), []apptest.Scenario{{
		Name: "a request that takes too long", Request: apptest.Request{Path: "/api/v1/probe/slow"}, Status: 503, Code: "api.deadline_exceeded",
		After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
			if r.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		},
	}})
}

func TestConditionalGet(t *testing.T) {
	app := start()(t)
	first := app.Do(t, apptest.Request{Path: "/api/v1/probe/ok"})
	etag := first.Header.Get("ETag")
	if !strings.HasPrefix(etag, `W/"`) {
		t.Fatalf("ETag %q is not weak", etag)
	}
	for header, want := range map[string]int{etag: 304, strings.TrimPrefix(etag, "W/"): 304, `"x", ` + etag: 304, "*": 304, `W/"other"`: 200} {
		got := app.Do(t, apptest.Request{Path: "/api/v1/probe/ok", Header: map[string]string{"If-None-Match": header}})
		if got.Status != want {
			t.Errorf("If-None-Match %s: status %d, want %d", header, got.Status, want)
		}
		if got.Status == 304 && (len(got.Body) > 0 || got.Header.Get("ETag") != etag) {
			t.Errorf("304 with body %q and ETag %q", got.Body, got.Header.Get("ETag"))
		}
	}
}

func TestCompression(t *testing.T) {
	app := start()(t)
	for path, want := range map[string]string{"/api/v1/probe/big": "gzip", "/api/v1/probe/ok": ""} {
		r := app.Do(t, apptest.Request{Path: path, Header: map[string]string{"Accept-Encoding": "gzip"}})
		if got := r.Header.Get("Content-Encoding"); got != want {
			t.Errorf("%s: encoding %q, want %q", path, got, want)
		}
		if want == "" {
			continue
		}
		zr, err := gzip.NewReader(bytes.NewReader(r.Body))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(zr)
		if err != nil || !json.Valid(plain) || !strings.Contains(r.Header.Get("Vary"), "Accept-Encoding") {
			t.Errorf("%s: %v, Vary %q, body %.60q", path, err, r.Header.Values("Vary"), plain)
		}
	}
}

func TestCORS(t *testing.T) {
	preflight := map[string]string{"Origin": "https://app.example", "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
	app := start()(t)
	if r := app.Do(t, apptest.Request{Method: "OPTIONS", Path: "/api/v1/probe/ok", Header: preflight}); r.Header.Get("Access-Control-Allow-Origin") != "*" || r.Header.Get("Access-Control-Max-Age") != "7200" {
		t.Errorf("preflight %d %v", r.Status, r.Header)
	}
	if r := app.Do(t, apptest.Request{Path: "/api/v1/probe/ok", Header: preflight}); !strings.Contains(r.Header.Get("Access-Control-Expose-Headers"), "ETag") {
		t.Errorf("exposed headers %q", r.Header.Get("Access-Control-Expose-Headers"))
	}
	closed := start(func(c *api.Config) { c.CORSOrigins = []string{"https://mine.example"} })(t)
	if r := closed.Do(t, apptest.Request{Method: "OPTIONS", Path: "/api/v1/probe/ok", Header: preflight}); r.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a foreign origin was allowed: %v", r.Header)
	}
}

func TestTrustedProxy(t *testing.T) {
	loopback := func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	}
	for name, c := range map[string]struct {
		start   func(testing.TB) *apptest.App
		forward string
		want    string
	}{
		"nobody is trusted":                {start(), "203.0.113.9", "127.0.0.1"},
		"the proxy names the client":       {start(loopback), "203.0.113.9", "203.0.113.9"},
		"what the client wrote is ignored": {start(loopback), "1.1.1.1, 203.0.113.9", "203.0.113.9"},
		"a chain of own proxies":           {start(loopback), "1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"},
		"IPv6 with port":                   {start(loopback), "[2001:db8::1]:443", "2001:db8::1"},
		"mapped IPv4":                      {start(loopback), "::ffff:203.0.113.9", "203.0.113.9"},
		"garbage":                          {start(loopback), "unknown", "127.0.0.1"},
		"garbage before the proxy":         {start(loopback), "203.0.113.9, unknown, 10.0.0.7", "10.0.0.7"},
	} {
		t.Run(name, func(t *testing.T) {
			app := c.start(t)
			app.Settings().TrustedProxy.Headers = []string{"X-Real-Ip"} // set in the dashboard by mistake
			r := app.Do(t, apptest.Request{Path: "/api/v1/probe/ip", Header: map[string]string{"X-Forwarded-For": c.forward}})
			got, _ := r.JSON(t)["data"].(string)
			if addr, err := netip.ParseAddr(got); err != nil || addr != netip.MustParseAddr(c.want) {
				t.Errorf("client is %q, want %q", got, c.want)
			}
			if c.want == "127.0.0.1" && c.forward == "203.0.113.9" {
				spoof := app.Do(t, apptest.Request{Path: "/api/v1/probe/ip", Header: map[string]string{"X-Real-Ip": "9.9.9.9"}})
				if strings.Contains(string(spoof.Body), "9.9.9.9") {
					t.Error("an untrusted peer chose its address")
				}
			}
		})
	}
}

func TestTransportSecurityOnlyOverTLS(t *testing.T) {
	app := start(func(c *api.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })(t)
	if r := app.Do(t, apptest.Request{Path: "/api/v1/probe/ok"}); r.Header.Get("Strict-Transport-Security") != "" {
		t.Error("HSTS over plain HTTP")
	}
	r := app.Do(t, apptest.Request{Path: "/api/v1/probe/ok", Header: map[string]string{"X-Forwarded-Proto": "https"}})
	if r.Header.Get("Strict-Transport-Security") == "" {
		t.Error("no HSTS behind a TLS proxy")
	}
}

func TestBodyLimit(t *testing.T) {
	small := start(func(c *api.Config) { c.MaxBody = 1024 })
	big := strings.Repeat("x", 2000)
	apptest.Run(t, small, []apptest.Scenario{
		{Name: "fits", Request: apptest.Request{Method: "POST", Path: "/api/v1/probe/echo", Body: `"x"`}, Status: 201},
		{Name: "own route", Request: apptest.Request{Method: "POST", Path: "/api/v1/probe/echo", Body: big}, Status: 413, Code: "api.body_too_large"},
		{Name: "own route, unknown length", Request: apptest.Request{Method: "POST", Path: "/api/v1/probe/echo", Body: chunked(big)}, Status: 413, Code: "api.body_too_large"},
		{Name: "generated route", Request: apptest.Request{Method: "POST", Path: "/api/v1/collections/users/records", Body: `{"name":"` + big + `"}`}, Status: 413, Code: "api.body_too_large"},
		{Name: "stock route", Request: apptest.Request{Method: "POST", Path: "/api/collections/users/records", Body: `{"name":"` + big + `"}`}, Status: 413, NotContains: []string{"code"}},
	})
}

// chunked hides the length of a body.
type chunkedBody struct{ io.Reader }

func chunked(s string) any { return chunkedBody{strings.NewReader(s)} }
