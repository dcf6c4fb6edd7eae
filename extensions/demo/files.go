package demo

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/pocketbase/pocketbase/core"
)

// orphanFolders lists the file folders that a killed load may have left. It must run while the demo is not loaded. A
// collection of the demo that somebody renamed keeps its id, and with it its files.
func orphanFolders(app core.App, users *core.Collection, story content) ([]string, error) {
	folders := userFolders(users, story)
	for _, name := range CollectionNames() {
		folder := core.NewBaseCollection(name).BaseFilesPath()
		_, err := app.FindCollectionByNameOrId(folder)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			folders = append(folders, folder)
		case err != nil:
			return nil, fmt.Errorf("find collection %s: %w", folder, err)
		}
	}
	return folders, nil
}

func userFolders(users *core.Collection, story content) []string {
	var folders []string
	for _, u := range story.Users {
		folders = append(folders, users.BaseFilesPath()+"/"+recordID("user", u.Name))
	}
	return folders
}

// sweepFiles deletes the folders.
func sweepFiles(app core.App, folders []string) error {
	files, err := app.NewFilesystem()
	if err != nil {
		return fmt.Errorf("open file storage: %w", err)
	}
	defer func() { _ = files.Close() }() // nothing is open: objects were only deleted
	var failed []error
	for _, folder := range folders {
		failed = append(failed, files.DeletePrefix(folder+"/")...)
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("delete files of the demo: %w", err)
	}
	return nil
}
