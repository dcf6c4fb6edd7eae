package teams

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/api"
)

// executePriority is inside of what PocketBase does around a write at 99: the transaction of a delete, whose references
// follow after.
const executePriority = 100

// Keys of contexts.
type inOperation struct{}

// inside marks a write of an operation, which is recorded with the operation.
func inside(ctx context.Context) context.Context {
	return context.WithValue(ctx, inOperation{}, true)
}

func isInside(ctx context.Context) bool { return ctx != nil && ctx.Value(inOperation{}) != nil }

// bind registers the hooks that keep what is true of every team, whoever writes.
func (t *Teams) bind(app core.App) {
	app.OnRecordValidate(membersCollection, invitationsCollection).BindFunc(t.checkRole)
	execute := func(id string, f func(e *core.RecordEvent) error) *hook.Handler[*core.RecordEvent] {
		return &hook.Handler[*core.RecordEvent]{Id: "satchelTeams" + id, Priority: executePriority, Func: inTransaction(f)}
	}
	app.OnRecordCreateExecute(membersCollection).Bind(execute("MemberCreate", t.memberAdded))
	app.OnRecordUpdateExecute(membersCollection).Bind(execute("MemberUpdate", t.memberChanged))
	app.OnRecordDeleteExecute(membersCollection).Bind(execute("MemberDelete", t.memberRemoved))
	app.OnRecordDeleteExecute(teamsCollection).Bind(execute("Delete", t.teamDeleted))
	app.OnRecordDeleteExecute(invitationsCollection).Bind(execute("InvitationDelete", func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		return forgetToken(e.App, e.Record.Id)
	}))

	// Only superusers come this far.
	for _, name := range []string{teamsCollection, membersCollection, invitationsCollection} {
		app.OnRecordCreateRequest(name).BindFunc(t.remember)
		app.OnRecordUpdateRequest(name).BindFunc(t.remember)
		app.OnRecordDeleteRequest(name).BindFunc(t.remember)
	}
	app.OnRecordCreateRequest(teamsCollection).BindFunc(func(*core.RecordRequestEvent) error {
		return api.Fail(api.ErrForbidden, "A team begins with its owner: call the operation teams.create as the account that shall own it.")
	})
	immutable := func(*core.RecordRequestEvent) error {
		return api.Fail(api.ErrForbidden, "Invitations are made and changed by operations: their token was sent to one address. They may be deleted.")
	}
	app.OnRecordCreateRequest(invitationsCollection).BindFunc(immutable)
	app.OnRecordUpdateRequest(invitationsCollection).BindFunc(immutable)
}

// inTransaction makes the write and what the hook does one.
func inTransaction(f func(e *core.RecordEvent) error) func(e *core.RecordEvent) error {
	return func(e *core.RecordEvent) error {
		outer := e.App
		defer func() { e.App = outer }()
		return outer.RunInTransaction(func(tx core.App) error {
			e.App = tx
			return f(e)
		})
	}
}

// remember lets the hooks of the write know whose it is.
func (t *Teams) remember(e *core.RecordRequestEvent) error {
	t.writes.Store(e.Record, e.RequestEvent)
	defer t.writes.Delete(e.Record)
	return e.Next()
}

// requestOf is the request that writes the record, nil when it is not one.
func (t *Teams) requestOf(record *core.Record) *core.RequestEvent {
	e, _ := t.writes.Load(record)
	request, _ := e.(*core.RequestEvent)
	return request
}

func (t *Teams) checkRole(e *core.RecordEvent) error {
	role := e.Record.GetString("role")
	if (e.Record.IsNew() || role != e.Record.Original().GetString("role")) && !t.known(role) {
		return validation.Errors{"role": validation.NewError("teams_role_unknown", "Must be owner, admin, member or a role of the settings.")}
	}
	return e.Next()
}

func (t *Teams) memberAdded(e *core.RecordEvent) error {
	if err := e.Next(); err != nil || isInside(e.Context) {
		return err
	}
	return t.auditMember(e, "teams.member_added", map[string]any{"role": e.Record.GetString("role")})
}

