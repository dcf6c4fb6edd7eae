package api

import (
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// Limits of a batch on a new server: PocketBase's own defaults for an endpoint that it leaves switched off. A batch
// holds the only write lock, so both are small.
const (
	batchRequests = 50
	batchSeconds  = 3
)

// enableBatch turns on PocketBase's batch endpoint, once: afterwards the dashboard decides.
func enableBatch(app core.App) error {
	s := app.Settings()
	s.Batch.Enabled = true
	s.Batch.MaxRequests = batchRequests
	s.Batch.Timeout = batchSeconds
	return app.Save(s)
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
