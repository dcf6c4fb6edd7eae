package records

import (
	"errors"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
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
		return afterCommit(e.App, func() error {
			data, err := q.projection.encode(e.Result.Items)
			if err != nil {
				return err
			}
			return api.WritePage(e.RequestEvent, data, api.Page{Limit: q.limit, NextCursor: p.next, Total: p.total})
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
	rows, err := newSelection(e, collection, q.filter)
	if err != nil {
		return page{}, err
	}
	o, err := planner{collection: collection, superuser: e.HasSuperuserAuth(), bindings: rows.bindings}.plan(q.sort)
	if err != nil {
		return page{}, err
	}
	cursors, err := r.secret.load(e.App)
	if err != nil {
		return page{}, err
	}
	list, err := o.fingerprint(collection, q.filter)
	if err != nil {
		return page{}, err
	}
	now := time.Now()
	var key []any
	if q.cursor != "" {
		if key, err = cursors.open(list, q.cursor, now); err != nil {
			return page{}, api.Fail(ErrCursor, err.Error()+"; start again without it")
		}
	}
	var found []dbx.NullStringMap
	if err := rows.page(o, key, listColumns(e.App, collection, q), q.limit+1).All(&found); err != nil {
		return page{}, err
	}
	var p page
	if len(found) > q.limit {
		found = found[:q.limit]
		if p.next, err = nextCursor(cursors, list, o, found[q.limit-1], now); err != nil {
			return page{}, err
		}
	}
	if p.records, err = newRecords(collection, found); err != nil {
		return page{}, err
	}
	if q.total {
		n, err := rows.count()
		if err != nil {
			return page{}, err
		}
		p.total = &n
	}
	return p, nil
}

func nextCursor(cursors *sealer, list []byte, o order, last dbx.NullStringMap, now time.Time) (string, error) {
	key, err := keyOf(last, o.terms)
	if err != nil {
		return "", err
	}
	next, err := cursors.seal(list, key, now)
	if errors.Is(err, errCursorKey) {
		return "", api.Fail(ErrSort, "the list cannot be paged in this order: a "+err.Error())
	}
	return next, err
}

// listColumns are the columns to read; all of them when a hook may look at the records.
func listColumns(app core.App, collection *core.Collection, q query) []string {
	if app.OnRecordsListRequest().Length() > 0 || app.OnRecordEnrich().Length() > 0 {
		return nil
	}
	return q.projection.columns(collection, q.expand)
}

// slowDown delays a client that keeps asking filtered questions without finding anything.
func (r *reader) slowDown(e *core.RecordsListRequestEvent, filter string) {
	rule := e.Collection.ListRule
	if filter == "" || len(e.Records) > 0 || rule == nil || *rule == "" || e.HasSuperuserAuth() {
		return
	}
	if r.throttle.exceeded(throttleKey{e.Collection.Id, e.RealIP()}, time.Now()) {
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

// afterCommit runs fn at once, or after the commit when a hook has wrapped the request in a transaction.
func afterCommit(app core.App, fn func() error) error {
	tx := app.TxInfo()
	if tx == nil {
		return fn()
	}
	tx.OnComplete(func(err error) error {
		if err != nil {
			return nil //nolint:nilerr // the transaction reports its own failure; there is only no answer to write
		}
		return fn()
	})
	return nil
}
