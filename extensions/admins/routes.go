package admins

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"

	"github.com/pocketbase/dbx"
	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// handleMe tells an admin, or a page that shows what he may do, his role and the roles that it reaches.
func (s *service) handleMe(e *core.RequestEvent) error {
	role, _ := Of(e)
	out := struct {
		ID         string `json:"id"`
		Collection string `json:"collection"`
		Email      string `json:"email"`
		Role       Role   `json:"role"`
		May        []Role `json:"may"`
	}{ID: e.Auth.Id, Collection: e.Auth.Collection().Name, Email: e.Auth.Email(), Role: role}
	for _, r := range Roles() {
		if role.reaches(r) {
			out.May = append(out.May, r)
		}
	}
	return api.Write(e, http.StatusOK, out)
}

// handlePassword replaces the caller's password. All his sessions end with the old one.
func (s *service) handlePassword(e *core.RequestEvent) error {
	var body struct {
		Password string `json:"password"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	if e.Auth.IsSuperuser() {
		return api.Fail(api.ErrNotFound, "superusers change theirs in the dashboard")
	}
	err := e.App.RunInTransaction(func(tx core.App) error {
		admin, err := find(tx, e.Auth.Id)
		if err != nil {
			return err
		}
		admin.SetPassword(body.Password)
		return refusal(e, tx.Save(admin))
	})
	if err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

func (s *service) handleList(e *core.RequestEvent) error {
	query := e.Request.URL.Query()
	limit, err := api.PageLimit(e)
	if err != nil {
		return err
	}
	var found []*core.Record
	err = e.App.RecordQuery(CollectionID).AndWhere(dbx.NewExp("[[id]] > {:after}", dbx.Params{"after": query.Get("cursor")})).
		OrderBy("id").Limit(int64(limit) + 1).All(&found)
	if err != nil {
		return fmt.Errorf("list admins: %w", err)
	}
	page := api.Page{Limit: limit}
	if len(found) > limit {
		found = found[:limit]
		page.NextCursor = found[limit-1].Id
	}
	out := make([]view, len(found))
	for i, admin := range found {
		out[i] = viewOf(admin)
	}
	return api.WritePage(e, out, page)
}

// handleAdd makes an admin. A password that the server has made up is in the answer, and nowhere else.
func (s *service) handleAdd(e *core.RequestEvent) error {
	var body struct {
		Email    string `json:"email"`
		Role     Role   `json:"role"`
		Password string `json:"password,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	if err := checkRole(body.Role); err != nil {
		return err
	}
	admin, made, err := draft(e.App, body.Email, body.Role, body.Password)
	if err != nil {
		return err
	}
	if err := s.inNameOf(e, admin, func() error { return refusal(e, e.App.Save(admin)) }); err != nil {
		return err
	}
	return api.Write(e, http.StatusCreated, struct {
		view
		Password string `json:"password,omitempty"`
	}{viewOf(admin), made})
}

func (s *service) handleRole(e *core.RequestEvent) error {
	var body struct {
		Role Role `json:"role"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	if err := checkRole(body.Role); err != nil {
		return err
	}
	var out view
	err := s.onOne(e, func(tx core.App, admin *core.Record) error {
		admin.Set(roleField, string(body.Role))
		if err := tx.Save(admin); err != nil {
			return err
		}
		out = viewOf(admin)
		return nil
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, out)
}

func (s *service) handleRemove(e *core.RequestEvent) error {
	if err := s.onOne(e, func(tx core.App, admin *core.Record) error { return tx.Delete(admin) }); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

// onOne changes the admin that the path names, in a transaction.
func (s *service) onOne(e *core.RequestEvent, act func(tx core.App, admin *core.Record) error) error {
	return e.App.RunInTransaction(func(tx core.App) error {
		admin, err := find(tx, e.Request.PathValue("id"))
		if err != nil {
			return err
		}
		return s.inNameOf(e, admin, func() error { return act(tx, admin) })
	})
}

func find(tx core.App, id string) (*core.Record, error) {
	admin, err := tx.FindRecordById(CollectionID, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, api.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("find admin: %w", err)
	}
	return admin, nil
}

func checkRole(r Role) error {
	if r.valid() {
		return nil
	}
	return api.InvalidBody(api.Invalid(roleField, api.ErrFieldInvalid, "it must be viewer, support, operator or owner"))
}

// refusal tells which fields of a record are wrong.
func refusal(e *core.RequestEvent, err error) error {
	if failed, ok := errors.AsType[validation.Errors](err); ok {
		return e.BadRequestError("The admin could not be saved.", failed)
	}
	return err
}
