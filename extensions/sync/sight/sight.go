// Package sight is what one caller sees of the collections: the rows that the list rules give, their versions from the
// change log, and whether anything but the rows themselves may have changed what is seen. It has no tables, routes or
// settings.
package sight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/rows"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// Sights makes what callers see. It is safe for concurrent use.
type Sights struct {
	log   *changes.Log
	plans rows.Plans
	rules rows.Cache[ruleKey, dependencies]
}

// New makes it over a change log.
func New(log *changes.Log) *Sights { return &Sights{log: log} }

// Sight is one caller's. It lives as long as the request and implements [view.Source].
type Sight struct {
	*Sights
	app  core.App
	auth *core.Record
	read *core.RequestEvent // the request as if it were a read
	info *core.RequestInfo
	met  map[string]map[uint64]changes.Head // heads that the request has read already, by collection
}

// For is the sight of the caller of a request.
func (s *Sights) For(e *core.RequestEvent) (*Sight, error) {
	read := Event(e, http.MethodGet, "/api/collections", nil)
	info, err := read.RequestInfo()
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	return &Sight{Sights: s, app: e.App, auth: e.Auth, read: read, info: info}, nil
}

// Event is a request of its own within another one, as PocketBase's handlers would see it: the same caller and headers,
// another method, path and body. What is written to its answer is lost.
func Event(e *core.RequestEvent, method, path string, body []byte) *core.RequestEvent {
	r := e.Request.Clone(e.Request.Context())
	r.Method, r.URL, r.RequestURI, r.Body, r.ContentLength = method, &url.URL{Path: path}, path, http.NoBody, 0
	r.Header.Del("Content-Length")
	if body == nil {
		r.Header.Del("Content-Type")
	} else {
		r.Body, r.ContentLength = newBody(body), int64(len(body))
		r.Header.Set("Content-Type", "application/json")
	}
	out := &core.RequestEvent{App: e.App, Auth: e.Auth}
	out.Request, out.Response = r, &nowhere{header: http.Header{}}
	for name, value := range e.GetAll() {
		out.Set(name, value)
	}
	return out
}

// Now implements [view.Source].
func (s *Sight) Now(ctx context.Context) (view.Position, error) {
	p, err := s.log.Fold(ctx)
	if err != nil {
		return view.Position{}, err
	}
	floors, err := s.log.Floor(ctx)
	if err != nil {
		return view.Position{}, err
	}
	return view.Position{Epoch: p.Epoch, Seq: p.Seq, Floor: floors.Heads}, nil
}

// Collection implements [view.Source].
func (s *Sight) Collection(ctx context.Context, name string) (view.Collection, error) {
	_, k, err := s.find(ctx, name)
	if err != nil {
		return view.Collection{}, err
	}
	return Describe(name, k), nil
}

// Describe is a captured collection as the engine knows it. The name is the one that the client uses.
func Describe(name string, k changes.Collection) view.Collection {
	return view.Collection{Name: name, Key: strconv.FormatInt(k.C, 36) + "/" + name, Schema: k.Schema}
}

// find returns a collection with what the log knows of it.
func (s *Sight) find(ctx context.Context, name string) (*core.Collection, changes.Collection, error) {
	c, err := s.app.FindCachedCollectionByNameOrId(name)
	if err != nil {
		return nil, changes.Collection{}, view.ErrGone
	}
	k, err := s.log.Collection(ctx, c.Id)
	if errors.Is(err, changes.ErrNotCaptured) {
		return nil, changes.Collection{}, view.ErrGone
	}
	return c, k, err
}

