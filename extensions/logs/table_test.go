package logs

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

func newTable(t testing.TB, maxSize int64) (*table, *apptest.App) {
	t.Helper()
	app := apptest.New(t)
	host := &extensions.Host{App: app, Logger: slog.New(slog.DiscardHandler)}
	return &table{host: host, maxSize: maxSize, stored: &atomic.Uint64{}, lost: &atomic.Uint64{}}, app
}

func rowCount(t testing.TB, app core.App, where string) int {
	t.Helper()
	var n int
	if err := app.AuxDB().NewQuery("SELECT COUNT(*) FROM _logs WHERE " + where).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestBatches holds that rows are written 200 at a time, all or none, and the rest at the next tick.
func TestBatches(t *testing.T) {
	table, app := newTable(t, 0)
	for i := range 450 {
		table.add(t.Context(), &entry{at: time.Now(), method: http.MethodGet, url: "/x", status: 200})
		if want := (i + 1) / maxRows * maxRows; rowCount(t, app, "1") != want {
			t.Fatalf("%d rows after %d requests, want %d", rowCount(t, app, "1"), i+1, want)
		}
	}
	table.tick(t.Context())
	if n := rowCount(t, app, "1"); n != 450 || table.stored.Load() != 450 || table.lost.Load() != 0 {
		t.Errorf("%d rows, %d counted, %d lost", n, table.stored.Load(), table.lost.Load())
	}
	table.tick(t.Context())
	if n := rowCount(t, app, "1"); n != 450 {
		t.Errorf("a tick without rows made %d of 450", n)
	}
	if n := rowCount(t, app, "id IN (SELECT id FROM _logs GROUP BY id HAVING COUNT(*) > 1) OR length(id) <> 15"); n != 0 {
		t.Errorf("%d ids are wrong", n)
	}
}

// fill adds rows of about a kilobyte each, the oldest first, numbered from 0.
func fill(t testing.TB, app core.App, rows int) {
	t.Helper()
	_, err := app.AuxDB().NewQuery(`WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < {:last})
INSERT INTO _logs (id, message, data) SELECT printf('row%012d', i), i, json_object('pad', hex(randomblob(500))) FROM n`).
		Bind(dbx.Params{"last": rows - 1}).Execute()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMaxSize(t *testing.T) {
	t.Run("oldest rows go", func(t *testing.T) {
		const limit = 3_000_000
		table, app := newTable(t, limit)
		fill(t, app, 8000)
		if size, err := table.size(t.Context()); err != nil || size < 2*limit {
			t.Fatalf("the file has %d bytes: %v", size, err)
		}
		for range 100 {
			if table.tick(t.Context()); !table.over {
				break
			}
		}
		size, err := table.size(t.Context())
		if err != nil || size > limit*trimTarget || size < limit/2 {
			t.Errorf("%d bytes are left: %v", size, err)
		}
		left := rowCount(t, app, "1")
		if newest := rowCount(t, app, "CAST(message AS INTEGER) >= 8000 - "+numeral(left)); left < 1000 || newest != left {
			t.Errorf("of %d rows that are left %d are the newest", left, newest)
		}
		// What was freed is filled again.
		fillAgain := size
		table.checkedAt = time.Time{}
		table.add(t.Context(), &entry{at: time.Now(), status: 500, method: "GET", url: "/new"})
		table.tick(t.Context())
		if size, err = table.size(t.Context()); err != nil || size > fillAgain+100_000 || rowCount(t, app, "message = 'GET /new'") != 1 {
			t.Errorf("%d bytes after a new row: %v", size, err)
		}
	})
	t.Run("not more than once a minute", func(t *testing.T) {
		table, app := newTable(t, leastMaxSize)
		now := time.Now()
		if err := table.trim(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		fill(t, app, 3000)
		if err := table.trim(t.Context(), now.Add(checkInterval-time.Second)); err != nil || rowCount(t, app, "1") != 3000 {
			t.Errorf("rows were deleted before a minute had passed: %v", err)
		}
		table.checkedAt = time.Now().Add(-checkInterval)
		if err := table.trim(t.Context(), time.Now()); err != nil || rowCount(t, app, "1") == 3000 {
			t.Errorf("no rows were deleted after a minute: %v", err)
		}
	})
	t.Run("something else fills the file", func(t *testing.T) {
		table, app := newTable(t, leastMaxSize)
		fill(t, app, 1700)
		for _, sql := range []string{"CREATE TABLE other (data BLOB)", "INSERT INTO other VALUES (zeroblob(5000000))"} {
			if _, err := app.AuxDB().NewQuery(sql).Execute(); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			table.tick(t.Context())
		}
		if n := rowCount(t, app, "1"); n != keptRows || table.over {
			t.Errorf("%d rows are left, more to delete: %t", n, table.over)
		}
	})
	t.Run("no limit", func(t *testing.T) {
		table, app := newTable(t, 0)
		fill(t, app, 3000)
		table.tick(t.Context())
		if n := rowCount(t, app, "1"); n != 3000 {
			t.Errorf("%d rows are left", n)
		}
	})
}

func numeral(n int) string {
	text, _ := json.Marshal(n)
	return string(text)
}

// TestOverflow holds that the last places in a full queue are for failures.
func TestOverflow(t *testing.T) {
	q := newQueue()
	ok, bad := &entry{status: http.StatusOK}, &entry{status: http.StatusBadGateway}
	for i := range 2 * queueSize {
		if kept := q.push(ok); kept != (i < successLimit) {
			t.Fatalf("success %d: kept %t", i, kept)
		}
	}
	for i := range queueSize {
		if kept := q.push(bad); kept != (i < queueSize-successLimit) {
			t.Fatalf("failure %d: kept %t", i, kept)
		}
	}
	if n := q.dropped.Load(); n != 3*queueSize-queueSize {
		t.Errorf("%d were counted as dropped", n)
	}
	failed := 0
	go q.run(time.Hour, func(x *entry) {
		if x.failed() {
			failed++
		}
	}, func() {})
	if err := q.close(t.Context()); err != nil || failed != queueSize-successLimit {
		t.Errorf("%d failures were kept: %v", failed, err)
	}
}

func TestSample(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	take := func(s *sample, n int, at time.Time) (taken int) {
		for range n {
			if s.take(at) {
				taken++
			}
		}
		return taken
	}
	s := &sample{rate: 5}
	for _, step := range []struct {
		after   time.Duration
		n, want int
	}{
		{0, 100, 50}, // the first burst
		{100 * time.Millisecond, 100, 0},
		{200 * time.Millisecond, 100, 1},
		{time.Second, 100, 4},
		{2 * time.Second, 3, 3},
		{time.Hour, 1000, 50}, // a pause saves ten seconds' worth
		{time.Minute, 1, 0},   // a clock that goes back gives nothing
	} {
		if got := take(s, step.n, now.Add(step.after)); got != step.want {
			t.Errorf("after %s: %d of %d, want %d", step.after, got, step.n, step.want)
		}
	}
	if got := take(&sample{}, 10, now); got != 0 {
		t.Errorf("a rate of 0 lets %d through", got)
	}
}

func TestFailed(t *testing.T) {
	for _, test := range []struct {
		x    entry
		want bool
	}{
		{entry{status: 200}, false},
		{entry{status: 304}, false},
		{entry{status: 400}, true},
		{entry{status: statusClientGone}, true},
		{entry{status: 503}, true},
		{entry{status: 200, err: errors.New("after the answer had begun")}, true},
	} {
		if got := test.x.failed(); got != test.want {
			t.Errorf("%+v: %t", test.x, got)
		}
	}
}

func TestPathAndQuery(t *testing.T) {
	for in, want := range map[string]string{
		"/":                      "/",
		"/a/b?c=d&e=%20":         "/a/b?c=d&e=%20",
		"/a%2Fb?c":               "/a%2Fb?c",
		"//host/a":               "//host/a",
		"http://user@host/a?b=c": "/a?b=c",
		"/a#b":                   "/a%23b",
		"/\xc3\xa9?q=\xc3\xa9":   "/%C3%A9?q=\xc3\xa9",
		"/\"<>":                  "/%22%3C%3E",
		"/é" + "%4...":           "/é%4...",
		"*":                      "*",
		"":                       "",
	} {
		if got := pathAndQuery(in); got != want {
			t.Errorf("pathAndQuery(%q) is %q, want %q", in, got, want)
		}
	}
}

// TestRequestLine holds that a long target is not kept in memory by what is copied from it.
func TestRequestLine(t *testing.T) {
	for _, test := range []struct{ method, target, wantMethod, wantTarget string }{
		{"GET", "/a", "GET", "/a"},
		{"get", "/a", "GET", "/a"},
		{"PROPFIND", "/a", "PROPFIND", "/a"},
		{strings.Repeat("M", 60), "/a", strings.Repeat("M", 50) + "...", "/a"},
		{"POST", "/" + strings.Repeat("a", 5000), "POST", "/" + strings.Repeat("a", 2999) + "..."},
	} {
		method, target := requestLine(&http.Request{Method: test.method, RequestURI: test.target})
		if method != test.wantMethod || target != test.wantTarget {
			t.Errorf("%s %s: %s %s", test.method, test.target, method, target)
		}
	}
}

// TestAllocations holds what a request pays: one allocation, for the writer that counts the bytes.
func TestAllocations(t *testing.T) {
	app := apptest.New(t)
	user, _ := app.User(t, "ann@example.test")
	p := newPipeline(settings.Defaults[Config]())
	for p.lines.push(&entry{}) { // from now on entries come back at once
	}
	chain := func(handlers ...func(*core.RequestEvent) error) float64 {
		h := hook.Hook[*core.RequestEvent]{}
		for _, f := range handlers {
			h.BindFunc(f)
		}
		r := httptest.NewRequest(http.MethodGet, "/api/collections/notes/records?page=2", nil)
		r.Header.Set("User-Agent", "test")
		w := httptest.NewRecorder()
		return testing.AllocsPerRun(1000, func() {
			e := &core.RequestEvent{App: app, Auth: user}
			e.Request, e.Response = r, &router.ResponseWriter{ResponseWriter: w}
			if err := h.Trigger(e, func(*core.RequestEvent) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	without := chain(func(e *core.RequestEvent) error { return e.Next() })
	with := chain(p.middleware().Func)
	if with-without > 2 { // the race detector makes pools forget
		t.Errorf("a request allocates %v times, %v without the log", with, without)
	}
}

// FuzzData holds that every row is a JSON object within the limit whose texts are those of the request.
func FuzzData(f *testing.F) {
	f.Add("/x?a=b", "agent", "cause", int64(0))
	f.Add("\x00\xff\u2028\"\\<>&", "\xed\xa0\x80", "\n", int64(200))
	f.Add("/"+strings.Repeat("\"", 3000), strings.Repeat("\x01", 2000), strings.Repeat("é", 5000), int64(16_000))
	f.Fuzz(func(t *testing.T, target, agent, cause string, limit int64) {
		x := &entry{at: time.Now(), url: target, userAgent: agent, err: errors.New(cause), status: 500, method: "GET", meta: map[string]any{cause: target}}
		cfg := core.LogsConfig{MaxDataSize: max(0, limit)}
		raw := x.appendData(nil, cfg)
		var got map[string]any
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		most := maxData
		if limit > 0 {
			most = int(limit)
		}
		if len(raw) > most+len(`,"":true}`)+len(truncatedField)+1 {
			t.Errorf("%d bytes, the limit is %d", len(raw), most)
		}
		for name, want := range map[string]string{"url": target, "userAgent": agent, "error": redactText(cause)} {
			if have, ok := got[name]; ok && have != strings.ToValidUTF8(want, "\ufffd") && have != want {
				// Each byte that is not UTF-8 has a replacement of its own.
				if s, _ := have.(string); strings.ReplaceAll(s, "\ufffd", "") != strings.ReplaceAll(strings.ToValidUTF8(want, ""), "\ufffd", "") {
					t.Errorf("%s is %q, want %q", name, have, want)
				}
			} else if !ok && got[truncatedField] != true {
				t.Errorf("%s is missing", name)
			}
		}
	})
}
