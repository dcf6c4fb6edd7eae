package sync

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync/push"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

const (
	// maxChanges and maxBody bound one request.
	maxChanges = 200
	maxBody    = 1 << 20

	// maxCollections bounds the plan of a page.
	maxCollections = 100

	// pageBytes is how many bytes of records a page holds, more or less.
	pageBytes = 1 << 20

	maxCID    = 64
	maxID     = 128
	maxSchema = 64

	// versionField is the member of a record that names its version.
	versionField = "v"
)

// request is the body of POST /api/v1/sync.
type request struct {
	Cursor      *string          `json:"cursor,omitempty"`
	Collections []string         `json:"collections,omitempty"`
	Limit       *int             `json:"limit,omitempty"`
	Schema      string           `json:"schema,omitempty"`
	Changes     []jsontext.Value `json:"changes,omitempty"`
}

// answer is its data.
type answer struct {
	Results     []push.Result           `json:"results"`
	Collections json.RawMessage         `json:"-"` // a member like the others, see encode
	Cursor      *string                 `json:"cursor"`
	More        bool                    `json:"more"`
	Reset       []string                `json:"reset"`
	Gone        []string                `json:"gone"`
	Check       map[string]checkMembers `json:"check"`
	Epoch       string                  `json:"epoch"`
}

// checkMembers is [count, xor].
type checkMembers [2]uint64

func (s *Sync) sync(e *core.RequestEvent) error {
	var body request
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	limit, err := s.limit(body)
	if err != nil {
		return err
	}
	caller, err := s.Caller(e)
	if err != nil {
		return err
	}
	if err := s.Supported(e, body.Collections...); err != nil {
		return err
	}
	src, err := s.Source(e)
	if err != nil {
		return err
	}
	ctx := e.Request.Context()
	d, err := s.engine.Open(ctx, caller.Key("sync"))
	if err != nil {
		return err
	}
	defer d.Close()
	results, err := s.pushAll(e, caller, d, body.Changes)
	if err != nil {
		return err
	}
	out := answer{
		Results: results, Collections: json.RawMessage("{}"), Cursor: body.Cursor, Reset: []string{}, Gone: []string{},
		Check: map[string]checkMembers{},
	}
	now, err := src.Now(ctx)
	if err != nil {
		return err
	}
	out.Epoch = now.Epoch
	if len(body.Collections) > 0 {
		cursor := view.Cursor{}
		if body.Cursor != nil {
			cursor, _ = view.ParseCursor(*body.Cursor) // one that is none starts over
		}
		page, err := s.Pull(e, d, src, view.Request{
			Cursor: cursor, Collections: body.Collections, Limit: limit, Bytes: pageBytes, Schema: body.Schema,
		})
		if err != nil {
			return err
		}
		if err := out.take(page); err != nil {
			return err
		}
	}
	data, err := out.encode()
	if err != nil {
		return err
	}
	e.Response.Header().Set("Cache-Control", "no-store")
	return api.Write(e, http.StatusOK, data)
}

// limit checks the members that are not checked one by one, and returns the size of the page.
func (s *Sync) limit(body request) (int, error) {
	var mistakes []api.FieldError
	limit := s.cfg.Limit
	if body.Limit != nil {
		if limit = *body.Limit; limit < 1 || limit > s.cfg.LimitMax {
			mistakes = append(mistakes, api.Invalid("limit", api.ErrFieldInvalid, fmt.Sprintf("must lie between 1 and %d", s.cfg.LimitMax)))
		}
	}
	if len(body.Collections) > maxCollections {
		mistakes = append(mistakes, api.Invalid("collections", api.ErrFieldLong, fmt.Sprintf("at most %d can be synced at once", maxCollections)))
	}
	if len(body.Schema) > maxSchema {
		mistakes = append(mistakes, api.Invalid("schema", api.ErrFieldLong, ""))
	}
	if len(mistakes) > 0 {
		return 0, api.InvalidBody(mistakes...)
	}
	if len(body.Changes) > maxChanges {
		return 0, api.Fail(api.ErrBodyTooLarge, fmt.Sprintf("at most %d changes fit into a request", maxChanges))
	}
	return limit, nil
}

// pushAll reads the changes, so that one that is not well-formed does not block the others, and executes them.
func (s *Sync) pushAll(e *core.RequestEvent, c Caller, d *view.Device, raw []jsontext.Value) ([]push.Result, error) {
	results := make([]push.Result, len(raw))
	var list []push.Change
	var places []int
	bad := map[string]bool{} // groups
	for i, r := range raw {
		change, reason := parseChange(r)
		if reason != nil {
			results[i] = push.Result{CID: change.CID, Status: push.Invalid, Reason: reason}
			if change.Group != "" {
				bad[change.Group] = true
			}
			continue
		}
		list, places = append(list, change), append(places, i)
	}
	for i, change := range slices.Backward(list) {
		if bad[change.Group] {
			results[places[i]] = push.Result{CID: change.CID, Status: push.Invalid, Reason: &push.Reason{
				Code: push.ErrGroup.Name, Detail: "another change of the group is not well-formed",
			}}
			list, places = slices.Delete(list, i, i+1), slices.Delete(places, i, i+1)
		}
	}
	if len(list) == 0 {
		return results, nil
	}
	src, err := s.Source(e)
	if err != nil {
		return nil, err
	}
	done, err := s.Push(e, c, d, src, list)
	if err != nil {
		return nil, err
	}
	for i, r := range done {
		results[places[i]] = r
	}
	return results, nil
}

