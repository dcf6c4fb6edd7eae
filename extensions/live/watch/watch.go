// Package watch is what a subscription is about: a collection or a record, as one client wants to see it.
package watch

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/rows"
)

// Watch is never changed.
type Watch struct {
	Collection string // id
	Record     string // empty for the whole collection
	Filter     string
	Expand     string
	Fields     rows.Fields
	Query      map[string]string // what rules see as those of the request
	Headers    map[string]string
}

// Info is the request that the rules see.
func (w *Watch) Info(auth *core.Record) *core.RequestInfo {
	return &core.RequestInfo{
		Context: core.RequestInfoContextRealtime, Method: http.MethodGet, Auth: auth,
		Query: w.Query, Headers: w.Headers, Body: map[string]any{},
	}
}

// Event is the same as the enrich hooks get it.
func (w *Watch) Event(app core.App, auth *core.Record) *core.RequestEvent {
	values, header := url.Values{}, http.Header{}
	for name, value := range w.Query {
		values.Set(name, value)
	}
	for name, value := range w.Headers {
		header.Set(name, value)
	}
	values.Set("expand", w.Expand)
	e := &core.RequestEvent{App: app, Auth: auth}
	e.Request = &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/api/realtime", RawQuery: values.Encode()}, Header: header}
	e.Set(core.RequestEventKeyInfoContext, core.RequestInfoContextRealtime)
	return e
}

// Options is a text that is equal for equal query and headers.
func (w *Watch) Options() string {
	if len(w.Query) == 0 && len(w.Headers) == 0 {
		return ""
	}
	var b strings.Builder
	for _, m := range []map[string]string{w.Query, w.Headers} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			b.WriteString(url.QueryEscape(name) + "=" + url.QueryEscape(m[name]) + "&")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