// Visible implements [view.Source]. The rule decides what is read first: joined the other way round, SQLite would ask it
// for every head.
func (s *Sight) Visible(ctx context.Context, vc view.Collection, fn func(number uint64, version int64)) error {
	c, k, err := s.find(ctx, vc.Name)
	if err != nil || c.ListRule == nil {
		return goneIsEmpty(err)
	}
	if _, err := s.log.HeadsOf(ctx, c.Id, []string{}); err != nil { // completes the heads
		return err
	}
	q := s.app.RecordQuery(c).Select(c.Name + ".id")
	if err := rows.Where(q, s.app, c, s.info, c.ListRule, ""); err != nil {
		return err
	}
	inner := q.Build()
	params := inner.Params()
	params["syncCollection"] = k.C
	found, err := s.app.ConcurrentDB().NewQuery("SELECT h.hid, h.seq FROM (" + inner.SQL() +
		") x CROSS JOIN changes_heads h ON h.c = {:syncCollection} AND h.rec = x.id").Bind(params).WithContext(ctx).Rows()
	if err != nil {
		return fmt.Errorf("read visible rows of %s: %w", c.Name, err)
	}
	defer func() { _ = found.Close() }()
	for found.Next() {
		var number uint64
		var version int64
		if err := found.Scan(&number, &version); err != nil {
			return fmt.Errorf("read visible rows of %s: %w", c.Name, err)
		}
		fn(number, version)
	}
	return found.Err()
}

// goneIsEmpty: a collection that has gone since the page began has no rows; the next page says that it has gone.
func goneIsEmpty(err error) error {
	if errors.Is(err, view.ErrGone) {
		return nil
	}
	return err
}

// headsPage is how many heads are read at a time.
const headsPage = 10_000

// Changed implements [view.Source].
func (s *Sight) Changed(ctx context.Context, vc view.Collection, after int64, limit int) ([]view.Head, error) {
	c, _, err := s.find(ctx, vc.Name)
	if err != nil {
		return nil, goneIsEmpty(err)
	}
	if last, err := s.log.LastChange(ctx, c.Id); err == nil && last <= after {
		return nil, nil // costs no query
	}
	var out []view.Head
	for len(out) < limit {
		page := min(limit-len(out), headsPage)
		heads, err := s.log.HeadsAfter(ctx, c.Id, after, page)
		if err != nil {
			return nil, err
		}
		for _, h := range heads {
			out = append(out, view.Head{Number: uint64(h.HID), ID: h.Record, Version: h.Version, Deleted: h.Deleted})
			after = h.Version
		}
		s.meet(c.Id, heads)
		if len(heads) < page {
			break
		}
	}
	return out, nil
}

// Names implements [view.Source].
func (s *Sight) Names(ctx context.Context, vc view.Collection, numbers []uint64) (map[uint64]string, error) {
	heads, err := s.heads(ctx, vc, numbers)
	out := make(map[uint64]string, len(heads))
	for _, h := range heads {
		out[uint64(h.HID)] = h.Record
	}
	return out, err
}

// maxMet is how many heads a request remembers.
const maxMet = 2000

func (s *Sight) meet(collection string, heads []changes.Head) {
	met := s.met[collection]
	if met == nil {
		if s.met == nil {
			s.met = map[string]map[uint64]changes.Head{}
		}
		met = map[uint64]changes.Head{}
		s.met[collection] = met
	}
	for _, h := range heads[:min(len(heads), maxMet-len(met))] {
		met[uint64(h.HID)] = h
	}
}

// heads are those with these numbers, as they are now or were earlier in the request: a version may be too low, never too
// high, and a row that is deleted or comes back meanwhile is a change that the next page brings.
func (s *Sight) heads(ctx context.Context, vc view.Collection, numbers []uint64) ([]changes.Head, error) {
	c, _, err := s.find(ctx, vc.Name)
	if err != nil {
		return nil, goneIsEmpty(err)
	}
	out, unmet := make([]changes.Head, 0, len(numbers)), make([]int64, 0, len(numbers))
	for _, n := range numbers {
		if h, ok := s.met[c.Id][n]; ok {
			out = append(out, h)
		} else {
			unmet = append(unmet, int64(n))
		}
	}
	if len(unmet) == 0 {
		return out, nil
	}
	more, err := s.log.HeadsByHID(ctx, c.Id, unmet)
	return append(out, more...), err
}