// parseChange reads a change, or says what is wrong with it.
func parseChange(raw jsontext.Value) (push.Change, *push.Reason) {
	var c push.Change
	if err := jsonv2.Unmarshal(raw, &c, jsonv2.RejectUnknownMembers(true)); err != nil {
		var id struct {
			CID   string `json:"cid"`
			Group string `json:"group"`
		}
		_ = jsonv2.Unmarshal(raw, &id) // as far as it can be read
		c.CID, c.Group = id.CID, id.Group
		return c, &push.Reason{Code: push.ErrChange.Name, Detail: "the change does not have the expected form"}
	}
	var mistakes []api.FieldError
	text := func(name, value string, most int) {
		switch {
		case value == "":
			mistakes = append(mistakes, api.Invalid(name, api.ErrFieldRequired, ""))
		case len(value) > most:
			mistakes = append(mistakes, api.Invalid(name, api.ErrFieldLong, ""))
		}
	}
	text("cid", c.CID, maxCID)
	text("collection", c.Collection, maxID)
	text("id", c.ID, maxID)
	if len(c.Group) > maxCID {
		mistakes = append(mistakes, api.Invalid("group", api.ErrFieldLong, ""))
	}
	switch c.Op {
	case push.Create, push.Update:
	case push.Delete:
		if len(c.Set)+len(c.Apply) > 0 {
			mistakes = append(mistakes, api.Invalid("set", api.ErrFieldInvalid, "a deletion sets nothing"))
		}
	default:
		mistakes = append(mistakes, api.Invalid("op", api.ErrFieldInvalid, "must be create, update or delete"))
	}
	if c.Op == push.Update && len(c.Set)+len(c.Apply) == 0 {
		mistakes = append(mistakes, api.Invalid("set", api.ErrFieldRequired, "an update changes something"))
	}
	if len(mistakes) == 0 {
		return c, nil
	}
	return c, &push.Reason{Code: push.ErrChange.Name, Detail: push.ErrChange.Title, Errors: mistakes}
}

// encode is the answer as JSON. The rows are JSON already, and encoding/json would read each of them again.
func (a *answer) encode() (json.RawMessage, error) {
	rest, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	out := make([]byte, 0, len(rest)+len(a.Collections)+20)
	out = append(append(append(out, `{"collections":`...), a.Collections...), ',')
	return append(out, rest[1:]...), nil
}

// take puts a page into the answer.
func (a *answer) take(page *view.Page) error {
	var err error
	if a.Collections, err = encodeDeltas(page.Deltas); err != nil {
		return err
	}
	cursor := page.Cursor.String()
	a.Cursor, a.More = &cursor, page.More
	a.Reset = append(a.Reset, page.Reset...)
	a.Gone = append(a.Gone, page.Gone...)
	for name, c := range page.Check {
		a.Check[name] = checkMembers{c.Count, uint64(c.XOR)}
	}
	return nil
}

func encodeDeltas(list []view.Delta) (out json.RawMessage, err error) {
	size := 2
	for _, d := range list {
		size += 200 + 24*len(d.Removes)
		for _, row := range d.Upserts {
			size += len(row.Body) + 24
		}
	}
	out = append(make([]byte, 0, size), '{')
	for i, d := range list {
		if i > 0 {
			out = append(out, ',')
		}
		if out, err = jsontext.AppendQuote(out, d.Name); err != nil {
			return nil, fmt.Errorf("encode name of collection: %w", err)
		}
		out = append(out, `:{"upserts":[`...)
		for i, row := range d.Upserts {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendVersioned(out, row)
		}
		out = append(out, `],"removes":[`...)
		for i, id := range d.Removes {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = jsontext.AppendQuote(out, id); err != nil {
				return nil, fmt.Errorf("encode id: %w", err)
			}
		}
		out = append(out, `]}`...)
	}
	return append(out, '}'), nil
}

// Versioned is the JSON of a row with its version as the member v.
func Versioned(row view.Row) json.RawMessage {
	return appendVersioned(make([]byte, 0, len(row.Body)+24), row)
}

func appendVersioned(out []byte, row view.Row) []byte {
	out = append(out, row.Body[:len(row.Body)-1]...)
	out = append(out, `,"`+versionField+`":`...)
	return append(strconv.AppendInt(out, row.Version, 10), '}')
}
