package metrics

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

const secret = "0123456789abcdef-secret"

func TestPage(t *testing.T) {
	app := start(t, defaults())
	_, token := app.User(t, "ann@example.test")
	get := func(method, path, token, version string) {
		app.Do(t, apptest.Request{Method: method, Path: path, Token: token, Header: map[string]string{"X-App-Version": version}})
	}
	get("GET", "/api/v1/zoo/fine/lion", token, "1.4.0-beta+7")
	get("GET", "/api/v1/zoo/fine/bear", token, "v1.4.0")
	get("HEAD", "/api/v1/zoo/fine/bear", "", "")
	get("GET", "/api/v1/zoo/broken", "", "")
	get("GET", "/api/v1/zoo/panic", "", `x"} 1`)
	get("BREW", "/api/v1/zoo/any", "", "")
	get("GET", "/api/collections/users/records/none", "", "")
	get("GET", "/api/v1/collections/users/records/none", "", "")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, app.URL+"/api/v1/zoo/abort", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Error("the connection was not cut")
	}
	has(t, page(t, app),
		`satchel_metrics_requests_total{app_version="1.4.0",class="2xx",method="GET",route="/api/v1/zoo/fine/{animal}"} 2`,
		`satchel_metrics_requests_total{app_version="none",class="2xx",method="HEAD",route="/api/v1/zoo/fine/{animal}"} 1`,
		`satchel_metrics_request_duration_seconds_count{app_version="1.4.0",class="2xx",method="GET",route="/api/v1/zoo/fine/{animal}"} 2`,
		`satchel_metrics_request_duration_seconds_bucket{app_version="1.4.0",class="2xx",method="GET",route="/api/v1/zoo/fine/{animal}",le="+Inf"} 2`,
		`satchel_metrics_requests_total{app_version="none",class="5xx",method="GET",route="/api/v1/zoo/broken"} 1`,
		`satchel_metrics_errors_total{method="GET",route="/api/v1/zoo/broken",status="500"} 1`,
		`satchel_metrics_requests_total{app_version="other",class="5xx",method="GET",route="/api/v1/zoo/panic"} 1`,
		`satchel_metrics_requests_total{app_version="none",class="2xx",method="other",route="/api/v1/zoo/any"} 1`,
		// Both ways to a generated route are one.
		`satchel_metrics_errors_total{method="GET",route="/api/collections/{collection}/records/{id}",status="404"} 2`,
		`satchel_metrics_errors_total{method="GET",route="/api/v1/zoo/abort",status="499"} 1`,
		`satchel_zoo_animals_count 42`, `# TYPE satchel_zoo_animals_count gauge`,
		`satchel_zoo_legs_total{animal="ape",side="left"} 1`, `satchel_zoo_legs_total{animal="ant",side="left"} 3`, `# TYPE satchel_zoo_legs_total counter`,
		`satchel_zoo_sleep_seconds_bucket{animal="cat",le="60"} 2`, `satchel_zoo_sleep_seconds_bucket{animal="cat",le="+Inf"} 3`,
		`satchel_zoo_sleep_seconds_sum{animal="cat"} 90`, `# TYPE satchel_zoo_sleep_seconds histogram`,
		`satchel_api_requests_in_flight_count 1`, `satchel_metrics_series_count 7`,
		`# TYPE go_goroutines gauge`, `# TYPE process_resident_memory_bytes gauge`,
	)
	has(t, page(t, app), `satchel_metrics_requests_total{app_version="none",class="2xx",method="GET",route="/metrics"} 1`)
}

