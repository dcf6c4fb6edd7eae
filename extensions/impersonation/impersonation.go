// Package impersonation lets an admin act for a user, to see what the user sees: for fifteen minutes, for a reason that
// the audit keeps, without a way to stay longer or to touch how the user signs in.
//
// Route: POST /api/v1/auth/impersonate. Settings and tables: none.
package impersonation

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sessions"
)

// role is the lowest that may act for users.
const role = "support"

const privileged = "admins cannot be impersonated"

// maxReason bounds the reason, in bytes.
const maxReason = 500

// ErrForbidden refuses what may not be done for somebody else.
var ErrForbidden = &extensions.Code{Name: "impersonation.forbidden", Status: http.StatusForbidden, Title: "This is not allowed on behalf of somebody else"}

// priority is where credentials have been judged and before anything acts on the request.
const priority = apis.DefaultLoadAuthTokenMiddlewarePriority + 2

// stockRoute is PocketBase's own impersonation, which the dashboard offers to superusers.
const stockRoute = "POST /api/collections/{collection}/impersonate/{id}"

// Deps is what the feature is lent. All members are needed.
type Deps struct {
	// May is nil if whoever makes the request has the role, or else the problem to answer.
	May func(e *core.RequestEvent, role string) error

	// Privileged tells the accounts of those who run the app, in whose name nobody acts.
	Privileged func(account *core.Record) bool
}

// New returns the extension.
func New(s *sessions.Sessions, deps Deps) extensions.Extension {
	return extensions.Extension{
		Name:  "impersonation",
		Group: "auth",
		Codes: []*extensions.Code{ErrForbidden},
		Bind: func(h *extensions.Host) error {
			bind(h.App, deps.Privileged)
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "satchelImpersonation", Priority: priority, Func: restrict}},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.POST("/impersonate", func(e *core.RequestEvent) error { return begin(e, s, deps) })
		},
	}
}

// begin lets an admin act for a user, for a reason that the audit keeps.
func begin(e *core.RequestEvent, s *sessions.Sessions, deps Deps) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	if err := deps.May(e, role); err != nil {
		return err
	}
	var body struct {
		Collection string `json:"collection,omitempty"`
		User       string `json:"user"`
		Reason     string `json:"reason"`
		ReadOnly   bool   `json:"readOnly,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	reason := strings.TrimSpace(body.Reason)
	if reason == "" || len(reason) > maxReason {
		return api.InvalidBody(api.Invalid("reason", api.ErrFieldRequired, ""))
	}
	record, err := e.App.FindRecordById(cmp.Or(body.Collection, "users"), body.User)
	if err != nil || !record.Collection().IsAuth() {
		return api.ErrNotFound
	}
	if deps.Privileged(record) {
		return api.Fail(ErrForbidden, privileged)
	}
	grant, err := s.Act(e, record, sessions.Acting{Life: sessions.ActLife, Reason: reason, ReadOnly: body.ReadOnly})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, grant)
}

// bind keeps an admin who acts for a user away from the user's credentials, and everybody from acting for an admin.
func bind(app core.App, isPrivileged func(account *core.Record) bool) {
	app.OnRecordAuthRequest().BindFunc(func(e *core.RecordAuthRequestEvent) error {
		if e.Request.Pattern == stockRoute && isPrivileged(e.Record) {
			return api.Fail(ErrForbidden, privileged)
		}
		return e.Next()
	})
	app.OnRecordUpdateRequest().BindFunc(func(e *core.RecordRequestEvent) error {
		if c := sessions.Current(e.RequestEvent); c != nil && c.Actor != nil && e.Record.Collection().IsAuth() && credentialsChange(e.Record) {
			return api.Fail(ErrForbidden, "")
		}
		return e.Next()
	})
	app.OnRecordDeleteRequest().BindFunc(func(e *core.RecordRequestEvent) error {
		if c := sessions.Current(e.RequestEvent); c != nil && c.Actor != nil && waysIn(e.Record.Collection()) {
			return api.Fail(ErrForbidden, "")
		}
		return e.Next()
	})
}

// waysIn tells the collections whose records let somebody sign in: accounts, and in PocketBase's own collections the
// accounts of OAuth2 providers that belong to them.
func waysIn(c *core.Collection) bool { return c.IsAuth() || c.System }

func credentialsChange(r *core.Record) bool {
	before := r.Original()
	return r.TokenKey() != before.TokenKey() || r.Email() != before.Email() || r.Verified() != before.Verified() ||
		r.GetString("password:hash") != before.GetString("password:hash") || r.GetString("password") != ""
}

// restrict refuses what an impersonation may not do: anything about signing in or the account itself, and with readOnly
// any write.
func restrict(e *core.RequestEvent) error {
	c := sessions.Current(e)
	if c == nil || c.Actor == nil {
		return e.Next()
	}
	path := e.Request.URL.Path
	reads := e.Request.Method == http.MethodGet || e.Request.Method == http.MethodHead || e.Request.Method == http.MethodOptions
	switch {
	case path == api.Prefix+"/auth/logout":
		return e.Next()
	case !reads && (strings.HasPrefix(path, api.Prefix+"/auth/") || strings.HasPrefix(path, api.Prefix+"/operations/account.") || path == "/api/auth/sync"), !reads && c.ReadOnly && path != "/api/realtime" && path != "/api/files/token":
		return api.Fail(ErrForbidden, "")
	}
	if rest, ok := strings.CutPrefix(path, "/api/collections/"); ok && !reads {
		_, action, _ := strings.Cut(rest, "/")
		for _, prefix := range []string{"auth-", "request-", "confirm-"} { // signing in with a provider links it to the caller
			if strings.HasPrefix(action, prefix) {
				return api.Fail(ErrForbidden, "")
			}
		}
	}
	return e.Next()
}