// memberChanged judges by what is stored and not by what the writer has read: a request of a superuser reads the record
// before its transaction, and would write a role back that was taken meanwhile.
func (t *Teams) memberChanged(e *core.RecordEvent) error {
	before, err := first(e.App, membersCollection, dbx.HashExp{"id": e.Record.Id})
	if err != nil {
		return err
	}
	if before == nil {
		return api.Fail(api.ErrNotFound, "the membership has ended")
	}
	for _, fixed := range []string{"team", "user"} {
		if before.GetString(fixed) != e.Record.GetString(fixed) {
			return validation.Errors{fixed: validation.NewError("teams_fixed", "A membership stays with its team and its user.")}
		}
	}
	was := before.GetString("role")
	if e.Record.GetString("role") == e.Record.Original().GetString("role") {
		e.Record.Set("role", was)
	}
	is := e.Record.GetString("role")
	if err := e.Next(); err != nil || was == is {
		return err
	}
	team := e.Record.GetString("team")
	if was == Owner {
		if n, err := owners(e.App, team); err != nil {
			return err
		} else if n == 0 {
			return validation.Errors{"role": validation.NewError("teams_last_owner", "A team must keep an owner.")}
		}
	}
	if err := t.revokeInvitationsOf(e.App, team, e.Record.GetString("user"), is); err != nil || isInside(e.Context) {
		return err
	}
	return t.auditMember(e, "teams.role_changed", map[string]any{"from": was, "to": is})
}

// memberRemoved keeps the team owned, or takes it away when nobody is left. When the team itself is being deleted its
// record is gone already, since PocketBase deletes what refers to a record after it.
func (t *Teams) memberRemoved(e *core.RecordEvent) error {
	before, err := first(e.App, membersCollection, dbx.HashExp{"id": e.Record.Id})
	if err != nil {
		return err
	}
	if err := e.Next(); err != nil || before == nil { // somebody was faster
		return err
	}
	team, err := first(e.App, teamsCollection, dbx.HashExp{"id": e.Record.GetString("team")})
	if err != nil || team == nil {
		return err
	}
	if err := t.revokeInvitationsOf(e.App, team.Id, e.Record.GetString("user"), ""); err != nil {
		return err
	}
	if !isInside(e.Context) {
		if err := t.auditMember(e, "teams.member_removed", map[string]any{"role": before.GetString("role")}); err != nil {
			return err
		}
	}
	if n, err := owners(e.App, team.Id); err != nil || n > 0 {
		return err
	}
	return t.succeed(e.App, team)
}

// succeed gives the team, which has no owner, a new one.
func (t *Teams) succeed(tx core.App, team *core.Record) error {
	heir, err := successor(tx, team.Id)
	if err != nil {
		return err
	}
	if heir == nil {
		return tx.Delete(team)
	}
	was := heir.GetString("role")
	heir.Set("role", Owner)
	if err := tx.SaveWithContext(inside(context.Background()), heir); err != nil {
		return fmt.Errorf("make successor the owner: %w", err)
	}
	account, err := account(tx, heir.GetString("user"))
	if err != nil {
		return err
	}
	return t.audit(tx, nil, "teams.owner_succeeded", account, map[string]any{"team": team.Id, "user": heir.GetString("user"), "from": was, "to": Owner})
}

func (t *Teams) teamDeleted(e *core.RecordEvent) error {
	members, err := count(e.App, membersCollection, dbx.HashExp{"team": e.Record.Id})
	if err != nil {
		return err
	}
	if err := e.Next(); err != nil || isInside(e.Context) {
		return err
	}
	details := map[string]any{"team": e.Record.Id, "name": e.Record.GetString("name"), "members": members}
	return t.audit(e.App, t.requestOf(e.Record), "teams.deleted", nil, details)
}

func (t *Teams) auditMember(e *core.RecordEvent, action string, details map[string]any) error {
	account, err := account(e.App, e.Record.GetString("user"))
	if err != nil {
		return err
	}
	details["team"], details["member"], details["user"] = e.Record.GetString("team"), e.Record.Id, e.Record.GetString("user")
	return t.audit(e.App, t.requestOf(e.Record), action, account, details)
}

// revokeInvitationsOf takes back what the account has offered in the team and could not offer with the role; "" is that
// of someone who has left. A link that they kept would let them in again.
func (t *Teams) revokeInvitationsOf(tx core.App, team, account, role string) error {
	var list []*core.Record
	err := tx.RecordQuery(invitationsCollection).AndWhere(dbx.HashExp{"invitedBy": account, "team": team, "state": pending}).All(&list)
	if err != nil {
		return fmt.Errorf("find invitations of %s: %w", account, err)
	}
	for _, inv := range list {
		if role != "" && mayInvite(role, inv.GetString("role")) {
			continue
		}
		if err := closeInvitation(tx, inv, revoked); err != nil {
			return err
		}
	}
	return nil
}

func closeInvitation(tx core.App, inv *core.Record, state string) error {
	inv.Set("state", state)
	if err := tx.Save(inv); err != nil {
		return fmt.Errorf("close invitation %s: %w", inv.Id, err)
	}
	return nil
}

// closed is how long an invitation stays to be read after its end.
const closed = 30 * 24 * time.Hour
