package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

const (
	// queueSize is how many finished spans wait for the collector, some 2 MB; more are dropped.
	queueSize = 2048

	// exportTimeout and retryTime bound one batch: a collector that is restarted loses nothing, one that is gone costs
	// no more than the queue.
	exportTimeout = 5 * time.Second
	retryTime     = 30 * time.Second

	// tracesPath is where collectors listen (OTLP specification, section OTLP/HTTP request).
	tracesPath = "/v1/traces"
)

// traces sends a span for every sampled request. Whether one is sampled depends on the id of its trace and the ratio
// alone: the flag that a client sends is not obeyed, or anybody could have everything traced.
type traces struct {
	cfg      Config
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	failures atomic.Uint64
}

// start makes the exporter. It runs before the server listens; nothing is sent until there are spans.
func (t *traces) start(ctx context.Context, h *extensions.Host) error {
	endpoint, err := url.Parse(t.cfg.OTLPEndpoint)
	if err != nil {
		return fmt.Errorf("parse OTLP endpoint: %w", err)
	}
	if strings.TrimSuffix(endpoint.Path, "/") == "" {
		endpoint.Path = tracesPath
	}
	headers := map[string]string{}
	for _, pair := range t.cfg.OTLPHeaders {
		name, value, _ := strings.Cut(pair, "=")
		headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	out, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(endpoint.String()), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression), otlptracehttp.WithTimeout(exportTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: exportTimeout, MaxElapsedTime: retryTime,
		}))
	if err != nil {
		return fmt.Errorf("make OTLP exporter: %w", err)
	}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(reporting{out, h.Logger, &t.failures}, sdktrace.WithMaxQueueSize(queueSize)),
		sdktrace.WithSampler(sdktrace.TraceIDRatioBased(t.cfg.OTLPRatio)),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "satchel"), attribute.String("service.version", h.Version),
		)))
	t.tracer = t.provider.Tracer("github.com/satchelbase/satchel/extensions/metrics")
	return nil
}

// stop sends what is waiting. Another extension may have failed to start before this one did.
func (t *traces) stop(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send last spans: %w", err)
	}
	return nil
}

// trace is the middleware. Handlers find the span in the context of the request and can begin others below it.
func (t *traces) trace(e *core.RequestEvent) error {
	r := e.Request
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := t.tracer.Start(ctx, r.Pattern, trace.WithSpanKind(trace.SpanKindServer))
	defer span.End()
	e.Request = r.WithContext(ctx)
	err := e.Next()
	if !span.IsRecording() {
		return err
	}
	status := statusOf(e, err)
	span.SetAttributes(
		attribute.String("http.request.method", methodOf(r.Method)), attribute.String("http.route", routeOf(r.Pattern)),
		attribute.Int("http.response.status_code", status), attribute.String("satchel.request_id", api.RequestOf(ctx).ID),
	)
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
	return err
}

// reporting keeps failures of the exporter away from the OpenTelemetry library, which would print them on its own.
type reporting struct {
	sdktrace.SpanExporter
	logger   *slog.Logger
	failures *atomic.Uint64
}

// ExportSpans sends one batch.
func (r reporting) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := r.SpanExporter.ExportSpans(ctx, spans); err != nil {
		r.failures.Add(1)
		r.logger.LogAttrs(ctx, slog.LevelWarn, "traces were not sent", slog.Int("spans", len(spans)), slog.Any("error", err))
	}
	return nil
}
