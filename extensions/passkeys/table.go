package passkeys

import (
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

const (
	usersTable       = "passkeys_users"
	credentialsTable = "passkeys_credentials" //nolint:gosec // a name, no credential
	challengesTable  = "passkeys_challenges"
)

const (
	// ownerPriority is inside the transaction of a delete, which PocketBase opens at 99.
	ownerPriority = 100

	// handleSize of user handles, in bytes; WebAuthn takes 64 at most.
	handleSize = 32

	// maxPasskeys of one user.
	maxPasskeys = 20
)

func migrations() []extensions.Migration {
	statements := []string{
		`CREATE TABLE passkeys_users (
			handle BLOB NOT NULL PRIMARY KEY, collection TEXT NOT NULL, record TEXT NOT NULL,
			UNIQUE (collection, record)) WITHOUT ROWID`,
		`CREATE TABLE passkeys_credentials (
			id TEXT NOT NULL PRIMARY KEY, credential BLOB NOT NULL UNIQUE, collection TEXT NOT NULL, record TEXT NOT NULL,
			name TEXT NOT NULL, public_key BLOB NOT NULL, flags INTEGER NOT NULL, sign_count INTEGER NOT NULL,
			aaguid BLOB NOT NULL, transports TEXT NOT NULL, created_at INTEGER NOT NULL, used_at INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID`,
		`CREATE INDEX passkeys_credentials_owner ON passkeys_credentials (collection, record)`,
		`CREATE TABLE passkeys_challenges (
			id TEXT NOT NULL PRIMARY KEY, purpose TEXT NOT NULL, collection TEXT NOT NULL, record TEXT NOT NULL,
			session TEXT NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID`,
		`CREATE INDEX passkeys_challenges_purpose ON passkeys_challenges (purpose, expires_at)`,
	}
	return []extensions.Migration{extensions.Tables(1795340010, "create_tables", statements, usersTable, credentialsTable, challengesTable)}
}

func of(record *core.Record) dbx.HashExp {
	return dbx.HashExp{"collection": record.Collection().Id, "record": record.Id}
}

// row is a passkey. ID is its name on this API; Credential is the authenticator's. Times are in seconds since 1970.
type row struct {
	ID         string `db:"id"`
	Credential []byte `db:"credential"`
	Name       string `db:"name"`
	PublicKey  []byte `db:"public_key"`
	Flags      int    `db:"flags"`
	SignCount  int64  `db:"sign_count"`
	AAGUID     []byte `db:"aaguid"`
	Transports string `db:"transports"`
	CreatedAt  int64  `db:"created_at"`
	UsedAt     int64  `db:"used_at"`
}

func (r row) webauthn() (webauthn.Credential, error) {
	c := webauthn.Credential{
		ID: r.Credential, PublicKey: r.PublicKey, Flags: webauthn.NewCredentialFlags(protocol.AuthenticatorFlags(r.Flags)),
		Authenticator: webauthn.Authenticator{AAGUID: r.AAGUID, SignCount: uint32(r.SignCount)},
	}
	if err := json.Unmarshal([]byte(r.Transports), &c.Transport); err != nil {
		return c, fmt.Errorf("read transports: %w", err)
	}
	return c, nil
}

func credentials(app core.App, record *core.Record) ([]row, error) {
	var rows []row
	if err := app.DB().Select("*").From(credentialsTable).Where(of(record)).OrderBy("created_at", "id").All(&rows); err != nil {
		return nil, fmt.Errorf("list passkeys: %w", err)
	}
	return rows, nil
}

// Has reports whether the user can sign in with a passkey.
func Has(app core.App, record *core.Record) (bool, error) {
	var n int
	if err := app.DB().Select("count(*)").From(credentialsTable).Where(of(record)).Row(&n); err != nil {
		return false, fmt.Errorf("count passkeys: %w", err)
	}
	return n > 0, nil
}

// owner is a user as the library sees one.
type owner struct {
	record *core.Record
	handle []byte
	name   string
	rows   []row
	keys   []webauthn.Credential
}

// WebAuthnID is the random handle.
func (o *owner) WebAuthnID() []byte { return o.handle }

// WebAuthnName is what the authenticator shows to tell accounts apart.
func (o *owner) WebAuthnName() string { return o.name }

// WebAuthnDisplayName is the same: most authenticators show one of the two.
func (o *owner) WebAuthnDisplayName() string { return o.name }

// WebAuthnCredentials are the user's passkeys.
func (o *owner) WebAuthnCredentials() []webauthn.Credential { return o.keys }

func newOwner(app core.App, record *core.Record, handle []byte) (*owner, error) {
	o := &owner{record: record, handle: handle, name: label(record)}
	var err error
	if o.rows, err = credentials(app, record); err != nil {
		return nil, err
	}
	for _, r := range o.rows {
		c, err := r.webauthn()
		if err != nil {
			return nil, err
		}
		o.keys = append(o.keys, c)
	}
	return o, nil
}

// label is how the user knows the account.
func label(record *core.Record) string {
	for _, name := range []string{record.Email(), record.GetString("username"), record.GetString("name")} {
		if name != "" {
			return cut(name)
		}
	}
	return record.Id
}

// ownerOf returns the user with a handle, made now if there is none.
func ownerOf(app core.App, record *core.Record) (*owner, error) {
	handle := make([]byte, handleSize)
	_, _ = rand.Read(handle) // crashes the program rather than fail
	_, err := app.NonconcurrentDB().NewQuery(
		`INSERT INTO passkeys_users (handle, collection, record) VALUES ({:handle}, {:collection}, {:record}) ON CONFLICT (collection, record) DO NOTHING`,
	).Bind(dbx.Params{"handle": handle, "collection": record.Collection().Id, "record": record.Id}).Execute()
	if err != nil {
		return nil, fmt.Errorf("store user handle: %w", err)
	}
	// Read from the writer, which has what it has just written.
	if err := app.NonconcurrentDB().Select("handle").From(usersTable).Where(of(record)).Row(&handle); err != nil {
		return nil, fmt.Errorf("read user handle: %w", err)
	}
	return newOwner(app, record, handle)
}

// findOwner returns the user of a handle, or nil.
func findOwner(app core.App, handle []byte) (*owner, error) {
	var at struct {
		Collection string `db:"collection"`
		Record     string `db:"record"`
	}
	err := app.DB().Select("collection", "record").From(usersTable).Where(dbx.HashExp{"handle": handle}).One(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // the caller answers alike to all that fails
	}
	if err != nil {
		return nil, fmt.Errorf("find user handle: %w", err)
	}
	record, err := app.FindRecordById(at.Collection, at.Record)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // deleted in a way that no hook saw
	}
	if err != nil {
		return nil, fmt.Errorf("find user: %w", err)
	}
	return newOwner(app, record, handle)
}

