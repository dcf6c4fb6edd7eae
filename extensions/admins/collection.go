package admins

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

const (
	// Collection is the name of the auth collection.
	Collection = "admins"

	// CollectionID tells the collection from one of the same name that somebody else has made.
	CollectionID = "satcheladmins00"

	roleField = "role"

	// leastPassword is the length of the shortest password, in characters.
	leastPassword = 12

	// tokenLife is that of PocketBase's own tokens, as for superusers.
	tokenLife = 24 * time.Hour
)

// createCollection makes the collection. Its rules are nil, and PocketBase keeps the rules, the name and the system
// fields of a system collection as they are.
func createCollection(app core.App) error {
	_, err := app.FindCollectionByNameOrId(Collection)
	if err == nil {
		return errors.New("there is a collection with the name " + Collection + ", whose accounts must not become admins: rename it first")
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("look for the collection %s: %w", Collection, err)
	}
	c := core.NewAuthCollection(Collection, CollectionID)
	c.System = true
	c.AuthToken.Duration = int64(tokenLife.Seconds())
	roles := make([]string, 0, len(Roles()))
	for _, r := range Roles() {
		roles = append(roles, string(r))
	}
	if email, ok := c.Fields.GetByName(core.FieldNameEmail).(*core.EmailField); ok {
		email.Required = true
	}
	if password, ok := c.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField); ok {
		password.Min = leastPassword
	}
	c.Fields.Add(
		&core.SelectField{Name: roleField, System: true, Required: true, MaxSelect: 1, Values: roles},
		&core.AutodateField{Name: "created", System: true, OnCreate: true},
		&core.AutodateField{Name: "updated", System: true, OnCreate: true, OnUpdate: true},
	)
	if err := app.Save(c); err != nil {
		return fmt.Errorf("create the collection %s: %w", Collection, err)
	}
	return nil
}

func dropCollection(app core.App) error {
	c, err := app.FindCollectionByNameOrId(CollectionID)
	if err != nil {
		return fmt.Errorf("find the collection %s: %w", Collection, err)
	}
	c.System = false
	if err := app.SaveNoValidate(c); err != nil {
		return fmt.Errorf("release the collection %s: %w", Collection, err)
	}
	return app.Delete(c)
}

// draft is a new admin. Without a password it gets one, which is returned; nobody can read it again.
func draft(app core.App, email string, role Role, password string) (admin *core.Record, made string, err error) {
	c, err := app.FindCachedCollectionByNameOrId(CollectionID)
	if err != nil {
		return nil, "", fmt.Errorf("find the collection %s: %w", Collection, err)
	}
	if password == "" {
		made = rand.Text() // 130 bits
		password = made
	}
	admin = core.NewRecord(c)
	admin.SetEmail(email)
	admin.SetVerified(true) // by whoever adds it
	admin.SetPassword(password)
	admin.Set(roleField, string(role))
	return admin, made, nil
}

// view is an admin as owners see it.
type view struct {
	ID      string    `json:"id"`
	Email   string    `json:"email"`
	Role    Role      `json:"role"`
	Created time.Time `json:"createdAt"`
	Updated time.Time `json:"updatedAt"`
}

func viewOf(admin *core.Record) view {
	return view{
		ID: admin.Id, Email: admin.Email(), Role: Role(admin.GetString(roleField)),
		Created: admin.GetDateTime("created").Time().UTC(), Updated: admin.GetDateTime("updated").Time().UTC(),
	}
}
