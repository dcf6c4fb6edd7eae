package logs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/logger"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/settings"
)

const secret = "s3cr3t-v4lue"

// sink is standard error. It is safe for concurrent use.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *sink) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// lines decodes the log; every line must be a JSON object.
func (s *sink) lines(t testing.TB) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(s.text()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		out = append(out, m)
	}
	return out
}

// wait returns the first line for which ok holds.
func (s *sink) wait(t testing.TB, ok func(map[string]any) bool) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, m := range s.lines(t) {
			if ok(m) {
				return m
			}
		}
	}
	t.Fatalf("no such line in:\n%s", s.text())
	return nil
}

func isRequest(m map[string]any) bool { return m["msg"] == "request" }

// install is the extension with its host's logger writing to w.
func install(cfg logs.Config, w io.Writer) extensions.Extension {
	x := logs.New(cfg)
	log := slog.New(logs.Handler(w, cfg))
	bind, start := x.Bind, x.Start
	x.Bind = func(h *extensions.Host) error {
		h.Logger = log
		return bind(h)
	}
	x.Start = func(ctx context.Context, h *extensions.Host) error {
		h.Logger = log
		return start(ctx, h)
	}
	return x
}

func defaults() logs.Config {
	cfg := settings.Defaults[logs.Config]()
	cfg.Requests = logs.RequestsAll
	return cfg
}

// routes are handlers that end in every way a handler can.
func routes() extensions.Extension {
	problem := &extensions.Code{Name: "routes.teapot", Status: http.StatusTeapot, Title: "A teapot"}
	handlers := map[string]func(e *core.RequestEvent) error{
		"/ok":       func(e *core.RequestEvent) error { return e.String(http.StatusOK, "twelve bytes") },
		"/empty":    func(e *core.RequestEvent) error { return nil },
		"/none":     func(e *core.RequestEvent) error { return e.NoContent(http.StatusNoContent) },
		"/problem":  func(*core.RequestEvent) error { return api.Fail(problem, "short and stout") },
		"/wrapped":  func(*core.RequestEvent) error { return fmt.Errorf("brew: %w", api.Fail(problem, "")) },
		"/code":     func(*core.RequestEvent) error { return problem },
		"/stock":    func(e *core.RequestEvent) error { return e.NotFoundError("gone", nil) },
		"/plain":    func(*core.RequestEvent) error { return errors.New("dial tcp: token=" + secret) },
		"/deadline": func(*core.RequestEvent) error { return fmt.Errorf("query: %w", context.DeadlineExceeded) },
		"/panic":    func(*core.RequestEvent) error { panic("boom") },
		"/abort":    func(*core.RequestEvent) error { panic(http.ErrAbortHandler) },
		"/large": func(*core.RequestEvent) error {
			return router.NewBadRequestError("", fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 1}))
		},
		"/unauthorized": func(e *core.RequestEvent) error { return e.UnauthorizedError("", nil) },
		"/meta": func(e *core.RequestEvent) error {
			e.Set(apis.RequestEventKeyLogMeta, map[string]any{"note": "kept"})
			return e.NoContent(http.StatusNoContent)
		},
	}
	return extensions.Extension{
		Name: "routes", Codes: []*extensions.Code{problem},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			for path, h := range handlers {
				for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
					g.Route(method, path, h)
				}
			}
			g.GET("/quiet", handlers["/ok"]).Bind(apis.SkipSuccessActivityLog())
			g.GET("/quietfail", handlers["/stock"]).Bind(apis.SkipSuccessActivityLog())
		},
		Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
			for path, h := range handlers { // the same outside /api/v1, where PocketBase writes the errors
				e.Router.GET("/stock"+path, h)
			}
			return nil
		},
	}
}

func start(t testing.TB, cfg logs.Config) (*apptest.App, *sink) {
	t.Helper()
	out := &sink{}
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), install(cfg, out), routes())
	return app, out
}

// TestStatus holds that the status in the log is the one that the client saw, whoever wrote it.
func TestStatus(t *testing.T) {
	app, out := start(t, defaults())
	for _, prefix := range []string{"/api/v1/routes", "/stock"} {
		for _, path := range []string{
			"/ok", "/empty", "/none", "/problem", "/wrapped", "/code", "/stock", "/plain", "/deadline", "/panic", "/large",
			"/unauthorized", "/missing",
		} {
			t.Run(prefix+path, func(t *testing.T) {
				got := app.Do(t, apptest.Request{Path: prefix + path})
				id := got.Header.Get(api.RequestIDHeader)
				line := out.wait(t, func(m map[string]any) bool { return isRequest(m) && m["requestId"] == id })
				if line["status"] != float64(got.Status) {
					t.Errorf("the log says %v, the client got %d", line["status"], got.Status)
				}
			})
		}
	}
}

