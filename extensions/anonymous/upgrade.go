package anonymous

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/mails"
	"github.com/pocketbase/pocketbase/tools/routine"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
)

// methodPassword is PocketBase's own name of it.
const methodPassword = "password"

// details are what an anonymous user adds.
type details struct {
	Email           string `json:"email"`
	Password        string `json:"password"`
	PasswordConfirm string `json:"passwordConfirm"`
}

// handleUpgrade gives an anonymous user an address and a password. The record, its data and the session of the request
// stay; all other sessions end, as with every change of a password. Whoever repeats the request because its answer was
// lost gets that answer.
func (a *accounts) handleUpgrade(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	var body details
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	if body.Email == "" || body.Password == "" {
		return api.InvalidBody(missing(body)...)
	}
	if body.Password != body.PasswordConfirm {
		return api.InvalidBody(api.FieldError{Field: "passwordConfirm", Code: "validation_values_mismatch", Message: "Values don't match."})
	}
	anonymous, err := Is(e.App, e.Auth)
	switch {
	case err != nil:
		return err
	case !anonymous:
		return a.repeated(e, body)
	}
	if c := e.Auth.Collection(); !c.PasswordAuth.Enabled || !slices.Contains(c.PasswordAuth.IdentityFields, core.FieldNameEmail) {
		return api.Fail(ErrUnfit, "nobody signs in to "+c.Name+" by e-mail and password")
	}
	user, err := a.upgrade(e, body)
	if errors.Is(err, ErrNotAnonymous) { // another request was quicker
		return a.repeated(e, body)
	}
	if err != nil {
		return refusal(e, err)
	}
	a.requestVerification(user)
	return a.answer(e, user)
}

func missing(d details) []api.FieldError {
	var out []api.FieldError
	for _, f := range []struct{ name, value string }{{"email", d.Email}, {"password", d.Password}} {
		if f.value == "" {
			out = append(out, api.Invalid(f.name, api.ErrFieldRequired, ""))
		}
	}
	return out
}

// upgrade stores the details. The password is hashed before the transaction, which holds the only writer.
func (a *accounts) upgrade(e *core.RequestEvent, d details) (*core.Record, error) {
	hashed := core.NewRecord(e.Auth.Collection())
	hashed.SetPassword(d.Password)
	var user *core.Record
	err := e.App.RunInTransaction(func(tx core.App) error {
		anonymous, err := Is(tx, e.Auth)
		if err == nil && !anonymous {
			err = ErrNotAnonymous
		}
		if err != nil {
			return err
		}
		if user, err = tx.FindRecordById(e.Auth.Collection().Id, e.Auth.Id); err != nil {
			return fmt.Errorf("find anonymous user: %w", err)
		}
		user.SetEmail(d.Email)
		user.SetVerified(false)
		user.SetRaw(core.FieldNamePassword, hashed.GetRaw(core.FieldNamePassword))
		if err := tx.SaveWithContext(a.sessions.KeepCurrent(e), user); err != nil {
			return err
		}
		entry := audit.From(e)
		entry.Action, entry.Subject = "anonymous.upgraded", audit.PartyOf(user)
		return a.record(tx, entry)
	})
	return user, err
}

// takenCode is PocketBase's code of a value that another record has.
const takenCode = "validation_not_unique"

// refusal tells what is wrong with the details. That an address is taken is told, as it is to whoever signs up.
func refusal(e *core.RequestEvent, err error) error {
	failed := validation.Errors{}
	if !errors.As(err, &failed) {
		return err
	}
	if email, ok := errors.AsType[validation.Error](failed[core.FieldNameEmail]); ok && email.Code() == takenCode {
		return api.Fail(ErrEmailTaken, "sign in to that account, or use another address").Because(err)
	}
	return e.BadRequestError("The account could not be upgraded.", failed)
}

// repeated answers a request whose details the account has already. Anybody else's says that there is nothing to do.
func (a *accounts) repeated(e *core.RequestEvent, d details) error {
	user, err := e.App.FindRecordById(e.Auth.Collection().Id, e.Auth.Id)
	if err != nil {
		return fmt.Errorf("find user: %w", err)
	}
	if user.IsSuperuser() || !strings.EqualFold(user.Email(), d.Email) || !user.ValidatePassword(d.Password) {
		return ErrNotAnonymous
	}
	return a.answer(e, user)
}

// answer goes on with the session of the request, or begins one for a token that has none.
func (a *accounts) answer(e *core.RequestEvent, user *core.Record) error {
	session, err := a.sessions.Reissue(e, methodPassword)
	if err != nil {
		return err
	}
	if session == nil {
		session, record, err := a.sessions.SignIn(e, user, methodPassword)
		if err != nil {
			return err
		}
		return api.Write(e, http.StatusOK, answer{Session: session, Record: record})
	}
	if err := apis.EnrichRecord(e, user); err != nil {
		return fmt.Errorf("enrich record: %w", err)
	}
	user.IgnoreEmailVisibility(true)
	record, err := json.Marshal(user)
	if err != nil {
		return fmt.Errorf("marshal record: %w", err)
	}
	return api.Write(e, http.StatusOK, answer{Session: session, Record: record})
}

// requestVerification sends the mail. The upgrade does not wait for it, and does not fail with it: the app can ask for
// another.
func (a *accounts) requestVerification(user *core.Record) {
	app := a.app
	fresh := user.Fresh()
	routine.FireAndForget(func() {
		if err := mails.SendRecordVerification(app, fresh); err != nil {
			a.logger.Warn("the mail that verifies an address was not sent", "record", fresh.Id, "error", err)
		}
	})
}
