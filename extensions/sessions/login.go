package sessions

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/sessions/refresh"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
)

// Tables. A session lives as long as its login has no row among the ended ones and its times have not passed. Ends have
// a table of their own because the state of that table says whether a verification can still be trusted: it changes when
// a session ends, and not when somebody signs in or refreshes.
const (
	loginsTable = "sessions_logins"
	endedTable  = "sessions_ended"
)

func createTables(app core.App) error {
	for _, statement := range []string{
		`CREATE TABLE ` + loginsTable + ` (
			id TEXT PRIMARY KEY, collection TEXT NOT NULL, record TEXT NOT NULL, salt BLOB NOT NULL,
			generation INTEGER NOT NULL, confirmed INTEGER NOT NULL, rotated_at INTEGER NOT NULL,
			created_at INTEGER NOT NULL, used_at INTEGER NOT NULL, auth_at INTEGER NOT NULL,
			idle_until INTEGER NOT NULL, expires_at INTEGER NOT NULL, methods TEXT NOT NULL,
			device_id TEXT NOT NULL, device_name TEXT NOT NULL, platform TEXT NOT NULL, app_version TEXT NOT NULL,
			user_agent TEXT NOT NULL, address TEXT NOT NULL,
			actor TEXT NOT NULL, actor_collection TEXT NOT NULL, reason TEXT NOT NULL, read_only INTEGER NOT NULL
		)`,
		`CREATE INDEX ` + loginsTable + `_owner ON ` + loginsTable + ` (collection, record, used_at)`,
		`CREATE INDEX ` + loginsTable + `_idle ON ` + loginsTable + ` (idle_until)`,
		`CREATE TABLE ` + endedTable + ` (id TEXT PRIMARY KEY, ended_at INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID`,
		`CREATE INDEX ` + endedTable + `_time ON ` + endedTable + ` (ended_at)`,
	} {
		if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			return err
		}
	}
	return signing.Create(app)
}

// login is a session's row; times are Unix milliseconds.
type login struct {
	ID         string `db:"id"`
	Collection string `db:"collection"` // id
	Record     string `db:"record"`
	Salt       []byte `db:"salt"`

	Generation int64 `db:"generation"`
	Confirmed  int64 `db:"confirmed"`
	RotatedAt  int64 `db:"rotated_at"`

	CreatedAt int64 `db:"created_at"`
	UsedAt    int64 `db:"used_at"`
	AuthAt    int64 `db:"auth_at"`
	IdleUntil int64 `db:"idle_until"`
	ExpiresAt int64 `db:"expires_at"`

	Methods    string `db:"methods"` // joined with blanks
	DeviceID   string `db:"device_id"`
	DeviceName string `db:"device_name"`
	Platform   string `db:"platform"`
	AppVersion string `db:"app_version"`
	UserAgent  string `db:"user_agent"`
	Address    string `db:"address"`

	// An impersonation has an actor and a reason.
	Actor           string `db:"actor"`
	ActorCollection string `db:"actor_collection"`
	Reason          string `db:"reason"`
	ReadOnly        bool   `db:"read_only"`

	EndedAt int64 `db:"ended_at"` // from the table of ends
}

// columns are those of the login and when it ended.
const columns = `l.*, COALESCE(e.ended_at, 0) AS ended_at FROM ` + loginsTable + ` l LEFT JOIN ` + endedTable + ` e ON e.id = l.id`

// errNoLogin says that there is no such session.
var errNoLogin = errors.New("no such session")

func findLogin(db dbx.Builder, id string) (*login, error) {
	var l login
	err := db.NewQuery(`SELECT ` + columns + ` WHERE l.id = {:id}`).Bind(dbx.Params{"id": id}).One(&l)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNoLogin
	}
	if err != nil {
		return nil, fmt.Errorf("find session: %w", err)
	}
	return &l, nil
}

// alive reports whether the session counts.
func (l *login) alive(now time.Time) bool {
	ms := now.UnixMilli()
	return l.EndedAt == 0 && ms < l.IdleUntil && ms < l.ExpiresAt
}

// until is when the session ends by itself.
func (l *login) until() time.Time { return time.UnixMilli(min(l.IdleUntil, l.ExpiresAt)) }

func (l *login) methods() []string { return strings.Fields(l.Methods) }

