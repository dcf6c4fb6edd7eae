// Package health tells load balancers and operators how the server is.
//
//   - GET /api/v1/health/live answers 200 as long as the process answers at all; restart on failure.
//   - GET /api/v1/health/ready answers 200 when requests can be served, else 503 health.not_ready with the names of the
//     checks that fail; send no traffic on failure.
//   - GET /api/v1/health, and the same at /health, is the summary. Everybody sees the status, whether the database works,
//     the time and the version; admins also see uptime, memory, every readiness check and the metrics of all
//     extensions.
//
// Readiness is every check with Ready of the installed extensions; this one brings the database, the disk and the
// migrations. They run together, at most once a second however often somebody asks, and one that does not return in
// two seconds has failed. PocketBase's own /api/health is not touched.
//
// Settings: SATCHEL_HEALTH_*. Tables: none.
package health

import (
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/settings"
)

// ErrNotReady is the answer of the readiness probe while a check fails.
var ErrNotReady = &extensions.Code{
	Name: "health.not_ready", Status: http.StatusServiceUnavailable, Title: "The server is not ready for requests",
}

// Config is read from SATCHEL_HEALTH_*.
type Config struct {
	MinFree settings.Bytes `env:"MIN_FREE" default:"100MB" help:"free space of the data folder's disk below which the server is not ready; 0 turns the check off"`
}

// service holds what the routes need.
type service struct {
	installed func() []extensions.Extension
	may       func(e *core.RequestEvent, role string) error
	host      *extensions.Host
	started   atomic.Int64 // Unix nanoseconds
	probe     *probe
	others    *probe // of the checks that do not decide, for admins
}

// New returns the extension. installed lists all extensions of the program, this one included; it must be safe for
// concurrent use. may is nil for whoever has the role; without it, superusers have every role.
func New(cfg Config, installed func() []extensions.Extension, may func(e *core.RequestEvent, role string) error) extensions.Extension {
	if may == nil {
		may = api.SuperusersOnly
	}
	s := &service{installed: installed, may: may}
	return extensions.Extension{
		Name:     "health",
		Settings: cfg,
		Codes:    []*extensions.Code{ErrNotReady},
		Checks:   ownChecks(cfg),
		Bind: func(h *extensions.Host) error {
			s.host = h
			s.probe, s.others = newProbe(h, s.checks(true)), newProbe(h, s.checks(false))
			return nil
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			// Probes come every few seconds: only their failures are worth a line in the log.
			g.Bind(apis.SkipSuccessActivityLog())
			g.GET("", s.summary)
			g.GET("/live", s.live)
			g.GET("/ready", s.ready)
		},
		Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
			s.started.Store(time.Now().UnixNano())
			e.Router.GET("/health", s.summary).Bind(apis.SkipSuccessActivityLog())
			return nil
		},
	}
}

// checks returns those that decide about readiness, or the others, in the order of the extensions.
func (s *service) checks(ready bool) func() []extensions.Check {
	return func() []extensions.Check {
		var out []extensions.Check
		for _, x := range s.installed() {
			for _, c := range x.Checks {
				if c.Ready == ready {
					out = append(out, c)
				}
			}
		}
		return out
	}
}

type stateJSON struct {
	Status string `json:"status"`
}

// live answers without looking at anything: what it proves is that the process answers.
func (s *service) live(e *core.RequestEvent) error {
	noStore(e)
	return api.Write(e, http.StatusOK, stateJSON{Status: statusOK})
}

func (s *service) ready(e *core.RequestEvent) error {
	noStore(e)
	failing := failed(s.probe.results(e.Request.Context()))
	if len(failing) == 0 {
		return api.Write(e, http.StatusOK, stateJSON{Status: statusOK})
	}
	p := api.Fail(ErrNotReady, "failing checks: "+strings.Join(failing, ", "))
	p.RetryAfter = retryAfter
	for _, name := range failing {
		p.Errors = append(p.Errors, api.FieldError{Field: name, Code: ErrNotReady.Name, Message: "the check fails"})
	}
	return p
}

// retryAfter is short: what makes a server unready for longer is not mended by waiting.
const retryAfter = 5 * time.Second

func noStore(e *core.RequestEvent) { e.Response.Header().Set("Cache-Control", "no-store") }
