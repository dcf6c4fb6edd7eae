package demo

import (
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/cli"
)

const (
	// messageStep is the time between two messages; rooms interleave by roomShift.
	messageStep = 97 * time.Minute
	roomShift   = 13 * time.Minute
	// teamAge is how long ago teams, members, rooms and tasks were made.
	teamAge = 30 * 24 * time.Hour
)

// load brings the database up to date and writes the demo, everything or nothing.
func load(app core.App, password string) (outcome, error) {
	if err := app.RunAllMigrations(); err != nil {
		return outcome{}, fmt.Errorf("migrate database: %w", err)
	}
	have, err := existing(app)
	if err != nil {
		return outcome{}, err
	}
	story, err := readContent()
	if err != nil {
		return outcome{}, err
	}
	if len(have) > 0 {
		return present(app, have, story)
	}
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil || !users.IsAuth() {
		return outcome{}, cli.Fail(cli.ExitError, "the demo cannot be loaded", "its people live in the auth collection users, which is missing here",
			"use a new data folder: satchel demo --dir ./demo_data")
	}
	if err := refuseTaken(app, story); err != nil {
		return outcome{}, err
	}
	teams, members, err := teamCollections(app)
	if err != nil {
		return outcome{}, err
	}
	if teams == nil {
		return outcome{}, cli.Fail(cli.ExitError, "the demo cannot be loaded", "its teams live in the collection teams of this program, which is missing here",
			"set SATCHEL_TEAMS_ENABLED=true and use a new data folder: satchel demo --dir ./demo_data")
	}
	folders, err := orphanFolders(app, users, story)
	if err != nil {
		return outcome{}, err
	}
	if err := sweepFiles(app, folders); err != nil {
		return outcome{}, err
	}
	err = app.RunInTransaction(func(tx core.App) error {
		w := &writer{app: tx, now: time.Now().UTC().Truncate(time.Second), story: story}
		return w.write(users, teams, members, password)
	})
	if err != nil {
		return outcome{}, errors.Join(fmt.Errorf("load demo: %w", err), sweepFiles(app, folders))
	}
	done, err := summary(app, "loaded", CollectionNames(), story)
	if err != nil {
		return outcome{}, err
	}
	for i := range done.Users {
		done.Users[i].Password = password
	}
	return done, nil
}

// teamCollections are those of the extension teams, nil without it: an app may call its own collections the same.
func teamCollections(app core.App) (teams, members *core.Collection, err error) {
	teams, err = app.FindCollectionByNameOrId(Teams)
	if err == nil {
		members, err = app.FindCollectionByNameOrId(Members)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && (!teams.System || !members.System):
		return nil, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("find collections of teams: %w", err)
	}
	return teams, members, nil
}

// existing lists the demo's collections that are there.
func existing(app core.App) ([]string, error) {
	var have []string
	for _, name := range CollectionNames() {
		_, err := app.FindCollectionByNameOrId(name)
		switch {
		case err == nil:
			have = append(have, name)
		case !errors.Is(err, sql.ErrNoRows):
			return nil, fmt.Errorf("find collection %s: %w", name, err)
		}
	}
	return have, nil
}

// present answers a second load.
func present(app core.App, have []string, story content) (outcome, error) {
	if len(have) < len(CollectionNames()) {
		return outcome{}, cli.Fail(cli.ExitError, "the demo is there in part", fmt.Sprintf("of its collections only %v exist; somebody changed it", have),
			"run: satchel demo --remove, then: satchel demo")
	}
	return summary(app, "present", have, story)
}

func summary(app core.App, status string, names []string, story content) (outcome, error) {
	o := outcome{Status: status, Collections: []collection{}, Users: []login{}, Next: "satchel serve; remove it later with: satchel demo --remove"}
	counts, err := countTeams(app)
	if err != nil {
		return outcome{}, err
	}
	o.Collections = append(o.Collections, counts...)
	for _, name := range names {
		total, err := app.CountRecords(name)
		if err != nil {
			return outcome{}, fmt.Errorf("count %s: %w", name, err)
		}
		o.Collections = append(o.Collections, collection{Name: name, Records: total})
	}
	for _, u := range story.Users {
		o.Users = append(o.Users, login{Email: emailOf(u.Name)})
	}
	return o, nil
}

// countTeams counts the demo's teams and who is in them; there are none where the program has no teams.
func countTeams(app core.App) ([]collection, error) {
	teams, _, err := teamCollections(app)
	if err != nil || teams == nil {
		return nil, err
	}
	story, err := readContent()
	if err != nil {
		return nil, err
	}
	var ids []any
	for _, t := range story.Teams {
		ids = append(ids, recordID("team", t.Name))
	}
	have, err := app.CountRecords(teams, dbx.In("id", ids...))
	if err != nil {
		return nil, fmt.Errorf("count teams: %w", err)
	}
	if have == 0 {
		return nil, nil
	}
	members, err := app.CountRecords(Members, dbx.In("team", ids...))
	if err != nil {
		return nil, fmt.Errorf("count members: %w", err)
	}
	return []collection{{Teams, have}, {Members, members}}, nil
}

