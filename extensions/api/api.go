// Package api holds the HTTP conventions of everything below /api/v1: request ids, the envelope and its errors
// (RFC 9457), validators, limits in size and time, the app-version gate, and the alias that serves PocketBase's
// generated API as /api/v1/{collections,files,batch,realtime}. Paths below /api stay as PocketBase answers them; only
// headers are added.
//
// Settings: SATCHEL_API_*. Tables: none. A request that fails a convention gets a problem with an api.* code.
package api

import (
	"net/http"
	"sync/atomic"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
)

// Priorities of the middlewares; PocketBase's own are -1041 (CORS), -1040 (request log), -1020 (token) and -990 (body limit).
const (
	errorsPriority      = -1100
	versionGatePriority = -960

	// drainPriority runs before PocketBase's shutdown of the server (-9999), which waits for one second only.
	drainPriority = -10000
)

// exposedHeaders are what a web app in another origin may read.
func exposedHeaders() []string {
	return []string{
		"ETag", "Location", RequestIDHeader, "RateLimit", "RateLimit-Policy", "Retry-After", "Deprecation", "Sunset", "Link",
		"Idempotency-Replayed", "X-App-Upgrade", "X-App-Minimum-Version", "X-Next-Cursor", "Upload-Offset", "Upload-Length",
		"Upload-Expires", "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "WWW-Authenticate",
	}
}

// preflightAge is how long browsers may remember a preflight; Chromium caps it at two hours.
const preflightAge = 7200

type gauge struct{ n atomic.Int64 }

func (g *gauge) add(d int64) { g.n.Add(d) }

// New returns the extension. It must be the first in the list, so that its handler is the outermost.
func New(cfg Config) extensions.Extension {
	inFlight := &gauge{}
	drain := &drainer{timeout: cfg.Drain}
	return extensions.Extension{
		Name:     "api",
		Settings: cfg,
		Codes:    Codes(),
		Migrations: []extensions.Migration{
			{Unix: 1767225600, What: "enable_batch", Up: enableBatch},
		},
		Bind: func(h *extensions.Host) error {
			h.App.OnBatchRequest().BindFunc(canonicalBatch)
			drain.bind(h.App)
			return nil
		},
		Handler: func(next http.Handler) http.Handler { return outer(cfg, inFlight)(next) },
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			errorWriter(),
			apis.CORS(apis.CORSConfig{
				AllowOrigins:  cfg.CORSOrigins,
				AllowMethods:  []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPatch, http.MethodPost, http.MethodDelete},
				ExposeHeaders: exposedHeaders(),
				MaxAge:        preflightAge,
			}),
			apis.BodyLimit(int64(cfg.MaxBody)),
			versionGate(cfg),
		},
		Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
			if cfg.H2C && e.Server != nil {
				e.Server.Protocols = new(http.Protocols)
				e.Server.Protocols.SetHTTP1(true)
				e.Server.Protocols.SetHTTP2(true)
				e.Server.Protocols.SetUnencryptedHTTP2(true)
			}
			drain.own(e.Server)
			return nil
		},
		Checks: []extensions.Check{{Name: "drain", Ready: true, Run: drain.check}},
		Metrics: []extensions.Metric{{
			Name: "satchel_api_requests_in_flight_count", Help: "Requests that are being answered.",
			Read: func() float64 { return float64(inFlight.n.Load()) },
		}},
	}
}
