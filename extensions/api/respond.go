package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// Page describes where a list stands. NextCursor is empty, null on the wire, at the end.
type Page struct {
	Limit      int
	NextCursor string
	Total      *int // nil unless the client asked for it
	Last       bool // NextCursor is for later: there is nothing behind it now
}

// Sizes of a page of resources. Lists of records have settings of their own.
const (
	PageDefault = 25
	PageMax     = 100
)

// PageLimit reads ?limit=, PageDefault when it is missing.
func PageLimit(e *core.RequestEvent) (int, error) {
	text := e.Request.URL.Query().Get("limit")
	if text == "" {
		return PageDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > PageMax {
		return 0, Fail(ErrBadRequest, "limit must be from 1 to "+strconv.Itoa(PageMax))
	}
	return n, nil
}

type pageJSON struct {
	Limit      int     `json:"limit"`
	HasNext    bool    `json:"hasNext"`
	NextCursor *string `json:"nextCursor"`
	Total      *int    `json:"total,omitempty"`
}

// MarshalJSON writes {limit, hasNext, nextCursor, total?}.
func (p Page) MarshalJSON() ([]byte, error) {
	out := pageJSON{Limit: p.Limit, HasNext: p.NextCursor != "" && !p.Last, Total: p.Total}
	if p.NextCursor != "" {
		out.NextCursor = &p.NextCursor
	}
	return json.Marshal(out)
}

// Write answers {"success":true,"data":…,"timestamp","requestId"}. On GET it sets a weak ETag over the data and answers
// 304 when the client has it already. data is marshalled first, so a value that cannot be marshalled is a 500 and not a
// 200 with half a body.
func Write(e *core.RequestEvent, status int, data any) error {
	return write(e, status, data, nil)
}

// WritePage is Write for one page of a list.
func WritePage(e *core.RequestEvent, data any, page Page) error {
	return write(e, http.StatusOK, data, page)
}

func write(e *core.RequestEvent, status int, data, page any) error {
	raw, err := marshal(data)
	if err != nil {
		return fmt.Errorf("marshal data: %w", err)
	}
	var pagination json.RawMessage
	if page != nil {
		if pagination, err = marshal(page); err != nil {
			return fmt.Errorf("marshal pagination: %w", err)
		}
	}
	if cacheable(e, status) && NotModified(e, ETag(raw, pagination)) {
		return nil
	}
	return writeJSON(e.Response, status, "application/json", envelope(raw, pagination, RequestOf(e.Request.Context()).ID))
}

// envelopeSize is what stands around data and pagination, at most.
const envelopeSize = 192

// envelope puts the answer together as text: encoding/json would read the data, often a whole list, once more. A request
// id needs no escaping, whoever chose it.
func envelope(data, pagination json.RawMessage, requestID string) []byte {
	out := make([]byte, 0, len(data)+len(pagination)+envelopeSize)
	out = append(append(out, `{"success":true,"data":`...), data...)
	if pagination != nil {
		out = append(append(out, `,"pagination":`...), pagination...)
	}
	out = time.Now().UTC().AppendFormat(append(out, `,"timestamp":"`...), time.RFC3339Nano)
	return append(append(append(out, `","requestId":"`...), requestID...), '"', '}')
}

func marshal(v any) (json.RawMessage, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return raw, nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // the answer is JSON and never HTML; PocketBase does not escape either
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func writeJSON(w http.ResponseWriter, status int, contentType string, body []byte) error {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, err := w.Write(body)
	return err
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
