package teams

import (
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/operations"
)

// meet finds a member of a team that the caller is in, and the caller's own membership. They may be the same.
func (t *Teams) meet(c *operations.Call, id string) (team, me, member *core.Record, err error) {
	if member, err = first(c.App, membersCollection, dbx.HashExp{"id": id}); err != nil {
		return nil, nil, nil, err
	}
	if member == nil {
		return nil, nil, nil, ErrMemberNotFound
	}
	team, me, err = t.enter(c, member.GetString("team"))
	if err != nil {
		if err == ErrTeamNotFound { //nolint:errorlint // enter returns it as it is
			err = ErrMemberNotFound
		}
		return nil, nil, nil, err
	}
	return team, me, member, t.about(c, team, member)
}

// about tells the audit on whom the operation acts.
func (t *Teams) about(c *operations.Call, team, member *core.Record) error {
	account, err := account(c.App, member.GetString("user"))
	if err != nil {
		return err
	}
	if account != nil {
		c.Subject(account)
	}
	c.Detail("team", team.Id)
	c.Detail("member", member.Id)
	c.Detail("user", member.GetString("user"))
	return nil
}

func (t *Teams) leave(c *operations.Call, in teamInput) (Nothing, error) {
	team, me, err := t.enter(c, in.Team)
	if err != nil {
		return Nothing{}, err
	}
	if err := t.about(c, team, me); err != nil {
		return Nothing{}, err
	}
	return Nothing{}, t.part(c, "teams.leave", team, me)
}

func (t *Teams) remove(c *operations.Call, in memberInput) (Nothing, error) {
	team, me, member, err := t.meet(c, in.Member)
	if err != nil {
		return Nothing{}, err
	}
	if me.Id != member.Id && !mayManage(me.GetString("role"), member.GetString("role")) {
		return Nothing{}, ErrRole
	}
	if me.Id != member.Id {
		if err := t.disinvite(c, team, member); err != nil {
			return Nothing{}, err
		}
	}
	return Nothing{}, t.part(c, "teams.removeMember", team, member)
}

// part ends a membership.
func (t *Teams) part(c *operations.Call, operation string, team, member *core.Record) error {
	role := member.GetString("role")
	if err := keepOwner(c.App, team.Id, role, ""); err != nil {
		return err
	}
	if err := t.allow(c, operation, team); err != nil {
		return err
	}
	c.Detail("role", role)
	if err := c.App.DeleteWithContext(inside(c.Context()), member); err != nil {
		return fmt.Errorf("delete membership: %w", err)
	}
	return nil
}

// disinvite takes back the invitation that would let a removed member in again.
func (t *Teams) disinvite(c *operations.Call, team, member *core.Record) error {
	account, err := account(c.App, member.GetString("user"))
	if err != nil || account == nil || account.Email() == "" {
		return err
	}
	inv, err := first(c.App, invitationsCollection, dbx.HashExp{"team": team.Id, "email": normal(account.Email()), "state": pending})
	if err != nil || inv == nil {
		return err
	}
	return closeInvitation(c.App, inv, revoked)
}

// keepOwner refuses to take the role of the last owner.
func keepOwner(app core.App, team, was, is string) error {
	if was != Owner || is == Owner {
		return nil
	}
	n, err := owners(app, team)
	if err != nil {
		return err
	}
	if n < 2 {
		return api.Fail(ErrLastOwner, "make another member an owner first, or delete the team")
	}
	return nil
}

func (t *Teams) changeRole(c *operations.Call, in roleInput) (Membership, error) {
	team, me, member, err := t.meet(c, in.Member)
	if err != nil {
		return Membership{}, err
	}
	own, was := me.GetString("role"), member.GetString("role")
	may := mayManage(own, was) && mayManage(own, in.Role)
	if me.Id == member.Id {
		may = mayTake(own, in.Role)
	}
	switch {
	case !may:
		return Membership{}, ErrRole
	case !t.known(in.Role):
		return Membership{}, ErrRoleUnknown
	}
	if err := keepOwner(c.App, team.Id, was, in.Role); err != nil {
		return Membership{}, err
	}
	if err := t.allow(c, "teams.changeRole", team); err != nil {
		return Membership{}, err
	}
	return t.setRole(c, member, in.Role)
}

func (t *Teams) setRole(c *operations.Call, member *core.Record, role string) (Membership, error) {
	c.Detail("from", member.GetString("role"))
	c.Detail("to", role)
	member.Set("role", role)
	if err := c.App.SaveWithContext(inside(c.Context()), member); err != nil {
		return Membership{}, fmt.Errorf("change role: %w", err)
	}
	return membershipOf(member), nil
}

func (t *Teams) transfer(c *operations.Call, in memberInput) (Membership, error) {
	team, me, member, err := t.meet(c, in.Member)
	if err != nil {
		return Membership{}, err
	}
	if me.GetString("role") != Owner {
		return Membership{}, ErrRole
	}
	if me.Id == member.Id {
		return Membership{}, api.InvalidBody(api.Invalid("member", api.ErrFieldInvalid, "must be another member"))
	}
	if err := t.allow(c, "teams.transferOwnership", team); err != nil {
		return Membership{}, err
	}
	out, err := t.setRole(c, member, Owner)
	if err != nil {
		return Membership{}, err
	}
	me.Set("role", Admin)
	if err := c.App.SaveWithContext(inside(c.Context()), me); err != nil {
		return Membership{}, fmt.Errorf("step down: %w", err)
	}
	c.Detail("callerTo", Admin)
	return out, nil
}
