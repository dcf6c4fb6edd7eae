package teams

import (
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/operations"
)

// Invitation is one that was sent. Token and Link are there for a link alone, and only in the answer that made them.
type Invitation struct {
	ID        string    `json:"id"`
	Team      string    `json:"team"`
	Email     string    `json:"email"` // empty for a link
	Role      string    `json:"role"`
	State     string    `json:"state"`
	ExpiresAt time.Time `json:"expiresAt"`
	Token     string    `json:"token,omitempty"`
	Link      string    `json:"link,omitempty"`
}

// Preview is what the holder of an invitation may know before they join. Inviter is empty when the account has no name.
type Preview struct {
	ID        string    `json:"id"`
	TeamName  string    `json:"teamName"`
	Inviter   string    `json:"inviter"`
	Role      string    `json:"role"`
	Email     string    `json:"email"` // the address that the account must have; empty for a link
	ExpiresAt time.Time `json:"expiresAt"`
}

type inviteInput struct {
	Team  string `json:"team" minLength:"1" maxLength:"30" description:"id of the team"`
	Email string `json:"email,omitempty" format:"email" maxLength:"254" description:"address to mail it to; without one the answer holds a link"`
	Role  string `json:"role,omitempty" minLength:"1" maxLength:"31" description:"member if left out"`
}

type invitationInput struct {
	Invitation string `json:"invitation" minLength:"1" maxLength:"30" description:"id of the record in team_invitations"`
}

// heldInput names an invitation by what its holder has: the token, or the id for the owner of the verified address.
type heldInput struct {
	Token      string `json:"token,omitempty" minLength:"43" maxLength:"43" description:"from the link, behind the #"`
	Invitation string `json:"invitation,omitempty" minLength:"1" maxLength:"30" description:"id, when your verified address was invited"`
}

// tries bounds guesses; a token cannot be guessed, but each try costs a query.
const tries = 60

func (t *Teams) invitationOperations() []operations.Operation {
	accounts := operations.Callers{Collections: []string{t.cfg.Accounts}}
	guests := operations.Callers{Collections: []string{t.cfg.Accounts}, Guests: true}
	held := []*extensions.Code{ErrInvitationInvalid, ErrInvitationExpired, ErrInvitationClosed}
	return []operations.Operation{
		operations.Define(operations.Spec[inviteInput, Invitation]{
			Name: "teams.invite", Summary: "Invite to a team, by mail or as a link; replaces an earlier invitation of the address",
			Callers: accounts, Limit: perHour(60), Audit: []string{"team", "role"},
			Codes: []*extensions.Code{ErrTeamNotFound, ErrRole, ErrRoleUnknown, ErrFull, ErrTooManyPending, ErrMailLimit, ErrUnverified},
			Do:    signedIn(t, t.invite),
		}),
		operations.Define(operations.Spec[invitationInput, Invitation]{
			Name: "teams.resendInvitation", Summary: "Send an invitation again, with a new token and a new time",
			Callers: accounts, Limit: perHour(60), Audit: []string{"invitation"},
			Codes: []*extensions.Code{ErrInvitationInvalid, ErrRole, ErrInvitationClosed, ErrTooManyPending, ErrMailLimit, ErrUnverified},
			Do:    signedIn(t, t.resend),
		}),
		operations.Define(operations.Spec[invitationInput, Nothing]{
			Name: "teams.revokeInvitation", Summary: "Take an invitation back",
			Callers: accounts, Limit: perHour(300), Audit: []string{"invitation"},
			Codes: []*extensions.Code{ErrInvitationInvalid, ErrRole, ErrInvitationClosed}, Do: signedIn(t, t.revoke),
		}),
		operations.Define(operations.Spec[heldInput, Preview]{
			Name: "teams.previewInvitation", Summary: "Show what an invitation is for, also before signing in",
			Callers: guests, KeyOptional: true, Limit: perHour(tries), Codes: held, Do: t.preview,
		}),
		operations.Define(operations.Spec[heldInput, Membership]{
			Name: "teams.acceptInvitation", Summary: "Join a team", Callers: accounts, Limit: perHour(tries),
			Codes: append(held, ErrInvitationAddress, ErrAlreadyMember, ErrFull, ErrTooManyTeams), Do: signedIn(t, t.accept),
		}),
		operations.Define(operations.Spec[heldInput, Nothing]{
			Name: "teams.declineInvitation", Summary: "Decline an invitation, also without an account",
			Callers: guests, KeyOptional: true, Limit: perHour(tries), Codes: held, Do: t.decline,
		}),
	}
}

