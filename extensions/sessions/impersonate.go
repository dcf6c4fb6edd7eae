package sessions

import (
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
)

const (
	// impersonationLife is how long an admin acts for a user at most. It cannot be refreshed.
	impersonationLife = 15 * time.Minute

	// maxReason bounds the reason, in characters.
	maxReason = 500

	methodImpersonation = "impersonation"
)

// handleImpersonate lets an admin act for a user, for a reason that the audit keeps.
func (s *Sessions) handleImpersonate(e *core.RequestEvent) error {
	var body struct {
		Collection string `json:"collection,omitempty"`
		User       string `json:"user"`
		Reason     string `json:"reason"`
		ReadOnly   bool   `json:"readOnly,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	reason := printable(body.Reason, maxReason)
	if reason == "" {
		return api.InvalidBody(api.Invalid("reason", api.ErrFieldRequired, ""))
	}
	record, err := e.App.FindRecordById(firstOf(body.Collection, "users"), body.User)
	if err != nil || !record.Collection().IsAuth() {
		return api.ErrNotFound
	}
	if record.IsSuperuser() {
		return api.Fail(ErrImpersonation, "admins cannot be impersonated")
	}
	l, err := s.impersonate(e, record, impersonationLife, reason, body.ReadOnly)
	if err != nil {
		return err
	}
	grant, err := s.grant(l)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, grant)
}

// impersonate begins a session of a user for an admin.
func (s *Sessions) impersonate(e *core.RequestEvent, record *core.Record, life time.Duration, reason string, readOnly bool) (*login, error) {
	l := s.newLogin(record, deviceOf(e), methodImpersonation)
	l.Actor, l.ActorCollection, l.Reason, l.ReadOnly = e.Auth.Id, e.Auth.Collection().Id, reason, readOnly
	l.ExpiresAt = s.now().Add(life).UnixMilli()
	l.DeviceID = "" // it is the admin's
	err := e.App.RunInTransaction(func(tx core.App) error {
		if err := l.insert(tx); err != nil {
			return err
		}
		return s.record(tx, e, "sessions.impersonated", audit.Success, audit.PartyOf(record), l.ID, map[string]any{"reason": reason, "readOnly": readOnly})
	})
	return l, err
}

// onStockImpersonation puts PocketBase's own impersonation, which the dashboard offers, under the same limits.
func (s *Sessions) onStockImpersonation(e *core.RecordAuthRequestEvent) error {
	life := impersonationLife
	if exp := expiryOf(e.Token); !exp.IsZero() {
		life = min(life, exp.Sub(s.now()))
	}
	l, err := s.impersonate(e.RequestEvent, e.Record, life, "by the dashboard or PocketBase's API", false)
	if err != nil {
		return err
	}
	if e.Token, err = s.bindToken(e.Record, e.Token, l.ID); err != nil {
		return err
	}
	return e.Next()
}

// bindImpersonation keeps an admin who acts for a user away from the user's credentials.
func (s *Sessions) bindImpersonation(app core.App) {
	app.OnRecordUpdateRequest().BindFunc(func(e *core.RecordRequestEvent) error {
		if c := Current(e.RequestEvent); c != nil && c.Actor != nil && e.Record.Collection().IsAuth() && credentialsChange(e.Record) {
			return api.Fail(ErrImpersonation, "")
		}
		return e.Next()
	})
	app.OnRecordDeleteRequest().BindFunc(func(e *core.RecordRequestEvent) error {
		if c := Current(e.RequestEvent); c != nil && c.Actor != nil && e.Record.Collection().IsAuth() {
			return api.Fail(ErrImpersonation, "")
		}
		return e.Next()
	})
}

func credentialsChange(r *core.Record) bool {
	before := r.Original()
	return r.TokenKey() != before.TokenKey() || r.Email() != before.Email() || r.Verified() != before.Verified() ||
		r.GetString("password:hash") != before.GetString("password:hash") || r.GetString("password") != ""
}

// restrictImpersonation refuses what an impersonation may not do: anything about signing in, and with readOnly any write.
func (s *Sessions) restrictImpersonation(e *core.RequestEvent) error {
	c := Current(e)
	if c == nil || c.Actor == nil {
		return e.Next()
	}
	path := e.Request.URL.Path
	reads := e.Request.Method == http.MethodGet || e.Request.Method == http.MethodHead || e.Request.Method == http.MethodOptions
	switch {
	case path == api.Prefix+"/auth/logout":
		return e.Next()
	case !reads && strings.HasPrefix(path, api.Prefix+"/auth/"), !reads && c.ReadOnly && path != "/api/realtime" && path != "/api/files/token":
		return api.Fail(ErrImpersonation, "")
	}
	if rest, ok := strings.CutPrefix(path, "/api/collections/"); ok {
		_, action, _ := strings.Cut(rest, "/")
		for _, prefix := range []string{"request-", "confirm-", "auth-refresh"} {
			if strings.HasPrefix(action, prefix) {
				return api.Fail(ErrImpersonation, "")
			}
		}
	}
	return e.Next()
}
