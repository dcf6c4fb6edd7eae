// Package seed makes the database that all contenders get a copy of: PocketBase's, so that stock can serve it, with
// rows whose ids follow from their numbers, so that the requests can be built without asking.
//
// Collections: bench_notes (a note is its owner's), open_notes (no rule), and the chat of TrailBase's benchmark: room,
// room_members, message (a message belongs to the members of its room).
package seed

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // PocketBase's own collections
	"github.com/pocketbase/pocketbase/tools/types"
	"golang.org/x/crypto/bcrypt"
)

// What is the same in every seeded database.
const (
	Notes    = "bench_notes"
	Password = "correct horse battery"
	Room     = "room00000000000"

	// Meta is the JSON field of every note.
	Meta = `{"a":1,"b":["x","y"],"c":{"d":true}}`

	// HashCost is the bcrypt cost of the accounts, PocketBase's default.
	HashCost = bcrypt.DefaultCost

	superuser = "admin@example.com"
)

// Body is the text of every note, 270 bytes.
func Body() string { return strings.Repeat("lorem ipsum dolor sit amet ", 10) }

// UserID is the id of user i, from 0.
func UserID(i int) string { return fmt.Sprintf("user%011d", i) }

// Email is the address of user i.
func Email(i int) string { return fmt.Sprintf("user%d@example.com", i) }

// NoteID is the id of note i; its owner is user i modulo the number of users.
func NoteID(i int) string { return fmt.Sprintf("note%011d", i) }

// Size is how much there is.
type Size struct{ Users, Notes int }

// Create makes a data folder in dir, which must be empty or missing.
func Create(dir string, size Size) (err error) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if err := app.Bootstrap(); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer func() { err = errors.Join(err, app.ClearBootstrap()) }()
	if err := app.RunAllMigrations(); err != nil {
		return fmt.Errorf("create PocketBase's tables: %w", err)
	}
	if err := settings(app); err != nil {
		return err
	}
	if err := collections(app); err != nil {
		return err
	}
	if err := app.RunInTransaction(func(tx core.App) error { return rows(tx, size) }); err != nil {
		return fmt.Errorf("insert rows: %w", err)
	}
	for _, db := range []dbx.Builder{app.NonconcurrentDB(), app.AuxNonconcurrentDB()} {
		if _, err := db.NewQuery("PRAGMA wal_checkpoint(TRUNCATE)").Execute(); err != nil {
			return fmt.Errorf("write log back: %w", err)
		}
	}
	return nil
}

// settings allows batches, as the bulk row needs them, and makes the superuser without whom PocketBase would open a
// browser.
func settings(app core.App) error {
	s := app.Settings()
	s.Batch.Enabled, s.Batch.MaxRequests = true, 100
	if err := app.Save(s); err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	superusers, err := app.FindCollectionByNameOrId(core.CollectionNameSuperusers)
	if err != nil {
		return fmt.Errorf("find superusers: %w", err)
	}
	admin := core.NewRecord(superusers)
	admin.SetEmail(superuser)
	admin.SetPassword(Password)
	if err := app.Save(admin); err != nil {
		return fmt.Errorf("create superuser: %w", err)
	}
	return nil
}

func collections(app core.App) error {
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		return fmt.Errorf("find users: %w", err)
	}
	// A mail about every new device is no part of what is measured.
	users.AuthAlert.Enabled = false
	room := base("room", "room0000benches", nil, &core.TextField{Name: "name"})
	members := base("room_members", "members00benche", nil,
		relation("user", users.Id), relation("room", room.Id))
	members.AddIndex("idx_room_members", true, "room, user", "")
	// ?= and not =: a user is a member when any row says so, not when all rows do.
	const member = "@collection.room_members.user ?= @request.auth.id && @collection.room_members.room ?= room"
	message := base("message", "message00benche", new(member),
		relation("owner", users.Id), relation("room", room.Id), &core.TextField{Name: "data"})
	message.CreateRule = new("owner = @request.auth.id && " + member)
	notes := base(Notes, "notes0000benche", new("owner = @request.auth.id"), append(noteFields(), relation("owner", users.Id))...)
	notes.AddIndex("idx_bench_notes_owner_updated", false, "owner, updated, id", "")
	open := base("open_notes", "open00000benche", new(""),
		&core.TextField{Name: "title"}, &core.TextField{Name: "body", Max: 20_000})
	for _, c := range []*core.Collection{users, room, members, message, notes, open} {
		if err := app.Save(c); err != nil {
			return fmt.Errorf("create collection %s: %w", c.Name, err)
		}
	}
	return nil
}

// base is a collection with one rule for everything.
func base(name, id string, rule *string, fields ...core.Field) *core.Collection {
	c := core.NewBaseCollection(name, id)
	c.ListRule, c.ViewRule, c.CreateRule, c.UpdateRule, c.DeleteRule = rule, rule, rule, rule, rule
	c.Fields.Add(fields...)
	c.Fields.Add(
		&core.AutodateField{Name: "created", OnCreate: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	return c
}

func relation(name, collection string) core.Field {
	return &core.RelationField{Name: name, CollectionId: collection, Required: true, CascadeDelete: true, MaxSelect: 1}
}

func noteFields() []core.Field {
	return []core.Field{
		&core.TextField{Name: "title", Required: true, Max: 200},
		&core.TextField{Name: "body", Max: 20_000},
		&core.JSONField{Name: "meta"},
		&core.SelectField{Name: "status", Values: []string{"open", "done", "archived"}, MaxSelect: 1},
		&core.FileField{Name: "attachment", MaxSelect: 1, MaxSize: 5 << 20},
	}
}

// rows inserts without validation: what follows is valid, and 20,000 records take a second instead of ten.
func rows(app core.App, size Size) error {
	hash, err := bcrypt.GenerateFromPassword([]byte(Password), HashCost)
	if err != nil {
		return fmt.Errorf("hash password: %w", err)
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	stamp := func(i int) string { return at.Add(time.Duration(i) * time.Second).Format(types.DefaultDateLayout) }
	insert := func(table string, row dbx.Params) error {
		if _, err := app.NonconcurrentDB().Insert(table, row).Execute(); err != nil {
			return fmt.Errorf("insert into %s: %w", table, err)
		}
		return nil
	}
	if err := insert("room", dbx.Params{"id": Room, "name": "room", "created": stamp(0), "updated": stamp(0)}); err != nil {
		return err
	}
	for i := range size.Users {
		err := errors.Join(
			insert("users", dbx.Params{
				"id": UserID(i), "email": Email(i), "password": string(hash), "tokenKey": fmt.Sprintf("%050d", i),
				"name": fmt.Sprintf("User %d", i), "verified": true, "created": stamp(i), "updated": stamp(i),
			}),
			insert("room_members", dbx.Params{
				"id": fmt.Sprintf("member%09d", i), "user": UserID(i), "room": Room, "created": stamp(i), "updated": stamp(i),
			}),
		)
		if err != nil {
			return err
		}
	}
	for i := range size.Notes {
		err := insert(Notes, dbx.Params{
			"id": NoteID(i), "owner": UserID(i % size.Users), "title": fmt.Sprintf("note %d", i), "body": Body(), "meta": Meta,
			"status": "open", "attachment": "", "created": stamp(i), "updated": stamp(i),
		})
		if err != nil {
			return err
		}
	}
	return nil
}
