package passwords

import (
	"log/slog"

	"github.com/pocketbase/pocketbase/core"
	"golang.org/x/crypto/bcrypt"
)

// raiseAll brings existing collections to the cost of the settings. It writes only when there is something to raise, and
// a failure does not keep the application from opening: passwords are then hashed as before.
func (h *Hasher) raiseAll(e *core.BootstrapEvent) error {
	if err := e.Next(); err != nil {
		return err
	}
	collections, err := e.App.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		e.App.Logger().Warn("the cost of passwords could not be read", slog.Any("error", err))
		return nil
	}
	for _, c := range collections {
		if !raiseCost(c, h.cfg.Cost) {
			continue
		}
		// Without validation: whatever else is wrong with the collection is not for this place to refuse.
		if err := e.App.SaveNoValidate(c); err != nil {
			e.App.Logger().Warn("the cost of passwords could not be raised", slog.String("collection", c.Name), slog.Any("error", err))
		}
	}
	return nil
}

// raise gives new and changed collections the cost of the settings, or more if they ask for it.
func (h *Hasher) raise(e *core.CollectionEvent) error {
	if e.Collection.IsAuth() {
		raiseCost(e.Collection, h.cfg.Cost)
	}
	return e.Next()
}

func raiseCost(c *core.Collection, cost int) bool {
	field, ok := c.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField)
	if !ok || costOf(c) >= cost {
		return false
	}
	field.Cost = cost
	return true
}

// costOf is the cost at which PocketBase hashes passwords of the collection.
func costOf(c *core.Collection) int {
	field, ok := c.Fields.GetByName(core.FieldNamePassword).(*core.PasswordField)
	if !ok || field.Cost <= 0 {
		return bcrypt.DefaultCost
	}
	return field.Cost
}
