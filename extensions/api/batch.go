package api

import (
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// enableBatch turns on PocketBase's batch endpoint with limits, once: afterwards the dashboard decides.
func enableBatch(cfg Config) func(core.App) error {
	return func(app core.App) error {
		s := app.Settings()
		s.Batch.Enabled = true
		s.Batch.MaxRequests = cfg.BatchMax
		s.Batch.Timeout = int64(cfg.BatchTimeout.Seconds())
		s.Batch.MaxBodySize = int64(cfg.MaxBody)
		return app.Save(s)
	}
}

// canonicalBatch lets the inner requests of a batch use the paths of /api/v1, which PocketBase's table of actions does
// not know.
func canonicalBatch(e *core.BatchRequestEvent) error {
	for _, inner := range e.Batch {
		if rest, ok := strings.CutPrefix(inner.URL, Prefix+"/collections/"); ok {
			inner.URL = "/api/collections/" + rest
		}
	}
	return e.Next()
}
