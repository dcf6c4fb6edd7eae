package apikeys

import (
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit"
)

const (
	// idLength is that of record ids. rand.Text has 26 letters of 5 bits.
	idLength = 15

	// secretSize is the entropy of a key, in bytes; base64 makes 43 characters of it.
	secretSize = 32
)

// errNotFound is the answer for an id that no key has.
var errNotFound = errors.New("there is no such key")

// keyPattern is the whole form of a key. The secret may hold underscores, so the lengths decide where it starts.
var keyPattern = regexp.MustCompile(`^sk_([a-z0-9]{15})_([A-Za-z0-9_-]{43})$`)

// Key is what is known of a key; the secret is not among it. Times are UTC; a nil time has not come.
type Key struct {
	ID       string         `json:"id"`
	Name     string         `json:"name"`
	Scopes   []string       `json:"scopes"`
	Rate     int            `json:"rate"`     // requests a minute; 0 is the setting
	Networks []netip.Prefix `json:"networks"` // from which it is good; none is everywhere
	Created  time.Time      `json:"createdAt"`
	Expires  *time.Time     `json:"expiresAt"`
	LastUsed *time.Time     `json:"lastUsedAt"`
	Revoked  *time.Time     `json:"revokedAt"`
}

// live reports whether the key may be used at that time.
func (k *Key) live(now time.Time) bool {
	return k.Revoked == nil && (k.Expires == nil || now.Before(*k.Expires))
}

// state is one word for people.
func (k *Key) state(now time.Time) string {
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
	Rate      int    `db:"rate"`
	Networks  string `db:"networks"`
	CreatedAt int64  `db:"created"`
	ExpiresAt int64  `db:"expires_at"`
	RevokedAt int64  `db:"revoked_at"`
	LastUsed  int64  `db:"last_used_at"` // from the table of uses
}

func (r row) key() (Key, error) {
	k := Key{
		ID: r.ID, Name: r.Name, Rate: r.Rate, Created: time.Unix(r.CreatedAt, 0).UTC(),
		Expires: moment(r.ExpiresAt), LastUsed: moment(r.LastUsed), Revoked: moment(r.RevokedAt),
	}
	if err := json.Unmarshal([]byte(r.Scopes), &k.Scopes); err != nil {
		return Key{}, fmt.Errorf("read scopes of key %s: %w", r.ID, err)
	}
	if err := json.Unmarshal([]byte(r.Networks), &k.Networks); err != nil {
		return Key{}, fmt.Errorf("read networks of key %s: %w", r.ID, err)
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

// audited is what the audit keeps of a key.
func audited(k Key) map[string]any {
	return map[string]any{
		"name": k.Name, "scopes": k.Scopes, "rate": k.Rate, "networks": k.Networks, "expiresAt": k.Expires, "revokedAt": k.Revoked,
	}
}

// create makes a key and returns it with its text, which nobody can read again. The entry says who makes it.
func (s *service) create(app core.App, by audit.Entry, w wish) (Key, string, error) {
	id := strings.ToLower(rand.Text()[:idLength])
	random := make([]byte, secretSize)
	_, _ = rand.Read(random) // never fails
	secret := base64.RawURLEncoding.EncodeToString(random)
	hash := sha256.Sum256([]byte(secret))
	scopes, err := json.Marshal(w.scopes)
	if err != nil {
		return Key{}, "", fmt.Errorf("marshal scopes: %w", err)
	}
	networks, err := json.Marshal(w.networks)
	if err != nil {
		return Key{}, "", fmt.Errorf("marshal networks: %w", err)
	}
	r := row{
		ID: id, Name: w.name, Hash: hash[:], Scopes: string(scopes), Rate: w.rate, Networks: string(networks), CreatedAt: s.now().Unix(),
	}
	if !w.expires.IsZero() {
		r.ExpiresAt = w.expires.Unix()
	}
	k, err := r.key()
	if err != nil {
		return Key{}, "", err
	}
	err = app.RunInTransaction(func(tx core.App) error {
		_, err := tx.NonconcurrentDB().Insert(table, dbx.Params{
			"id": r.ID, "name": r.Name, "hash": r.Hash, "scopes": r.Scopes, "rate": r.Rate, "networks": r.Networks,
			"created": r.CreatedAt, "expires_at": r.ExpiresAt,
		}).Execute()
		if err != nil {
			return err
		}
		by.Action, by.Subject = "apikeys.created", audit.Party{Kind: audit.Key, ID: id}
		by.Details = map[string]any{"before": nil, "after": audited(k)}
		return s.deps.Audit(tx, by)
	})
	if err != nil {
		return Key{}, "", fmt.Errorf("store key: %w", err)
	}
	return k, prefix + id + "_" + secret, nil
}

// revoke ends a key for good and reports whether this call did it; a key that was revoked before stays as it is.
func (s *service) revoke(app core.App, by audit.Entry, id string) (k Key, done bool, err error) {
	err = app.RunInTransaction(func(tx core.App) error {
		r, err := find(tx, id)
		if err != nil {
			return err
		}
		before, err := r.key()
		if k = before; err != nil || k.Revoked != nil {
			return err
		}
		r.RevokedAt = s.now().Unix()
		k.Revoked, done = moment(r.RevokedAt), true
		if _, err := tx.NonconcurrentDB().Update(table, dbx.Params{"revoked_at": r.RevokedAt}, dbx.HashExp{"id": id}).Execute(); err != nil {
			return err
		}
		by.Action, by.Subject = "apikeys.revoked", audit.Party{Kind: audit.Key, ID: id}
		by.Details = map[string]any{"before": audited(before), "after": audited(k)}
		return s.deps.Audit(tx, by)
	})
	if err != nil {
		return Key{}, false, fmt.Errorf("revoke key: %w", err)
	}
	return k, done, nil
}

// selectKeys reads keys with the time of their last use.
const selectKeys = `SELECT k.*, COALESCE(u.[[at]], 0) AS last_used_at FROM {{` + table + `}} k LEFT JOIN {{` + Uses + `}} u ON u.[[key]] = k.id `

// page returns keys by age, the oldest first, those that were revoked included; next is empty at the end. The cursor is
// the id of the last key of the page before.
func page(app core.App, limit int, cursor string) (keys []Key, next string, err error) {
	var rows []row
	err = app.ConcurrentDB().NewQuery(selectKeys + `WHERE (k.created, k.id) > (COALESCE((SELECT c.created FROM {{` + table + `}} c WHERE c.id = {:cursor}), 0), {:cursor})
		ORDER BY k.created, k.id LIMIT {:limit}`).Bind(dbx.Params{"cursor": cursor, "limit": limit + 1}).All(&rows)
	if err != nil {
		return nil, "", fmt.Errorf("list keys: %w", err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = rows[limit-1].ID
	}
	keys = make([]Key, len(rows))
	for i, r := range rows {
		if keys[i], err = r.key(); err != nil {
			return nil, "", err
		}
	}
	return keys, next, nil
}

// find reads one key; errNotFound when there is none.
func find(app core.App, id string) (row, error) {
	var r row
	err := app.DB().NewQuery(selectKeys + `WHERE k.id = {:id}`).Bind(dbx.Params{"id": id}).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, errNotFound
	}
	return r, err
}
