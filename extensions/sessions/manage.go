package sessions

import (
	"cmp"
	"errors"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// handleList answers the caller's live sessions, the one used last first. An admin sees everybody's, or those of
// ?collection=users&user=ID, in pages.
func (s *Sessions) handleList(e *core.RequestEvent) error {
	query := e.Request.URL.Query()
	limit, err := api.PageLimit(e)
	if err != nil {
		return err
	}
	collection, user := e.Auth.Collection().Id, e.Auth.Id
	admin := e.HasSuperuserAuth()
	if admin {
		if user = query.Get("user"); user == "" {
			collection = ""
		} else {
			c, err := e.App.FindCachedCollectionByNameOrId(cmp.Or(query.Get("collection"), "users"))
			if err != nil {
				return api.ErrNotFound
			}
			collection = c.Id
		}
	} else {
		limit = s.cfg.Limit + api.PageMax // impersonations do not count for the limit
	}
	rows, next, err := login.Page(e.App, s.now(), collection, user, limit, query.Get("cursor"))
	if errors.Is(err, login.ErrCursor) {
		return api.Fail(api.ErrBadRequest, err.Error())
	}
	if err != nil {
		return err
	}
	current := ""
	if c := Current(e); c != nil {
		current = c.SessionID
	}
	out := make([]login.View, len(rows))
	for i := range rows {
		l := &rows[i]
		out[i] = l.View(current)
		if admin {
			out[i].Collection, out[i].User = l.Collection, l.Record
		}
	}
	return api.WritePage(e, out, api.Page{Limit: limit, NextCursor: next})
}

// own finds a session that the caller may manage. One of somebody else does not exist for him.
func (s *Sessions) own(e *core.RequestEvent) (*login.Login, error) {
	l, err := login.Find(e.App.ConcurrentDB(), e.Request.PathValue("id"))
	if errors.Is(err, login.ErrNone) {
		return nil, api.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	mine := l.Collection == e.Auth.Collection().Id && l.Record == e.Auth.Id
	if !mine && !e.HasSuperuserAuth() || !l.Alive(s.now()) {
		return nil, api.ErrNotFound
	}
	return l, nil
}

func (s *Sessions) handleRename(e *core.RequestEvent) error {
	var body struct {
		Name string `json:"name"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	name := login.Printable(body.Name, login.MaxName)
	if name == "" {
		return api.InvalidBody(api.Invalid("name", api.ErrFieldRequired, ""))
	}
	l, err := s.own(e)
	if err != nil {
		return err
	}
	if _, err := e.App.NonconcurrentDB().Update(login.Table, dbx.Params{"device_name": name}, dbx.HashExp{"id": l.ID}).Execute(); err != nil {
		return err
	}
	l.DeviceName = name
	current := ""
	if c := Current(e); c != nil {
		current = c.SessionID
	}
	return api.Write(e, http.StatusOK, l.View(current))
}

func (s *Sessions) handleEnd(e *core.RequestEvent) error {
	l, err := s.own(e)
	if err != nil {
		return err
	}
	if err := s.endOne(e, l, reasonRevoked); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// handleEndOthers ends all sessions of the caller but the present one.
func (s *Sessions) handleEndOthers(e *core.RequestEvent) error {
	c := Current(e)
	if c == nil || c.SessionID == "" {
		return api.Fail(api.ErrBadRequest, "the token belongs to no session, so there are no others")
	}
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	params := login.Owner(e.Auth)
	params["current"] = c.SessionID
	if err := s.endSome(e.App, e, e.Auth, reasonRevoked, login.Owned+` AND l.id <> {:current}`, params); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// handleLogout ends the session of the presented credential: the access token of the request, or a refresh token in the
// body for a client whose access token has expired. Whoever is signed out already gets the same answer, so that a phone
// can repeat it.
func (s *Sessions) handleLogout(e *core.RequestEvent) error {
	noStore(e)
	var body struct {
		RefreshToken string `json:"refreshToken,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	id := ""
	if c := Current(e); c != nil {
		id = c.SessionID
	}
	if body.RefreshToken != "" {
		l, err := s.authentic(e.App, body.RefreshToken)
		if err != nil && !errors.Is(err, login.ErrNone) {
			return err
		}
		if l != nil {
			id = l.ID
		}
	}
	if id == "" {
		return e.NoContent(http.StatusNoContent)
	}
	l, err := login.Find(e.App.ConcurrentDB(), id)
	if err == nil {
		err = s.endOne(e, l, reasonSignedOut)
	}
	if err != nil && !errors.Is(err, login.ErrNone) {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// handleLogoutAll ends every session of the caller.
func (s *Sessions) handleLogoutAll(e *core.RequestEvent) error {
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	if err := s.endAllBut(e.App, e, e.Auth, reasonSignedOut, ""); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}
