package records

import (
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// unchanged answers 304, without asking the database, to a client that has the answer already and nothing was written
// since. It may be asked only for a question whose SQL is kept: that depends on the account's id and the data alone, not
// on the time or anything else of the request. A view may still depend on the time, in its own query.
func (r *reader) unchanged(e *core.RequestEvent, collection *core.Collection, s *straight) bool {
	if r.version == nil || collection.IsView() {
		return false
	}
	version, exact := r.version()
	if !exact {
		return false
	}
	account := "" // of which collection the id is
	if e.Auth != nil {
		account = e.Auth.Collection().Id
	}
	// Cursors in an answer get old, so it does too.
	day := strconv.FormatInt(time.Now().Unix()/int64((24*time.Hour).Seconds()), 10)
	return api.Unchanged(e, version, day, account, s.id, e.Request.URL.Path, e.Request.URL.RawQuery)
}
