package passkeys

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// errCopied says that the signature counter went backwards.
var errCopied = errors.New("the signature counter went backwards, so the key may have been copied")

func (k *keeper) beginSignIn(e *core.RequestEvent) error {
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	assertion, session, err := k.rp.BeginDiscoverableLogin()
	if err != nil {
		return fmt.Errorf("begin sign-in: %w", err)
	}
	id, err := issue(e.App, signingIn, nil, session)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, beginJSON{assertion.Response, id})
}

func (k *keeper) finishSignIn(e *core.RequestEvent) error {
	var in struct {
		ChallengeID string          `json:"challengeId"`
		Credential  json.RawMessage `json:"credential"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	session, err := redeem(e.App, signingIn, nil, in.ChallengeID)
	if err != nil {
		return err
	}
	if len(in.Credential) > maxCredential {
		return ErrCredential
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(in.Credential)
	if err != nil {
		return api.Fail(ErrCredential, "").Because(err)
	}
	o, err := findOwner(e.App, parsed.Response.UserHandle)
	if err != nil {
		return err
	}
	if o == nil {
		return api.Fail(ErrCredential, "").Because(errors.New("nobody has this user handle"))
	}
	credential, err := k.prove(o, session, parsed)
	if err != nil {
		reason := map[string]any{"reason": reasonOf(err)}
		if auditErr := k.audit(e.App, e, "passkeys.sign_in", denied, o.record, reason); auditErr != nil {
			return fmt.Errorf("record refused passkey: %w", auditErr)
		}
		return api.Fail(ErrCredential, "").Because(err)
	}
	if err := k.used(e, o, credential); err != nil {
		return err
	}
	return k.answer(e, o.record)
}

// prove checks the assertion against the user's passkeys.
func (k *keeper) prove(o *owner, session webauthn.SessionData, parsed *protocol.ParsedCredentialAssertionData) (*webauthn.Credential, error) {
	_, credential, err := k.rp.ValidatePasskeyLogin(func([]byte, []byte) (webauthn.User, error) { return o, nil }, session, parsed)
	if err != nil {
		return nil, err
	}
	if credential.Authenticator.CloneWarning {
		return nil, errCopied
	}
	return credential, nil
}

// reasonOf is for the audit: what the library says, without what the client sent.
func reasonOf(err error) string {
	if refusal, ok := errors.AsType[*protocol.Error](err); ok {
		return cut(refusal.Details)
	}
	return cut(err.Error())
}

// used notes the use of a passkey. Of two uses at once with the same counter only one passes: the other is a replay.
func (k *keeper) used(e *core.RequestEvent, o *owner, c *webauthn.Credential) error {
	return e.App.RunInTransaction(func(tx core.App) error {
		result, err := tx.NonconcurrentDB().NewQuery(`UPDATE passkeys_credentials SET sign_count = {:count}, flags = {:flags}, used_at = {:now}
			WHERE credential = {:id} AND collection = {:collection} AND record = {:record} AND ({:count} = 0 OR sign_count < {:count})`).Bind(dbx.Params{
			"count": int64(c.Authenticator.SignCount), "flags": int(c.Flags.ProtocolValue()), "now": time.Now().Unix(),
			"id": c.ID, "collection": o.record.Collection().Id, "record": o.record.Id,
		}).Execute()
		if err != nil {
			return fmt.Errorf("note use of passkey: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return api.Fail(ErrCredential, "").Because(errors.Join(err, errCopied)) // or deleted just now
		}
		return k.audit(tx, e, "passkeys.sign_in", success, o.record, nil)
	})
}

// answer signs the user in.
func (k *keeper) answer(e *core.RequestEvent, record *core.Record) error {
	forget, err := pb.SatisfyMFA(e, record, "user verification by "+Method)
	if err != nil {
		return err
	}
	err = apis.RecordAuthResponse(e, record, Method, nil)
	if forgetErr := forget(); forgetErr != nil {
		e.App.Logger().Warn("mfa of a passkey is left for the sweeper", slog.Any("error", forgetErr))
	}
	return err
}
