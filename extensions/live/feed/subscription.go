package feed

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/rows"
)

// Sub is one subscription of a connection to a collection or a record. Its definition never changes.
//
// It is either live, then the hub sends what happens, or pending, then its connection reads the log by itself from where
// the subscription stands until it has reached the hub.
type Sub struct {
	Name       string // what the client calls it; the whole topic in the stock contract
	Collection string // id
	Record     string // empty for the whole collection
	Filter     string
	Expand     string
	Fields     rows.Fields
	Query      map[string]string // what rules see as those of the request
	Headers    map[string]string

	conn *Conn // set by Add

	// The connection's lock guards these.
	At    int64  // pending: everything up to here was sent; live: what is not after it was sent before
	group *group // where the hub finds it, nil while it is pending
	ended bool

	// Only the pump uses these while the subscription is pending, and whoever makes it so.
	doubt bool // what the client holds must be looked at before the subscription is live
	claim bool // so must what it says that it holds, before it is sent anything that could drive that out

	held held
}

// Hold believes for the time being that the client holds records. It is told of those that it may not see.
func (s *Sub) Hold(ids []string, limit int) {
	for _, id := range ids {
		s.held.add(id, max(limit, len(ids)))
	}
	s.doubt, s.claim = len(ids) > 0, len(ids) > 0
}

// held remembers which records the client was sent and has not been told to forget, the last ones only.
type held struct {
	mu    sync.Mutex
	known map[string]struct{}
	order []string // a ring of the known, with others that were removed since
	next  int
}

func (h *held) has(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.known[id]
	return ok
}

// add remembers an id; beyond the limit the oldest is forgotten.
func (h *held) add(id string, limit int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.known[id]; ok || limit <= 0 {
		return
	}
	if h.known == nil {
		h.known = map[string]struct{}{}
	}
	if len(h.order) < limit {
		h.order = append(h.order, id)
	} else {
		h.next %= len(h.order)
		delete(h.known, h.order[h.next])
		h.order[h.next] = id
		h.next++
	}
	h.known[id] = struct{}{}
}

func (h *held) remove(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, id)
}

func (h *held) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.known))
}

func (h *held) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known, h.order, h.next = nil, nil, 0
}

// Info is the request that the rules see.
func (s *Sub) Info(auth *core.Record) *core.RequestInfo {
	return &core.RequestInfo{
		Context: core.RequestInfoContextRealtime, Method: http.MethodGet, Auth: auth,
		Query: s.Query, Headers: s.Headers, Body: map[string]any{},
	}
}

// event is the same as the enrich hooks get it.
func (s *Sub) event(app core.App, auth *core.Record) *core.RequestEvent {
	values, header := url.Values{}, http.Header{}
	for name, value := range s.Query {
		values.Set(name, value)
	}
	for name, value := range s.Headers {
		header.Set(name, value)
	}
	values.Set("expand", s.Expand)
	e := &core.RequestEvent{App: app, Auth: auth}
	e.Request = &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/api/realtime", RawQuery: values.Encode()}, Header: header}
	e.Set(core.RequestEventKeyInfoContext, core.RequestInfoContextRealtime)
	return e
}

// options is a text that is equal for equal query and headers.
func (s *Sub) options() string {
	if len(s.Query) == 0 && len(s.Headers) == 0 {
		return ""
	}
	var b strings.Builder
	for _, m := range []map[string]string{s.Query, s.Headers} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			b.WriteString(url.QueryEscape(name) + "=" + url.QueryEscape(m[name]) + "&")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