func TestLine(t *testing.T) {
	app, out := start(t, defaults())
	settings := app.Settings()
	settings.Logs.LogIP = true
	if err := app.Save(settings); err != nil {
		t.Fatal(err)
	}
	user, token := app.User(t, "ann@example.test")
	app.Do(t, apptest.Request{
		Path: "/api/v1/routes/ok?page=2&token=" + secret, Token: token,
		Header: map[string]string{"X-App-Version": "1.4.0", "X-Request-Id": "request-0123456789"},
	})
	line := out.wait(t, isRequest)
	for name, want := range map[string]any{
		"level": "INFO", "requestId": "request-0123456789", "method": "GET", "route": "GET /api/v1/routes/ok",
		"path": "/api/v1/routes/ok?page=2&token=REDACTED", "status": 200.0, "bytes": 12.0, "userId": user.Id,
		"collection": "users", "ip": "127.0.0.1", "appVersion": "1.4.0",
	} {
		if line[name] != want {
			t.Errorf("%s is %v, want %v", name, line[name], want)
		}
	}
	if ms, ok := line["durationMs"].(float64); !ok || ms < 0 || ms > 60_000 {
		t.Errorf("durationMs is %v", line["durationMs"])
	}
	if at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"])); err != nil || time.Since(at) > time.Minute || !strings.HasSuffix(fmt.Sprint(line["time"]), "Z") {
		t.Errorf("time is %v", line["time"])
	}
}

func TestLineWithoutAddress(t *testing.T) {
	app, out := start(t, defaults())
	settings := app.Settings()
	settings.Logs.LogIP = false
	if err := app.Save(settings); err != nil {
		t.Fatal(err)
	}
	app.Do(t, apptest.Request{Path: "/api/v1/routes/ok"})
	if line := out.wait(t, isRequest); line["ip"] != nil {
		t.Errorf("the address %v is logged against the admin's setting", line["ip"])
	}
}

func TestAliasPath(t *testing.T) {
	app, out := start(t, defaults())
	app.Do(t, apptest.Request{Path: "/api/v1/collections/users/records?page=1"})
	line := out.wait(t, isRequest)
	if line["path"] != "/api/v1/collections/users/records?page=1" || line["route"] != "GET /api/collections/{collection}/records" {
		t.Errorf("path %v, route %v", line["path"], line["route"])
	}
}

func TestEvents(t *testing.T) {
	login := "/api/v1/collections/users/auth-with-password"
	for _, test := range []struct {
		name    string
		request apptest.Request
		status  float64
		level   string
		event   any
		extra   map[string]any
	}{
		{
			"wrong password",
			apptest.Request{Method: "POST", Path: login, Body: map[string]string{"identity": "ann@example.test", "password": secret}},
			400, "WARN", "auth_failed",
			map[string]any{"collection": "users", "error": nil},
		},
		{
			"malformed login",
			apptest.Request{Method: "POST", Path: login, Body: `{"identity":"ann@example.test"`},
			400, "WARN", "auth_failed",
			map[string]any{"collection": "users", "error": nil},
		},
		{"right password", apptest.Request{Method: "POST", Path: login, Body: map[string]string{"identity": "ann@example.test", "password": apptest.Password}}, 200, "INFO", nil, nil},
		{"no credentials", apptest.Request{Path: "/api/v1/routes/unauthorized"}, 401, "WARN", "auth_failed", nil},
		{"superusers only", apptest.Request{Path: "/api/settings"}, 401, "WARN", "auth_failed", nil},
		{"failed write", apptest.Request{Method: "POST", Path: "/api/v1/routes/problem"}, 418, "WARN", "write_failed", map[string]any{"code": "routes.teapot"}},
		{"failed generated write", apptest.Request{Method: "POST", Path: "/api/collections/users/records", Body: `{}`}, 400, "WARN", "write_failed", nil},
		{"failed read", apptest.Request{Path: "/api/v1/routes/problem"}, 418, "INFO", nil, nil},
		{"fault in a read", apptest.Request{Path: "/api/v1/routes/plain"}, 500, "ERROR", nil, map[string]any{"error": "dial tcp: token=REDACTED"}},
		{"fault in a write", apptest.Request{Method: "DELETE", Path: "/api/v1/routes/plain"}, 500, "ERROR", "write_failed", map[string]any{"error": "dial tcp: token=REDACTED"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := defaults()
			app, out := start(t, cfg)
			app.User(t, "ann@example.test")
			app.Do(t, test.request)
			line := out.wait(t, isRequest)
			if line["status"] != test.status || line["level"] != test.level || line["event"] != test.event {
				t.Errorf("line %v, want status %v, level %s, event %v", line, test.status, test.level, test.event)
			}
			for name, want := range test.extra {
				if line[name] != want {
					t.Errorf("%s is %v, want %v", name, line[name], want)
				}
			}
			if text := out.text(); strings.Contains(text, secret) || strings.Contains(text, "ann@example.test") {
				t.Errorf("who tried, or with what, is in the log: %s", text)
			}
		})
	}
}