func TestAccess(t *testing.T) {
	withToken := defaults()
	withToken.cfg.Token = secret
	behindProxy := defaults()
	behindProxy.proxied, behindProxy.api.TrustedProxies = true, loopback()
	both := behindProxy
	both.cfg.Token = secret
	get := func(headers ...string) apptest.Request {
		r := apptest.Request{Path: "/metrics", Header: map[string]string{}}
		for i := 0; i < len(headers); i += 2 {
			r.Header[headers[i]] = headers[i+1]
		}
		return r
	}
	for _, group := range []struct {
		options
		scenarios []apptest.Scenario
	}{
		{defaults(), []apptest.Scenario{
			{Name: "this machine", Request: get(), Status: 200, Contains: []string{"satchel_zoo_animals_count 42"}},
			{Name: "a proxy that is not trusted", Request: get("X-Forwarded-For", "203.0.113.7"), Status: 403, NotContains: []string{"satchel_zoo"}},
			{Name: "a proxy that lies", Request: get("X-Forwarded-For", "127.0.0.1"), Status: 403},
			{Name: "another header of proxies", Request: get("Forwarded", "for=127.0.0.1"), Status: 403},
			{Name: "nginx", Request: get("X-Real-IP", "127.0.0.1"), Status: 403},
			{Name: "via", Request: get("Via", "1.1 proxy"), Status: 403},
			{Name: "a superuser's token is another matter", Request: get("X-Forwarded-Proto", "https"), Status: 403, Before: func(t testing.TB, app *apptest.App, r *apptest.Request) {
				_, r.Token = app.Superuser(t)
			}},
		}},
		{withToken, []apptest.Scenario{
			{Name: "no token", Request: get(), Status: 401, NotContains: []string{"satchel_zoo", secret}, After: func(t testing.TB, _ *apptest.App, r apptest.Response) {
				if r.Header.Get("WWW-Authenticate") != "Bearer" {
					t.Errorf("headers %v", r.Header)
				}
			}},
			{Name: "the token", Request: get("Authorization", "Bearer "+secret), Status: 200, Contains: []string{"satchel_zoo"}},
			{Name: "the token in lower case", Request: get("Authorization", "bearer "+secret), Status: 200},
			{Name: "through a proxy", Request: get("Authorization", "Bearer "+secret, "X-Forwarded-For", "203.0.113.7"), Status: 200},
			{Name: "without the scheme", Request: get("Authorization", secret), Status: 401},
			{Name: "another token", Request: get("Authorization", "Bearer "+secret+"x"), Status: 401},
			{Name: "an empty token", Request: get("Authorization", "Bearer "), Status: 401},
		}},
		{behindProxy, []apptest.Scenario{
			{Name: "trusted proxy", Request: get("X-Forwarded-For", "203.0.113.7"), Status: 403},
			{Name: "trusted proxy that names this machine", Request: get("X-Forwarded-For", "127.0.0.1"), Status: 403},
			{Name: "trusted proxy that names nobody", Request: get(), Status: 403},
		}},
		{both, []apptest.Scenario{
			{Name: "token behind a trusted proxy", Request: get("Authorization", "Bearer "+secret, "X-Forwarded-For", "203.0.113.7"), Status: 200},
			{Name: "no token behind a trusted proxy", Request: get("X-Forwarded-For", "127.0.0.1"), Status: 401},
		}},
	} {
		apptest.Run(t, func(t testing.TB) *apptest.App { return start(t, group.options) }, group.scenarios)
	}
}

