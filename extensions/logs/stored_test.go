package logs_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/cron"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/settings"
)

// count returns how many rows of the log match.
func count(t testing.TB, app core.App, where string) int {
	t.Helper()
	var n int
	if err := app.AuxDB().NewQuery("SELECT COUNT(*) FROM _logs WHERE " + where).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func metric(t testing.TB, x extensions.Extension, name string) float64 {
	t.Helper()
	for _, m := range x.Metrics {
		if m.Name == name {
			return m.Read()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// eventually waits for what happens in the background.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal(what)
}

func startWith(t testing.TB, cfg logs.Config, out io.Writer) (*apptest.App, extensions.Extension) {
	t.Helper()
	x := install(cfg, out)
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), x, routes()), x
}

// TestLogsAPI reads the rows through PocketBase's own routes, which the dashboard uses.
func TestLogsAPI(t *testing.T) {
	t.Parallel()
	app, _ := start(t, defaults())
	root, token := app.Superuser(t)
	app.Do(t, apptest.Request{Path: "/api/v1/routes/ok?page=1&name=a%20b", Token: token})
	app.Do(t, apptest.Request{Path: "/stock/stock"})
	app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	app.Logger().Warn("a record of PocketBase's own", "data", 1)
	stored(t, app, 4)

	list := func(query string) []any {
		t.Helper()
		got := app.Do(t, apptest.Request{Path: "/api/logs?sort=created&" + query, Token: token})
		if got.Status != http.StatusOK {
			t.Fatalf("%s: %d %s", query, got.Status, got.Body)
		}
		items, _ := got.JSON(t)["items"].([]any)
		return items
	}
	for _, test := range []struct {
		query string
		want  int
	}{
		{"filter=data.type%3D%22request%22", 3},
		{"filter=data.type!%3D%22request%22", 1},
		{"filter=data.status%3E%3D400", 2},
		{"filter=data.status%3C400%26%26data.type%3D%22request%22", 1},
		{"filter=data.auth%3D%22_superusers%22", 1},
		{"filter=data.execTime%3E%3D0", 3},
		{"filter=level%3E4", 2},
		{"filter=data.status%3E404", 1},
		{"filter=message~%22GET%20/stock/%25%22", 1},
		{"filter=created%3E%222020-01-01%2000:00:00.000Z%22", 4},
		{"filter=created%3E%222100-01-01%2000:00:00.000Z%22", 0},
	} {
		if items := list(test.query); len(items) != test.want {
			t.Errorf("%s finds %d, want %d: %v", test.query, len(items), test.want, items)
		}
	}
	first, _ := list("perPage=1&filter=data.type%3D%22request%22")[0].(map[string]any)
	id, _ := first["id"].(string)
	if first["message"] != "GET /api/v1/routes/ok?page=1&name=a b" || first["level"] != 0.0 || len(id) != core.DefaultIdLength {
		t.Errorf("row %v", first)
	}
	created, err := types.ParseDateTime(first["created"])
	if err != nil || time.Since(created.Time()).Abs() > time.Minute || created.String() != first["created"] {
		t.Errorf("created is %v", first["created"])
	}
	view := app.Do(t, apptest.Request{Path: "/api/logs/" + id, Token: token}).JSON(t)
	data, _ := view["data"].(map[string]any)
	if data["url"] != "/api/v1/routes/ok?page=1&name=a%20b" || data["status"] != 200.0 || data["auth"] != root.Collection().Name {
		t.Errorf("view %v", view)
	}
	var stats []struct {
		Date  string
		Total int
	}
	got := app.Do(t, apptest.Request{Path: "/api/logs/stats?filter=data.status%3E400", Token: token})
	if err := json.Unmarshal(got.Body, &stats); err != nil || len(stats) == 0 {
		t.Fatalf("stats: %s", got.Body)
	}
	total := 0
	for _, s := range stats { // two if the hour has just begun
		total += s.Total
	}
	if total != 2 {
		t.Errorf("stats %v", stats)
	}
	if got := app.Do(t, apptest.Request{Method: http.MethodDelete, Path: "/api/logs", Token: token}); got.Status != http.StatusNoContent || count(t, app, "data->>'type' = 'request'") > 0 {
		t.Errorf("truncate: %d", got.Status)
	}
	app.Do(t, apptest.Request{Path: "/stock/plain"})
	eventually(t, "nothing is stored after the logs were deleted", func() bool { return count(t, app, "data->>'type' = 'request'") == 1 })
}

func TestStorePerSecond(t *testing.T) {
	for _, test := range []struct{ rate, least, most int }{{0, 0, 0}, {2, 20, 40}, {1000, 60, 60}} {
		t.Run(fmt.Sprint(test.rate), func(t *testing.T) {
			t.Parallel()
			cfg := defaults()
			cfg.StorePerSecond = test.rate
			app, x := startWith(t, cfg, io.Discard)
			for range 60 {
				app.Do(t, apptest.Request{Path: "/api/v1/routes/ok"})
			}
			for range 30 {
				app.Do(t, apptest.Request{Path: "/api/v1/routes/stock"})
			}
			eventually(t, "not all are accounted for", func() bool {
				return metric(t, x, "satchel_logs_stored_total")+metric(t, x, "satchel_logs_skipped_total") == 90
			})
			if n := count(t, app, "data->>'status' = 404"); n != 30 {
				t.Errorf("%d of 30 failures were stored", n)
			}
			n := count(t, app, "data->>'status' = 200")
			if n < test.least || n > test.most || metric(t, x, "satchel_logs_skipped_total") != float64(60-n) {
				t.Errorf("%d successes were stored, %v skipped", n, metric(t, x, "satchel_logs_skipped_total"))
			}
		})
	}
}

// TestRetention holds that PocketBase deletes by age as it always did.
func TestRetention(t *testing.T) {
	t.Parallel()
	app, _ := start(t, defaults())
	old := func() {
		t.Helper()
		_, err := app.AuxDB().Insert("_logs", dbx.Params{
			"id": core.GenerateDefaultRandomId(), "message": "old", "data": "{}",
			"created": time.Now().UTC().AddDate(0, 0, -6).Format(types.DefaultDateLayout),
		}).Execute()
		if err != nil {
			t.Fatal(err)
		}
	}
	app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	stored(t, app, 1)

	old()
	i := slices.IndexFunc(app.Cron().Jobs(), func(j *cron.Job) bool { return j.Id() == "__pbLogsCleanup__" })
	if i < 0 {
		t.Fatal("PocketBase has no job that cleans logs")
	}
	app.Cron().Jobs()[i].Run()
	if n := count(t, app, "message = 'old'"); n != 0 {
		t.Errorf("%d old rows are left", n)
	}
	if n := count(t, app, "data->>'status' = 500"); n != 1 {
		t.Errorf("%d new rows are left", n)
	}

	old()
	changed := app.Settings()
	changed.Logs.MaxDays = 2
	changed.Logs.MinLevel = 8
	if err := app.Save(changed); err != nil {
		t.Fatal(err)
	}
	if n := count(t, app, "message = 'old'"); n != 0 {
		t.Errorf("%d old rows are left after the change of the settings", n)
	}
	app.Do(t, apptest.Request{Path: "/api/v1/routes/ok"})
	app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	eventually(t, "the second error was not stored", func() bool { return count(t, app, "data->>'status' = 500") == 2 })
	if n := count(t, app, "data->>'status' = 200"); n != 0 {
		t.Errorf("%d rows are below the level", n)
	}
}

// TestBusyDatabase holds that requests do not wait while somebody else writes auxiliary.db, and nothing is lost.
func TestBusyDatabase(t *testing.T) {
	t.Parallel()
	app, x := startWith(t, defaults(), io.Discard)
	other, err := core.DefaultDBConnect(filepath.Join(app.DataDir(), "auxiliary.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	other.DB().SetMaxOpenConns(1)
	if _, err := other.NewQuery("BEGIN IMMEDIATE").Execute(); err != nil {
		t.Fatal(err)
	}
	const n = 50
	began := time.Now()
	for range n {
		app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	}
	time.Sleep(afterFlush)
	for range n {
		app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	}
	if took := time.Since(began); took > 8*time.Second { // the busy timeout is ten
		t.Errorf("the requests took %s", took)
	}
	if got := count(t, app, "1"); got != 0 {
		t.Errorf("%d rows were written past the lock", got)
	}
	if _, err := other.NewQuery("ROLLBACK").Execute(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "rows are missing", func() bool { return count(t, app, "1") == 2*n })
	if d := metric(t, x, "satchel_logs_dropped_total"); d != 0 {
		t.Errorf("%v were dropped", d)
	}
}

// TestBrokenDatabase holds that rows that cannot be stored are counted and reported, and that the rest goes on.
func TestBrokenDatabase(t *testing.T) {
	t.Parallel()
	out := &sink{}
	app, x := startWith(t, defaults(), out)
	if _, err := app.AuxDB().NewQuery("ALTER TABLE _logs RENAME TO elsewhere").Execute(); err != nil {
		t.Fatal(err)
	}
	app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	line := out.wait(t, func(m map[string]any) bool { return m["msg"] == "requests were not stored" })
	if line["level"] != "ERROR" || !strings.Contains(fmt.Sprint(line["error"]), "_logs") {
		t.Errorf("line %v", line)
	}
	eventually(t, "the loss was not counted", func() bool { return metric(t, x, "satchel_logs_dropped_total") == 1 })
	if _, err := app.AuxDB().NewQuery("ALTER TABLE elsewhere RENAME TO _logs").Execute(); err != nil {
		t.Fatal(err)
	}
	app.Do(t, apptest.Request{Path: "/api/v1/routes/plain"})
	eventually(t, "nothing is stored any more", func() bool { return count(t, app, "1") == 1 })
}

// TestStopStoresTheRest holds that the last rows before a stop are not lost.
func TestStopStoresTheRest(t *testing.T) {
	t.Parallel()
	t.TempDir() // so that the folders are removed after the check
	var path string
	t.Cleanup(func() {
		db, err := core.DefaultDBConnect(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		var n int
		if err := db.NewQuery("SELECT COUNT(*) FROM _logs").Row(&n); err != nil || n != 350 {
			t.Errorf("%d of 350 rows were stored: %v", n, err)
		}
	})
	app, _ := startWith(t, defaults(), io.Discard)
	path = filepath.Join(app.DataDir(), "auxiliary.db")
	for range 350 {
		app.Do(t, apptest.Request{Path: "/api/v1/routes/stock"})
	}
}

// bomb cannot be logged.
type bomb struct{}

func (bomb) MarshalJSON() ([]byte, error) { panic("boom") }

// refused can only be logged as text.
type refused struct{}

func (refused) MarshalJSON() ([]byte, error) { return nil, errors.New("no JSON") }

// TestStrangeRequests stores what handlers and clients can make difficult.
func TestStrangeRequests(t *testing.T) {
	t.Parallel()
	strange := extensions.Extension{Name: "strange", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		meta := func(v any) func(*core.RequestEvent) error {
			return func(e *core.RequestEvent) error {
				e.Set(apis.RequestEventKeyLogMeta, v)
				return e.NoContent(http.StatusNoContent)
			}
		}
		g.GET("/bomb", meta(bomb{}))
		g.GET("/refused", meta(refused{}))
		g.GET("/large", meta(strings.Repeat("x", 20_000)))
		g.GET("/deep", meta(json.RawMessage(strings.Repeat("[", 3000)+strings.Repeat("]", 3000))))
		g.GET("/bytes", meta("a\xff\x00\u2028\"\\"))
		g.GET("/ok", meta(map[string]any{"error": errors.New("gone")}))
	}}
	x := install(defaults(), io.Discard)
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), x, strange)
	for _, path := range []string{"bomb", "refused", "large", "deep", "bytes", "ok"} {
		app.Do(t, apptest.Request{Path: "/api/v1/strange/" + path, Header: map[string]string{"User-Agent": "\"\\\xff" + strings.Repeat("é", 3000)}})
	}
	eventually(t, "the last was not stored", func() bool { return count(t, app, "message LIKE '%/ok'") == 1 })
	if d := metric(t, x, "satchel_logs_dropped_total"); d != 1 { // the bomb
		t.Errorf("%v were dropped", d)
	}
	if n := count(t, app, "NOT json_valid(data)"); n != 0 {
		t.Errorf("%d rows are not JSON", n)
	}
	for path, want := range map[string]string{
		"refused": `data->>'meta' LIKE 'cannot be shown%'`,
		"large":   `data->>'__pb_truncated__' AND data->>'meta' IS NULL AND data->>'status' = 204`,
		"deep":    `data->>'meta' LIKE 'cannot be shown%'`,
		"bytes":   `length(data) > 0 AND data->>'__pb_truncated__' IS NULL`,
		"ok":      `data->>'meta' = '{"error":"gone"}' AND length(data->>'userAgent') < 2010`,
	} {
		if n := count(t, app, "message LIKE '%/"+path+"' AND "+want); n != 1 {
			var data []string
			_ = app.AuxDB().NewQuery("SELECT substr(data, 1, 500) FROM _logs WHERE message LIKE '%/" + path + "'").Column(&data)
			t.Errorf("%s is not stored as %s: %s", path, want, data)
		}
	}
	changed := app.Settings()
	changed.Logs.MaxDataSize = 120
	if err := app.Save(changed); err != nil {
		t.Fatal(err)
	}
	app.Do(t, apptest.Request{Path: "/api/v1/strange/missing"})
	eventually(t, "a truncated row was not stored", func() bool {
		return count(t, app, `data->>'status' = 404 AND data->>'__pb_truncated__' AND length(data) <= 150 AND data->>'userAgent' IS NULL`) == 1
	})
}

// TestConcurrency counts every request of many clients, with readers of the log beside them.
func TestConcurrency(t *testing.T) {
	cfg := defaults()
	cfg.StorePerSecond = 1_000_000
	app, x := startWith(t, cfg, io.Discard)
	_, token := app.Superuser(t)
	const clients, each = 8, 100
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			for j := range each {
				app.Do(t, apptest.Request{Path: fmt.Sprintf("/api/v1/routes/%s?n=%d-%d", []string{"ok", "plain", "meta"}[j%3], i, j)})
			}
		})
	}
	group.Go(func() {
		for range 20 {
			app.Do(t, apptest.Request{Path: "/api/logs?filter=data.status%3E400", Token: token})
		}
	})
	group.Wait()
	eventually(t, "requests are missing", func() bool { return metric(t, x, "satchel_logs_stored_total") == clients*each })
	var distinct int
	if err := app.AuxDB().NewQuery("SELECT COUNT(DISTINCT data->>'url') FROM _logs").Row(&distinct); err != nil || distinct != clients*each {
		t.Errorf("%d different requests are stored: %v", distinct, err)
	}
	// A mix of two requests in one row would show here.
	if n := count(t, app, "NOT ((data->>'url' LIKE '%/plain?%') = (data->>'status' = 500) AND (data->>'url' LIKE '%/meta?%') = (data->>'meta' IS NOT NULL))"); n != 0 {
		t.Errorf("%d rows mix requests", n)
	}
}
