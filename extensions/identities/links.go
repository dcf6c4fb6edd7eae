package identities

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// identity is a link as its owner sees it.
type identity struct {
	ID            string    `json:"id"`
	Provider      string    `json:"provider"`
	Email         string    `json:"email"`
	EmailVerified bool      `json:"emailVerified"`
	CreatedAt     time.Time `json:"createdAt"`
	LastUsedAt    time.Time `json:"lastUsedAt"`
}

func (l link) shown() identity {
	return identity{
		ID: l.ID, Provider: l.Provider, Email: l.Email, EmailVerified: l.Verified,
		CreatedAt: time.UnixMilli(l.CreatedAt).UTC(), LastUsedAt: time.UnixMilli(l.LastUsedAt).UTC(),
	}
}

// list answers the caller's identities; maxLinks is few enough for one page.
func (s *service) list(e *core.RequestEvent) error {
	links, err := linksOf(e.App, e.Auth)
	if err != nil {
		return err
	}
	out := make([]identity, len(links))
	for i, l := range links {
		out[i] = l.shown()
	}
	return api.Write(e, http.StatusOK, out)
}

// link ties an identity to the caller's account.
func (s *service) link(e *core.RequestEvent) error {
	if !slices.Contains(s.cfg.Collections, e.Auth.Collection().Name) {
		return api.Fail(api.ErrForbidden, "accounts of this collection have no identities")
	}
	in, collection, c, err := s.read(e)
	if err != nil {
		return err
	}
	if in.Collection != "" && collection.Id != e.Auth.Collection().Id {
		return &api.Problem{Code: api.ErrValidation, Errors: []api.FieldError{
			{Field: "collection", Code: "validation_invalid_value", Message: "Must be the collection of the account."},
		}}
	}
	out, err := s.resolve(e, c, e.Auth.Collection(), e.Auth, true)
	if err != nil {
		return s.refused(e, c, err)
	}
	s.keepAppleToken(e, c, out, in.Code)
	status := http.StatusOK
	if out.linked {
		status = http.StatusCreated
	}
	return api.Write(e, status, out.link.shown())
}

// unlink removes an identity, unless it is the last way in.
func (s *service) unlink(e *core.RequestEvent) error {
	err := e.App.RunInTransaction(func(app core.App) error {
		where := ofRecord(e.Auth)
		where["id"] = e.Request.PathValue("id")
		found, err := oneLink(app, where)
		if err != nil {
			return err
		}
		if found == nil {
			return api.Fail(api.ErrNotFound, "")
		}
		record, err := app.FindRecordById(e.Auth.Collection(), e.Auth.Id)
		if err != nil {
			return fmt.Errorf("find user: %w", err)
		}
		other, err := s.anotherWayIn(app, record)
		if err != nil {
			return err
		}
		if !other {
			return api.Fail(ErrLastWayIn, "set a password or link another provider first")
		}
		if _, err := deleteLinks(app, dbx.HashExp{"id": found.ID}); err != nil {
			return err
		}
		return s.audit(app, e, "identities.unlink", "success", record, &claims{provider: &provider{name: found.Provider}})
	})
	if err != nil {
		return err
	}
	s.revoked.Wake()
	return e.NoContent(http.StatusNoContent)
}

// anotherWayIn reports whether a record could still sign in with one identity less.
func (s *service) anotherWayIn(app core.App, record *core.Record) (bool, error) {
	other, err := wayIn(app, s.cfg, record, 1)
	if err != nil || other || s.deps.Passkeys == nil {
		return other, err
	}
	return s.deps.Passkeys(app, record)
}

// LastWayIn returns a function that reports whether a record could not sign in any more without its passkeys.
func LastWayIn(cfg Config) func(app core.App, record *core.Record, removing string) (bool, error) {
	return func(app core.App, record *core.Record, _ string) (bool, error) {
		other, err := wayIn(app, cfg, record, 0)
		return !other, err
	}
}

// wayIn reports whether a record could sign in with fewer identities than it has, and without passkeys.
func wayIn(app core.App, cfg Config, record *core.Record, fewer int) (bool, error) {
	collection := record.Collection()
	links, err := linksOf(app, record)
	if err != nil {
		return false, err
	}
	if usable := slices.DeleteFunc(links, func(l link) bool { return !slices.Contains(cfg.Providers, l.Provider) }); len(usable) > fewer {
		return true, nil
	}
	if collection.OTP.Enabled && record.Email() != "" {
		return true, nil
	}
	if collection.PasswordAuth.Enabled && slices.ContainsFunc(collection.PasswordAuth.IdentityFields, func(name string) bool { return record.GetString(name) != "" }) {
		unknown, err := isPasswordless(app, record)
		if err != nil || !unknown {
			return !unknown, err
		}
	}
	if !collection.OAuth2.Enabled {
		return false, nil
	}
	external, err := app.FindAllExternalAuthsByRecord(record)
	if err != nil {
		return false, fmt.Errorf("find external auths: %w", err)
	}
	return slices.ContainsFunc(external, func(x *core.ExternalAuth) bool {
		_, ok := collection.OAuth2.GetProviderConfig(x.Provider())
		return ok
	}), nil
}