func TestLocal(t *testing.T) {
	for _, test := range []struct {
		peer, host string
		want       bool
	}{
		{"127.0.0.1:5000", "127.0.0.1:8090", true},
		{"127.0.0.1:5000", "localhost:8090", true},
		{"127.9.9.9:5000", "LOCALHOST", true},
		{"[::1]:5000", "[::1]:8090", true},
		{"[::1]:5000", "[::1]", true},
		{"[::ffff:127.0.0.1]:5000", "127.0.0.1", true},
		{"10.0.0.2:5000", "127.0.0.1:8090", false},
		{"203.0.113.7:5000", "localhost", false},
		{"127.0.0.1:5000", "rebound.example.com:8090", false},
		{"127.0.0.1:5000", "localhost.example.com", false},
		{"127.0.0.1:5000", "", false},
		{"@", "localhost", false},
		{"", "localhost", false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.RemoteAddr, r.Host = test.peer, test.host
		if got := isLocal(r); got != test.want {
			t.Errorf("peer %q, host %q: %t", test.peer, test.host, got)
		}
	}
}

// TestForeignHost sends what a browser sends for a page whose name points to this machine.
func TestForeignHost(t *testing.T) {
	app := start(t, defaults())
	conn, err := net.Dial("tcp", strings.TrimPrefix(app.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: rebound.example.com\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestVersions(t *testing.T) {
	for sent, want := range map[string]string{
		"1": "1", "1.4": "1.4", "1.4.0": "1.4.0", " v1.4.0-rc.1+5 ": "1.4.0", "1.4.0.77": "1.4.0.77", "1000.1000.1000.1000": "1000.1000.1000.1000",
		"1.2.3.4.5": "", "": "", "v": "", ".1": "", "1.": "", "1..2": "", "a": "", "1.a": "", "-1": "", "+": "", "1.0\x00": "", "12345678901234567890": "", "١.٢": "",
	} {
		got, ok := normal(sent)
		if !ok {
			got = ""
		}
		if got != want {
			t.Errorf("%q is %q, want %q", sent, got, want)
		}
	}
	var v versions
	for i := range 1000 {
		v.label(strconv.Itoa(i), false)
	}
	if len(v.known) != maxVersions/2 {
		t.Errorf("strangers fill %d places", len(v.known))
	}
	if got := v.label("7.0.0", true); got != "7.0.0" {
		t.Errorf("a user's version is %s", got)
	}
	if got := v.label("7.0.0", false); got != "7.0.0" {
		t.Errorf("a known version is %s for a stranger", got)
	}
	for i := range 1000 {
		v.label(strconv.Itoa(i)+".1", true)
	}
	if got := v.label("8.0.0", true); got != otherVersion || len(v.known) != maxVersions {
		t.Errorf("%d versions are known, one more is %s", len(v.known), got)
	}
	if v.label("", true) != noVersion || v.label("?", true) != otherVersion {
		t.Error("no version and a wrong one")
	}
}

// TestSeriesAreBounded floods the labels that depend on the client.
func TestSeriesAreBounded(t *testing.T) {
	m := newRequests(prometheus.NewRegistry())
	for version := range maxVersions {
		for route := range 200 {
			m.of(labels{pattern: "GET /" + strconv.Itoa(route), method: "GET", version: strconv.Itoa(version), class: 2})
		}
	}
	// Past the bound every route still has one series.
	if n := m.size(); n < maxSeries || n > maxSeries+200 {
		t.Errorf("%d series", n)
	}
}

// TestMeasureIsCheap measures the middleware alone, once its series exist.
func TestMeasureIsCheap(t *testing.T) {
	m := newRequests(prometheus.NewRegistry())
	r := httptest.NewRequest(http.MethodGet, "/api/v1/zoo/fine/lion", nil)
	r.Pattern = "GET /api/v1/zoo/fine/{animal}"
	r.Header.Set("X-App-Version", "1.4.0")
	e := &core.RequestEvent{}
	e.Request, e.Response = r, &router.ResponseWriter{ResponseWriter: httptest.NewRecorder()}
	if n := testing.AllocsPerRun(200, func() { _ = m.measure(e) }); n > 0 {
		t.Errorf("%v allocations for a request", n)
	}
}

func TestConcurrentRequests(t *testing.T) {
	app := start(t, defaults())
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for range 25 {
				app.Do(t, apptest.Request{Path: "/api/v1/zoo/fine/" + strconv.Itoa(i), Header: map[string]string{"X-App-Version": strconv.Itoa(i % 2)}})
			}
		})
	}
	for range 10 {
		page(t, app)
	}
	group.Wait()
	has(t, page(t, app),
		`satchel_metrics_requests_total{app_version="0",class="2xx",method="GET",route="/api/v1/zoo/fine/{animal}"} 50`,
		`satchel_metrics_requests_total{app_version="1",class="2xx",method="GET",route="/api/v1/zoo/fine/{animal}"} 50`,
	)
}

func TestProfiles(t *testing.T) {
	on := defaults()
	on.cfg.Pprof = true
	on.api.Deadline = time.Second // a profile takes longer
	superuser := func(t testing.TB, app *apptest.App, r *apptest.Request) { _, r.Token = app.Superuser(t) }
	user := func(t testing.TB, app *apptest.App, r *apptest.Request) { _, r.Token = app.User(t, "ann@example.test") }
	isProfile := func(t testing.TB, _ *apptest.App, r apptest.Response) {
		if len(r.Body) < 100 || r.Body[0] != 0x1f || r.Body[1] != 0x8b {
			t.Errorf("%d bytes that are no profile: %.40q", len(r.Body), r.Body)
		}
	}
	get := func(name string) apptest.Request { return apptest.Request{Path: "/api/v1/metrics/pprof/" + name} }
	apptest.Run(t, func(t testing.TB) *apptest.App { return start(t, on) }, []apptest.Scenario{
		{Name: "guest", Request: get("heap"), Status: 401},
		{Name: "user", Request: get("heap"), Before: user, Status: 403},
		{Name: "heap", Request: get("heap"), Before: superuser, Status: 200, After: isProfile},
		{Name: "allocs", Request: get("allocs"), Before: superuser, Status: 200, After: isProfile},
		{Name: "goroutine", Request: get("goroutine"), Before: superuser, Status: 200, After: isProfile},
		{Name: "threadcreate", Request: get("threadcreate"), Before: superuser, Status: 200, After: isProfile},
		{Name: "processor, past the deadline", Request: get("profile?seconds=3"), Before: superuser, Status: 200, After: isProfile},
		{Name: "processor, too long", Request: get("profile?seconds=301"), Before: superuser, Status: 400, Code: "api.bad_request"},
		{Name: "processor, no number", Request: get("profile?seconds=x"), Before: superuser, Status: 400, Code: "api.bad_request"},
		{Name: "unknown", Request: get("cmdline"), Before: superuser, Status: 404, Code: "api.not_found"},
		{Name: "locks", Request: get("mutex"), Before: superuser, Status: 404},
		{Name: "where Go's tools look", Request: apptest.Request{Path: "/debug/pprof/heap"}, Before: superuser, Status: 200, After: isProfile},
		{Name: "where Go's tools look, a guest", Request: apptest.Request{Path: "/debug/pprof/heap"}, Status: 401},
	})
	apptest.Run(t, func(t testing.TB) *apptest.App { return start(t, defaults()) }, []apptest.Scenario{
		{Name: "off", Request: get("heap"), Before: superuser, Status: 404},
	})
}

// TestProfileBusy takes two profiles at once, and ends the first by hanging up.
func TestProfileBusy(t *testing.T) {
	on := defaults()
	on.cfg.Pprof = true
	app := start(t, on)
	_, token := app.Superuser(t)
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, app.URL+"/api/v1/metrics/pprof/profile?seconds=200", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", token)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	second := func() apptest.Response {
		return app.Do(t, apptest.Request{Path: "/api/v1/metrics/pprof/profile?seconds=1", Token: token})
	}
	until := time.Now().Add(10 * time.Second)
	for pprof.StartCPUProfile(io.Discard) == nil { // until the first has begun
		pprof.StopCPUProfile()
		time.Sleep(20 * time.Millisecond)
		if time.Now().After(until) {
			t.Fatal("the first profile does not begin")
		}
	}
	if r := second(); r.Status != http.StatusConflict || r.Code() != "metrics.profile_busy" {
		t.Errorf("second profile: %d %s", r.Status, r.Body)
	}
	hangUp()
	<-ended
	for r := second(); r.Status != http.StatusOK; r = second() {
		if time.Now().After(until) {
			t.Fatalf("the profile goes on without its client: %d", r.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestConfig(t *testing.T) {
	good := defaults().cfg
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for key, change := range map[string]func(*Config){
		"TOKEN":          func(c *Config) { c.Token = "short" },
		"OTLP_ENDPOINT":  func(c *Config) { c.OTLPEndpoint = "collector:4318" },
		"OTLP_ENDPOINT:": func(c *Config) { c.OTLPEndpoint = "ftp://collector" },
		"OTLP_HEADERS":   func(c *Config) { c.OTLPHeaders = []string{"secret-without-name"} },
		"OTLP_RATIO":     func(c *Config) { c.OTLPRatio = 1.1 },
	} {
		c := defaults().cfg
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), key) || strings.Contains(err.Error(), "secret-without") {
			t.Errorf("%s: %v", key, err)
		}
	}
}