// TestSecondFactor holds that asking for the second factor is no failure.
func TestSecondFactor(t *testing.T) {
	app, out := start(t, defaults())
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.MFA.Enabled, users.OTP.Enabled = true, true
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	app.User(t, "ann@example.test")
	got := app.Do(t, apptest.Request{
		Method: "POST", Path: "/api/collections/users/auth-with-password",
		Body: map[string]string{"identity": "ann@example.test", "password": apptest.Password},
	})
	if got.Status != http.StatusUnauthorized || !strings.Contains(string(got.Body), "mfaId") {
		t.Fatalf("status %d: %s", got.Status, got.Body)
	}
	if line := out.wait(t, isRequest); line["event"] != nil || line["level"] != "INFO" {
		t.Errorf("line %v", line)
	}
}

func TestRequestsSetting(t *testing.T) {
	paths := []string{"/ok", "/stock", "/quiet", "/quietfail", "/unauthorized", "/plain"}
	for _, test := range []struct {
		requests string
		want     string
	}{
		{logs.RequestsAll, "/ok /stock /quietfail /unauthorized /plain"},
		{logs.RequestsErrors, "/stock /quietfail /unauthorized /plain"},
		{logs.RequestsNone, "/unauthorized /plain"},
	} {
		t.Run(test.requests, func(t *testing.T) {
			cfg := defaults()
			cfg.Requests = test.requests
			app, out := start(t, cfg)
			for _, path := range paths {
				app.Do(t, apptest.Request{Path: "/api/v1/routes" + path})
			}
			out.wait(t, func(m map[string]any) bool { return strings.HasSuffix(fmt.Sprint(m["path"]), paths[len(paths)-1]) })
			var got []string
			for _, m := range out.lines(t) {
				if isRequest(m) {
					got = append(got, strings.TrimPrefix(fmt.Sprint(m["path"]), "/api/v1/routes"))
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("lines for %v, want %s", got, test.want)
			}
		})
	}
}

func TestAbortedRequest(t *testing.T) {
	app, out := start(t, defaults())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, app.URL+"/api/v1/routes/abort", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Fatalf("the connection was not cut: %s", resp.Status)
	}
	if line := out.wait(t, isRequest); line["status"] != 499.0 {
		t.Errorf("line %v", line)
	}
}

// afterFlush is long enough for what is waiting to be stored.
const afterFlush = 1200 * time.Millisecond

// stored reads PocketBase's log after it was flushed.
func stored(t testing.TB, app *apptest.App, want int) []*core.Log {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if h, ok := app.Logger().Handler().(*logger.BatchHandler); ok {
			if err := h.WriteAll(context.WithValue(t.Context(), logger.BlockKey, true)); err != nil {
				t.Fatal(err)
			}
		}
		var rows []*core.Log
		if err := app.LogQuery().OrderBy("created", "rowid").All(&rows); err != nil {
			t.Fatal(err)
		}
		if len(rows) >= want {
			return rows
		}
	}
	t.Fatal("nothing was stored")
	return nil
}

