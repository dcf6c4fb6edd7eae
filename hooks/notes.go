package hooks

import (
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// bindNotes keeps titles tidy: white space around a title is dropped, so a title of white space alone is empty and is
// refused as a missing one (code validation_required).
//
// Validation is the one step that every write passes: the API, a batch, the dashboard, a job. A hook of the request
// would miss all but the first.
func bindNotes(app core.App) {
	app.OnRecordValidate("notes").BindFunc(func(e *core.RecordEvent) error {
		e.Record.Set("title", strings.TrimSpace(e.Record.GetString("title")))
		return e.Next()
	})
}
