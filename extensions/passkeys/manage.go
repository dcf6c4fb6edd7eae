package passkeys

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// maxName of passkeys and accounts, in characters; authenticators cut longer ones (WebAuthn section 6.4.1).
const maxName = 64

// maxCredential bounds what the parsers of credentials keep at work, in bytes. A registration has a few thousand.
const maxCredential = 64 << 10

func cut(s string) string {
	if r := []rune(s); len(r) > maxName {
		return string(r[:maxName])
	}
	return s
}

// passkeyJSON is a passkey as its owner sees it.
type passkeyJSON struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Synced     bool       `json:"synced"` // it is backed up by its provider and on several devices
	CreatedAt  time.Time  `json:"createdAt"`
	LastUsedAt *time.Time `json:"lastUsedAt"`
}

func (r row) json() passkeyJSON {
	out := passkeyJSON{
		ID: r.ID, Name: r.Name, Synced: protocol.AuthenticatorFlags(r.Flags).HasBackupState(), CreatedAt: time.Unix(r.CreatedAt, 0).UTC(),
	}
	if r.UsedAt != 0 {
		at := time.Unix(r.UsedAt, 0).UTC()
		out.LastUsedAt = &at
	}
	return out
}

func (k *keeper) list(e *core.RequestEvent) error {
	rows, err := credentials(e.App, e.Auth)
	if err != nil {
		return err
	}
	out := make([]passkeyJSON, len(rows))
	for i, r := range rows {
		out[i] = r.json()
	}
	return api.WritePage(e, out, api.Page{Limit: maxPasskeys})
}

func checkName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if !utf8.ValidString(name) || utf8.RuneCountInString(name) > maxName {
		return "", api.InvalidBody(api.Invalid("name", ErrNameLong, ""))
	}
	if name == "" {
		return "Passkey", nil
	}
	return name, nil
}

// beginJSON starts a ceremony. Options are the members that the platform's API takes, WebAuthn's ...OptionsJSON.
type beginJSON struct {
	Options     any    `json:"options"`
	ChallengeID string `json:"challengeId"`
}

func (k *keeper) beginRegistration(e *core.RequestEvent) error {
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	o, err := ownerOf(e.App, e.Auth)
	if err != nil {
		return err
	}
	if len(o.rows) >= maxPasskeys {
		return api.Fail(ErrLimit, "delete one first")
	}
	options := []webauthn.RegistrationOption{webauthn.WithExclusions(webauthn.Credentials(o.keys).CredentialDescriptors())}
	if name := e.App.Settings().Meta.AppName; name != "" {
		options = append(options, webauthn.WithRegistrationRelyingPartyName(cut(name)))
	}
	creation, session, err := k.rp.BeginRegistration(o, options...)
	if err != nil {
		return fmt.Errorf("begin registration: %w", err)
	}
	id, err := issue(e.App, registering, e.Auth, session)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, beginJSON{creation.Response, id})
}

func (k *keeper) finishRegistration(e *core.RequestEvent) error {
	var in struct {
		ChallengeID string          `json:"challengeId"`
		Name        string          `json:"name,omitempty"`
		Credential  json.RawMessage `json:"credential"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	name, err := checkName(in.Name)
	if err != nil {
		return err
	}
	session, err := redeem(e.App, registering, e.Auth, in.ChallengeID)
	if err != nil {
		return err
	}
	o, err := ownerOf(e.App, e.Auth)
	if err != nil {
		return err
	}
	if len(in.Credential) > maxCredential {
		return ErrCredential
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(in.Credential)
	if err != nil {
		return api.Fail(ErrCredential, "").Because(err)
	}
	credential, err := k.rp.CreateCredential(o, session, parsed)
	if err != nil {
		return api.Fail(ErrCredential, "").Because(err)
	}
	var made row
	err = e.App.RunInTransaction(func(tx core.App) error {
		if made, err = add(tx, e.Auth, name, credential); err != nil {
			return err
		}
		return k.audit(tx, e, "passkeys.added", success, e.Auth, map[string]any{"passkey": made.ID, "name": name})
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusCreated, made.json())
}

func add(tx core.App, record *core.Record, name string, credential *webauthn.Credential) (row, error) {
	rows, err := credentials(tx, record)
	if err != nil {
		return row{}, err
	}
	if len(rows) >= maxPasskeys {
		return row{}, api.Fail(ErrLimit, "delete one first")
	}
	var n int
	err = tx.DB().Select("count(*)").From(credentialsTable).Where(dbx.HashExp{"credential": credential.ID}).Row(&n)
	if err != nil {
		return row{}, fmt.Errorf("look for passkey: %w", err)
	}
	if n > 0 {
		return row{}, ErrRegistered
	}
	return insert(tx, record, name, credential)
}

func (k *keeper) rename(e *core.RequestEvent) error {
	var in struct {
		Name string `json:"name"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	name, err := checkName(in.Name)
	if err != nil {
		return err
	}
	where := of(e.Auth)
	where["id"] = e.Request.PathValue("id")
	var r row
	err = e.App.RunInTransaction(func(tx core.App) error {
		if _, err := tx.NonconcurrentDB().Update(credentialsTable, dbx.Params{"name": name}, where).Execute(); err != nil {
			return fmt.Errorf("rename passkey: %w", err)
		}
		r, err = find(tx, where)
		return err
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, r.json())
}

// find answers 404 for what is not there or not the user's.
func find(app core.App, where dbx.HashExp) (row, error) {
	var rows []row
	if err := app.DB().Select("*").From(credentialsTable).Where(where).Limit(1).All(&rows); err != nil {
		return row{}, fmt.Errorf("read passkey: %w", err)
	}
	if len(rows) == 0 {
		return row{}, api.ErrNotFound
	}
	return rows[0], nil
}

func (k *keeper) remove(e *core.RequestEvent) error {
	where := of(e.Auth)
	where["id"] = e.Request.PathValue("id")
	err := e.App.RunInTransaction(func(tx core.App) error {
		r, err := find(tx, where)
		if err != nil {
			return err
		}
		rows, err := credentials(tx, e.Auth)
		if err != nil {
			return err
		}
		if len(rows) == 1 && k.deps.LastWayIn != nil {
			last, err := k.deps.LastWayIn(tx, e.Auth, Method)
			if err != nil {
				return fmt.Errorf("look for another way in: %w", err)
			}
			if last {
				return api.Fail(ErrLastWayIn, "set a password or link an account first")
			}
		}
		if _, err := tx.NonconcurrentDB().Delete(credentialsTable, where).Execute(); err != nil {
			return fmt.Errorf("delete passkey: %w", err)
		}
		return k.audit(tx, e, "passkeys.removed", success, e.Auth, map[string]any{"passkey": r.ID, "name": r.Name})
	})
	if err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}
