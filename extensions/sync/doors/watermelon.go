package doors

import (
	"context"
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync"
	"github.com/satchelbase/satchel/extensions/sync/sight"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

const (
	// melonChannel names the views of this door.
	melonChannel = "watermelon"

	// Sizes of an answer. The client cannot ask for a page, but it calls again when it is told that there is more.
	melonRows, melonBytes = 10_000, 8 << 20

	// Sizes of an answer that replaces what the client has. It should be everything: rows that it lacks are dropped with
	// their edits, and come back without them in the next answer.
	wholeRows, wholeBytes = 100_000, 64 << 20

	// atBits is how many bits of a timestamp are the position in the run: it is a whole number of at most 53 bits, which
	// leaves runs, of which a device makes less than one a second, a century.
	atBits = 21

	// maxTables is how many collections one client may sync.
	maxTables = 100
)

// melonQuery is what pullChanges gets from the client, and the collections that the app syncs.
type melonQuery struct {
	last      int64 // 0: never
	names     []string
	schema    int64
	migration *migration
}

// migration says what an update of the app has added to its schema since the last pull.
type migration struct {
	Tables  []string `json:"tables"`
	Columns []struct {
		Table string `json:"table"`
	} `json:"columns"`
}

func (m *migration) touches(name string) bool {
	if m == nil {
		return false
	}
	for _, c := range m.Columns {
		if c.Table == name {
			return true
		}
	}
	return slices.Contains(m.Tables, name)
}

// parameter is a query parameter, as we or as WatermelonDB's own examples write it. Values that are not there arrive as
// the word that JavaScript makes of them.
func parameter(q url.Values, name, snake string) string {
	text := q.Get(name)
	if text == "" {
		text = q.Get(snake)
	}
	if text == "null" || text == "undefined" {
		return ""
	}
	return text
}

// number reads a timestamp or a version, 0 for none.
func number(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, api.Fail(api.ErrBadRequest, name+" must be a whole number or null")
	}
	return n, nil
}

func (d *doors) melonQuery(e *core.RequestEvent) (q melonQuery, err error) {
	values, err := url.ParseQuery(e.Request.URL.RawQuery)
	if err != nil {
		return q, api.Fail(api.ErrBadRequest, "the query string is not well-formed").Because(err)
	}
	if q.last, err = number("lastPulledAt", parameter(values, "lastPulledAt", "last_pulled_at")); err != nil {
		return q, err
	}
	if q.schema, err = number("schemaVersion", parameter(values, "schemaVersion", "schema_version")); err != nil {
		return q, err
	}
	if text := parameter(values, "migration", "migration"); text != "" {
		q.migration = &migration{}
		if err := jsonv2.Unmarshal([]byte(text), q.migration); err != nil {
			return q, api.Fail(api.ErrBadRequest, "migration must be the JSON of what the client passes").Because(err)
		}
	}
	for name := range strings.SplitSeq(values.Get("collections"), ",") {
		if name != "" && !slices.Contains(q.names, name) {
			q.names = append(q.names, name)
		}
	}
	if len(q.names) == 0 {
		if q.names, err = d.sync.Listable(e); err != nil {
			return q, err
		}
	}
	if len(q.names) > maxTables {
		return q, api.Fail(api.ErrBadRequest, "these are too many collections")
	}
	return q, nil
}

// timestamp is a cursor as the only thing that the client keeps, a positive number.
func timestamp(c view.Cursor) (int64, error) {
	if c.Run <= 0 || c.Run >= 1<<(53-atBits) || c.At >= 1<<atBits {
		return 0, api.Fail(sync.ErrCollection, "the user sees too many records for this client")
	}
	return c.Run<<atBits | int64(c.At), nil
}

// cursor is the way back. Its run is not one of another epoch or of a lost file, because runs are numbered by time.
func (d *doors) cursor(v *visit, stamp int64) view.Cursor {
	if stamp <= 0 {
		return view.Cursor{}
	}
	return view.Cursor{Epoch: v.now.Epoch, Nonce: d.sync.Nonce(), Run: stamp >> atBits, At: int(stamp & (1<<atBits - 1))}
}

// melonSight is a sight in which a collection changes when the app has added a column of it: all of its rows come again.
type melonSight struct {
	*sight.Sight
	since map[string]string // by name: the version of the app's schema
}

