// Package admins gives roles to the people who run an app, so that not everybody who looks after users needs all power
// over the data. A role reaches everything that the ones below it reach: viewer, support, operator, owner. PocketBase's
// superusers are owners.
//
// Admins are accounts of the auth collection admins, which a migration makes: they sign in like users, with the same
// sessions and second factors, and call /api/v1/admin. They are no superusers: the dashboard and the generated API are
// closed to them as far as the collections' rules do not let any account in. Nobody signs up; an owner adds them, or the
// command line does.
//
// A request made on somebody's behalf has no role. A change of a role counts from the next request on and ends the
// sessions of that admin, whichever way it is made: by these routes, the dashboard or the command line. The last owner
// stays when there is no superuser.
//
// Collection: admins. Settings and tables: none. Routes: /api/v1/admin/{me,admins,sessions}. Commands: admins.
package admins

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
)

// Role is what an admin may do.
type Role string

// The roles, each above the one before it.
const (
	Viewer   Role = "viewer"
	Support  Role = "support"
	Operator Role = "operator"
	Owner    Role = "owner"
)

// Roles lists the roles, the lowest first.
func Roles() []Role { return []Role{Viewer, Support, Operator, Owner} }

func (r Role) valid() bool { return slices.Contains(Roles(), r) }

// reaches reports whether the role is the other one or above it. A role that does not exist is reached by none.
func (r Role) reaches(other Role) bool {
	return other.valid() && slices.Index(Roles(), r) >= slices.Index(Roles(), other)
}

// Codes of what is refused.
var (
	ErrRoleMissing = &extensions.Code{Name: "admins.role_missing", Status: http.StatusForbidden, Title: "This takes another role"}
	ErrLastOwner   = &extensions.Code{Name: "admins.last_owner", Status: http.StatusConflict, Title: "There must be an owner"}
)

// Of returns the role of whoever makes the request, and false if he has none.
func Of(e *core.RequestEvent) (Role, bool) {
	if e.Auth == nil || e.Get(audit.ActorKey) != nil { // somebody acts for the account, and has not its powers
		return "", false
	}
	if e.Auth.IsSuperuser() {
		return Owner, true
	}
	if e.Auth.Collection().Id != CollectionID {
		return "", false
	}
	role := Role(e.Auth.GetString(roleField))
	return role, role.valid()
}

// May is nil if whoever makes the request has the role or one above it. Otherwise it is the problem to answer: 401
// without an account, 403 with one.
func May(e *core.RequestEvent, role string) error {
	if e.Auth == nil {
		return &api.Problem{Code: api.ErrUnauthorized, Header: http.Header{"Www-Authenticate": {"Bearer"}}}
	}
	if have, ok := Of(e); ok && have.reaches(Role(role)) {
		return nil
	}
	return api.Fail(ErrRoleMissing, "it takes the role "+role)
}

// Require is [May] for a route or a group of routes. Answers to admins are kept out of every cache.
func Require(role Role) *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{Id: "satchelAdminRole", Func: func(e *core.RequestEvent) error {
		e.Response.Header().Set("Cache-Control", "no-store")
		if err := May(e, string(role)); err != nil {
			return err
		}
		return e.Next()
	}}
}

// Privileged reports whether the account is an admin's or a superuser's.
func Privileged(account *core.Record) bool { return privileged(account.Collection()) }

func privileged(c *core.Collection) bool {
	return c.Id == CollectionID || c.Name == core.CollectionNameSuperusers
}

// Deps is what the feature is lent. All members are needed.
type Deps struct {
	// Recent refuses requests whose user has not signed in lately.
	Recent *hook.Handler[*core.RequestEvent]

	// Audit stores an entry, in the transaction of tx if it is one.
	Audit func(tx core.App, e audit.Entry) error
}

// service is safe for concurrent use once it is bound.
type service struct {
	deps Deps
	now  func() time.Time

	// requests are those under way that change an admin, for the audit.
	requests sync.Map // *core.Record -> *core.RequestEvent
}

// New returns the extension.
func New(deps Deps) extensions.Extension {
	s := &service{deps: deps, now: time.Now}
	return extensions.Extension{
		Name:       "admins",
		Group:      "admin",
		Codes:      []*extensions.Code{ErrRoleMissing, ErrLastOwner},
		Migrations: []extensions.Migration{{Unix: 1795460000, What: "create_collection", Up: createCollection, Down: dropCollection}},
		Bind:       s.bind,
		Routes:     s.routes,
		Commands:   func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{s.command(h)} },
	}
}

func (s *service) routes(g *router.RouterGroup[*core.RequestEvent]) {
	recent := s.deps.Recent
	g.GET("/me", s.handleMe).Bind(Require(Viewer))
	g.PUT("/me/password", s.handlePassword).Bind(Require(Viewer), recent)
	g.GET("/admins", s.handleList).Bind(Require(Owner))
	g.POST("/admins", s.handleAdd).Bind(Require(Owner), recent)
	g.PATCH("/admins/{id}", s.handleRole).Bind(Require(Owner), recent)
	g.DELETE("/admins/{id}", s.handleRemove).Bind(Require(Owner), recent)
	g.GET("/sessions", s.handleSessions).Bind(Require(Support))
	g.DELETE("/sessions/{id}", s.handleEndSession).Bind(Require(Support))
}
