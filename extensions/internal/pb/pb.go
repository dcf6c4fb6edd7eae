// Package pb holds the places where Satchel relies on how PocketBase works inside. Each has a contract test beside it,
// so that an upgrade that breaks a promise breaks this package and no other.
package pb

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/pocketbase/pocketbase/core"
)

// CloseRealtime ends every stream of PocketBase's realtime API. A closed channel makes the handler of the stream return.
func CloseRealtime(app core.App) {
	broker := app.SubscriptionsBroker()
	for id := range broker.Clients() {
		broker.Unregister(id)
	}
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
