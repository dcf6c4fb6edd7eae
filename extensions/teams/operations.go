package teams

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/operations"
)

// Overview is a team as one of its members sees it.
type Overview struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Role     string    `json:"role"`     // the caller's
	MemberID string    `json:"memberId"` // the caller's record in team_members
	Members  int       `json:"members"`
	Created  time.Time `json:"created"`
}

// Membership is a record of team_members.
type Membership struct {
	ID   string `json:"id"`
	Team string `json:"team"`
	User string `json:"user"`
	Role string `json:"role"`
}

func membershipOf(r *core.Record) Membership {
	return Membership{ID: r.Id, Team: r.GetString("team"), User: r.GetString("user"), Role: r.GetString("role")}
}

// Nothing is an empty answer or input.
type Nothing struct{}

type createInput struct {
	Name string `json:"name" minLength:"1" maxLength:"80" description:"one line of text"`
}

type renameInput struct {
	Team string `json:"team" minLength:"1" maxLength:"30"`
	Name string `json:"name" minLength:"1" maxLength:"80" description:"one line of text"`
}

type teamInput struct {
	Team string `json:"team" minLength:"1" maxLength:"30" description:"id of the team"`
}

type memberInput struct {
	Member string `json:"member" minLength:"1" maxLength:"30" description:"id of the record in team_members"`
}

type roleInput struct {
	Member string `json:"member" minLength:"1" maxLength:"30" description:"id of the record in team_members"`
	Role   string `json:"role" minLength:"1" maxLength:"31"`
}

// perHour bounds what one account does in an hour.
func perHour(n int) operations.Limit { return operations.Limit{Count: n, Per: time.Hour} }

// Operations are what the program offers at /api/v1/operations; none when teams are off.
func (t *Teams) Operations() []operations.Operation {
	if !t.cfg.Enabled {
		return nil
	}
	return append(t.teamOperations(), t.invitationOperations()...)
}

func (t *Teams) teamOperations() []operations.Operation {
	accounts := operations.Callers{Collections: []string{t.cfg.Accounts}}
	recent := operations.Callers{Collections: []string{t.cfg.Accounts}, Recent: true}
	return []operations.Operation{
		operations.Define(operations.Spec[Nothing, []Overview]{
			Name: "teams.list", Summary: "List the teams of the caller, with their role and the number of members", Read: true,
			Callers: accounts, Do: signedIn(t, t.list),
		}),
		operations.Define(operations.Spec[createInput, Overview]{
			Name: "teams.create", Summary: "Found a team; the caller owns it", Callers: accounts, Limit: perHour(20),
			Audit: []string{"name"}, Codes: []*extensions.Code{ErrTooManyTeams}, Do: signedIn(t, t.create),
		}),
		operations.Define(operations.Spec[renameInput, Overview]{
			Name: "teams.rename", Summary: "Change the name of a team", Callers: accounts, Limit: perHour(60),
			Audit: []string{"team"}, Codes: []*extensions.Code{ErrTeamNotFound, ErrRole}, Do: signedIn(t, t.rename),
		}),
		operations.Define(operations.Spec[teamInput, Nothing]{
			Name: "teams.delete", Summary: "Delete a team with all that belongs to it", Callers: recent,
			Audit: []string{"team"}, Codes: []*extensions.Code{ErrTeamNotFound, ErrRole}, Do: signedIn(t, t.delete),
		}),
		operations.Define(operations.Spec[memberInput, Membership]{
			Name: "teams.transferOwnership", Summary: "Make another member the owner and become an admin", Callers: recent,
			Audit: []string{"member"}, Codes: []*extensions.Code{ErrMemberNotFound, ErrRole}, Do: signedIn(t, t.transfer),
		}),
		operations.Define(operations.Spec[teamInput, Nothing]{
			Name: "teams.leave", Summary: "Leave a team", Callers: accounts,
			Audit: []string{"team"}, Codes: []*extensions.Code{ErrTeamNotFound, ErrLastOwner}, Do: signedIn(t, t.leave),
		}),
		operations.Define(operations.Spec[memberInput, Nothing]{
			Name: "teams.removeMember", Summary: "Remove a member from a team", Callers: accounts, Limit: perHour(300),
			Audit: []string{"member"}, Codes: []*extensions.Code{ErrMemberNotFound, ErrRole, ErrLastOwner}, Do: signedIn(t, t.remove),
		}),
		operations.Define(operations.Spec[roleInput, Membership]{
			Name: "teams.changeRole", Summary: "Give a member another role", Callers: accounts, Limit: perHour(300),
			Audit: []string{"member"}, Codes: []*extensions.Code{ErrMemberNotFound, ErrRole, ErrRoleUnknown, ErrLastOwner}, Do: signedIn(t, t.changeRole),
		}),
	}
}

