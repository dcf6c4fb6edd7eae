package records

import (
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// Versions names the state of the database, for answers that need not be made again.
type Versions interface {
	// LastVersion is cheap and may be behind.
	LastVersion() string

	// Version is right if it is exact: two equal ones mean that nothing was changed in between, in any way.
	Version() (version string, exact bool)
}

// unchanged answers 304, without asking the database, to a client that has the answer already and nothing was written
// since. It may be asked only for a question whose SQL is kept: that depends on the account's id and the data alone, not
// on the time or anything else of the request. A view may still depend on the time, in its own query.
func (r *reader) unchanged(e *core.RequestEvent, collection *core.Collection, s *straight) bool {
	if r.versions == nil || collection.IsView() {
		return false
	}
	version := r.versions.LastVersion()
	confirm := func() bool {
		now, exact := r.versions.Version()
		return exact && now == version
	}
	account := "" // of which collection the id is
	if e.Auth != nil {
		account = e.Auth.Collection().Id
	}
	// Cursors in an answer get old, so it does too.
	day := strconv.FormatInt(time.Now().Unix()/int64((24*time.Hour).Seconds()), 10)
	return api.Unchanged(e, confirm, version, day, account, s.id, e.Request.URL.Path, e.Request.URL.RawQuery)
}
