package live

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

// sub is one subscription of a connection to a collection or a record. Its definition never changes.
//
// It is either live, then the hub sends what happens, or pending, then its connection reads the log by itself from where
// the subscription stands until it has reached the hub.
type sub struct {
	conn       *conn
	name       string // what the client calls it; the whole topic in the stock contract
	collection string // id
	record     string // empty for the whole collection
	filter     string
	expand     string
	fields     rows.Fields
	query      map[string]string // what rules see as those of the request
	headers    map[string]string

	// The connection's lock guards these.
	at    int64  // pending: everything up to here was sent; live: what is not after it was sent before
	group *group // where the hub finds it, nil while it is pending
	ended bool

	// Only the pump uses these while the subscription is pending, and whoever makes it so.
	doubt bool // what the client holds must be looked at before the subscription is live
	claim bool // so must what it says that it holds, before it is sent anything that could drive that out

	held held
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

// info is the request that the rules see.
func (s *sub) info(auth *core.Record) *core.RequestInfo {
	return &core.RequestInfo{
		Context: core.RequestInfoContextRealtime, Method: http.MethodGet, Auth: auth,
		Query: s.query, Headers: s.headers, Body: map[string]any{},
	}
}

// event is the same as the enrich hooks get it.
func (s *sub) event(app core.App, auth *core.Record) *core.RequestEvent {
	values, header := url.Values{}, http.Header{}
	for name, value := range s.query {
		values.Set(name, value)
	}
	for name, value := range s.headers {
		header.Set(name, value)
	}
	values.Set("expand", s.expand)
	e := &core.RequestEvent{App: app, Auth: auth}
	e.Request = &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/api/realtime", RawQuery: values.Encode()}, Header: header}
	e.Set(core.RequestEventKeyInfoContext, core.RequestInfoContextRealtime)
	return e
}

// options is a text that is equal for equal query and headers.
func (s *sub) options() string {
	if len(s.query) == 0 && len(s.headers) == 0 {
		return ""
	}
	var b strings.Builder
	for _, m := range []map[string]string{s.query, s.headers} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			b.WriteString(url.QueryEscape(name) + "=" + url.QueryEscape(m[name]) + "&")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
