//go:build unix

package logs_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/logs"
)

// BenchmarkRequest is what a request costs beside PocketBase's activity logger: wait-ns/op is what the request itself
// waits for, cpu-ns/op and the allocations are all work until it is written and stored.
//
//	go test -run '^$' -bench Request -benchtime 20000x ./extensions/logs
func BenchmarkRequest(b *testing.B) {
	b.Run("nothing", func(b *testing.B) {
		measure(b, apptest.New(b), func(e *core.RequestEvent) error { return e.Next() }, nil)
	})
	b.Run("pocketbase", func(b *testing.B) {
		app := apptest.New(b)
		r, err := apis.NewRouter(app)
		if err != nil {
			b.Fatal(err)
		}
		i := slices.IndexFunc(r.Middlewares, func(m *hook.Handler[*core.RequestEvent]) bool {
			return m.Id == apis.DefaultActivityLoggerMiddlewareId
		})
		measure(b, app, r.Middlewares[i].Func, func() (n float64) {
			if err := app.AuxDB().NewQuery("SELECT COALESCE(MAX(rowid), 0) FROM _logs").Row(&n); err != nil {
				b.Fatal(err)
			}
			return n
		})
	})
	busy, lines, rows := defaults(), defaults(), defaults()
	lines.StorePerSecond = 0
	rows.Requests, rows.StorePerSecond = logs.RequestsNone, 1_000_000
	for _, test := range []struct {
		name string
		cfg  logs.Config
	}{{"satchel", busy}, {"satchel-lines-only", lines}, {"satchel-all-rows-only", rows}} {
		b.Run(test.name, func(b *testing.B) {
			x := install(test.cfg, io.Discard)
			app := apptest.New(b, x)
			measure(b, app, x.Middlewares[0].Func, func() (n float64) {
				for _, m := range x.Metrics {
					n += m.Read()
				}
				return n
			})
			if n := x.Metrics[0].Read(); n > 0 {
				b.Errorf("%v were dropped", n)
			}
		})
	}
}

// measure sends bursts that fill whole batches and waits, after each, until done has counted them.
func measure(b *testing.B, app *apptest.App, middleware func(*core.RequestEvent) error, done func() float64) {
	const burst = 1000
	user, _ := app.User(b, "ann@example.test")
	r := httptest.NewRequest(http.MethodGet, "/api/collections/notes/records?page=2&perPage=30&sort=-updated", nil)
	r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36")
	r.Pattern = "GET /api/collections/{collection}/records"
	w := httptest.NewRecorder()
	chain := hook.Hook[*core.RequestEvent]{}
	chain.BindFunc(middleware)
	var wait time.Duration
	b.ReportAllocs()
	before := cpu(b)
	b.ResetTimer()
	for sent := 0; sent < b.N; {
		start := time.Now()
		for range burst {
			e := &core.RequestEvent{App: app, Auth: user}
			e.Request, e.Response = r, &router.ResponseWriter{ResponseWriter: w}
			if err := chain.Trigger(e, answer); err != nil {
				b.Fatal(err)
			}
		}
		sent += burst
		wait += time.Since(start)
		for done != nil && done() < float64(sent) && time.Since(start) < 3*time.Second {
			time.Sleep(20 * time.Millisecond)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(wait.Nanoseconds())/float64(b.N), "wait-ns/op")
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
	b.ReportMetric(0, "ns/op") // holds the pauses
}

func answer(e *core.RequestEvent) error {
	e.Response.WriteHeader(http.StatusNoContent)
	return nil
}

// cpu is the time that all threads of the process have used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
