package anonymous

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/pocketbase/dbx"
	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"golang.org/x/crypto/bcrypt"

	"github.com/satchelbase/satchel/extensions/api"
)

// methodAnonymous is the method of the sign-in, as sessions list it.
const methodAnonymous = "anonymous"

// answer has the form of every exchange of something for a session.
type answer struct {
	Session json.RawMessage `json:"session"`
	Record  json.RawMessage `json:"record"`
	IsNew   bool            `json:"isNew"`
}

// handleSignIn makes a user without an address and signs him in. The setting decides about it, not the collection's rule
// for creating records; its rule for signing in is asked.
func (a *accounts) handleSignIn(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	var body struct {
		Collection string `json:"collection,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	if e.Auth != nil { // an app that forgets what it has would make an account with every start
		return api.Fail(ErrSignedIn, "sign out first, or go on with the account that is signed in")
	}
	collection, err := a.enabled(e.App, body.Collection)
	if err != nil {
		return err
	}
	if code, detail := unfit(collection); code != nil {
		return api.Fail(code, detail)
	}
	user, err := a.create(e.App, collection)
	if _, invalid := errors.AsType[validation.Errors](err); invalid {
		return api.Fail(ErrUnfit, "the collection "+collection.Name+" does not take users with nothing but an id").Because(err)
	}
	if err != nil {
		return err
	}
	session, record, err := a.sessions.SignIn(e, user, methodAnonymous)
	if err != nil {
		if dropErr := e.App.Delete(user); dropErr != nil {
			a.logger.Warn("an account that was not let in could not be taken back", "record", user.Id, "error", dropErr)
		}
		return err
	}
	return api.Write(e, http.StatusOK, answer{Session: session, Record: record, IsNew: true})
}

// secretLength is that of a password that nobody knows: 43 characters of 62 are 256 bits.
const secretLength = 43

func (a *accounts) create(app core.App, collection *core.Collection) (*core.Record, error) {
	// A password like that cannot be guessed from its hash, so the hash need not be slow: the usual one would let anybody
	// keep the processor busy.
	hash, err := bcrypt.GenerateFromPassword([]byte(security.RandomString(secretLength)), bcrypt.MinCost)
	if err != nil {
		return nil, fmt.Errorf("hash password: %w", err)
	}
	user := core.NewRecord(collection)
	user.SetRaw(core.FieldNamePassword, &core.PasswordFieldValue{Hash: string(hash)})
	user.RefreshTokenKey()
	err = app.RunInTransaction(func(tx core.App) error {
		if err := tx.Save(user); err != nil {
			return err
		}
		_, err := tx.NonconcurrentDB().Insert(table, dbx.Params{
			"collection": collection.Id, "record": user.Id, "created_at": a.now().UnixMilli(),
		}).Execute()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create anonymous user: %w", err)
	}
	return user, nil
}