func (l *login) state() refresh.State {
	return refresh.State{Generation: l.Generation, Confirmed: l.Confirmed, RotatedAt: time.UnixMilli(l.RotatedAt)}
}

// newLogin begins a session; it is not stored yet.
func (s *Sessions) newLogin(record *core.Record, d Device, method string) *login {
	now := s.now()
	l := &login{
		ID: security.RandomStringWithAlphabet(core.DefaultIdLength, core.DefaultIdAlphabet), Collection: record.Collection().Id, Record: record.Id,
		Salt: make([]byte, saltSize), Generation: 1, RotatedAt: now.UnixMilli(),
		CreatedAt: now.UnixMilli(), AuthAt: now.UnixMilli(), ExpiresAt: now.Add(s.cfg.MaxLifetime.of(d.Platform)).UnixMilli(),
		Methods: method,
	}
	_, _ = rand.Read(l.Salt) // crashes the program rather than fail
	l.seen(d, now, s.cfg.IdleLifetime.of(d.Platform))
	return l
}

// saltSize is that of the key of a session's MACs, in bytes.
const saltSize = 16

// seen notes where and when the session was used. What the client does not tell stays as it was.
func (l *login) seen(d Device, now time.Time, idle time.Duration) {
	l.UsedAt, l.IdleUntil = now.UnixMilli(), now.Add(idle).UnixMilli()
	for to, from := range map[*string]string{
		&l.DeviceID: d.ID, &l.DeviceName: d.Name, &l.Platform: d.Platform, &l.AppVersion: d.Version,
		&l.UserAgent: d.UserAgent, &l.Address: d.Address,
	} {
		if from != "" {
			*to = from
		}
	}
}

// use is what [login.seen] has set, for an update.
func (l *login) use() dbx.Params {
	return dbx.Params{
		"used_at": l.UsedAt, "idle_until": l.IdleUntil, "device_id": l.DeviceID, "device_name": l.DeviceName,
		"platform": l.Platform, "app_version": l.AppVersion, "user_agent": l.UserAgent, "address": l.Address,
	}
}

func (l *login) insert(app core.App) error {
	row := l.use()
	for column, value := range map[string]any{
		"id": l.ID, "collection": l.Collection, "record": l.Record, "salt": l.Salt, "generation": l.Generation, "confirmed": l.Confirmed,
		"rotated_at": l.RotatedAt, "created_at": l.CreatedAt, "auth_at": l.AuthAt, "expires_at": l.ExpiresAt, "methods": l.Methods,
		"actor": l.Actor, "actor_collection": l.ActorCollection, "reason": l.Reason, "read_only": l.ReadOnly,
	} {
		row[column] = value
	}
	if _, err := app.NonconcurrentDB().Insert(loginsTable, row).Execute(); err != nil {
		return fmt.Errorf("store session: %w", err)
	}
	return nil
}

// Reasons why a session ended.
const (
	reasonSignedOut   = "signed_out"
	reasonRevoked     = "revoked"
	reasonReuse       = "refresh_reused"
	reasonCredentials = "credentials_changed"
	reasonDeleted     = "account_deleted"
	reasonRule        = "auth_rule"
	reasonLimit       = "limit"
)

// end ends the sessions that the condition finds among the live ones, and returns their ids. It must run in a
// transaction if what it depends on does.
func end(app core.App, now time.Time, reason, where string, params dbx.Params) ([]string, error) {
	all := dbx.Params{"now": now.UnixMilli(), "reason": reason}
	for k, v := range params {
		all[k] = v
	}
	var ids []string
	err := app.NonconcurrentDB().NewQuery(`INSERT INTO ` + endedTable + ` (id, ended_at, reason)
		SELECT l.id, {:now}, {:reason} FROM ` + loginsTable + ` l
		WHERE (` + where + `) AND NOT EXISTS (SELECT 1 FROM ` + endedTable + ` e WHERE e.id = l.id) RETURNING id`).Bind(all).Column(&ids)
	if err != nil {
		return nil, fmt.Errorf("end sessions: %w", err)
	}
	return ids, nil
}

// owned is the condition for the sessions of a user.
const owned = `l.collection = {:collection} AND l.record = {:record}`

func owner(record *core.Record) dbx.Params {
	return dbx.Params{"collection": record.Collection().Id, "record": record.Id}
}