// maxListed bounds an answer; only superusers can put an account into more teams than the setting allows.
const maxListed = 1000

func (t *Teams) list(c *operations.Call, _ Nothing) ([]Overview, error) {
	var rows []struct {
		ID, Name, Role, Member, Created string
		Members                         int
	}
	err := c.App.ConcurrentDB().NewQuery(`
		SELECT t.id, t.name, m.role, m.id AS member, t.created, (SELECT count(*) FROM team_members x WHERE x.team = t.id) AS members
		FROM team_members m JOIN teams t ON t.id = m.team
		WHERE m.user = {:user} ORDER BY t.name, t.id LIMIT {:limit}`).
		Bind(dbx.Params{"user": c.Auth.Id, "limit": maxListed}).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("list teams: %w", err)
	}
	out := make([]Overview, len(rows))
	for i, r := range rows {
		created, err := time.Parse(stored, r.Created)
		if err != nil {
			return nil, fmt.Errorf("read time of team %s: %w", r.ID, err)
		}
		out[i] = Overview{ID: r.ID, Name: r.Name, Role: r.Role, MemberID: r.Member, Members: r.Members, Created: created}
	}
	return out, nil
}

func (t *Teams) create(c *operations.Call, in createInput) (Overview, error) {
	name, err := cleanName(in.Name)
	if err != nil {
		return Overview{}, err
	}
	if err := t.mayJoinOneMore(c.App, c.Auth.Id); err != nil {
		return Overview{}, err
	}
	if err := t.allow(c, "teams.create", nil); err != nil {
		return Overview{}, err
	}
	collection, err := c.App.FindCachedCollectionByNameOrId(teamsCollection)
	if err != nil {
		return Overview{}, fmt.Errorf("find collection %s: %w", teamsCollection, err)
	}
	team := core.NewRecord(collection)
	team.Set("name", name)
	if err := c.App.SaveWithContext(inside(c.Context()), team); err != nil {
		return Overview{}, fmt.Errorf("save team: %w", err)
	}
	me, err := t.join(c, team.Id, c.Auth.Id, Owner)
	if err != nil {
		return Overview{}, err
	}
	c.Detail("team", team.Id)
	return overview(team, me, 1), nil
}

func (t *Teams) rename(c *operations.Call, in renameInput) (Overview, error) {
	team, me, err := t.enter(c, in.Team)
	if err != nil {
		return Overview{}, err
	}
	if !leads(me.GetString("role")) {
		return Overview{}, ErrRole
	}
	name, err := cleanName(in.Name)
	if err != nil {
		return Overview{}, err
	}
	if err := t.allow(c, "teams.rename", team); err != nil {
		return Overview{}, err
	}
	c.Detail("from", team.GetString("name"))
	c.Detail("to", name)
	team.Set("name", name)
	if err := c.App.SaveWithContext(inside(c.Context()), team); err != nil {
		return Overview{}, fmt.Errorf("rename team: %w", err)
	}
	members, err := count(c.App, membersCollection, dbx.HashExp{"team": team.Id})
	return overview(team, me, members), err
}

