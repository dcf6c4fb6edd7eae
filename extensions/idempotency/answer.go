package idempotency

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// keptHeaders belong to the answer and not to the request that brings it.
func keptHeaders() []string { return []string{"Content-Type", "Content-Language", "Location", "ETag"} }

// noBody says that an answer was not kept; a reference may say what it was about.
const noBody = "-"

// maxReference bounds what is kept instead of an answer: PocketBase's batches have up to 50 requests by default.
const maxReference = 64 << 10

// finished is the row of an answer. A long one is not kept but what it was about; neither is one of a feature or hook
// that forbids it, for it holds a secret. Errors and answers of the generated API forbid it too, for the sake of caches,
// and hold none.
func (r *request) finished(buffer *pb.Buffer, private bool) *row {
	header := map[string]string{}
	for _, name := range keptHeaders() {
		if value := buffer.Header().Get(name); value != "" {
			header[name] = value
		}
	}
	head, _ := json.Marshal(header) // of strings
	out := &row{
		ID: r.id[:], Caller: r.caller.counted, Fingerprint: r.fingerprint, ExpiresAt: r.now().Add(r.cfg.Retention).UnixMilli(),
		Status: max(buffer.Status(), http.StatusOK), Route: r.route, Head: string(head),
		Request: api.RequestOf(r.event.Request.Context()).ID, Body: buffer.Body(),
	}
	secret := private && !isGenerated(routeOf(r.event.Request)) && strings.Contains(buffer.Header().Get("Cache-Control"), "no-store")
	if secret || len(out.Body) > maxStored {
		out.Reference = noBody
		if !secret {
			out.Reference = referenceOf(r.event.Request, out.Body)
		}
		out.Body = nil
	}
	return out
}

// replay answers as the first time, but for the headers of this request. An answer that was not kept is built anew.
func (r *request) replay(kept *row) error {
	if r.deps.Healthy != nil {
		if err := r.deps.Healthy(); err != nil {
			return &api.Problem{Code: api.ErrUnavailable, RetryAfter: retryInFlight, Cause: fmt.Errorf("repeat an answer: %w", err)}
		}
	}
	header := map[string]string{}
	if err := json.Unmarshal([]byte(kept.Head), &header); err != nil {
		return fmt.Errorf("read kept answer: %w", err)
	}
	r.replays.Add(1)
	h := r.event.Response.Header()
	h.Set(Replayed, "true")
	if kept.Reference != "" {
		if location := header["Location"]; location != "" {
			h.Set("Location", location)
		}
		return r.rebuild(kept)
	}
	for name, value := range header {
		h.Set(name, value)
	}
	r.event.Response.WriteHeader(kept.Status)
	_, err := r.event.Response.Write(kept.Body)
	return err
}

// reference says which records an answer of the generated API was about: one, or those of a batch.
type reference struct {
	Batch   bool     `json:"batch,omitempty"`
	Records []record `json:"records"`
}

type record struct {
	Collection string `json:"collectionId,omitempty"`
	ID         string `json:"id,omitempty"`
	Status     int    `json:"status,omitempty"` // in a batch
}

// isGenerated reports routes that answer with records.
func isGenerated(route string) bool {
	return route == "/api/batch" || strings.HasPrefix(route, "/api/collections/{collection}/records")
}

func referenceOf(r *http.Request, body []byte) string {
	var ref reference
	switch route := routeOf(r); {
	case route == "/api/batch":
		var results []struct {
			Status int    `json:"status"`
			Body   record `json:"body"`
		}
		if json.Unmarshal(body, &results) != nil {
			return noBody
		}
		ref.Batch = true
		for _, result := range results {
			result.Body.Status = result.Status
			ref.Records = append(ref.Records, result.Body)
		}
	case isGenerated(route):
		var one record
		if json.Unmarshal(body, &one) != nil {
			return noBody
		}
		if one.Collection == "" {
			one.Collection = r.PathValue("collection")
		}
		if one.ID == "" {
			one.ID = r.PathValue("id")
		}
		one.Status = 0
		ref.Records = []record{one}
	default:
		return noBody
	}
	text, err := json.Marshal(ref)
	if err != nil || len(text) > maxReference {
		return noBody
	}
	return string(text)
}

// rebuild answers with the records as they are now.
func (r *request) rebuild(kept *row) error {
	e := r.event
	var ref reference
	if kept.Reference == noBody || json.Unmarshal([]byte(kept.Reference), &ref) != nil {
		if api.RequestOf(e.Request.Context()).Versioned && kept.Status != http.StatusNoContent {
			return api.Write(e, kept.Status, nil)
		}
		e.Response.WriteHeader(kept.Status)
		return nil
	}
	bodies := make([]any, len(ref.Records))
	for i, rec := range ref.Records {
		body, err := present(e, rec)
		if err != nil {
			return err
		}
		bodies[i] = body
	}
	if !ref.Batch {
		return e.JSON(kept.Status, bodies[0]) //nolint:forbidigo // as PocketBase wrote the first answer, with the query's fields
	}
	results := make([]apis.BatchRequestResult, len(bodies))
	for i, body := range bodies {
		results[i] = apis.BatchRequestResult{Status: ref.Records[i].Status, Body: body}
	}
	return e.JSON(kept.Status, results) //nolint:forbidigo // see above
}

// present is a record as the caller may see it now. Of one that is gone, or is the caller's no more, the id is left.
func present(e *core.RequestEvent, rec record) (any, error) {
	if rec.ID == "" {
		return nil, nil // of a deletion
	}
	left := record{Collection: rec.Collection, ID: rec.ID}
	found, err := e.App.FindRecordById(rec.Collection, rec.ID)
	if err != nil {
		return left, nil //nolint:nilerr // what cannot be read is not shown
	}
	info, err := e.RequestInfo()
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	seen, err := e.App.CanAccessRecord(found, info, found.Collection().ViewRule)
	if err != nil || !seen {
		return left, nil //nolint:nilerr // what cannot be read is not shown
	}
	if err := apis.EnrichRecord(e, found); err != nil {
		return nil, fmt.Errorf("enrich record: %w", err)
	}
	return found, nil
}