// bindOwners removes the rows of users and collections in the transaction that deletes them, and those of an account
// that comes to another owner.
func (k *keeper) bindOwners(app core.App) {
	remove := func(app core.App, where dbx.HashExp) error {
		for _, table := range []string{usersTable, credentialsTable, challengesTable} {
			if _, err := app.NonconcurrentDB().Delete(table, where).Execute(); err != nil {
				return fmt.Errorf("delete from %s: %w", table, err)
			}
		}
		return nil
	}
	app.OnRecordUpdateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelPasskeysTakeover", Priority: ownerPriority, Func: func(e *core.RecordEvent) error {
		taken := pb.TakenOver(e.Record)
		if err := e.Next(); err != nil || !taken {
			return err
		}
		had, err := Has(e.App, e.Record)
		if err != nil {
			return err
		}
		if err := remove(e.App, of(e.Record)); err != nil || !had {
			return err
		}
		return k.audit(e.App, nil, "passkeys.dropped", success, e.Record, nil)
	}})
	app.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelPasskeysRecord", Priority: ownerPriority, Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		return remove(e.App, of(e.Record))
	}})
	app.OnCollectionDeleteExecute().Bind(&hook.Handler[*core.CollectionEvent]{Id: "satchelPasskeysCollection", Priority: ownerPriority, Func: func(e *core.CollectionEvent) error {
		if err := e.Next(); err != nil || !e.Collection.IsAuth() {
			return err
		}
		return remove(e.App, dbx.HashExp{"collection": e.Collection.Id})
	}})
}

// insert stores a new passkey.
func insert(tx core.App, record *core.Record, name string, c *webauthn.Credential) (row, error) {
	transports, err := json.Marshal(c.Transport)
	if err != nil {
		return row{}, fmt.Errorf("write transports: %w", err)
	}
	r := row{
		ID: rand.Text(), Credential: c.ID, Name: name, PublicKey: c.PublicKey, Flags: int(c.Flags.ProtocolValue()),
		SignCount: int64(c.Authenticator.SignCount), AAGUID: c.Authenticator.AAGUID, Transports: string(transports), CreatedAt: time.Now().Unix(),
	}
	_, err = tx.NonconcurrentDB().Insert(credentialsTable, dbx.Params{
		"id": r.ID, "credential": r.Credential, "collection": record.Collection().Id, "record": record.Id, "name": r.Name,
		"public_key": r.PublicKey, "flags": r.Flags, "sign_count": r.SignCount, "aaguid": r.AAGUID, "transports": r.Transports, "created_at": r.CreatedAt,
	}).Execute()
	if err != nil {
		return row{}, fmt.Errorf("store passkey: %w", err)
	}
	return r, nil
}