// Collection implements [view.Source].
func (s melonSight) Collection(ctx context.Context, name string) (view.Collection, error) {
	c, err := s.Sight.Collection(ctx, name)
	c.Schema += "/" + s.since[name]
	return c, err
}

// plan is what to ask the engine for.
func (d *doors) plan(v *visit, q melonQuery) (src melonSight, ask view.Request, whole bool, err error) {
	src = melonSight{Sight: v.src, since: map[string]string{}}
	ask = view.Request{Cursor: d.cursor(v, q.last), Collections: q.names, Limit: melonRows, Bytes: melonBytes}
	held, end, err := v.device.Held(v.ctx, v.src, ask.Cursor)
	if err != nil {
		return src, ask, false, err
	}
	whole = q.last > 0 && held == nil
	if q.migration != nil && held != nil && !end {
		ask.Cursor, whole = view.Cursor{}, true // what is still queued would be of the state before
	}
	for _, name := range q.names {
		vc, err := v.src.Collection(v.ctx, name)
		if err != nil {
			continue // the engine says so
		}
		schema, known := held[vc.Key]
		switch parts := strings.Split(schema, "/"); {
		case q.migration.touches(name), known && len(parts) < 3:
			src.since[name] = strconv.FormatInt(q.schema, 10)
		case known:
			src.since[name] = parts[len(parts)-2]
		}
		whole = whole || q.last > 0 && !known
	}
	if whole {
		ask.Limit, ask.Bytes = wholeRows, wholeBytes
	}
	return src, ask, whole, nil
}

func (d *doors) melonPull(e *core.RequestEvent) error {
	q, err := d.melonQuery(e)
	if err != nil {
		return err
	}
	v, err := d.enter(e, melonChannel, q.names...)
	if err != nil {
		return err
	}
	defer v.close()
	src, ask, whole, err := d.plan(v, q)
	if err != nil {
		return err
	}
	if whole {
		select {
		case d.whole <- struct{}{}:
			defer func() { <-d.whole }()
		case <-v.ctx.Done():
			return v.ctx.Err()
		}
	}
	page, err := d.sync.Pull(e, v.device, src, ask)
	if err != nil {
		return err
	}
	body, err := melonAnswer(v, page)
	if err != nil {
		return err
	}
	return answer(e, body)
}

// melonChanges are the changes of one table. Everything stands in updated: the server cannot know what the client has
// stored before it died, and clients take an unknown id in updated for a new row.
type melonChanges struct {
	Created []struct{}        `json:"created"`
	Updated []json.RawMessage `json:"updated"`
	Deleted []string          `json:"deleted"`
}

// strategy says for which tables the answer is all that there is, or begins to be.
type strategy struct {
	Default  string            `json:"default"`
	Override map[string]string `json:"override"`
}

// melonAnswer is the page as the client wants it.
func melonAnswer(v *visit, page *view.Page) ([]byte, error) {
	var out struct {
		Changes   map[string]*melonChanges `json:"changes"`
		Timestamp int64                    `json:"timestamp"`
		Strategy  *strategy                `json:"experimentalStrategy,omitempty"`
		More      bool                     `json:"more"`
	}
	out.Changes, out.More = map[string]*melonChanges{}, page.More
	table := func(name string) *melonChanges {
		if out.Changes[name] == nil {
			out.Changes[name] = &melonChanges{Created: []struct{}{}, Updated: []json.RawMessage{}, Deleted: []string{}}
		}
		return out.Changes[name]
	}
	for _, delta := range page.Deltas {
		t := table(delta.Name)
		t.Deleted = append(t.Deleted, delta.Removes...)
		c, err := v.App.FindCachedCollectionByNameOrId(delta.Name)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", delta.Name, err)
		}
		for _, row := range delta.Upserts {
			doc, err := document(row.Body, "", func(name string, value jsontext.Value) (jsontext.Value, error) {
				return toColumn(c, name, value)
			})
			if err != nil {
				return nil, err
			}
			t.Updated = append(t.Updated, doc)
		}
	}
	if replaced := slices.Concat(page.Reset, page.Gone); len(replaced) > 0 {
		out.Strategy = &strategy{Default: "incremental", Override: map[string]string{}}
		for _, name := range replaced {
			table(name)
			out.Strategy.Override[name] = "replacement"
		}
	}
	var err error
	if out.Timestamp, err = timestamp(page.Cursor); err != nil {
		return nil, err
	}
	return encode(out)
}