func (t *Teams) delete(c *operations.Call, in teamInput) (Nothing, error) {
	team, me, err := t.enter(c, in.Team)
	if err != nil {
		return Nothing{}, err
	}
	if me.GetString("role") != Owner {
		return Nothing{}, ErrRole
	}
	if err := t.allow(c, "teams.delete", team); err != nil {
		return Nothing{}, err
	}
	members, err := count(c.App, membersCollection, dbx.HashExp{"team": team.Id})
	if err != nil {
		return Nothing{}, err
	}
	c.Detail("name", team.GetString("name"))
	c.Detail("members", members)
	if err := c.App.DeleteWithContext(inside(c.Context()), team); err != nil {
		return Nothing{}, fmt.Errorf("delete team: %w", err)
	}
	return Nothing{}, nil
}

// enter finds the team and the caller's membership. A team that the caller is not in does not exist for them.
func (t *Teams) enter(c *operations.Call, id string) (team, me *core.Record, err error) {
	if me, err = membership(c.App, id, c.Auth.Id); err != nil {
		return nil, nil, err
	}
	if me == nil {
		return nil, nil, ErrTeamNotFound
	}
	if team, err = first(c.App, teamsCollection, dbx.HashExp{"id": id}); err != nil {
		return nil, nil, err
	}
	if team == nil {
		return nil, nil, ErrTeamNotFound
	}
	return team, me, nil
}

// allow asks the app's own policy.
func (t *Teams) allow(c *operations.Call, operation string, team *core.Record) error {
	if t.deps.Check == nil {
		return nil
	}
	return t.deps.Check(c, operation, team)
}

func (t *Teams) mayJoinOneMore(app core.App, account string) error {
	n, err := count(app, membersCollection, dbx.HashExp{"user": account})
	if err != nil {
		return err
	}
	if n >= t.cfg.MaxTeams {
		return api.Fail(ErrTooManyTeams, fmt.Sprintf("at most %d", t.cfg.MaxTeams))
	}
	return nil
}

func (t *Teams) join(c *operations.Call, team, account, role string) (*core.Record, error) {
	collection, err := c.App.FindCachedCollectionByNameOrId(membersCollection)
	if err != nil {
		return nil, fmt.Errorf("find collection %s: %w", membersCollection, err)
	}
	member := core.NewRecord(collection)
	member.Set("team", team)
	member.Set("user", account)
	member.Set("role", role)
	if err := c.App.SaveWithContext(inside(c.Context()), member); err != nil {
		return nil, fmt.Errorf("save member: %w", err)
	}
	return member, nil
}

// stored is how the database keeps times.
const stored = "2006-01-02 15:04:05.000Z"

func overview(team, me *core.Record, members int) Overview {
	return Overview{
		ID: team.Id, Name: team.GetString("name"), Role: me.GetString("role"), MemberID: me.Id, Members: members,
		Created: team.GetDateTime("created").Time().Truncate(time.Millisecond), // as it is stored
	}
}

// cleanName drops white space around the name and refuses what cannot be seen, such as marks that turn the direction of
// writing and could make a name look like another one.
func cleanName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if name == "" || strings.IndexFunc(name, hidden) >= 0 {
		return "", api.InvalidBody(api.Invalid("name", api.ErrFieldInvalid, "must be one line of visible text"))
	}
	return name, nil
}

// hidden reports what shows nothing, but for the joiners that emoji and some scripts are written with.
func hidden(r rune) bool { return !unicode.IsPrint(r) && r != '\u200c' && r != '\u200d' }

// signedIn keeps an operation from calls without an account, such as those of the app itself.
func signedIn[In, Out any](t *Teams, do func(c *operations.Call, in In) (Out, error)) func(c *operations.Call, in In) (Out, error) {
	return func(c *operations.Call, in In) (Out, error) {
		if c.Auth == nil || c.Auth.Collection().Name != t.cfg.Accounts {
			var none Out
			return none, operations.ErrCallerRefused
		}
		return do(c, in)
	}
}
