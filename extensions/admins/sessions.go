package admins

import (
	"cmp"
	"errors"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// reasonEnded is why a session ends that an admin ends, as for one that its user does.
const reasonEnded = "revoked"

// handleSessions answers the live sessions of ?user=ID&collection=users, the one used last first. Those of admins and
// superusers are for owners.
func (s *service) handleSessions(e *core.RequestEvent) error {
	query := e.Request.URL.Query()
	limit, err := api.PageLimit(e)
	if err != nil {
		return err
	}
	user := query.Get("user")
	if user == "" {
		return api.Fail(api.ErrBadRequest, "user is missing: the id of the account")
	}
	c, err := e.App.FindCachedCollectionByNameOrId(cmp.Or(query.Get("collection"), "users"))
	if err != nil || !c.IsAuth() {
		return api.ErrNotFound
	}
	if err := mayTouch(e, c); err != nil {
		return err
	}
	rows, next, err := login.Page(e.App, s.now(), c.Id, user, limit, query.Get("cursor"))
	if errors.Is(err, login.ErrCursor) {
		return api.Fail(api.ErrBadRequest, err.Error())
	}
	if err != nil {
		return err
	}
	out := make([]login.View, len(rows))
	for i := range rows {
		out[i] = rows[i].View("")
		out[i].Collection, out[i].User = c.Name, user
	}
	return api.WritePage(e, out, api.Page{Limit: limit, NextCursor: next})
}

// mayTouch keeps the accounts of those who run the app to owners.
func mayTouch(e *core.RequestEvent, c *core.Collection) error {
	if privileged(c) {
		return May(e, string(Owner))
	}
	return nil
}

func (s *service) handleEndSession(e *core.RequestEvent) error {
	l, err := login.Find(e.App.ConcurrentDB(), e.Request.PathValue("id"))
	if errors.Is(err, login.ErrNone) {
		return api.ErrNotFound
	}
	if err != nil {
		return err
	}
	c, err := e.App.FindCachedCollectionByNameOrId(l.Collection)
	if err != nil || !l.Alive(s.now()) {
		return api.ErrNotFound
	}
	if err := mayTouch(e, c); err != nil {
		return err
	}
	err = e.App.RunInTransaction(func(tx core.App) error {
		ids, err := login.End(tx, s.now(), reasonEnded, `l.id = {:id}`, dbx.Params{"id": l.ID})
		if err != nil || len(ids) == 0 { // it has ended meanwhile
			return err
		}
		entry := audit.From(e)
		entry.Action, entry.Session, entry.Details = "sessions.ended", l.ID, map[string]any{"reason": reasonEnded}
		entry.Subject = audit.Party{Kind: audit.User, Collection: c.Name, ID: l.Record}
		if c.Name == core.CollectionNameSuperusers {
			entry.Subject.Kind = audit.Superuser
		}
		return s.deps.Audit(tx, entry)
	})
	if err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}
