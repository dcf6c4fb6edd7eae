package records

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
)

func (r *reader) view(e *core.RequestEvent) error {
	collection, err := readable(e, func(c *core.Collection) *string { return c.ViewRule })
	if err != nil {
		return err
	}
	q, _, err := parseShape(e, collection)
	if err != nil {
		return err
	}
	record, err := find(e, collection, e.Request.PathValue("id"), q)
	if errors.Is(err, sql.ErrNoRows) {
		return api.Fail(api.ErrNotFound, "there is no such record")
	}
	if err != nil {
		return readProblem(e.Request.Context(), "", err)
	}
	event := &core.RecordRequestEvent{RequestEvent: e, Record: record}
	event.Collection = collection
	return e.App.OnRecordViewRequest().Trigger(event, func(e *core.RecordRequestEvent) error {
		if err := apis.EnrichRecord(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return afterCommit(e.App, func() error {
			data, err := q.projection.encode(e.Record)
			if err != nil {
				return err
			}
			return api.Write(e.RequestEvent, http.StatusOK, data)
		})
	})
}

// find reads one record, if the view rule lets the viewer see it.
func find(e *core.RequestEvent, collection *core.Collection, id string, q query) (*core.Record, error) {
	info, err := e.RequestInfo()
	if err != nil {
		return nil, api.Fail(api.ErrBodyMalformed, "").Because(err)
	}
	return e.App.FindRecordById(collection, id, func(sel *dbx.SelectQuery) error {
		sel.WithContext(e.Request.Context())
		if columns := viewColumns(e.App, collection, q); columns != nil {
			for i, c := range columns {
				columns[i] = collection.Name + "." + c
			}
			sel.Select(columns...)
		}
		rule := collection.ViewRule
		if rule == nil || *rule == "" || info.HasSuperuserAuth() {
			return nil
		}
		resolver := core.NewRecordFieldResolver(e.App, collection, info, true)
		expr, err := search.FilterData(*rule).BuildExpr(resolver)
		if err != nil {
			return fmt.Errorf("build view rule of %s: %w", collection.Name, err)
		}
		sel.AndWhere(expr)
		return resolver.UpdateQuery(sel)
	})
}

func viewColumns(app core.App, collection *core.Collection, q query) []string {
	if app.OnRecordViewRequest().Length() > 0 || app.OnRecordEnrich().Length() > 0 {
		return nil
	}
	return q.projection.columns(collection, q.expand)
}
