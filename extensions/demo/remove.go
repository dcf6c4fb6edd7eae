package demo

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/pocketbase/pocketbase/core"
)

// backgroundDelete is the id of PocketBase's handler that deletes files.
const backgroundDelete = "__pbFilesManagerDelete__"

// removeAll deletes the demo's collections, its teams, its users with all that they own, and their files: the records in
// one transaction, the files after it.
func removeAll(app core.App) (outcome, error) {
	story, err := readContent()
	if err != nil {
		return outcome{}, err
	}
	have, err := existing(app)
	if err != nil {
		return outcome{}, err
	}
	done, err := summary(app, "absent", have, content{})
	if err != nil {
		return outcome{}, err
	}
	done.Next = "satchel demo"
	// PocketBase deletes files of deleted records in the background, which this process would not outlive; they are
	// deleted below instead, and the two must not meet.
	app.OnModelAfterDeleteSuccess().Unbind(backgroundDelete)
	var folders []string
	err = app.RunInTransaction(func(tx core.App) error {
		for _, name := range slices.Backward(have) {
			c, err := tx.FindCollectionByNameOrId(name)
			if err != nil {
				return fmt.Errorf("find collection %s: %w", name, err)
			}
			if err := tx.Delete(c); err != nil {
				return fmt.Errorf("delete collection %s: %w", name, err)
			}
			folders = append(folders, c.BaseFilesPath())
		}
		for _, t := range story.Teams {
			if err := removeTeam(tx, recordID("team", t.Name)); err != nil {
				return err
			}
		}
		for _, u := range story.Users {
			user, err := tx.FindRecordById("users", recordID("user", u.Name))
			if errors.Is(err, sql.ErrNoRows) {
				continue // deleted by hand, or there is no such collection
			}
			if err != nil {
				return fmt.Errorf("find user %s: %w", u.Name, err)
			}
			if err := tx.Delete(user); err != nil {
				return fmt.Errorf("delete user %s: %w", u.Name, err)
			}
			done.Users = append(done.Users, login{Email: user.Email()})
			folders = append(folders, user.BaseFilesPath())
		}
		return nil
	})
	if err != nil {
		return outcome{}, fmt.Errorf("remove demo: %w", err)
	}
	if len(done.Collections) > 0 || len(done.Users) > 0 {
		done.Status = "removed"
	}
	return done, sweepFiles(app, folders)
}

// removeTeam deletes a team with its members; somebody may have deleted it before, or switched teams off.
func removeTeam(tx core.App, id string) error {
	if teams, _, err := teamCollections(tx); err != nil || teams == nil {
		return err
	}
	team, err := tx.FindRecordById(Teams, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find team %s: %w", id, err)
	}
	if err := tx.Delete(team); err != nil {
		return fmt.Errorf("delete team %s: %w", id, err)
	}
	return nil
}