// normal is an address as invitations keep it. Nobody has seen two mailboxes that differ in case.
func normal(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

func (t *Teams) invite(c *operations.Call, in inviteInput) (Invitation, error) {
	team, me, err := t.enter(c, in.Team)
	if err != nil {
		return Invitation{}, err
	}
	if in.Role == "" {
		in.Role = Member
	}
	switch {
	case !mayInvite(me.GetString("role"), in.Role):
		return Invitation{}, ErrRole
	case !t.known(in.Role):
		return Invitation{}, ErrRoleUnknown
	}
	members, err := count(c.App, membersCollection, dbx.HashExp{"team": team.Id})
	if err != nil {
		return Invitation{}, err
	}
	if members >= t.cfg.MaxMembers {
		return Invitation{}, api.Fail(ErrFull, fmt.Sprintf("at most %d", t.cfg.MaxMembers))
	}
	if err := t.allow(c, "teams.invite", team); err != nil {
		return Invitation{}, err
	}
	email := normal(in.Email)
	if err := t.replace(c, team.Id, email, me.GetString("role")); err != nil {
		return Invitation{}, err
	}
	collection, err := c.App.FindCachedCollectionByNameOrId(invitationsCollection)
	if err != nil {
		return Invitation{}, fmt.Errorf("find collection %s: %w", invitationsCollection, err)
	}
	inv := core.NewRecord(collection)
	inv.Load(map[string]any{"team": team.Id, "email": email, "role": in.Role, "state": pending})
	return t.issue(c, team, inv)
}

// replace takes back the earlier invitation of the address.
func (t *Teams) replace(c *operations.Call, team, email, role string) error {
	if email == "" {
		return nil
	}
	earlier, err := first(c.App, invitationsCollection, dbx.HashExp{"team": team, "email": email, "state": pending})
	if err != nil || earlier == nil {
		return err
	}
	if !mayInvite(role, earlier.GetString("role")) {
		return ErrRole // an owner has invited them to be more
	}
	c.Detail("replaced", earlier.Id)
	return closeInvitation(c.App, earlier, revoked)
}

// mayWait sees that not too many invitations of the team wait for an answer besides this one.
func (t *Teams) mayWait(app core.App, team, except string) error {
	var n int
	err := app.ConcurrentDB().Select("count(*)").From(invitationsCollection).Where(dbx.HashExp{"team": team, "state": pending}).
		AndWhere(dbx.NewExp("id != {:except} AND expiresAt > {:now}", dbx.Params{"except": except, "now": t.now().UTC().Format(stored)})).Row(&n)
	if err != nil {
		return fmt.Errorf("count invitations: %w", err)
	}
	if n >= t.cfg.MaxPending {
		return api.Fail(ErrTooManyPending, fmt.Sprintf("at most %d", t.cfg.MaxPending))
	}
	return nil
}

// issue stores the invitation with a new token and a new time in the name of the caller, and mails it or answers with the link.
func (t *Teams) issue(c *operations.Call, team, inv *core.Record) (Invitation, error) {
	if err := t.mayWait(c.App, team.Id, inv.Id); err != nil {
		return Invitation{}, err
	}
	email := inv.GetString("email")
	if email != "" {
		sender, err := account(c.App, c.Auth.Id)
		if err != nil {
			return Invitation{}, err
		}
		if sender == nil || !sender.Verified() {
			return Invitation{}, ErrUnverified
		}
		if err := t.postage(c.App, team.Id, c.Auth.Id, email); err != nil {
			return Invitation{}, err
		}
	}
	expires := t.now().Add(t.cfg.Lifetime).UTC().Truncate(time.Second)
	inv.Set("expiresAt", expires)
	inv.Set("invitedBy", c.Auth.Id)
	if err := c.App.Save(inv); err != nil {
		return Invitation{}, fmt.Errorf("save invitation: %w", err)
	}
	token, err := issueToken(c.App, inv.Id)
	if err != nil {
		return Invitation{}, err
	}
	c.Detail("invitation", inv.Id)
	c.Detail("byMail", email != "")
	out := Invitation{ID: inv.Id, Team: team.Id, Email: email, Role: inv.GetString("role"), State: pending, ExpiresAt: expires}
	link := t.link(c.App, token)
	if email == "" {
		out.Token, out.Link = token, link
		if c.Event != nil { // nobody keeps the answer, a repeat of the request does not show it again
			c.Event.Response.Header().Set("Cache-Control", "no-store")
		}
		return out, nil
	}
	m := Mail{
		App: oneLine(c.App.Settings().Meta.AppName), Team: plain(team.GetString("name"), "a team"), Inviter: plain(nameOf(c.Auth), ""),
		Role: out.Role, Link: link, ExpiresAt: expires,
	}
	return out, t.send(c.App, email, m)
}

// nameOf is what the account calls itself. Its address is nobody's business.
func nameOf(account *core.Record) string {
	if account == nil {
		return ""
	}
	return account.GetString("name")
}

// managed finds a pending invitation that the caller may manage.
func (t *Teams) managed(c *operations.Call, id string) (team, inv *core.Record, err error) {
	if inv, err = first(c.App, invitationsCollection, dbx.HashExp{"id": id}); err != nil {
		return nil, nil, err
	}
	if inv == nil {
		return nil, nil, ErrInvitationInvalid
	}
	me, err := membership(c.App, inv.GetString("team"), c.Auth.Id)
	switch {
	case err != nil:
		return nil, nil, err
	case me == nil:
		return nil, nil, ErrInvitationInvalid
	case !mayInvite(me.GetString("role"), inv.GetString("role")):
		return nil, nil, ErrRole
	case inv.GetString("state") != pending:
		return nil, nil, ErrInvitationClosed
	}
	team, err = first(c.App, teamsCollection, dbx.HashExp{"id": inv.GetString("team")})
	if err == nil && team == nil {
		err = ErrInvitationInvalid
	}
	return team, inv, err
}

func (t *Teams) resend(c *operations.Call, in invitationInput) (Invitation, error) {
	team, inv, err := t.managed(c, in.Invitation)
	if err != nil {
		return Invitation{}, err
	}
	if err := t.allow(c, "teams.resendInvitation", team); err != nil {
		return Invitation{}, err
	}
	c.Detail("team", team.Id)
	return t.issue(c, team, inv)
}

func (t *Teams) revoke(c *operations.Call, in invitationInput) (Nothing, error) {
	team, inv, err := t.managed(c, in.Invitation)
	if err != nil {
		return Nothing{}, err
	}
	c.Detail("team", team.Id)
	return Nothing{}, closeInvitation(c.App, inv, revoked)
}

// hold finds the invitation that the caller holds and that is still good, with its team.
func (t *Teams) hold(c *operations.Call, in heldInput) (team, inv *core.Record, err error) {
	switch {
	case (in.Token == "") == (in.Invitation == ""):
		return nil, nil, api.InvalidBody(api.Invalid("token", api.ErrFieldInvalid, "give either token or invitation"))
	case in.Token != "":
		inv, err = byToken(c.App, in.Token)
	default:
		inv, err = t.addressed(c, in.Invitation)
	}
	if err != nil {
		return nil, nil, err
	}
	if inv == nil {
		return nil, nil, ErrInvitationInvalid
	}
	if inv.GetString("state") != pending {
		return nil, nil, ErrInvitationClosed
	}
	if !t.now().Before(inv.GetDateTime("expiresAt").Time()) {
		return nil, nil, ErrInvitationExpired
	}
	inviter, err := membership(c.App, inv.GetString("team"), inv.GetString("invitedBy"))
	if err != nil {
		return nil, nil, err
	}
	if inviter == nil || !mayInvite(inviter.GetString("role"), inv.GetString("role")) {
		return nil, nil, ErrInvitationClosed
	}
	if team, err = first(c.App, teamsCollection, dbx.HashExp{"id": inv.GetString("team")}); err == nil && team == nil {
		err = ErrInvitationInvalid
	}
	return team, inv, err
}

// addressed is the invitation with the id if it was sent to the verified address of the caller, else nil.
func (t *Teams) addressed(c *operations.Call, id string) (*core.Record, error) {
	if c.Auth == nil {
		return nil, nil //nolint:nilnil // there is none for guests
	}
	inv, err := first(c.App, invitationsCollection, dbx.HashExp{"id": id})
	if err != nil || inv == nil {
		return nil, err
	}
	me, err := account(c.App, c.Auth.Id)
	if err != nil || me == nil || !me.Verified() || !sentTo(inv, me) {
		return nil, err
	}
	return inv, nil
}

// sentTo reports whether the invitation was mailed to the account's address.
func sentTo(inv, account *core.Record) bool {
	email := inv.GetString("email")
	return email != "" && email == normal(account.Email())
}

func (t *Teams) preview(c *operations.Call, in heldInput) (Preview, error) {
	team, inv, err := t.hold(c, in)
	if err != nil {
		return Preview{}, err
	}
	inviter, err := account(c.App, inv.GetString("invitedBy"))
	if err != nil {
		return Preview{}, err
	}
	return Preview{
		ID: inv.Id, TeamName: team.GetString("name"), Inviter: oneLine(nameOf(inviter)), Role: inv.GetString("role"), Email: inv.GetString("email"),
		ExpiresAt: inv.GetDateTime("expiresAt").Time(),
	}, nil
}

func (t *Teams) accept(c *operations.Call, in heldInput) (Membership, error) {
	team, inv, err := t.hold(c, in)
	if err != nil {
		return Membership{}, err
	}
	c.Detail("invitation", inv.Id)
	c.Detail("team", team.Id)
	me, err := account(c.App, c.Auth.Id)
	if err != nil {
		return Membership{}, err
	}
	if me == nil {
		return Membership{}, operations.ErrCallerRefused
	}
	c.Subject(me)
	if inv.GetString("email") != "" && !sentTo(inv, me) {
		return Membership{}, ErrInvitationAddress
	}
	if err := t.room(c, team, me); err != nil {
		return Membership{}, err
	}
	if err := t.allow(c, "teams.acceptInvitation", team); err != nil {
		return Membership{}, err
	}
	if err := closeInvitation(c.App, inv, accepted); err != nil {
		return Membership{}, err
	}
	if err := t.verify(c, inv, me); err != nil {
		return Membership{}, err
	}
	member, err := t.join(c, team.Id, me.Id, inv.GetString("role"))
	if err != nil {
		return Membership{}, err
	}
	c.Detail("member", member.Id)
	c.Detail("role", inv.GetString("role"))
	return membershipOf(member), nil
}

// room sees that the account can come in.
func (t *Teams) room(c *operations.Call, team, me *core.Record) error {
	already, err := membership(c.App, team.Id, me.Id)
	if err != nil {
		return err
	}
	if already != nil {
		return ErrAlreadyMember
	}
	members, err := count(c.App, membersCollection, dbx.HashExp{"team": team.Id})
	if err != nil {
		return err
	}
	if members >= t.cfg.MaxMembers {
		return api.Fail(ErrFull, fmt.Sprintf("at most %d", t.cfg.MaxMembers))
	}
	return t.mayJoinOneMore(c.App, me.Id)
}

// verify notes that the account's address is its own: the token was mailed there and shown nowhere else. It is what
// PocketBase's own mail of verification proves, and by the same means.
func (t *Teams) verify(c *operations.Call, inv, me *core.Record) error {
	if me.Verified() || !sentTo(inv, me) {
		return nil
	}
	me.SetVerified(true)
	if err := c.App.Save(me); err != nil {
		return fmt.Errorf("verify address: %w", err)
	}
	c.Detail("addressVerified", true)
	return nil
}

func (t *Teams) decline(c *operations.Call, in heldInput) (Nothing, error) {
	team, inv, err := t.hold(c, in)
	if err != nil {
		return Nothing{}, err
	}
	c.Detail("invitation", inv.Id)
	c.Detail("team", team.Id)
	return Nothing{}, closeInvitation(c.App, inv, declined)
}
