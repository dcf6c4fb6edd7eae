package metrics

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// collector takes spans by OTLP, as the specification says.
type collector struct {
	*httptest.Server
	mu     sync.Mutex
	spans  []*tracepb.Span
	header http.Header
	paths  []string
	status int
}

func newCollector(t testing.TB, status int) *collector {
	c := &collector{status: status}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.header, c.paths = r.Header, append(c.paths, r.URL.Path)
		body, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Errorf("body: %v", err)
			return
		}
		raw, err := io.ReadAll(body)
		if err != nil {
			t.Errorf("body: %v", err)
			return
		}
		var export collectorpb.ExportTraceServiceRequest
		if err := proto.Unmarshal(raw, &export); err != nil {
			t.Errorf("body: %v", err)
			return
		}
		for _, resource := range export.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				c.spans = append(c.spans, scope.Spans...)
			}
		}
		w.WriteHeader(c.status)
	}))
	t.Cleanup(c.Close)
	return c
}

// traced runs requests with tracing on, ends the application, and returns the extension.
func traced(t *testing.T, c *collector, ratio float64, requests ...apptest.Request) extensions.Extension {
	t.Helper()
	o := defaults()
	o.cfg.OTLPEndpoint, o.cfg.OTLPHeaders, o.cfg.OTLPRatio = c.URL, []string{"x-key=top=secret"}, ratio
	var x extensions.Extension
	t.Run("application", func(t *testing.T) { // the spans are sent at its end
		x = New(o.cfg, false, func() []extensions.Extension { return nil })
		inner := extensions.Extension{Name: "inner", Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
			e.Router.GET("/inner/{id}", func(e *core.RequestEvent) error {
				ctx := e.Request.Context()
				_, span := trace.SpanFromContext(ctx).TracerProvider().Tracer("test").Start(ctx, "below")
				span.End()
				return e.NoContent(http.StatusNoContent)
			})
			e.Router.GET("/broken", func(*core.RequestEvent) error { panic("boom") })
			return nil
		}}
		app := apptest.New(t, api.New(o.api), x, inner)
		for _, r := range requests {
			app.Do(t, r)
		}
	})
	return x
}

func attributes(s *tracepb.Span) map[string]string {
	out := map[string]string{}
	for _, a := range s.Attributes {
		out[a.Key] = strings.Trim(strings.TrimPrefix(strings.TrimPrefix(a.Value.String(), "string_value:"), "int_value:"), `"`)
	}
	return out
}

func TestTraces(t *testing.T) {
	const traceID, parentID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	c := newCollector(t, http.StatusOK)
	traced(t, c, 1,
		apptest.Request{Path: "/inner/7?token=hidden", Header: map[string]string{
			"traceparent": "00-" + traceID + "-" + parentID + "-00", "X-Request-Id": "request-0001",
		}},
		apptest.Request{Path: "/broken", Header: map[string]string{"traceparent": "not one"}},
		apptest.Request{Path: "/api/collections/users/records/none"},
	)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.header.Get("X-Key") != "top=secret" || c.paths[0] != "/v1/traces" {
		t.Errorf("paths %v, headers %v", c.paths, c.header)
	}
	byName := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		byName[s.Name] = s
		if strings.Contains(s.String(), "hidden") {
			t.Errorf("the query is in %s", s)
		}
	}
	good, below, broken, missing := byName["GET /inner/{id}"], byName["below"], byName["GET /broken"], byName["GET /api/collections/{collection}/records/{id}"]
	if len(c.spans) != 4 || good == nil || below == nil || broken == nil || missing == nil {
		t.Fatalf("spans %v", c.spans)
	}
	if hex.EncodeToString(good.TraceId) != traceID || hex.EncodeToString(good.ParentSpanId) != parentID || good.Kind != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("the span is not in the client's trace: %s", good)
	}
	if hex.EncodeToString(below.TraceId) != traceID || string(below.ParentSpanId) != string(good.SpanId) {
		t.Errorf("the inner span is elsewhere: %s", below)
	}
	for name, want := range map[string]string{
		"http.request.method": "GET", "http.route": "/inner/{id}", "http.response.status_code": "204", "satchel.request_id": "request-0001",
	} {
		if got := attributes(good)[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if broken.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || len(broken.ParentSpanId) != 0 || attributes(broken)["http.response.status_code"] != "500" {
		t.Errorf("broken: %s", broken)
	}
	if missing.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET || attributes(missing)["http.response.status_code"] != "404" {
		t.Errorf("missing: %s", missing)
	}
}

// TestRatio shows that a client cannot have itself traced by its flag.
func TestRatio(t *testing.T) {
	c := newCollector(t, http.StatusOK)
	traced(t, c, 0, apptest.Request{Path: "/inner/7", Header: map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 0 {
		t.Errorf("spans %v", c.spans)
	}
}

func TestCollectorRefuses(t *testing.T) {
	c := newCollector(t, http.StatusBadRequest)
	x := traced(t, c, 1, apptest.Request{Path: "/inner/7"})
	for _, m := range x.Metrics {
		if m.Name == "satchel_metrics_export_failures_total" {
			if n := m.Read(); n != 1 {
				t.Errorf("%v failures", n)
			}
			return
		}
	}
	t.Error("the metric is missing")
}

// TestTracesOff: nothing is bound.
func TestTracesOff(t *testing.T) {
	x := New(defaults().cfg, false, func() []extensions.Extension { return nil })
	if len(x.Middlewares) != 1 || x.Start != nil || x.Stop != nil || len(x.Metrics) != 1 {
		t.Errorf("%d middlewares, %d metrics", len(x.Middlewares), len(x.Metrics))
	}
}
