package migrations

import (
	"fmt"

	"github.com/pocketbase/pocketbase/core"
)

// The owner alone sees and changes a note. Without the second half of the update rule a user could hand a note to
// somebody who never asked for it.
const (
	notesOwnerRule  = "owner = @request.auth.id"
	notesCreateRule = "@request.auth.id != '' && " + notesOwnerRule
	notesUpdateRule = notesOwnerRule + " && @request.body.owner:changed = false"
)

func init() {
	core.AppMigrations.Register(createNotes, dropNotes, "1795219200_app_notes.go")
}

func createNotes(app core.App) error {
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		return fmt.Errorf("find collection users: %w", err)
	}
	notes := core.NewBaseCollection("notes")
	notes.ListRule = new(notesOwnerRule)
	notes.ViewRule = new(notesOwnerRule)
	notes.CreateRule = new(notesCreateRule)
	notes.UpdateRule = new(notesUpdateRule)
	notes.DeleteRule = new(notesOwnerRule)
	notes.Fields.Add(
		&core.RelationField{Name: "owner", CollectionId: users.Id, Required: true, CascadeDelete: true, MaxSelect: 1},
		&core.TextField{Name: "title", Required: true, Max: 200, Presentable: true},
		&core.TextField{Name: "body", Max: 20_000},
		&core.BoolField{Name: "done"},
		&core.FileField{
			Name: "photo", MaxSelect: 1, MaxSize: 5 << 20,
			MimeTypes: []string{"image/jpeg", "image/png", "image/gif", "image/webp"},
			Thumbs:    []string{"100x100", "320x0"},
		},
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	// The first serves a user's own list; the second the same sort without an owner, as admins see it.
	notes.AddIndex("idx_notes_owner_updated", false, "owner, updated, id", "")
	notes.AddIndex("idx_notes_updated", false, "updated, id", "")
	if err := app.Save(notes); err != nil {
		return fmt.Errorf("create collection notes: %w", err)
	}
	return nil
}

func dropNotes(app core.App) error {
	notes, err := app.FindCollectionByNameOrId("notes")
	if err != nil {
		return fmt.Errorf("find collection notes: %w", err)
	}
	if err := app.Delete(notes); err != nil {
		return fmt.Errorf("delete collection notes: %w", err)
	}
	return nil
}
