//go:build unix

package sessions_test

import (
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
)

// BenchmarkAuthenticated is what a request pays for its token, from the outer handler to a route that does nothing: with
// a remembered token, and with one that is verified each time. cpu-ns/op is processor time of the whole process, which
// others on the machine disturb less than the time on the wall.
//
//	go test -run '^$' -bench Authenticated ./extensions/sessions
func BenchmarkAuthenticated(b *testing.B) {
	for _, cache := range []struct {
		name string
		size int
	}{{"remembered", settings.Defaults[authcache.Config]().Size}, {"verified", 0}} {
		var h http.Handler
		f := build(b, settings.Defaults[sessions.Config](), authcache.Config{Size: cache.size}, extensions.Extension{
			Name:    "outermost",
			Handler: func(next http.Handler) http.Handler { h = next; return next },
			Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
				g.GET("", func(e *core.RequestEvent) error {
					if e.Auth == nil {
						return e.NoContent(http.StatusForbidden)
					}
					return e.NoContent(http.StatusNoContent)
				})
			},
		})
		f.Settings().Logs.MaxDays = 0
		f.User(b, email)
		g := f.signIn(b, nil)
		for _, token := range []struct{ kind, text string }{{"access", g.AccessToken}, {"stock", g.Stock}} {
			b.Run(cache.name+"/"+token.kind, func(b *testing.B) {
				r := httptest.NewRequest(http.MethodGet, "/api/v1/outermost", nil)
				r.Header.Set("Authorization", token.text)
				b.ReportAllocs()
				before := processorTime(b)
				for b.Loop() {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, r)
					if w.Code != http.StatusNoContent {
						b.Fatalf("%d %s", w.Code, w.Body)
					}
				}
				b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// processorTime is what all threads of the process have used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