// TestStockLog compares what is stored with what PocketBase's own activity logger stores for the same requests.
func TestStockLog(t *testing.T) {
	requests := []apptest.Request{
		{Path: "/api/v1/routes/ok?page=2&sort=-created", Header: map[string]string{"Referer": "https://app.example/list?page=1", "User-Agent": "test/1"}},
		{Path: "/api/v1/routes/quiet"},
		{Path: "/api/v1/routes/quietfail"},
		{Path: "/api/v1/routes/meta"},
		{Method: "PATCH", Path: "/api/v1/routes/stock"},
		{Path: "/api/v1/routes/deadline"},
		{Path: "/api/v1/routes/wrapped"},
		{Path: "/api/collections/users/records"},
		{Method: "POST", Path: "/api/collections/users/records", Body: `{"email":"no"}`},
	}
	record := func(t *testing.T, withLogs bool) []*core.Log {
		list := []extensions.Extension{api.New(settings.Defaults[api.Config]())}
		if withLogs {
			list = append(list, install(defaults(), io.Discard))
		}
		app := apptest.New(t, append(list, routes())...)
		settings := app.Settings()
		settings.Logs.LogIP, settings.Logs.LogAuthId = true, true
		if err := app.Save(settings); err != nil {
			t.Fatal(err)
		}
		_, token := app.User(t, "ann@example.test")
		for i, r := range requests {
			r.Token = token
			app.Do(t, r)
			if !withLogs {
				stored(t, app, max(1, i)) // one at a time, because the stock logger does not keep the order
			}
		}
		return stored(t, app, len(requests)-1)
	}
	want, got := record(t, false), record(t, true)
	if len(want) != len(got) {
		t.Fatalf("stock stores %d records, the extension %d", len(want), len(got))
	}
	for i := range want {
		w, g := want[i], got[i]
		for _, name := range []string{"execTime", "authId"} { // differ by nature
			if (w.Data[name] == nil) != (g.Data[name] == nil) {
				t.Errorf("%s: %s is %v, stock %v", w.Message, name, g.Data[name], w.Data[name])
			}
			delete(w.Data, name)
			delete(g.Data, name)
		}
		if w.Data["status"] == 0.0 { // the stock logger does not know the status of an error that is not its own
			w.Data["status"] = g.Data["status"]
		}
		if g.Data["requestId"] == "" {
			t.Errorf("%s: no requestId", w.Message)
		}
		delete(g.Data, "requestId")
		if w.Message != g.Message || w.Level != g.Level || w.Data.String() != g.Data.String() {
			t.Errorf("record %d\nstock     %d %s %s\nextension %d %s %s", i, w.Level, w.Message, w.Data, g.Level, g.Message, g.Data)
		}
	}
}

func TestStockLogSettings(t *testing.T) {
	t.Run("redacted", func(t *testing.T) {
		app, _ := start(t, defaults())
		app.Do(t, apptest.Request{
			Path:   "/api/v1/routes/plain?access_token=" + secret + "&line=a%0Ab%1b%5B31m",
			Header: map[string]string{"Referer": "https://app.example/?code=" + secret, "User-Agent": "x token=" + secret},
		})
		row := stored(t, app, 1)[0]
		if text := row.Message + row.Data.String(); strings.Contains(text, secret) {
			t.Errorf("a secret was stored: %s", text)
		}
		if strings.ContainsAny(row.Message, "\n\x1b") {
			t.Errorf("the message %q could break a line", row.Message)
		}
	})
	t.Run("no logs are kept", func(t *testing.T) {
		app, out := start(t, defaults())
		settings := app.Settings()
		settings.Logs.MaxDays = 0
		if err := app.Save(settings); err != nil {
			t.Fatal(err)
		}
		app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
		out.wait(t, isRequest)
		time.Sleep(afterFlush)
		if rows := stored(t, app, 0); len(rows) > 0 {
			t.Errorf("%d records were stored", len(rows))
		}
	})
	t.Run("ids are not logged", func(t *testing.T) {
		app, _ := start(t, defaults())
		settings := app.Settings()
		settings.Logs.LogAuthId, settings.Logs.LogIP = false, false
		if err := app.Save(settings); err != nil {
			t.Fatal(err)
		}
		_, token := app.User(t, "ann@example.test")
		app.Do(t, apptest.Request{Path: "/api/v1/routes/ok", Token: token})
		data := stored(t, app, 1)[0].Data
		if data["auth"] != "users" || data["authId"] != nil || data["userIP"] != nil || data["remoteIP"] != nil {
			t.Errorf("stored %s", data)
		}
	})
}

// TestReplacesStock is the contract with PocketBase: a middleware with the id of the activity logger takes its place.
func TestReplacesStock(t *testing.T) {
	t.Parallel()
	app, out := start(t, defaults())
	app.Do(t, apptest.Request{Path: "/api/v1/routes/ok"})
	out.wait(t, isRequest)
	time.Sleep(afterFlush) // also for the stock logger, which writes from a goroutine of its own
	if rows := stored(t, app, 1); len(rows) != 1 {
		t.Errorf("one request was stored %d times", len(rows))
	}
}

// TestMirror is the contract with PocketBase: what it logs is seen when it is stored.
func TestMirror(t *testing.T) {
	app, out := start(t, defaults())
	app.Logger().Info("not this one")
	app.Logger().Warn("cleanup failed", slog.String("url", "https://h.example/?token="+secret), slog.Any("error", errors.New("disk\nfull")))
	stored(t, app, 2)
	line := out.wait(t, func(m map[string]any) bool { return m["msg"] == "cleanup failed" })
	if line["level"] != "WARN" || line["error"] != "disk\nfull" || line["url"] != "https://h.example/?token=REDACTED" {
		t.Errorf("line %v", line)
	}
	if strings.Contains(out.text(), "not this one") {
		t.Error("a record below warnings is shown")
	}
}
