package teams

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Team is a team as [LastOwner] lists it.
type Team struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Members int    `json:"members"`
}

// LastOwner lists the teams that have other members and the account as their only owner. If the account is deleted, the
// senior admin, else the senior member of each becomes its owner; an app may want to ask first.
func LastOwner(app core.App, accountID string) ([]Team, error) {
	list := []Team{}
	err := app.ConcurrentDB().NewQuery(`
		SELECT t.id, t.name, (SELECT count(*) FROM team_members x WHERE x.team = t.id) AS members
		FROM team_members m JOIN teams t ON t.id = m.team
		WHERE m.user = {:account} AND m.role = 'owner'
		AND NOT EXISTS (SELECT 1 FROM team_members o WHERE o.team = m.team AND o.role = 'owner' AND o.user != m.user)
		AND EXISTS (SELECT 1 FROM team_members o WHERE o.team = m.team AND o.user != m.user)
		ORDER BY t.name, t.id`).Bind(dbx.Params{"account": accountID}).All(&list)
	if err != nil {
		return nil, fmt.Errorf("find teams with the only owner %s: %w", accountID, err)
	}
	return list, nil
}

// first reads a record, nil when there is none.
func first(app core.App, collection string, where dbx.HashExp) (*core.Record, error) {
	record := &core.Record{}
	err := app.RecordQuery(collection).AndWhere(where).Limit(1).One(record)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // callers ask whether there is one
	}
	if err != nil {
		return nil, fmt.Errorf("find in %s: %w", collection, err)
	}
	return record, nil
}

// membership is that of the account in the team, nil when it is not in there.
func membership(app core.App, team, account string) (*core.Record, error) {
	return first(app, membersCollection, dbx.HashExp{"team": team, "user": account})
}

func count(app core.App, collection string, where dbx.HashExp) (int, error) {
	var n int
	if err := app.ConcurrentDB().Select("count(*)").From(collection).Where(where).Row(&n); err != nil {
		return 0, fmt.Errorf("count %s: %w", collection, err)
	}
	return n, nil
}

// owners counts the owners of a team, at most two: more make no difference.
func owners(app core.App, team string) (int, error) {
	var n int
	err := app.ConcurrentDB().NewQuery("SELECT count(*) FROM (SELECT 1 FROM team_members WHERE team = {:team} AND role = 'owner' LIMIT 2)").
		Bind(dbx.Params{"team": team}).Row(&n)
	if err != nil {
		return 0, fmt.Errorf("count owners: %w", err)
	}
	return n, nil
}

// successor is who follows the last owner: the admin who has been in the team longest, else the member, nil in a team
// without members.
func successor(app core.App, team string) (*core.Record, error) {
	record := &core.Record{}
	err := app.RecordQuery(membersCollection).AndWhere(dbx.HashExp{"team": team}).
		OrderBy("(CASE WHEN role = 'admin' THEN 0 ELSE 1 END)", "created", "id").Limit(1).One(record)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // nobody is left
	}
	if err != nil {
		return nil, fmt.Errorf("find successor: %w", err)
	}
	return record, nil
}

// account is the account with the id, nil when it is gone. Its collection is the one that memberships refer to, which an
// admin may have renamed.
func account(app core.App, id string) (*core.Record, error) {
	members, err := app.FindCachedCollectionByNameOrId(membersCollection)
	if err != nil {
		return nil, fmt.Errorf("find collection %s: %w", membersCollection, err)
	}
	user, ok := members.Fields.GetByName("user").(*core.RelationField)
	if !ok {
		return nil, fmt.Errorf("the collection %s has no users", membersCollection)
	}
	return first(app, user.CollectionId, dbx.HashExp{"id": id})
}
