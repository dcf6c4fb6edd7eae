// Package signing keeps the keys that sign access tokens, and signs and verifies with them. A key is first published
// (standby), then signs (active), then only verifies (retired) until no token of it can be alive, and is then removed.
// Private parts are sealed; a copy of the database signs nothing.
//
// Table: sessions_keys.
package signing

import (
	"crypto"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Table holds the keys.
const Table = "sessions_keys"

const (
	// Lifetime is how long a key signs before the next one takes its place.
	Lifetime = 90 * 24 * time.Hour

	// CacheAge is how long verifiers may keep the published keys. A standby key is older than that before it signs.
	CacheAge = 10 * time.Minute

	// Leeway is what clocks of other verifiers may be off.
	Leeway = 5 * time.Second
)

// State is where a key is in its life.
type State string

// States of a key.
const (
	Standby State = "standby"
	Active  State = "active"
	Retired State = "retired"
)

// Vault seals private keys. It is unlocked before a transaction begins, because its first use may write.
type Vault interface {
	Unlock() error
	Seal(aad string, plain []byte) (string, error)
	Open(aad, sealed string) ([]byte, error)
}

// Key is one signing key as operators see it.
type Key struct {
	ID        string    `json:"id"`
	Algorithm string    `json:"algorithm"`
	State     State     `json:"state"`
	Created   time.Time `json:"createdAt"`
	Activated time.Time `json:"activatedAt,omitzero"`
	Retired   time.Time `json:"retiredAt,omitzero"`

	jwk     JWK
	public  crypto.PublicKey
	private crypto.Signer // of the active key only
}

// Ring is the set of keys. It is safe for concurrent use, and usable once the application is open.
type Ring struct {
	app       core.App
	vault     Vault
	version   func(table string) uint64
	algorithm string
	overlap   time.Duration // how long a retired key is kept
	now       func() time.Time

	mu     sync.RWMutex
	loaded *keys
}

// keys is the ring at one version of the table.
type keys struct {
	version uint64
	all     []Key
	byID    map[string]*Key
	active  *Key
	jwks    []byte
}

// NewRing returns the ring of an application. version tells when the table has changed, also by another process;
// algorithm is that of new keys; maxLife is the longest life of an access token.
func NewRing(app core.App, vault Vault, version func(table string) uint64, algorithm string, maxLife time.Duration) *Ring {
	return &Ring{
		app: app, vault: vault, version: version, algorithm: algorithm,
		overlap: maxLife + Leeway + CacheAge, now: time.Now,
	}
}

// Schema lists the statements that create the table.
func Schema() []string {
	return []string{`CREATE TABLE ` + Table + ` (
		id TEXT PRIMARY KEY, state TEXT NOT NULL, jwk TEXT NOT NULL, sealed TEXT NOT NULL,
		created_at INTEGER NOT NULL, activated_at INTEGER NOT NULL DEFAULT 0, retired_at INTEGER NOT NULL DEFAULT 0
	) WITHOUT ROWID`}
}

// row is a key in the table; times are Unix milliseconds.
type row struct {
	ID        string `db:"id"`
	State     State  `db:"state"`
	JWK       string `db:"jwk"`
	Sealed    string `db:"sealed"`
	Created   int64  `db:"created_at"`
	Activated int64  `db:"activated_at"`
	Retired   int64  `db:"retired_at"`
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// place binds a sealed key to its row.
func place(id string) string { return Table + "|sealed|" + id }

// current returns the keys, read anew if the table has changed. The first call makes the first keys.
func (r *Ring) current() (*keys, error) {
	r.mu.RLock()
	k := r.loaded
	r.mu.RUnlock()
	if k != nil && k.version == r.version(Table) {
		return k, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k, err := r.load()
	if err == nil && k.active == nil {
		if err = r.advance(r.app, true); err == nil {
			k, err = r.load()
		}
	}
	if err != nil {
		return nil, err
	}
	if k.active == nil {
		return nil, errors.New("no signing key is active")
	}
	r.loaded = k
	return k, nil
}

func (r *Ring) load() (*keys, error) {
	version := r.version(Table)
	var rows []row
	if err := r.app.ConcurrentDB().Select("*").From(Table).OrderBy("created_at", "id").All(&rows); err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	k := &keys{version: version, byID: map[string]*Key{}, all: make([]Key, len(rows))}
	published := struct {
		Keys []JWK `json:"keys"`
	}{Keys: []JWK{}}
	for i, stored := range rows {
		key, err := r.open(stored)
		if err != nil {
			return nil, err
		}
		k.all[i] = key
		k.byID[key.ID] = &k.all[i]
		if key.State == Active {
			k.active = &k.all[i]
		}
		published.Keys = append(published.Keys, key.jwk)
	}
	var err error
	if k.jwks, err = json.Marshal(published); err != nil {
		return nil, fmt.Errorf("publish signing keys: %w", err)
	}
	return k, nil
}

// open unseals a key: the public half comes out of the private one, so that a changed row verifies nothing that the vault
// has not sealed.
func (r *Ring) open(stored row) (Key, error) {
	der, err := r.vault.Open(place(stored.ID), stored.Sealed)
	if err != nil {
		return Key{}, fmt.Errorf("open signing key %s: %w", stored.ID, err)
	}
	private, err := parsePrivate(der)
	if err != nil {
		return Key{}, err
	}
	jwk, err := newJWK(private.Public())
	if err != nil {
		return Key{}, err
	}
	if jwk.ID != stored.ID {
		return Key{}, fmt.Errorf("open signing key %s: it is the key %s", stored.ID, jwk.ID)
	}
	key := Key{
		ID: stored.ID, Algorithm: jwk.Algorithm, State: stored.State, jwk: jwk, public: private.Public(),
		Created: moment(stored.Created), Activated: moment(stored.Activated), Retired: moment(stored.Retired),
	}
	if key.State == Active {
		key.private = private
	}
	return key, nil
}

// List returns the keys, the oldest first.
func (r *Ring) List() ([]Key, error) {
	k, err := r.current()
	if err != nil {
		return nil, err
	}
	return slices.Clone(k.all), nil
}

// JWKS is the document of RFC 7517 section 5 with all keys that verify or soon will.
func (r *Ring) JWKS() ([]byte, error) {
	k, err := r.current()
	if err != nil {
		return nil, err
	}
	return k.jwks, nil
}

// Maintain rotates when the active key's time is over, and removes keys that no token can need any more.
func (r *Ring) Maintain() error { return r.advance(r.app, false) }

// Rotate makes the standby key sign from now on. It does so at once, also when the standby key has been published for
// less than [CacheAge]: verifiers ask for the keys again when they meet an unknown one. With drop, retired keys are
// removed, the present one among them, and the tokens that they have signed end.
func (r *Ring) Rotate(drop bool) error {
	if err := r.vault.Unlock(); err != nil {
		return err
	}
	return r.app.RunInTransaction(func(tx core.App) error {
		err := r.advance(tx, true)
		if err == nil && drop {
			_, err = tx.NonconcurrentDB().Delete(Table, dbx.HashExp{"state": Retired}).Execute()
		}
		return err
	})
}

// advance moves the keys on by one step, in one transaction: active to retired, standby to active, a new standby. Two
// processes that do it at once take turns, and without force the second finds nothing to do.
func (r *Ring) advance(app core.App, force bool) error {
	if err := r.vault.Unlock(); err != nil {
		return err
	}
	err := app.RunInTransaction(func(tx core.App) error {
		now := r.now()
		db := tx.NonconcurrentDB()
		_, err := db.Delete(Table, dbx.NewExp("state = {:state} AND retired_at <= {:before}",
			dbx.Params{"state": Retired, "before": now.Add(-r.overlap).UnixMilli()})).Execute()
		if err != nil {
			return fmt.Errorf("remove old keys: %w", err)
		}
		active, err := first(tx, Active)
		if err != nil {
			return err
		}
		if active == nil || force || now.Sub(moment(active.Activated)) >= Lifetime {
			if err := r.promote(tx, active, now); err != nil {
				return err
			}
		}
		standby, err := first(tx, Standby)
		if err != nil || standby != nil {
			return err
		}
		_, err = r.add(tx, Standby, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("rotate signing keys: %w", err)
	}
	return nil
}

// promote puts the standby key, or a new one if there is none, in the place of the active key.
func (r *Ring) promote(tx core.App, active *row, now time.Time) error {
	next, err := first(tx, Standby)
	if err != nil {
		return err
	}
	if next == nil {
		if next, err = r.add(tx, Standby, now); err != nil {
			return err
		}
	}
	set := func(id string, state State, column string) error {
		_, err := tx.NonconcurrentDB().Update(Table, dbx.Params{"state": state, column: now.UnixMilli()}, dbx.HashExp{"id": id}).Execute()
		return err
	}
	if active != nil {
		if err := set(active.ID, Retired, "retired_at"); err != nil {
			return err
		}
	}
	return set(next.ID, Active, "activated_at")
}

// first returns the oldest key in a state, nil if there is none.
func first(tx core.App, state State) (*row, error) {
	var out row
	err := tx.NonconcurrentDB().Select("*").From(Table).Where(dbx.HashExp{"state": state}).OrderBy("created_at", "id").Limit(1).One(&out)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // none is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("find %s key: %w", state, err)
	}
	return &out, nil
}

// add makes and stores a key.
func (r *Ring) add(tx core.App, state State, now time.Time) (*row, error) {
	private, err := generate(r.algorithm)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	jwk, err := newJWK(private.Public())
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encode signing key: %w", err)
	}
	text, err := json.Marshal(jwk)
	if err != nil {
		return nil, fmt.Errorf("encode signing key: %w", err)
	}
	out := &row{ID: jwk.ID, State: state, JWK: string(text), Created: now.UnixMilli()}
	if out.Sealed, err = r.vault.Seal(place(out.ID), der); err != nil {
		return nil, fmt.Errorf("seal signing key: %w", err)
	}
	_, err = tx.NonconcurrentDB().Insert(Table, dbx.Params{
		"id": out.ID, "state": out.State, "jwk": out.JWK, "sealed": out.Sealed, "created_at": out.Created,
	}).Execute()
	if err != nil {
		return nil, fmt.Errorf("store signing key: %w", err)
	}
	return out, nil
}
