// Package pb holds the places where Satchel relies on how PocketBase works inside. Each has a contract test beside it,
// so that an upgrade that breaks a promise breaks this package and no other.
package pb

import (
	"errors"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
)

// CloseRealtime ends every stream of PocketBase's realtime API. A closed channel makes the handler of the stream return.
func CloseRealtime(app core.App) {
	broker := app.SubscriptionsBroker()
	for id := range broker.Clients() {
		broker.Unregister(id)
	}
}

// OTPCompared reports whether the error of a sign-in with a one-time password came after the password was compared. All
// earlier ones take less time.
func OTPCompared(err error) bool {
	apiErr, ok := errors.AsType[*router.ApiError](err)
	if !ok {
		return false
	}
	cause, ok := apiErr.RawData().(error)
	return ok && cause.Error() == "incorrect password"
}

// NotUnique returns the fields whose values others have, if that is all that was wrong with a record.
func NotUnique(err error) []string {
	var fields validation.Errors
	if apiErr, ok := errors.AsType[*router.ApiError](err); ok {
		if cause, ok := apiErr.RawData().(error); ok {
			err = cause
		}
	}
	if !errors.As(err, &fields) {
		return nil
	}
	names := make([]string, 0, len(fields))
	for name, problem := range fields {
		if reason, ok := errors.AsType[validation.Error](problem); !ok || reason.Code() != "validation_not_unique" {
			return nil
		}
		names = append(names, name)
	}
	return names
}

// NewEmailTaken reports whether a change to another address was refused because the address is taken, and for nothing
// else.
func NewEmailTaken(err error) bool {
	apiErr, ok := errors.AsType[*router.ApiError](err)
	if !ok {
		return false
	}
	fields, ok := apiErr.RawData().(validation.Errors)
	if !ok || len(fields) != 1 {
		return false
	}
	reason, ok := errors.AsType[validation.Error](fields["newEmail"])
	return ok && reason.Code() == "validation_invalid_new_email"
}
