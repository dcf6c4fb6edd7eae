// Package metrics tells operators how the server does.
//
//   - GET /metrics, outside /api/v1, is the page that Prometheus reads: requests, errors and durations by route, the
//     numbers of every extension, the Go runtime and the process. It wants the token of the settings; without one it
//     answers only a program on the same machine that did not come through a proxy. Behind a trusted proxy a token is
//     always needed, because the proxy is on the same machine too.
//   - Traces go to an OpenTelemetry collector by OTLP over HTTP, if one is set: one span for each request, in the trace
//     that the client's traceparent names. Without a collector nothing of it runs.
//   - GET /debug/pprof/{profile}, where Go's tools look, and /api/v1/metrics/pprof/{profile} give superusers the profiles
//     of the Go runtime, if the settings allow it: profile (of the CPU, ?seconds=30), heap, allocs, goroutine and
//     threadcreate.
//
// Series by route: satchel_metrics_requests_total and satchel_metrics_request_duration_seconds with method, route, class
// (2xx) and app_version, and satchel_metrics_errors_total with method, route and status. Labels come from the server
// alone, but for the app version, of which a bounded number is told apart: what clients send cannot fill the memory.
// Requests in flight are counted by package api.
//
// Settings: SATCHEL_METRICS_*. Tables: none. Codes: metrics.*. A collector that cannot be reached costs its spans, which
// are counted in satchel_metrics_export_failures_total, and holds up no request.
package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/satchelbase/satchel/extensions"
)

// Codes of this package.
var (
	ErrTokenRequired = &extensions.Code{Name: "metrics.token_required", Status: http.StatusUnauthorized, Title: "The token for metrics is missing or wrong"}
	ErrLocalOnly     = &extensions.Code{Name: "metrics.local_only", Status: http.StatusForbidden, Title: "Without a token, metrics can be read on the server's own machine only"}
	ErrProfileBusy   = &extensions.Code{Name: "metrics.profile_busy", Status: http.StatusConflict, Title: "Another profile is being taken"}
)

// Config is read from SATCHEL_METRICS_*.
type Config struct {
	Token string `env:"TOKEN" secret:"true" help:"bearer token that may read /metrics, at least 16 characters; without one only programs on the same machine may, and behind a trusted proxy nobody"`

	OTLPEndpoint string `env:"OTLP_ENDPOINT" default:"" help:"OpenTelemetry collector that receives traces, as http://127.0.0.1:4318; empty turns traces off"`

	OTLPHeaders []string `env:"OTLP_HEADERS" secret:"true" help:"headers for the collector, as name=value,name=value"`

	OTLPRatio float64 `env:"OTLP_RATIO" default:"0.1" help:"share of requests that are traced, from 0 to 1"`

	Pprof bool `env:"PPROF" default:"false" help:"let superusers read profiles of the running program at /debug/pprof and /api/v1/metrics/pprof"`
}

// leastToken is what cannot be guessed by asking, at 4 bits a character.
const leastToken = 16

// Validate reports values that cannot work.
func (c Config) Validate() error {
	if c.Token != "" && len(c.Token) < leastToken {
		return errors.New("TOKEN: must have at least 16 characters")
	}
	if c.OTLPEndpoint != "" {
		u, err := url.Parse(c.OTLPEndpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
			return errors.New("OTLP_ENDPOINT: must be an address such as http://127.0.0.1:4318")
		}
	}
	for _, h := range c.OTLPHeaders {
		if name, _, ok := strings.Cut(h, "="); !ok || strings.TrimSpace(name) == "" {
			return errors.New("OTLP_HEADERS: must be a list such as name=value,name=value")
		}
	}
	if !(c.OTLPRatio >= 0 && c.OTLPRatio <= 1) {
		return errors.New("OTLP_RATIO: must be from 0 to 1")
	}
	return nil
}

const (
	// priority puts the middlewares outside the one that writes errors (-1100), where the status is known.
	priority = -1200

	// outermostPriority is that of a hook around the one that builds the server's handler (-9999).
	outermostPriority = -10000

	// maxScrapes bounds how many may read at once: each walks through all series.
	maxScrapes = 3
)

