// Package pb holds the places where Satchel relies on how PocketBase works inside. Each has a contract test beside it,
// so that an upgrade that breaks a promise breaks this package and no other.
package pb

import (
	"database/sql"
	"errors"
	"fmt"

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

// PresentMFA makes this request the second step after the first one with the id, whatever its body is.
func PresentMFA(e *core.RequestEvent, id string) {
	query := e.Request.URL.Query()
	query.Set("mfaId", id)
	address := *e.Request.URL
	address.RawQuery = query.Encode()
	e.Request.URL = &address
}

// SatisfyMFA makes the next apis.RecordAuthResponse of this request pass PocketBase's multi-factor step, for a method
// that is two factors by itself: factor is the name of the second one. PocketBase looks for the record of the first step
// under the request's mfaId, and deletes it. forget, which must be called after the answer, deletes it if PocketBase
// had no use for it. In a collection without MFA nothing is done.
func SatisfyMFA(e *core.RequestEvent, record *core.Record, factor string) (forget func() error, err error) {
	if !record.Collection().MFA.Enabled {
		return func() error { return nil }, nil
	}
	mfa := core.NewMFA(e.App)
	mfa.SetCollectionRef(record.Collection().Id)
	mfa.SetRecordRef(record.Id)
	mfa.SetMethod(factor)
	if err := e.App.Save(mfa); err != nil {
		return nil, fmt.Errorf("store first step: %w", err)
	}
	PresentMFA(e, mfa.Id)
	return func() error {
		left, err := e.App.FindMFAById(mfa.Id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find first step: %w", err)
		}
		return e.App.Delete(left)
	}, nil
}

// TakenOver reports that an update gives an account to the owner of its e-mail address who was not, for all that was
// known, the one who signed up with it. PocketBase then changes the password, so that whoever signed up with another's
// address is out; with MFA it trusts in the second step instead. What else that person may have put into the account
// must go, too. It is for OnRecordUpdateExecute.
func TakenOver(record *core.Record) bool {
	before := record.Original()
	return record.Collection().IsAuth() && !before.Verified() && record.Verified() &&
		(before.TokenKey() != record.TokenKey() || record.Collection().MFA.Enabled)
}
