package seed_test

import (
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/bench/internal/seed"
)

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	if err := seed.Create(dir, seed.Size{Users: 3, Notes: 10}); err != nil {
		t.Fatal(err)
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.ClearBootstrap() }()
	for collection, want := range map[string]int64{"users": 3, "room_members": 3, seed.Notes: 10, "room": 1, "message": 0} {
		if n, err := app.CountRecords(collection); err != nil || n != want {
			t.Errorf("%s: %d records, %v; want %d", collection, n, err, want)
		}
	}
	user, err := app.FindAuthRecordByEmail("users", seed.Email(1))
	if err != nil || !user.ValidatePassword(seed.Password) {
		t.Fatalf("user 1 cannot sign in: %v", err)
	}
	note, err := app.FindRecordById(seed.Notes, seed.NoteID(4))
	if err != nil || note.GetString("owner") != seed.UserID(1) || len(note.GetString("body")) != 270 || note.GetString("meta") != seed.Meta {
		t.Errorf("note 4 is %v, %v", note, err)
	}
	// The rows were written past validation; they must be what validation would have let through.
	for _, record := range []*core.Record{user, note} {
		if err := app.Validate(record); err != nil {
			t.Errorf("record %s of %s: %v", record.Id, record.Collection().Name, err)
		}
	}
}
