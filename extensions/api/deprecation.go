package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

// Deprecated marks a route that will go away: Deprecation says since when (RFC 9745), Sunset when it may stop working
// (RFC 8594, never before since), Link where to read more and what replaces it. Empty URLs and a zero sunset are left out.
// Bind it on the route.
func Deprecated(since, sunset time.Time, docs, successor string) *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id: "satchelDeprecated", Priority: errorsPriority - 1,
		Func: func(e *core.RequestEvent) error {
			h := e.Response.Header()
			h.Set("Deprecation", "@"+strconv.FormatInt(since.Unix(), 10))
			if !sunset.IsZero() {
				h.Set("Sunset", sunset.UTC().Format(http.TimeFormat))
			}
			if docs != "" {
				h.Add("Link", "<"+docs+`>; rel="deprecation"`)
			}
			if successor != "" {
				h.Add("Link", "<"+successor+`>; rel="successor-version"`)
			}
			return e.Next()
		},
	}
}
