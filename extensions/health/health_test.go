package health_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/health"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// program is what the tests vary.
type program struct {
	cfg   health.Config
	extra extensions.Extension
}

func (p *program) start(t testing.TB) *apptest.App {
	t.Helper()
	if p.extra.Name == "" {
		p.extra.Name = "extra"
	}
	var list []extensions.Extension
	installed := func() []extensions.Extension { return list }
	list = []extensions.Extension{
		api.New(settings.Defaults[api.Config]()), health.New(p.cfg, installed, nil), p.extra,
	}
	return apptest.New(t, list...)
}

func newProgram() *program {
	return &program{cfg: settings.Defaults[health.Config]()}
}

func check(name string, result extensions.Result) extensions.Check {
	return extensions.Check{Name: name, Ready: true, Run: func(context.Context, *extensions.Host) extensions.Result { return result }}
}

func TestRoutes(t *testing.T) {
	failing := newProgram()
	failing.extra.Checks = []extensions.Check{
		check("queue", extensions.Result{Level: extensions.Fail, Message: "dir /secret/path", Next: "do this"}),
		check("mail", extensions.Result{Level: extensions.Warn, Message: "slow"}),
		{Name: "unasked", Run: func(context.Context, *extensions.Host) extensions.Result {
			return extensions.Result{Level: extensions.Fail}
		}},
	}
	full := newProgram()
	full.cfg.MinFree = 1 << 62
	panicking := newProgram()
	panicking.extra.Checks = []extensions.Check{{Name: "broken", Ready: true, Run: func(context.Context, *extensions.Host) extensions.Result {
		panic("boom")
	}}}
	noStore := func(t testing.TB, _ *apptest.App, r apptest.Response) {
		if got := r.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control %q, want no-store", got)
		}
		if etag := r.Header.Get("ETag"); etag != "" {
			t.Errorf("an answer that is not stored has the ETag %s", etag)
		}
	}
	notReady := func(names ...string) func(testing.TB, *apptest.App, apptest.Response) {
		return func(t testing.TB, app *apptest.App, r apptest.Response) {
			noStore(t, app, r)
			if r.Header.Get("Retry-After") == "" {
				t.Error("Retry-After is missing")
			}
			var p struct{ Errors []api.FieldError }
			if err := json.Unmarshal(r.Body, &p); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range p.Errors {
				got = append(got, e.Field)
			}
			if !slices.Equal(got, names) {
				t.Errorf("failing checks %v, want %v", got, names)
			}
		}
	}
	asSuperuser := func(t testing.TB, app *apptest.App, r *apptest.Request) { _, r.Token = app.Superuser(t) }
	asUser := func(t testing.TB, app *apptest.App, r *apptest.Request) { _, r.Token = app.User(t, "ann@example.test") }
	public := []string{`"status":"ok"`, `"database":"ok"`, `"version":"test"`, `"time":"20`}
	private := []string{"uptimeSeconds", "memory", "checks", "metrics"}

	for _, group := range []struct {
		program   *program
		scenarios []apptest.Scenario
	}{
		{newProgram(), []apptest.Scenario{
			{Name: "live", Request: apptest.Request{Path: "/api/v1/health/live"}, Status: 200, Contains: []string{`"status":"ok"`}, After: noStore},
			{Name: "ready", Request: apptest.Request{Path: "/api/v1/health/ready"}, Status: 200, Contains: []string{`"success":true`, `"status":"ok"`}, After: noStore},
			{Name: "ready by HEAD", Request: apptest.Request{Method: http.MethodHead, Path: "/api/v1/health/ready"}, Status: 200},
			{Name: "summary", Request: apptest.Request{Path: "/api/v1/health"}, Status: 200, Contains: public, NotContains: private, After: noStore},
			{Name: "summary outside the API", Request: apptest.Request{Path: "/health"}, Status: 200, Contains: public, NotContains: private, After: noStore},
			{Name: "summary for a user", Request: apptest.Request{Path: "/api/v1/health"}, Before: asUser, Status: 200, NotContains: private},
			{Name: "summary for a superuser", Request: apptest.Request{Path: "/health"}, Before: asSuperuser, Status: 200, Contains: append(private, public...), After: detail},
			{Name: "stock health", Request: apptest.Request{Path: "/api/health"}, Status: 200, Contains: []string{`"message":"API is healthy."`, `"data":{}`}},
			{Name: "no other method", Request: apptest.Request{Method: http.MethodPost, Path: "/api/v1/health/live"}, Status: 404},
			{Name: "data.db read-only", Request: apptest.Request{Path: "/api/v1/health/ready"}, Before: breakWrites(false), Status: 503, Code: "health.not_ready", After: notReady("database")},
			{Name: "auxiliary.db read-only", Request: apptest.Request{Path: "/api/v1/health/ready"}, Before: breakWrites(true), Status: 503, Code: "health.not_ready", After: notReady("database")},
			{Name: "summary of a read-only database", Request: apptest.Request{Path: "/health"}, Before: breakWrites(false), Status: 200, Contains: []string{`"status":"degraded"`, `"database":"fail"`}},
			{Name: "live with a read-only database", Request: apptest.Request{Path: "/api/v1/health/live"}, Before: breakWrites(false), Status: 200},
			{Name: "pending migration", Request: apptest.Request{Path: "/api/v1/health/ready"}, Before: forgetMigration, Status: 503, Code: "health.not_ready", After: notReady("migrations")},
		}},
		{failing, []apptest.Scenario{
			{
				Name: "failing check of an extension", Request: apptest.Request{Path: "/api/v1/health/ready"},
				Status: 503, Code: "health.not_ready", After: notReady("queue"), NotContains: []string{"secret/path", "unasked"},
			},
			{
				Name: "public summary hides messages", Request: apptest.Request{Path: "/health"},
				Status: 200, Contains: []string{`"status":"degraded"`, `"database":"ok"`}, NotContains: []string{"secret/path", "unasked"},
			},
			{
				Name: "superusers see messages", Request: apptest.Request{Path: "/health"}, Before: asSuperuser,
				Status:   200,
				Contains: []string{`{"name":"queue","level":"fail","message":"dir /secret/path","next":"do this"}`, `"level":"warn","message":"slow"`, `"name":"unasked","level":"fail"`},
			},
		}},
		{full, []apptest.Scenario{
			{Name: "disk full", Request: apptest.Request{Path: "/api/v1/health/ready"}, Status: 503, Code: "health.not_ready", After: notReady("disk")},
		}},
		{panicking, []apptest.Scenario{
			{Name: "panicking check", Request: apptest.Request{Path: "/api/v1/health/ready"}, Status: 503, Code: "health.not_ready", After: notReady("broken")},
		}},
	} {
		apptest.Run(t, group.program.start, group.scenarios)
	}
}

