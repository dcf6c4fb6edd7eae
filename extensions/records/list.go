package records

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/rows"
)

// page is one page of a list. next is empty at the end.
type page struct {
	records []*core.Record
	next    string
	total   *int
}

func (r *reader) list(e *core.RequestEvent) error {
	collection, err := readable(e, func(c *core.Collection) *string { return c.ListRule })
	if err != nil {
		return err
	}
	q, err := r.parseQuery(e, collection)
	if err != nil {
		return err
	}
	if s := r.straight(e, collection, q, e.App.OnRecordsListRequest().Length()); s != nil {
		return r.listStraight(e, collection, q, s)
	}
	p, err := r.read(e, collection, q)
	if err != nil {
		return readProblem(e.Request.Context(), q.filter, err)
	}
	event := &core.RecordsListRequestEvent{RequestEvent: e, Records: p.records, Result: result(&p.records, q.limit, p.total)}
	event.Collection = collection
	return e.App.OnRecordsListRequest().Trigger(event, func(e *core.RecordsListRequestEvent) error {
		if err := apis.EnrichRecords(e.RequestEvent, e.Records); err != nil {
			return err
		}
		r.slowDown(e, q.filter)
		return rows.AfterCommit(e.App, func() error {
			return rows.Buffered(func(buf []byte) ([]byte, error) {
				buf, err := q.fields.Encode(buf, e.Result.Items)
				if err != nil {
					return buf, err
				}
				return buf, api.WritePage(e.RequestEvent, json.RawMessage(buf), api.Page{Limit: q.limit, NextCursor: p.next, Total: p.total})
			})
		})
	})
}

// result is what hooks on stock lists find; unknown totals are -1 there, too.
func result(records *[]*core.Record, limit int, total *int) *search.Result {
	out := &search.Result{Items: records, Page: 1, PerPage: limit, TotalItems: -1, TotalPages: -1}
	if total != nil {
		out.TotalItems = *total
		out.TotalPages = (*total + limit - 1) / limit
	}
	return out
}

// read fetches a page: one row more than asked for tells whether there is a next one.
func (r *reader) read(e *core.RequestEvent, collection *core.Collection, q query) (page, error) {
	selected, err := newSelection(e, collection, q.filter)
	if err != nil {
		return page{}, err
	}
	o, err := planner{collection: collection, superuser: e.HasSuperuserAuth(), bindings: selected.bindings}.plan(q.sort)
	if err != nil {
		return page{}, err
	}
	list, err := o.fingerprint(collection, q.filter)
	if err != nil {
		return page{}, err
	}
	at, err := r.openPosition(e.App, list, q.cursor)
	if err != nil {
		return page{}, err
	}
	var found []dbx.NullStringMap
	if err := selected.page(o, at.key, r.listColumns(e.App, collection, q), q.limit+1).All(&found); err != nil {
		return page{}, err
	}
	var p page
	if len(found) > q.limit {
		found = found[:q.limit]
		key, err := keyOf(found[q.limit-1], o.terms)
		if err != nil {
			return page{}, err
		}
		if p.next, err = at.next(key); err != nil {
			return page{}, err
		}
	}
	if p.records, err = newRecords(collection, found); err != nil {
		return page{}, err
	}
	if q.total {
		n, err := selected.count()
		if err != nil {
			return page{}, err
		}
		p.total = &n
	}
	return p, nil
}

// position is where a client is on its way through a list.
type position struct {
	cursors *sealer
	list    []byte // the fingerprint of the list
	key     []any  // the place in it, nil for its beginning
	now     time.Time
}

func (r *reader) openPosition(app core.App, list []byte, cursor string) (position, error) {
	cursors, err := r.secret.load(app)
	if err != nil {
		return position{}, err
	}
	p := position{cursors: cursors, list: list, now: time.Now()}
	if cursor != "" {
		if p.key, err = cursors.open(list, cursor, p.now); err != nil {
			return position{}, api.Fail(ErrCursor, err.Error()+"; start again without it")
		}
	}
	return p, nil
}

// next is the cursor to go on from the row with the key.
func (p position) next(key []any) (string, error) {
	next, err := p.cursors.seal(p.list, key, p.now)
	if errors.Is(err, errCursorKey) {
		return "", api.Fail(ErrSort, "the list cannot be paged in this order: a "+err.Error())
	}
	return next, err
}

// listColumns are the columns to read; all of them when a hook may look at the records.
func (r *reader) listColumns(app core.App, collection *core.Collection, q query) []string {
	if app.OnRecordsListRequest().Length() > r.ownHooks || app.OnRecordEnrich().Length() > 0 {
		return nil
	}
	return q.fields.Columns(collection, q.expand)
}

// slowDown delays a client that keeps asking filtered questions without finding anything.
func (r *reader) slowDown(e *core.RecordsListRequestEvent, filter string) {
	if len(e.Records) == 0 {
		r.slowDownEmpty(e.RequestEvent, e.Collection, filter)
	}
}

func (r *reader) slowDownEmpty(e *core.RequestEvent, collection *core.Collection, filter string) {
	rule := collection.ListRule
	if filter == "" || rule == nil || *rule == "" || e.HasSuperuserAuth() {
		return
	}
	if r.throttle.exceeded(throttleKey{collection.Id, e.RealIP()}, time.Now()) {
		r.throttle.pause(e.Request.Context())
	}
}

// readable finds the collection of the path and refuses those that only superusers may read.
func readable(e *core.RequestEvent, rule func(*core.Collection) *string) (*core.Collection, error) {
	collection := cachedCollection(e.App, e.Request.PathValue("collection"))
	if collection == nil {
		return nil, api.Fail(api.ErrNotFound, "there is no such collection")
	}
	if rule(collection) == nil && !e.HasSuperuserAuth() {
		return nil, api.Fail(api.ErrForbidden, "only superusers can do this")
	}
	return collection, nil
}

func cachedCollection(app core.App, nameOrID string) *core.Collection {
	c, err := app.FindCachedCollectionByNameOrId(nameOrID)
	if err != nil {
		return nil
	}
	return c
}
