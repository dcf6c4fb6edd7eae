package doors

import (
	"bytes"
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

const (
	// Sizes of a page. The client takes one that is not full for the last, so it must ask for what fits.
	rxRows, rxMaxRows = 500, 1000

	// rxBytes is where a page ends that would be too large for the memory of the server or of a phone.
	rxBytes = 8 << 20

	// versionMember is the version of a document.
	versionMember = "v"
)

// rxChannel names the views of this door; each replication has its own.
func rxChannel(name string) string { return "rxdb/" + name }

// checkpoint is what the client keeps, as it is.
type checkpoint struct {
	C string `json:"c"`
}

func rxQuery(e *core.RequestEvent) (cursor view.Cursor, given bool, limit int, err error) {
	values, err := url.ParseQuery(e.Request.URL.RawQuery)
	if err != nil {
		return cursor, false, 0, api.Fail(api.ErrBadRequest, "the query string is not well-formed").Because(err)
	}
	limit = rxRows
	if text := values.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > rxMaxRows {
			return cursor, false, 0, api.Fail(api.ErrBadRequest, "limit, the batch size of the pull, must be from 1 to "+strconv.Itoa(rxMaxRows))
		}
	}
	text := parameter(values, "checkpoint", "checkpoint")
	if text == "" {
		return cursor, false, limit, nil
	}
	var point checkpoint
	if jsonv2.Unmarshal([]byte(text), &point) == nil {
		cursor, _ = view.ParseCursor(point.C)
	}
	return cursor, true, limit, nil
}

func (d *doors) rxPull(e *core.RequestEvent) error {
	cursor, given, limit, err := rxQuery(e)
	if err != nil {
		return err
	}
	name := e.Request.PathValue("collection")
	v, err := d.enter(e, rxChannel(name), name)
	if err != nil {
		return err
	}
	defer v.close()
	if given {
		known, err := v.device.Known(v.ctx, v.src, cursor)
		if err != nil {
			return err
		}
		if !known {
			return api.Fail(ErrCheckpoint, "")
		}
	}
	page, err := d.sync.Pull(e, v.device, v.src, view.Request{Cursor: cursor, Collections: []string{name}, Limit: limit, Bytes: d.rxBytes})
	if err != nil {
		return err
	}
	if len(page.Gone) > 0 {
		return api.Fail(api.ErrNotFound, "there is no such collection")
	}
	if given && len(page.Reset) > 0 {
		return api.Fail(ErrCheckpoint, "the collection is another one now")
	}
	documents, used, err := rxDocuments(nil, page)
	for err == nil && given && len(page.Deltas) > 0 && len(documents) < limit && used < d.rxBytes/2 {
		// It ended what an earlier request has begun. The client believes that it has all that there was when it asked.
		page, err = d.sync.Pull(e, v.device, v.src, view.Request{
			Cursor: page.Cursor, Collections: []string{name}, Limit: limit - len(documents), Bytes: d.rxBytes - used,
		})
		if err == nil {
			var more int
			documents, more, err = rxDocuments(documents, page)
			used += more
		}
	}
	if err != nil {
		return err
	}
	body, err := encode(map[string]any{"documents": filled(documents, page.More, limit), "checkpoint": checkpoint{page.Cursor.String()}})
	if err != nil {
		return err
	}
	return answer(e, body)
}

// rxDocuments adds what a page brings, as the client wants it, and returns the bytes of it.
func rxDocuments(documents []json.RawMessage, page *view.Page) (all []json.RawMessage, bytes int, err error) {
	for _, delta := range page.Deltas {
		for _, row := range delta.Upserts {
			doc, err := rxDocument(row.Body, row.Version)
			if err != nil {
				return nil, 0, err
			}
			documents = append(documents, doc)
			bytes += len(row.Body)
		}
		for _, id := range delta.Removes {
			documents = append(documents, removed(id))
		}
	}
	return documents, bytes, nil
}

// filled makes a page full that ended by its bytes, because the client would take it for the last. It reads a document
// that stands in it twice as one.
func filled(documents []json.RawMessage, more bool, limit int) []json.RawMessage {
	if len(documents) == 0 {
		return []json.RawMessage{}
	}
	least := slices.MinFunc(documents, func(a, b json.RawMessage) int { return len(a) - len(b) })
	for more && len(documents) < limit {
		documents = append(documents, least)
	}
	return documents
}

func encode(value any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return buf.Bytes(), nil
}

// rxDocument is a row as the client keeps it.
func rxDocument(body []byte, version int64) (json.RawMessage, error) {
	tail := `,"` + versionMember + `":` + strconv.FormatInt(version, 10) + `,"_deleted":false`
	return document(body, tail, func(_ string, value jsontext.Value) (jsontext.Value, error) { return value, nil })
}

// removed is a document that is not there for the caller.
func removed(id string) json.RawMessage {
	out, _ := json.Marshal(map[string]any{"id": id, "_deleted": true}) // text and a boolean
	return out
}

// state is what a document is for the caller now.
type state struct {
	record  *core.Record // as it is stored
	shown   map[string]jsontext.Value
	doc     json.RawMessage
	version int64
	deleted bool // there was a record with this id
}

// sees reports whether the caller sees the record.
func (s state) sees() bool { return s.doc != nil }

// canonical is the document that the client should have.
func (s state) canonical(id string) json.RawMessage {
	if s.sees() {
		return s.doc
	}
	return removed(id)
}

// look reads the present states of documents.
func (v *visit) look(c *core.Collection, vc view.Collection, ids []string) (map[string]state, error) {
	if _, err := v.src.Now(v.ctx); err != nil { // completes the heads
		return nil, err
	}
	heads, err := v.src.Heads(v.ctx, vc, ids)
	if err != nil {
		return nil, err
	}
	records, err := v.records(c, ids)
	if err != nil {
		return nil, err
	}
	out := make(map[string]state, len(ids))
	for _, id := range ids {
		h := heads[id]
		out[id] = state{record: records[id], version: h.Version, deleted: h.Deleted}
	}
	var broken error
	err = v.src.Bodies(v.ctx, vc.Name, ids, func(id string, body []byte) {
		s := out[id]
		if s.record == nil {
			return // created in between
		}
		s.shown = map[string]jsontext.Value{}
		var err error
		if s.doc, err = rxDocument(body, s.version); err == nil {
			err = members(body, func(name string, value jsontext.Value) error {
				s.shown[name] = value.Clone()
				return nil
			})
		}
		broken = errors.Join(broken, err)
		out[id] = s
	})
	return out, errors.Join(err, broken)
}
