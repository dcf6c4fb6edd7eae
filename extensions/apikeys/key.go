package apikeys

import (
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit"
)

const (
	table = "apikeys_keys"

	// idLength is that of record ids. rand.Text has 26 letters of 5 bits.
	idLength = 15

	// secretSize is the entropy of a key, in bytes; base64 makes 43 characters of it.
	secretSize = 32

	// maxName bounds the name of a key, in characters.
	maxName = 100
)

// errNotFound is the answer for an id that no key has.
var errNotFound = errors.New("there is no such key")

// keyPattern is the whole form of a key. The secret may hold underscores, so the lengths decide where it starts.
var keyPattern = regexp.MustCompile(`^sk_([a-z0-9]{15})_([A-Za-z0-9_-]{43})$`)

// Key is what is known of a key; the secret is not among it. Times are UTC; a nil time has not come.
type Key struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Scopes   []string   `json:"scopes"`
	Created  time.Time  `json:"createdAt"`
	Expires  *time.Time `json:"expiresAt"`
	LastUsed *time.Time `json:"lastUsedAt"`
	Revoked  *time.Time `json:"revokedAt"`
}

// May reports whether the key has the scope.
func (k Key) May(scope string) bool { return slices.Contains(k.Scopes, scope) }

// live reports whether the key may be used at that time.
func (k Key) live(now time.Time) bool {
	return k.Revoked == nil && (k.Expires == nil || now.Before(*k.Expires))
}

// state is one word for people.
func (k Key) state(now time.Time) string {
	switch {
	case k.Revoked != nil:
		return "revoked"
	case !k.live(now):
		return "expired"
	}
	return "active"
}

// row is a key as it is stored; times are Unix seconds, 0 for none.
type row struct {
	ID        string `db:"id"`
	Name      string `db:"name"`
	Hash      []byte `db:"hash"`
	Scopes    string `db:"scopes"`
	CreatedAt int64  `db:"created"`
	ExpiresAt int64  `db:"expires_at"`
	LastUsed  int64  `db:"last_used_at"`
	RevokedAt int64  `db:"revoked_at"`
}

func (r row) key() (Key, error) {
	k := Key{
		ID: r.ID, Name: r.Name, Created: time.Unix(r.CreatedAt, 0).UTC(),
		Expires: moment(r.ExpiresAt), LastUsed: moment(r.LastUsed), Revoked: moment(r.RevokedAt),
	}
	if err := json.Unmarshal([]byte(r.Scopes), &k.Scopes); err != nil {
		return Key{}, fmt.Errorf("read scopes of key %s: %w", r.ID, err)
	}
	return k, nil
}

func moment(unix int64) *time.Time {
	if unix == 0 {
		return nil
	}
	t := time.Unix(unix, 0).UTC()
	return &t
}

func createKeys(app core.App) error {
	_, err := app.NonconcurrentDB().NewQuery(`CREATE TABLE {{` + table + `}} (
		id TEXT PRIMARY KEY NOT NULL,
		name TEXT NOT NULL,
		hash BLOB NOT NULL CHECK (length(hash) = 32),
		scopes TEXT NOT NULL,
		created INTEGER NOT NULL,
		expires_at INTEGER NOT NULL DEFAULT 0,
		last_used_at INTEGER NOT NULL DEFAULT 0,
		revoked_at INTEGER NOT NULL DEFAULT 0
	) WITHOUT ROWID`).Execute()
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	return nil
}

func dropKeys(app core.App) error {
	_, err := app.NonconcurrentDB().DropTable(table).Execute()
	return err
}

// appendFunc writes an entry of the audit in the transaction of tx.
type appendFunc = func(tx core.App, e audit.Entry) error

// create makes a key and returns it with its text, which nobody can read again. A life of 0 has no end.
func create(app core.App, record appendFunc, name string, allowed []string, life time.Duration) (Key, string, error) {
	id := strings.ToLower(rand.Text()[:idLength])
	random := make([]byte, secretSize)
	_, _ = rand.Read(random) // never fails
	secret := base64.RawURLEncoding.EncodeToString(random)
	hash := sha256.Sum256([]byte(secret))
	scopesJSON, err := json.Marshal(allowed)
	if err != nil {
		return Key{}, "", fmt.Errorf("marshal scopes: %w", err)
	}
	r := row{ID: id, Name: name, Hash: hash[:], Scopes: string(scopesJSON), CreatedAt: time.Now().Unix()}
	if life > 0 {
		r.ExpiresAt = time.Now().Add(life).Unix()
	}
	k, err := r.key()
	if err != nil {
		return Key{}, "", err
	}
	err = app.RunInTransaction(func(tx core.App) error {
		_, err := tx.NonconcurrentDB().Insert(table, dbx.Params{
			"id": r.ID, "name": r.Name, "hash": r.Hash, "scopes": r.Scopes, "created": r.CreatedAt, "expires_at": r.ExpiresAt,
		}).Execute()
		if err != nil {
			return err
		}
		return record(tx, audit.Entry{
			Action: "apikeys.created", Subject: audit.Party{Kind: audit.Key, ID: id},
			Details: map[string]any{"name": name, "scopes": allowed, "expiresAt": k.Expires},
		})
	})
	if err != nil {
		return Key{}, "", fmt.Errorf("store key: %w", err)
	}
	return k, "sk_" + id + "_" + secret, nil
}

// list returns all keys, the oldest first, those that were revoked included.
func list(app core.App) ([]Key, error) {
	var rows []row
	if err := app.ConcurrentDB().Select("*").From(table).OrderBy("created", "id").All(&rows); err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	keys := make([]Key, len(rows))
	for i, r := range rows {
		var err error
		if keys[i], err = r.key(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// revoke ends a key for good and reports whether this call did it; a key that was revoked before stays as it is.
func revoke(app core.App, record appendFunc, id string) (k Key, done bool, err error) {
	err = app.RunInTransaction(func(tx core.App) error {
		result, err := tx.NonconcurrentDB().Update(table, dbx.Params{"revoked_at": time.Now().Unix()},
			dbx.HashExp{"id": id, "revoked_at": 0}).Execute()
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		r, err := find(tx, id)
		if err != nil {
			return err
		}
		if k, err = r.key(); err != nil || n == 0 {
			return err
		}
		done = true
		return record(tx, audit.Entry{
			Action: "apikeys.revoked", Subject: audit.Party{Kind: audit.Key, ID: id}, Details: map[string]any{"name": k.Name},
		})
	})
	if err != nil {
		return Key{}, false, fmt.Errorf("revoke key: %w", err)
	}
	return k, done, nil
}

// find reads one key; errNotFound when there is none.
func find(app core.App, id string) (row, error) {
	var r row
	err := app.DB().Select("*").From(table).Where(dbx.HashExp{"id": id}).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, errNotFound
	}
	return r, err
}
