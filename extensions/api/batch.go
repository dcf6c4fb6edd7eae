package api

import (
	"fmt"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// enableBatch turns on PocketBase's batch endpoint, once: afterwards the dashboard decides. PocketBase's own limits, 50
// requests in 3 seconds, suit a server whose batches hold the only write lock.
func enableBatch(app core.App) error {
	// Migrations run before PocketBase reads its settings, which exist already in a data folder of the stock binary.
	if err := app.ReloadSettings(); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	s := app.Settings()
	s.Batch.Enabled = true
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
