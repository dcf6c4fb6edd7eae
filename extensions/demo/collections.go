package demo

import (
	"fmt"

	"github.com/pocketbase/pocketbase/core"
)

// Halves of the rules. Each starts by asking for a signed-in caller: a guest's id is empty, and so is the joined user of
// a team without members, so a guest would match it.
const (
	signedIn = "@request.auth.id != ''"
	caller   = "@request.auth.id"
)

// memberOf is true for members of the team at the path ("team." or "room.team.").
func memberOf(path string) string {
	return path + "team_members_via_team.user ?= " + caller
}

// leadOf is true for the team's owners and admins. Both halves look at the same membership.
func leadOf(path string) string {
	role := path + "team_members_via_team.role ?= "
	return "(" + memberOf(path) + " && (" + role + "'owner' || " + role + "'admin'))"
}

// mateOf is true for those who are in a team with the user at the path.
func mateOf(path string) string {
	return path + "team_members_via_user.team.team_members_via_team.user ?= " + caller
}

// fixed forbids an update to change a field, which would move the record to another team or give it away.
func fixed(field string) string { return " && @request.body." + field + ":changed = false" }

// rules of one collection; view is also the list rule.
type rules struct{ view, create, update, remove string }

func rulesOf(name string) rules {
	and := func(rule string) string { return signedIn + " && " + rule }
	switch name {
	case Profiles:
		own := and("user = " + caller)
		return rules{and("(user = " + caller + " || " + mateOf("user.") + ")"), own, own + fixed("user"), own}
	case Rooms:
		lead := and(leadOf("team."))
		return rules{and(memberOf("team.")), lead, lead + fixed("team"), lead}
	case Messages:
		own := "author = " + caller
		member := memberOf("room.team.")
		return rules{
			and(member), and(own + " && " + member),
			and(own+" && "+member) + fixed("room") + fixed("author"),
			and("(" + own + " || " + leadOf("room.team.") + ")"),
		}
	default: // Tasks
		member := and(memberOf("team."))
		return rules{member, member, member + fixed("team"), and(leadOf("team."))}
	}
}

// createCollections adds the collections and returns them by name. The rules follow when all exist, because they look
// at memberships from the other side of the relation.
func createCollections(app core.App, users, teams *core.Collection) (map[string]*core.Collection, error) {
	made := map[string]*core.Collection{}
	for _, name := range CollectionNames() {
		c := core.NewBaseCollection(name)
		c.Fields.Add(fieldsOf(name, users, teams, made)...)
		c.Fields.Add(
			&core.AutodateField{Name: "created", OnCreate: true},
			&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
		)
		addIndexes(c)
		if err := app.Save(c); err != nil {
			return nil, fmt.Errorf("create collection %s: %w", name, err)
		}
		made[name] = c
	}
	for name, c := range made {
		r := rulesOf(name)
		c.ListRule, c.ViewRule = new(r.view), new(r.view)
		c.CreateRule, c.UpdateRule, c.DeleteRule = new(r.create), new(r.update), new(r.remove)
		if err := app.Save(c); err != nil {
			return nil, fmt.Errorf("set rules of %s: %w", name, err)
		}
	}
	return made, nil
}

func fieldsOf(name string, users, teams *core.Collection, made map[string]*core.Collection) []core.Field {
	one := func(field string, to *core.Collection) core.Field {
		return &core.RelationField{Name: field, CollectionId: to.Id, Required: true, CascadeDelete: true, MaxSelect: 1}
	}
	text := func(field string, most int, required bool) core.Field {
		return &core.TextField{Name: field, Max: most, Required: required}
	}
	switch name {
	case Profiles:
		return []core.Field{one("user", users), text("name", 80, true), picture("avatar", "64x64")}
	case Rooms:
		return []core.Field{one("team", teams), text("name", 80, true), text("topic", 200, false)}
	case Messages:
		return []core.Field{one("room", made[Rooms]), one("author", users), text("text", 4000, true), picture("image", "320x0")}
	default: // Tasks
		return []core.Field{
			one("team", teams), text("title", 200, true),
			// A task outlives the account of the one who should do it.
			&core.RelationField{Name: "assignee", CollectionId: users.Id, MaxSelect: 1},
			&core.SelectField{Name: "status", Values: []string{"todo", "doing", "done"}, MaxSelect: 1, Required: true},
			&core.SelectField{Name: "priority", Values: []string{"low", "normal", "high"}, MaxSelect: 1, Required: true},
			&core.DateField{Name: "due"}, &core.BoolField{Name: "done"},
		}
	}
}

// picture is an image of at most 5 MB. SVG is left out: it can carry scripts.
func picture(name, thumb string) core.Field {
	return &core.FileField{
		Name: name, MaxSelect: 1, MaxSize: 5 << 20, Thumbs: []string{thumb},
		MimeTypes: []string{"image/jpeg", "image/png", "image/gif", "image/webp"},
	}
}

// addIndexes serves every list that an app shows: the leading columns filter, then comes the sort, and the id makes each
// position unique so that a cursor can stand on it. The last ones serve the same sorts across teams and rooms.
func addIndexes(c *core.Collection) {
	add := func(suffix string, unique bool, columns string) {
		c.AddIndex("idx_"+c.Name+"_"+suffix, unique, columns, "")
	}
	switch c.Name {
	case Profiles:
		add("user", true, "user")
		add("name", false, "name, id")
	case Rooms:
		add("team_name", false, "team, name, id")
	case Messages:
		add("room_created", false, "room, created, id")
		add("author", false, "author")
	case Tasks:
		add("team_due", false, "team, due, id")
		add("team_status_due", false, "team, status, due, id")
		add("assignee_due", false, "assignee, due, id")
		add("due", false, "due, id")
	}
	add("created", false, "created, id")
	add("updated", false, "updated, id")
}
