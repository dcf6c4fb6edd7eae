package teams

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// Names of the collections.
const (
	teamsCollection       = "teams"
	membersCollection     = "team_members"
	invitationsCollection = "team_invitations"
)

const (
	maxName  = 80  // characters of a team's name
	maxEmail = 254 // RFC 5321, 4.5.3.1.3, without the angle brackets
)

// States of an invitation. One that is pending may have expired.
const (
	pending  = "pending"
	accepted = "accepted"
	declined = "declined"
	revoked  = "revoked"
)

func (t *Teams) migrations() []extensions.Migration {
	statements := []string{
		`CREATE TABLE teams_tokens (hash BLOB PRIMARY KEY, invitation TEXT NOT NULL UNIQUE) WITHOUT ROWID`,
		`CREATE TABLE teams_mails (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, account TEXT NOT NULL, team TEXT NOT NULL, address BLOB NOT NULL)`,
		`CREATE INDEX teams_mails_at ON teams_mails (at)`,
		`CREATE INDEX teams_mails_account ON teams_mails (account, at)`,
		`CREATE INDEX teams_mails_team ON teams_mails (team, at)`,
		`CREATE INDEX teams_mails_address ON teams_mails (address, at)`,
	}
	return []extensions.Migration{
		{Unix: 1795420000, What: "create_collections", Up: t.createCollections, Down: dropCollections},
		extensions.Tables(1795420001, "create_tables", statements, tokensTable, mailsTable),
	}
}

// rulesOf are the rules for reading. A caller of another auth collection matches none, since ids are those of accounts in
// one collection.
type rulesOf struct{ teams, members, invitations string }

func readRules(accounts *core.Collection) rulesOf {
	signedIn := "@request.auth.collectionId = '" + accounts.Id + "' && "
	const (
		leader  = "team.team_members_via_team.user ?= @request.auth.id && (team.team_members_via_team.role ?= 'owner' || team.team_members_via_team.role ?= 'admin')"
		invited = "email != '' && email = @request.auth.email:lower && @request.auth.verified = true"
	)
	return rulesOf{
		teams:       signedIn + "team_members_via_team.user ?= @request.auth.id",
		members:     signedIn + "team.team_members_via_team.user ?= @request.auth.id",
		invitations: signedIn + "((" + leader + ") || (" + invited + "))",
	}
}

func (t *Teams) createCollections(app core.App) error {
	accounts, err := app.FindCollectionByNameOrId(t.cfg.Accounts)
	if err != nil || !accounts.IsAuth() {
		return fmt.Errorf("teams need the auth collection %q: name yours in SATCHEL_TEAMS_ACCOUNTS, or set SATCHEL_TEAMS_ENABLED=false", t.cfg.Accounts)
	}
	for _, name := range []string{teamsCollection, membersCollection, invitationsCollection} {
		_, err := app.FindCollectionByNameOrId(name)
		switch {
		case err == nil:
			return fmt.Errorf("there is a collection %s already: rename it, or set SATCHEL_TEAMS_ENABLED=false to go without teams", name)
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("find collection %s: %w", name, err)
		}
	}
	teams := newTeams()
	members, invitations := newMembers(teams, accounts), newInvitations(teams, accounts)
	for _, c := range []*core.Collection{teams, members, invitations} {
		for _, f := range c.Fields {
			f.SetSystem(true)
		}
		// The rules look at memberships from the other side of the relation, so they follow when all exist.
		if err := app.Save(c); err != nil {
			return fmt.Errorf("create collection %s: %w", c.Name, err)
		}
	}
	rules := readRules(accounts)
	for c, rule := range map[*core.Collection]string{teams: rules.teams, members: rules.members, invitations: rules.invitations} {
		c.ListRule, c.ViewRule, c.System = new(rule), new(rule), true
		// The rules of a system collection never change, not even from none: without validation, as PocketBase does.
		if err := app.SaveNoValidate(c); err != nil {
			return fmt.Errorf("set rules of %s: %w", c.Name, err)
		}
	}
	return nil
}

func newTeams() *core.Collection {
	c := core.NewBaseCollection(teamsCollection)
	c.Fields.Add(&core.TextField{Name: "name", Required: true, Max: maxName, Presentable: true})
	dated(c)
	index(c, "name", false, "name, id", "")
	return c
}

func newMembers(teams, accounts *core.Collection) *core.Collection {
	c := core.NewBaseCollection(membersCollection)
	c.Fields.Add(
		&core.RelationField{Name: "team", CollectionId: teams.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		&core.RelationField{Name: "user", CollectionId: accounts.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		role(),
	)
	dated(c)
	index(c, "team_user", true, "team, user", "")
	index(c, "user_team", false, "user, team, role", "")
	index(c, "team_role", false, "team, role", "")
	index(c, "team_created", false, "team, created, id", "")
	return c
}

func newInvitations(teams, accounts *core.Collection) *core.Collection {
	c := core.NewBaseCollection(invitationsCollection)
	c.Fields.Add(
		&core.RelationField{Name: "team", CollectionId: teams.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		&core.TextField{Name: "email", Max: maxEmail}, // in lower case; empty for a link
		role(),
		&core.RelationField{Name: "invitedBy", CollectionId: accounts.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		&core.DateField{Name: "expiresAt", Required: true},
		&core.SelectField{Name: "state", Values: []string{pending, accepted, declined, revoked}, MaxSelect: 1, Required: true},
	)
	dated(c)
	index(c, "team_email", true, "team, email", "state = 'pending' AND email != ''")
	index(c, "team_state", false, "team, state, created, id", "")
	index(c, "email", false, "email, created, id", "")
	index(c, "inviter", false, "invitedBy, team", "")
	index(c, "expires", false, "expiresAt", "")
	return c
}

func role() core.Field {
	return &core.TextField{Name: "role", Required: true, Max: 31, Pattern: rolePattern.String()}
}

// dated adds when a record was made and changed, and the indexes for lists in these orders.
func dated(c *core.Collection) {
	c.Fields.Add(
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	index(c, "created", false, "created, id", "")
	index(c, "updated", false, "updated, id", "")
}

func index(c *core.Collection, suffix string, unique bool, columns, where string) {
	c.AddIndex("idx_"+c.Name+"_"+suffix, unique, columns, where)
}

func dropCollections(app core.App) error {
	names := []string{teamsCollection, membersCollection, invitationsCollection}
	for _, name := range slices.Backward(names) {
		c, err := app.FindCollectionByNameOrId(name)
		if err != nil {
			return fmt.Errorf("find collection %s: %w", name, err)
		}
		// Rules that look at the others would keep them from being deleted, and so would the mark of the system.
		c.ListRule, c.ViewRule, c.System = nil, nil, false
		if err := app.SaveNoValidate(c); err != nil {
			return fmt.Errorf("open collection %s: %w", name, err)
		}
	}
	for _, name := range slices.Backward(names) {
		c, err := app.FindCollectionByNameOrId(name)
		if err != nil {
			return fmt.Errorf("find collection %s: %w", name, err)
		}
		if err := app.Delete(c); err != nil {
			return fmt.Errorf("delete collection %s: %w", name, err)
		}
	}
	return nil
}