// refuseTaken keeps the demo from touching users and teams that are not its own.
func refuseTaken(app core.App, story content) error {
	left, err := countTeams(app)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return cli.Fail(cli.ExitError, "the demo is there in part", "its teams exist, but its collections do not", "run: satchel demo --remove, then: satchel demo")
	}
	for _, u := range story.Users {
		email := emailOf(u.Name)
		taken, err := app.FindFirstRecordByFilter("users", "email = {:email} || id = {:id}", dbx.Params{"email": email, "id": recordID("user", u.Name)})
		if err == nil {
			return cli.Fail(cli.ExitError, "the demo cannot be loaded", "the user "+taken.Email()+" exists, but the demo's collections do not",
				"if that user is left of a demo, run: satchel demo --remove; otherwise delete the user or change the address")
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("find user %s: %w", email, err)
		}
	}
	return nil
}

// writer writes the story through one transaction.
type writer struct {
	app         core.App
	now         time.Time
	story       content
	collections map[string]*core.Collection
}

func (w *writer) write(users, teams, members *core.Collection, password string) error {
	made, err := createCollections(w.app, users, teams)
	if err != nil {
		return err
	}
	made[Teams], made[Members] = teams, members
	w.collections = made
	for _, u := range w.story.Users {
		r := core.NewRecord(users)
		r.Id = recordID("user", u.Name)
		r.SetEmail(emailOf(u.Name))
		r.SetVerified(true)
		r.SetPassword(password)
		r.Set("name", u.FullName)
		if err := w.app.Save(r); err != nil {
			return fmt.Errorf("create user %s: %w", u.Name, err)
		}
		picture, err := avatar(u.Name)
		if err != nil {
			return err
		}
		profile := map[string]any{"user": r.Id, "name": u.FullName, "avatar": picture}
		if err := w.save(Profiles, recordID("profile", u.Name), w.now.Add(-teamAge), profile); err != nil {
			return err
		}
	}
	for i := range w.story.Teams {
		if err := w.team(i); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) team(i int) error {
	team := w.story.Teams[i]
	id := recordID("team", team.Name)
	born := w.now.Add(-teamAge)
	if err := w.save(Teams, id, born, map[string]any{"name": team.Name}); err != nil {
		return err
	}
	for _, u := range w.story.Users {
		role, ok := team.Members[u.Name]
		if !ok {
			continue
		}
		member := map[string]any{"team": id, "user": recordID("user", u.Name), "role": role}
		if err := w.save(Members, recordID("member", team.Name, u.Name), born, member); err != nil {
			return err
		}
	}
	for r, room := range team.Rooms {
		roomID := recordID("room", team.Name, room.Name)
		if err := w.save(Rooms, roomID, born, map[string]any{"team": id, "name": room.Name, "topic": room.Topic}); err != nil {
			return err
		}
		shift := time.Duration(len(room.Messages))*messageStep + time.Duration(r+1)*roomShift
		if err := w.messages(roomID, w.now.Add(-shift), room.Messages); err != nil {
			return err
		}
	}
	return w.tasks(id, team.Name, born, team.Tasks)
}

func (w *writer) messages(room string, start time.Time, list []message) error {
	for i, m := range list {
		id := recordID("message", room, strconv.Itoa(i))
		data := map[string]any{"room": room, "author": recordID("user", m.author), "text": m.text}
		if m.image {
			picture, err := photo(id)
			if err != nil {
				return err
			}
			data["image"] = picture
		}
		if err := w.save(Messages, id, start.Add(time.Duration(i)*messageStep), data); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) tasks(team, teamName string, born time.Time, list []task) error {
	for i, t := range list {
		data := map[string]any{
			"team": team, "title": t.title, "status": t.status, "priority": t.priority, "done": t.status == "done",
			"due": w.now.AddDate(0, 0, t.dueDays).Truncate(24 * time.Hour),
		}
		if t.assignee != "" {
			data["assignee"] = recordID("user", t.assignee)
		}
		created := born.Add(time.Duration(i) * time.Hour)
		if err := w.save(Tasks, recordID("task", teamName, t.title), created, data); err != nil {
			return err
		}
	}
	return nil
}

// save creates one record as if it had been written at the given time.
func (w *writer) save(name, id string, at time.Time, data map[string]any) error {
	r := core.NewRecord(w.collections[name])
	r.Load(data)
	r.Id = id
	stamp, err := types.ParseDateTime(at)
	if err != nil {
		return fmt.Errorf("stamp %s/%s: %w", name, id, err)
	}
	for _, field := range []string{"created", "updated"} {
		r.SetRaw(field, stamp) // Set refuses automatic dates
	}
	if err := w.app.Save(r); err != nil {
		return fmt.Errorf("create %s/%s: %w", name, id, err)
	}
	return nil
}
