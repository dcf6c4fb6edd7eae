package records

import (
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/rows"
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
	if s := r.straight(e, collection, q, e.App.OnRecordViewRequest().Length()); s != nil {
		return r.viewStraight(e, collection, q, s)
	}
	record, err := r.find(e, collection, e.Request.PathValue("id"), q)
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
		return rows.AfterCommit(e.App, func() error {
			return rows.Buffered(func(buf []byte) ([]byte, error) {
				buf, err := q.fields.Encode(buf, e.Record)
				if err != nil {
					return buf, err
				}
				return buf, api.Write(e.RequestEvent, http.StatusOK, json.RawMessage(buf))
			})
		})
	})
}

// find reads one record, if the view rule lets the viewer see it.
func (r *reader) find(e *core.RequestEvent, collection *core.Collection, id string, q query) (*core.Record, error) {
	info, err := e.RequestInfo()
	if err != nil {
		return nil, api.Fail(api.ErrBodyMalformed, "").Because(err)
	}
	return e.App.FindRecordById(collection, id, func(sel *dbx.SelectQuery) error {
		sel.WithContext(e.Request.Context())
		if columns := r.viewColumns(e.App, collection, q); columns != nil {
			for i, c := range columns {
				columns[i] = collection.Name + "." + c
			}
			sel.Select(columns...)
		}
		return rows.Where(sel, e.App, collection, info, collection.ViewRule, "")
	})
}

func (r *reader) viewColumns(app core.App, collection *core.Collection, q query) []string {
	if app.OnRecordViewRequest().Length() > r.ownHooks || app.OnRecordEnrich().Length() > 0 {
		return nil
	}
	return q.fields.Columns(collection, q.expand)
}