// Numbers implements [view.Source].
func (s *Sight) Numbers(ctx context.Context, vc view.Collection, ids []string) (map[string]uint64, error) {
	c, _, err := s.find(ctx, vc.Name)
	if err != nil {
		return nil, goneIsEmpty(err)
	}
	heads, err := s.log.HeadsOf(ctx, c.Id, ids)
	out := make(map[string]uint64, len(heads))
	for id, h := range heads {
		out[id] = uint64(h.HID)
	}
	return out, err
}

// Rows implements [view.Source]. Versions are read before the rows, so that a row is never older than its version says: a
// client that takes it for the base of an edit cannot miss a conflict.
func (s *Sight) Rows(ctx context.Context, vc view.Collection, numbers []uint64) ([]view.Row, error) {
	heads, err := s.heads(ctx, vc, numbers)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]view.Head, len(heads))
	ids := make([]string, 0, len(heads))
	for _, h := range heads {
		if !h.Deleted {
			byID[h.Record] = view.Head{Number: uint64(h.HID), ID: h.Record, Version: h.Version}
			ids = append(ids, h.Record)
		}
	}
	out := make([]view.Row, 0, len(ids))
	err = s.Bodies(ctx, vc.Name, ids, func(id string, body []byte) {
		out = append(out, view.Row{Head: byID[id], Body: body})
	})
	return out, err
}

// Bodies calls fn with each of the records that the caller sees, as JSON.
func (s *Sight) Bodies(ctx context.Context, name string, ids []string, fn func(id string, body []byte)) error {
	c, err := s.app.FindCachedCollectionByNameOrId(name)
	if err != nil || c.ListRule == nil || len(ids) == 0 {
		return nil //nolint:nilerr // see goneIsEmpty
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return fmt.Errorf("marshal ids: %w", err)
	}
	// The ids come first: SQLite might rather go through all rows of the owner and look for those that are wanted.
	q := s.app.RecordQuery(c).WithContext(ctx).From("json_each({:syncIds}) sync_ids").
		Join("CROSS JOIN", c.Name, dbx.NewExp("[["+c.Name+".id]] = [[sync_ids.value]]")).AndBind(dbx.Params{"syncIds": string(list)})
	if err := rows.Where(q, s.app, c, s.info, c.ListRule, ""); err != nil {
		return err
	}
	if done, err := s.straight(ctx, c, q, fn); done || err != nil {
		return err
	}
	var records []*core.Record
	if err := q.All(&records); err != nil {
		return fmt.Errorf("read %s: %w", c.Name, err)
	}
	if err := apis.EnrichRecords(s.read, records); err != nil {
		return fmt.Errorf("enrich %s: %w", c.Name, err)
	}
	return rows.Buffered(func(buf []byte) ([]byte, error) {
		for _, r := range records {
			var err error
			if buf, err = rows.AppendRecord(buf[:0], r); err != nil {
				return buf, err
			}
			fn(r.Id, []byte(strings.Clone(string(buf))))
		}
		return buf, nil
	})
}

// straight writes rows without making records of them, where nobody has a say in these. It reports false otherwise.
func (s *Sight) straight(ctx context.Context, c *core.Collection, q *dbx.SelectQuery, fn func(id string, body []byte)) (bool, error) {
	db, ok := s.app.ConcurrentDB().(*dbx.DB) // or a transaction
	if !ok || s.app.OnRecordEnrich().Length() > 0 {
		return false, nil
	}
	plan := s.plans.For(c, false, rows.Fields{})
	if plan == nil || plan.Managed() {
		return false, nil
	}
	place, ok := plan.Place(core.FieldNameId)
	if !ok {
		return false, nil
	}
	viewer := ""
	if s.auth != nil {
		viewer = s.auth.Id
	}
	compiled, err := rows.Compile(db, q.Select(plan.Select(c.Name)...), nil)
	if err != nil {
		return false, err
	}
	size := 256 // of the last row: the next one is much like it
	err = compiled.Each(ctx, db, nil, func(row []any) error {
		body, err := plan.Append(make([]byte, 0, size+size/8), row, viewer)
		if err != nil {
			return err
		}
		size = len(body)
		fn(text(row[place]), body)
		return nil
	})
	if err != nil {
		return true, fmt.Errorf("read %s: %w", c.Name, err)
	}
	return true, nil
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}
