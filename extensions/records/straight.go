package records

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/rows"
)

// straight is how a request is answered from rows, without records.
type straight struct {
	plan   *rows.Plan
	viewer rows.Viewer
	id     string // of the viewer, empty for a guest
	db     *dbx.DB
}

// straight returns nil if the answer needs records. hooks is the number of handlers on the hook of the request.
func (r *reader) straight(e *core.RequestEvent, collection *core.Collection, q query, hooks int) *straight {
	if len(q.expand) > 0 || hooks > r.ownHooks || e.App.OnRecordEnrich().Length() > 0 {
		return nil
	}
	db, ok := e.App.ConcurrentDB().(*dbx.DB) // or a transaction
	if !ok {
		return nil
	}
	s := &straight{db: db}
	if s.viewer, ok = rows.ViewerOf(e.Auth); !ok {
		return nil
	}
	if e.Auth != nil {
		s.id = e.Auth.Id
	}
	s.plan = r.plans.For(collection, s.viewer.Superuser, q.fields)
	if s.plan == nil || s.plan.Managed() {
		return nil
	}
	return s
}

// listing is a list, ready to be read.
type listing struct {
	order order
	list  []byte      // the fingerprint
	page  *rows.Query // values: the viewer, the key
	key   []int       // where in a row the key is
	count *rows.Query // values: the viewer; nil unless it was asked for
}

type listingKey struct {
	collection           *core.Collection
	viewer               rows.Viewer
	filter, sort, fields string
	limit                int
	later, total         bool
}

func (q query) listingKey(collection *core.Collection, s *straight) listingKey {
	return listingKey{collection, s.viewer, q.filter, q.sorting, q.fields.String(), q.limit, q.cursor != "", q.total}
}

func (r *reader) listing(e *core.RequestEvent, collection *core.Collection, q query, s *straight) (*listing, error) {
	lasts := func() bool { return rows.Lasting(collection, s.viewer, collection.ListRule, q.filter) }
	return rows.Compiled(&r.listings, q.listingKey(collection, s), e, lasts, func(info *core.RequestInfo, viewer string) (*listing, error) {
		selected, err := newSelectionFor(e.App, info, collection, q.filter)
		if err != nil {
			return nil, err
		}
		l := &listing{}
		l.order, err = planner{collection: collection, superuser: s.viewer.Superuser, bindings: selected.bindings}.plan(q.sort)
		if err != nil {
			return nil, err
		}
		if l.list, err = l.order.fingerprint(collection, q.filter); err != nil {
			return nil, err
		}
		marks := []string{viewer}
		var place []any
		if q.cursor != "" {
			for range l.order.terms {
				mark := rows.NewMark()
				marks, place = append(marks, mark), append(place, mark)
			}
		}
		var page *dbx.SelectQuery
		page, l.key = selected.straightPage(l.order, place, s.plan, q.limit+1)
		if l.page, err = rows.Compile(s.db, page, marks); err != nil {
			return nil, err
		}
		if q.total {
			counted, _ := selected.query(nil)
			l.count, err = rows.Compile(s.db, counted.Select("COUNT(*)"), []string{viewer})
		}
		return l, err
	})
}

// listStraight answers with a page: one row more than asked for tells whether there is a next one.
func (r *reader) listStraight(e *core.RequestEvent, collection *core.Collection, q query, s *straight) error {
	if err := checkBody(e); err != nil {
		return err
	}
	if kept, _ := r.listings.Get(q.listingKey(collection, s)); kept != nil && r.unchanged(e, collection, s) {
		return nil
	}
	l, err := r.listing(e, collection, q, s)
	if err != nil {
		return err
	}
	at, err := r.openPosition(e.App, l.list, q.cursor)
	if err != nil {
		return err
	}
	return rows.Buffered(func(buf []byte) ([]byte, error) {
		out := api.Page{Limit: q.limit}
		values := append([]any{s.id}, at.key...)
		n := 0
		var last []any
		buf = append(buf, '[')
		err := l.page.Each(e.Request.Context(), s.db, values, func(row []any) error {
			if n++; n > q.limit {
				return nil
			}
			if n > 1 {
				buf = append(buf, ',')
			}
			if n == q.limit {
				for _, i := range l.key {
					last = append(last, row[i])
				}
			}
			var err error
			buf, err = s.plan.Append(buf, row, s.id)
			return err
		})
		if err != nil {
			return buf, readProblem(e.Request.Context(), q.filter, err)
		}
		if n > q.limit {
			if out.NextCursor, err = at.next(last); err != nil {
				return buf, err
			}
		}
		if out.Total, err = total(e, l.count, s, q.filter); err != nil {
			return buf, err
		}
		if n == 0 {
			r.slowDownEmpty(e, collection, q.filter)
		}
		if buf, err = s.plan.Finish(append(buf, ']'), 0); err != nil {
			return buf, err
		}
		return buf, api.WritePage(e, json.RawMessage(buf), out)
	})
}

func total(e *core.RequestEvent, count *rows.Query, s *straight, filter string) (*int, error) {
	if count == nil {
		return nil, nil
	}
	var n int
	err := count.Each(e.Request.Context(), s.db, []any{s.id}, func(row []any) error {
		found, ok := row[0].(int64)
		if !ok {
			return fmt.Errorf("count rows: %T is no number", row[0])
		}
		n = int(found)
		return nil
	})
	if err != nil {
		return nil, readProblem(e.Request.Context(), filter, err)
	}
	return &n, nil
}

type viewKey struct {
	collection *core.Collection
	viewer     rows.Viewer
	fields     string
}

func (r *reader) viewStraight(e *core.RequestEvent, collection *core.Collection, q query, s *straight) error {
	if err := checkBody(e); err != nil {
		return err
	}
	lasts := func() bool { return rows.Lasting(collection, s.viewer, collection.ViewRule, "") }
	key := viewKey{collection, s.viewer, q.fields.String()}
	if kept, _ := r.views.Get(key); kept != nil && r.unchanged(e, collection, s) {
		return nil
	}
	one, err := rows.Compiled(&r.views, key, e, lasts, func(info *core.RequestInfo, viewer string) (*rows.Query, error) {
		id := rows.NewMark()
		sel := e.App.RecordQuery(collection).Select(s.plan.Select(collection.Name)...).
			AndWhere(dbx.HashExp{collection.Name + ".id": id}).Limit(1)
		if err := rows.Where(sel, e.App, collection, info, collection.ViewRule, ""); err != nil {
			return nil, err
		}
		return rows.Compile(s.db, sel, []string{viewer, id})
	})
	if err != nil {
		return err
	}
	return rows.Buffered(func(buf []byte) ([]byte, error) {
		found := false
		values := []any{s.id, e.Request.PathValue("id")}
		err := one.Each(e.Request.Context(), s.db, values, func(row []any) error {
			var err error
			found = true
			buf, err = s.plan.Append(buf, row, s.id)
			return err
		})
		if err != nil {
			return buf, readProblem(e.Request.Context(), "", err)
		}
		if !found {
			return buf, api.Fail(api.ErrNotFound, "there is no such record")
		}
		if buf, err = s.plan.Finish(buf, 0); err != nil {
			return buf, err
		}
		return buf, api.Write(e, http.StatusOK, json.RawMessage(buf))
	})
}

// checkBody refuses a body that cannot be read, although no read needs one, as the stock API does.
func checkBody(e *core.RequestEvent) error {
	if e.Request.ContentLength == 0 {
		return nil
	}
	if _, err := e.RequestInfo(); err != nil {
		return api.Fail(api.ErrBodyMalformed, "").Because(err)
	}
	return nil
}