// detail looks at the numbers that only superusers see.
func detail(t testing.TB, _ *apptest.App, r apptest.Response) {
	var body struct {
		Data struct {
			UptimeSeconds *int64
			Memory        struct{ HeapBytes, RSSBytes, Goroutines uint64 }
			Checks        []struct{ Name, Level, Message string }
			Metrics       map[string]float64
		}
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	d := body.Data
	if d.UptimeSeconds == nil || *d.UptimeSeconds < 0 || *d.UptimeSeconds > 600 {
		t.Errorf("uptime %v", d.UptimeSeconds)
	}
	if d.Memory.HeapBytes == 0 || d.Memory.Goroutines == 0 {
		t.Errorf("memory %+v", d.Memory)
	}
	var names []string
	for _, c := range d.Checks {
		names = append(names, c.Name)
		if c.Level != "ok" {
			t.Errorf("check %+v", c)
		}
	}
	if want := []string{"drain", "database", "migrations", "disk"}; !slices.Equal(names, want) {
		t.Errorf("checks %v, want %v", names, want)
	}
	if d.Metrics["satchel_api_requests_in_flight_count"] != 1 {
		t.Errorf("metrics %v lack the request that reads them", d.Metrics)
	}
}

// Checks that do not decide about readiness are shown to admins, and to nobody else.
func TestOtherChecks(t *testing.T) {
	p := newProgram()
	p.extra.Checks = []extensions.Check{{Name: "teams", Run: func(context.Context, *extensions.Host) extensions.Result {
		return extensions.Result{Level: extensions.Fail, Message: "one has no owner", Next: "give it one"}
	}}}
	app := p.start(t)
	_, root := app.Superuser(t)
	const shown = `{"name":"teams","level":"fail","message":"one has no owner","next":"give it one"}`
	for token, want := range map[string]bool{"": false, root: true} {
		got := app.Do(t, apptest.Request{Path: "/health", Token: token})
		if strings.Contains(string(got.Body), shown) != want || !strings.Contains(string(got.Body), `"data":{"status":"ok"`) {
			t.Errorf("%s", got.Body)
		}
	}
	if got := app.Do(t, apptest.Request{Path: "/api/v1/health/ready"}); got.Status != http.StatusOK {
		t.Errorf("readiness: %d %s", got.Status, got.Body)
	}
}

// breakWrites makes the writer's only connection refuse writes, as a disk that turned read-only does.
func breakWrites(auxiliary bool) func(testing.TB, *apptest.App, *apptest.Request) {
	return func(t testing.TB, app *apptest.App, _ *apptest.Request) {
		db := app.NonconcurrentDB()
		if auxiliary {
			db = app.AuxNonconcurrentDB()
		}
		if _, err := db.NewQuery("PRAGMA query_only = ON").Execute(); err != nil {
			t.Fatal(err)
		}
	}
}

func forgetMigration(t testing.TB, app *apptest.App, _ *apptest.Request) {
	query := "DELETE FROM _migrations WHERE file = (SELECT max(file) FROM _migrations)"
	if _, err := app.NonconcurrentDB().NewQuery(query).Execute(); err != nil {
		t.Fatal(err)
	}
}

// TestLockedDatabase holds the writer's lock: the probe must answer within its timeout, fail, hold up no other probe
// and recover once the lock is free.
func TestLockedDatabase(t *testing.T) {
	app := newProgram().start(t)
	locked, release := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		err := app.RunInTransaction(func(tx core.App) error {
			close(locked)
			<-release
			return nil
		})
		if err != nil {
			t.Errorf("transaction: %v", err)
		}
	})
	<-locked
	for range 2 { // the second finds the first check still hanging
		start := time.Now()
		got := app.Do(t, apptest.Request{Path: "/api/v1/health/ready"})
		if got.Status != http.StatusServiceUnavailable || !strings.Contains(string(got.Body), "database") {
			t.Errorf("status %d: %s", got.Status, got.Body)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("the probe took %s", took)
		}
		if live := app.Do(t, apptest.Request{Path: "/api/v1/health/live"}); live.Status != http.StatusOK {
			t.Errorf("live: %d", live.Status)
		}
		time.Sleep(1100 * time.Millisecond) // results are repeated for a second
	}
	close(release)
	holder.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for app.Do(t, apptest.Request{Path: "/api/v1/health/ready"}).Status != http.StatusOK {
		if time.Now().After(deadline) {
			t.Fatal("the probe does not recover")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestSingleFlight asks from many clients at once: the checks run once a second at most.
func TestSingleFlight(t *testing.T) {
	var runs atomic.Int64
	p := newProgram()
	p.extra.Checks = []extensions.Check{{Name: "counted", Ready: true, Run: func(context.Context, *extensions.Host) extensions.Result {
		runs.Add(1)
		time.Sleep(50 * time.Millisecond)
		return extensions.Result{}
	}}}
	app := p.start(t)
	start := time.Now()
	var clients sync.WaitGroup
	for i := range 60 {
		path := []string{"/api/v1/health/ready", "/health", "/api/v1/health"}[i%3]
		clients.Go(func() {
			if got := app.Do(t, apptest.Request{Path: path}); got.Status != http.StatusOK {
				t.Errorf("%s: %d %s", path, got.Status, got.Body)
			}
		})
	}
	clients.Wait()
	limit := int64(time.Since(start)/time.Second) + 1
	if n := runs.Load(); n < 1 || n > limit {
		t.Errorf("60 probes ran the check %d times in %s, want at most %d", n, time.Since(start), limit)
	}
	for range 2 {
		if got := app.Do(t, apptest.Request{Path: "/api/v1/health/live"}); got.Status != http.StatusOK {
			t.Error(fmt.Sprint("live: ", got.Status))
		}
	}
	before := runs.Load()
	time.Sleep(1100 * time.Millisecond)
	app.Do(t, apptest.Request{Path: "/api/v1/health/ready"})
	if runs.Load() != before+1 {
		t.Errorf("after a second the check ran %d times more, want once", runs.Load()-before)
	}
}

// TestDiskWithoutFolder holds what doctor needs: the check works offline and creates nothing.
func TestDiskWithoutFolder(t *testing.T) {
	dir := t.TempDir() + "/a/b/pb_data"
	h := &extensions.Host{App: core.NewBaseApp(core.BaseAppConfig{DataDir: dir})}
	for _, test := range []struct {
		name string
		cfg  health.Config
		want extensions.Level
	}{
		{"enough", health.Config{MinFree: 1}, extensions.OK},
		{"too little", health.Config{MinFree: 1 << 62}, extensions.Fail},
		{"off", health.Config{}, extensions.Skip},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := false
			for _, c := range health.New(test.cfg, nil, nil).Checks {
				if !c.Offline {
					continue
				}
				found = true
				if got := c.Run(t.Context(), h); got.Level != test.want {
					t.Errorf("%+v, want level %s", got, test.want)
				}
			}
			if !found {
				t.Error("no check works offline")
			}
		})
	}
}
