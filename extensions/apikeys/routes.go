package apikeys

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
)

// Pages of the list.
const (
	defaultPage = 25
	maxPage     = 100
)

// require lets those pass who have the role, and keeps answers about keys out of every cache.
func (s *service) require(role string) func(e *core.RequestEvent) error {
	return func(e *core.RequestEvent) error {
		e.Response.Header().Set("Cache-Control", "no-store")
		if err := s.deps.May(e, role); err != nil {
			return err
		}
		return e.Next()
	}
}

func (s *service) handleList(e *core.RequestEvent) error {
	query := e.Request.URL.Query()
	limit := defaultPage
	if text := query.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxPage {
			return api.Fail(api.ErrBadRequest, "limit must be from 1 to "+strconv.Itoa(maxPage))
		}
	}
	keys, next, err := page(e.App, limit, query.Get("cursor"))
	if err != nil {
		return err
	}
	return api.WritePage(e, keys, api.Page{Limit: limit, NextCursor: next})
}

// made is a new key with its text.
type made struct {
	Key
	Text string `json:"key"`
}

func (s *service) handleCreate(e *core.RequestEvent) error {
	var body struct {
		Name      string     `json:"name"`
		Scopes    []string   `json:"scopes"`
		ExpiresAt *time.Time `json:"expiresAt,omitempty"`
		Rate      int        `json:"rate,omitempty"`
		Networks  []string   `json:"networks,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	w := wish{name: body.Name, scopes: body.Scopes, rate: body.Rate}
	if body.ExpiresAt != nil {
		w.expires = *body.ExpiresAt
	}
	if wrong := s.check(&w, body.Networks); len(wrong) > 0 {
		mistakes := make([]api.FieldError, len(wrong))
		for i, m := range wrong {
			mistakes[i] = api.Invalid(m.field, api.ErrFieldInvalid, m.text)
		}
		return api.InvalidBody(mistakes...)
	}
	k, text, err := s.create(e.App, audit.From(e), w)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusCreated, made{k, text})
}

// handleRevoke answers the same whether this call revoked the key or an earlier one.
func (s *service) handleRevoke(e *core.RequestEvent) error {
	_, _, err := s.revoke(e.App, audit.From(e), e.Request.PathValue("id"))
	if errors.Is(err, errNotFound) {
		return api.ErrNotFound
	}
	if err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}
