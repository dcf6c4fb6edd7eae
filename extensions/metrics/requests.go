package metrics

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/satchelbase/satchel/extensions/api"
)

// maxSeries bounds the combinations of labels. Each is a counter and a histogram, about 1 KB in memory and 2 KB on the
// page; past the bound a combination that is new counts for the app version "other".
const maxSeries = 2000

// statusClientGone is nginx's number for a client that did not wait.
const statusClientGone = 499

// requests counts and times requests. It is safe for concurrent use.
type requests struct {
	total   *prometheus.CounterVec
	errors  *prometheus.CounterVec
	seconds *prometheus.HistogramVec

	versions versions

	// series holds what a vector would look up by hashing its labels, resolved once.
	mu     sync.RWMutex
	series map[labels]*series
}

// labels tell a series from the others. All values are bounded: the pattern and class by the program, the method by
// [methodOf], the version by [versions].
type labels struct {
	pattern, method, version string
	class                    int
}

type series struct {
	total   prometheus.Counter
	seconds prometheus.Observer
}

// durations are the upper bounds of the histogram: from a read by key to a request at the deadline.
func durations() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

func newRequests(registry *prometheus.Registry) *requests {
	by := []string{"method", "route", "class", "app_version"}
	m := &requests{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "satchel_metrics_requests_total", Help: "Requests that were answered.",
		}, by),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "satchel_metrics_errors_total", Help: "Requests that were answered with a status of 400 or more.",
		}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "satchel_metrics_request_duration_seconds", Help: "Time from the start of a request to the end of its answer.", Buckets: durations(),
		}, by),
		series: map[labels]*series{},
	}
	registry.MustRegister(m.total, m.errors, m.seconds)
	return m
}

// measure is the middleware.
func (m *requests) measure(e *core.RequestEvent) error {
	start, pattern, status := time.Now(), e.Request.Pattern, statusClientGone
	// Deferred, because a handler may end the connection with a panic.
	defer func() { m.observe(e, pattern, status, time.Since(start)) }()
	err := e.Next()
	status = statusOf(e, err)
	return err
}

func (m *requests) observe(e *core.RequestEvent, pattern string, status int, took time.Duration) {
	key := labels{
		pattern: pattern, method: methodOf(e.Request.Method), class: status / 100,
		version: m.versions.label(e.Request.Header.Get(api.AppVersionHeader), e.Auth != nil && status < http.StatusBadRequest),
	}
	s := m.of(key)
	s.total.Inc()
	s.seconds.Observe(took.Seconds())
	if status >= http.StatusBadRequest {
		m.errors.WithLabelValues(key.method, routeOf(pattern), strconv.Itoa(status)).Inc()
	}
}

// of finds the series of the labels or makes it.
func (m *requests) of(key labels) *series {
	m.mu.RLock()
	s, full := m.series[key], len(m.series) >= maxSeries
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	if full && key.version != otherVersion {
		key.version = otherVersion
		return m.of(key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s = m.series[key]; s == nil {
		values := []string{key.method, routeOf(key.pattern), strconv.Itoa(key.class) + "xx", key.version}
		s = &series{total: m.total.WithLabelValues(values...), seconds: m.seconds.WithLabelValues(values...)}
		m.series[key] = s
	}
	return s
}

func (m *requests) size() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.series)
}

// routeOf is the pattern of a route without its method.
func routeOf(pattern string) string {
	if _, route, ok := strings.Cut(pattern, " "); ok {
		return route
	}
	return pattern
}

// methodOf bounds what a client can make up on a route that takes every method.
func methodOf(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

// statusOf is the status that was sent or, below /api where PocketBase writes errors after all middlewares, the one that
// will be.
func statusOf(e *core.RequestEvent, err error) int {
	sent := e.Status()
	switch {
	case sent != 0:
		return sent
	case errors.Is(err, http.ErrAbortHandler), errors.Is(e.Request.Context().Err(), context.Canceled):
		return statusClientGone
	case err != nil:
		return router.ToApiError(err).Status
	}
	return http.StatusOK
}