// New returns the extension. proxied says that requests may come through a trusted proxy. installed lists all extensions
// of the program, this one included; it must be safe for concurrent use.
func New(cfg Config, proxied bool, installed func() []extensions.Extension) extensions.Extension {
	registry := prometheus.NewRegistry()
	requests := newRequests(registry)
	registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		numbers{installed},
	)
	x := extensions.Extension{
		Name:     "metrics",
		Settings: cfg,
		Codes:    []*extensions.Code{ErrTokenRequired, ErrLocalOnly, ErrProfileBusy},
		Bind: func(h *extensions.Host) error {
			markLocal(h.App)
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			{Id: "satchelMetrics", Priority: priority, Func: requests.measure},
		},
		Serve: func(h *extensions.Host, e *core.ServeEvent) error {
			page := promhttp.HandlerFor(registry, promhttp.HandlerOpts{
				ErrorLog: errorLog{h.Logger}, ErrorHandling: promhttp.ContinueOnError,
				DisableCompression: true, MaxRequestsInFlight: maxScrapes,
			})
			a := access{token: cfg.Token, proxied: proxied}
			e.Router.GET(path, func(e *core.RequestEvent) error {
				if err := a.check(e.Request); err != nil {
					return err
				}
				page.ServeHTTP(e.Response, e.Request)
				return nil
			}).Bind(apis.SkipSuccessActivityLog())
			if cfg.Pprof { // where Go's tools look
				e.Router.GET("/debug/pprof/{profile}", profile).Bind(apis.RequireSuperuserAuth())
			}
			return nil
		},
		Metrics: []extensions.Metric{{
			Name: "satchel_metrics_series_count", Help: "Combinations of route, method, class and app version that are told apart.",
			Read: func() float64 { return float64(requests.size()) },
		}},
	}
	if cfg.Pprof {
		x.Routes = func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("/pprof/{profile}", profile).Bind(apis.RequireSuperuserAuth())
		}
	}
	if cfg.OTLPEndpoint != "" {
		t := &traces{cfg: cfg}
		// Outside the other, so that a measured request is always a traced one.
		x.Middlewares = append(x.Middlewares, &hook.Handler[*core.RequestEvent]{Id: "satchelTraces", Priority: priority - 1, Func: t.trace})
		x.Start, x.Stop = t.start, t.stop
		x.Metrics = append(x.Metrics, extensions.Metric{
			Name: "satchel_metrics_export_failures_total", Help: "Batches of spans that the collector did not take.",
			Counter: true, Read: func() float64 { return float64(t.failures.Load()) },
		})
	}
	return x
}

// numbers shows the metrics of the extensions, read when somebody asks.
type numbers struct{ installed func() []extensions.Extension }

// Describe names nothing: what is installed is known once the program is complete.
func (numbers) Describe(chan<- *prometheus.Desc) {}

// Collect reads every number.
func (n numbers) Collect(out chan<- prometheus.Metric) {
	for _, x := range n.installed() {
		for _, m := range x.Metrics {
			desc := prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
			add := func(s extensions.Sample) { out <- metric(desc, m.Counter, s) }
			if m.Series != nil {
				m.Series(add)
			} else {
				add(extensions.Sample{Value: m.Read()})
			}
		}
	}
}

// metric is a sample as the page shows it.
func metric(desc *prometheus.Desc, counter bool, s extensions.Sample) prometheus.Metric {
	kind := prometheus.GaugeValue
	if counter {
		kind = prometheus.CounterValue
	}
	made, err := prometheus.NewConstMetric(desc, kind, s.Value, s.Labels...)
	if d := s.Distribution; d != nil {
		made, err = prometheus.NewConstHistogram(desc, d.Count, d.Sum, d.Buckets, s.Labels...)
	}
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return made
}

// errorLog passes on what goes wrong while a page is made.
type errorLog struct{ logger *slog.Logger }

// Println logs one error.
func (l errorLog) Println(v ...any) {
	l.logger.LogAttrs(context.Background(), slog.LevelWarn, "metrics are incomplete", slog.Any("reason", v))
}
