package sessions

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// sessionJSON is a session as its owner sees it.
type sessionJSON struct {
	ID         string    `json:"id"`
	Collection string    `json:"collection,omitempty"` // for admins
	User       string    `json:"user,omitempty"`       // for admins
	DeviceID   string    `json:"deviceId"`
	Name       string    `json:"name"`
	Platform   string    `json:"platform"`
	AppVersion string    `json:"appVersion"`
	UserAgent  string    `json:"userAgent"`
	Address    string    `json:"address"`
	Methods    []string  `json:"methods"`
	Created    time.Time `json:"created"`
	LastUsed   time.Time `json:"lastUsed"`
	SignedIn   time.Time `json:"signedIn"` // when a credential was last shown
	Expires    time.Time `json:"expires"`
	Current    bool      `json:"current"`
	Actor      string    `json:"actor,omitempty"` // an admin who acts for the user
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func (l *login) view(current string) sessionJSON {
	return sessionJSON{
		ID: l.ID, DeviceID: l.DeviceID, Name: l.DeviceName, Platform: l.Platform, AppVersion: l.AppVersion, UserAgent: l.UserAgent,
		Address: l.Address, Methods: l.methods(), Created: at(l.CreatedAt), LastUsed: at(l.UsedAt), SignedIn: at(l.AuthAt),
		Expires: l.until().UTC(), Current: l.ID == current, Actor: l.Actor,
	}
}

// Pages of the list for admins; a user has few enough sessions for one answer.
const (
	defaultPage = 25
	maxPage     = 100
)

// handleList answers the caller's live sessions, the one used last first. An admin sees everybody's, or those of
// ?collection=users&user=ID, in pages.
func (s *Sessions) handleList(e *core.RequestEvent) error {
	query := e.Request.URL.Query()
	limit, err := pageLimit(query.Get("limit"))
	if err != nil {
		return err
	}
	collection, user := e.Auth.Collection().Id, e.Auth.Id
	admin := e.HasSuperuserAuth()
	if admin {
		if user = query.Get("user"); user == "" {
			collection = ""
		} else {
			c, err := e.App.FindCachedCollectionByNameOrId(firstOf(query.Get("collection"), "users"))
			if err != nil {
				return api.ErrNotFound
			}
			collection = c.Id
		}
	} else {
		limit = s.cfg.Limit + maxPage // impersonations do not count for the limit
	}
	rows, next, err := s.page(e.App, collection, user, limit, query.Get("cursor"))
	if err != nil {
		return err
	}
	current := ""
	if c := Current(e); c != nil {
		current = c.SessionID
	}
	out := make([]sessionJSON, len(rows))
	for i, l := range rows {
		out[i] = l.view(current)
		if admin {
			out[i].Collection, out[i].User = l.Collection, l.Record
		}
	}
	return api.WritePage(e, out, api.Page{Limit: limit, NextCursor: next})
}

func pageLimit(text string) (int, error) {
	if text == "" {
		return defaultPage, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxPage {
		return 0, api.Fail(api.ErrBadRequest, "limit must be from 1 to "+strconv.Itoa(maxPage))
	}
	return n, nil
}

// page reads live sessions by the time of their last use. The cursor is the last row of the page before; it needs no
// seal, because it only says where to begin among what the caller may see.
func (s *Sessions) page(app core.App, collection, user string, limit int, cursor string) (rows []login, next string, err error) {
	now := s.now().UnixMilli()
	where := []string{`e.id IS NULL AND l.idle_until > {:now} AND l.expires_at > {:now}`}
	params := dbx.Params{"now": now, "limit": limit + 1}
	if user != "" {
		where = append(where, owned)
		params["collection"], params["record"] = collection, user
	}
	if cursor != "" {
		used, id, _ := strings.Cut(cursor, ".")
		before, err := strconv.ParseInt(used, 10, 64)
		if err != nil || id == "" {
			return nil, "", api.Fail(api.ErrBadRequest, "the cursor is not valid")
		}
		where = append(where, `(l.used_at, l.id) < ({:used}, {:id})`)
		params["used"], params["id"] = before, id
	}
	err = app.ConcurrentDB().NewQuery(`SELECT ` + columns + ` WHERE ` + strings.Join(where, " AND ") +
		` ORDER BY l.used_at DESC, l.id DESC LIMIT {:limit}`).Bind(params).All(&rows)
	if err != nil {
		return nil, "", err
	}
	if len(rows) > limit {
		rows = rows[:limit]
		last := rows[limit-1]
		next = strconv.FormatInt(last.UsedAt, 10) + "." + last.ID
	}
	return rows, next, nil
}

// own finds a session that the caller may manage. One of somebody else does not exist for him.
func (s *Sessions) own(e *core.RequestEvent) (*login, error) {
	l, err := findLogin(e.App.ConcurrentDB(), e.Request.PathValue("id"))
	if errors.Is(err, errNoLogin) {
		return nil, api.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	mine := l.Collection == e.Auth.Collection().Id && l.Record == e.Auth.Id
	if !mine && !e.HasSuperuserAuth() || !l.alive(s.now()) {
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
	name := printable(body.Name, maxName)
	if name == "" {
		return api.InvalidBody(api.Invalid("name", api.ErrFieldRequired, ""))
	}
	l, err := s.own(e)
	if err != nil {
		return err
	}
	if _, err := e.App.NonconcurrentDB().Update(loginsTable, dbx.Params{"device_name": name}, dbx.HashExp{"id": l.ID}).Execute(); err != nil {
		return err
	}
	l.DeviceName = name
	current := ""
	if c := Current(e); c != nil {
		current = c.SessionID
	}
	return api.Write(e, http.StatusOK, l.view(current))
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
	params := owner(e.Auth)
	params["current"] = c.SessionID
	if err := s.endSome(e.App, e, e.Auth, reasonRevoked, owned+` AND l.id <> {:current}`, params); err != nil {
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
		if err != nil && !errors.Is(err, errNoLogin) {
			return err
		}
		if l != nil {
			id = l.ID
		}
	}
	if id == "" {
		return e.NoContent(http.StatusNoContent)
	}
	l, err := findLogin(e.App.ConcurrentDB(), id)
	if err == nil {
		err = s.endOne(e, l, reasonSignedOut)
	}
	if err != nil && !errors.Is(err, errNoLogin) {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// handleLogoutAll ends every session of the caller.
func (s *Sessions) handleLogoutAll(e *core.RequestEvent) error {
	if err := s.endSome(e.App, e, e.Auth, reasonSignedOut, owned, owner(e.Auth)); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}
