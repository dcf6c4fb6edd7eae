// Package login keeps the sessions in their tables. A session lives as long as its row has none among the ended ones and
// its times have not passed. It decides nothing about tokens.
//
// Tables: sessions_logins, sessions_ended.
package login

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/sessions/refresh"
)

// Tables. Ends have one of their own because its state says whether a verification can still be trusted: it changes when
// a session ends, and not when somebody signs in or refreshes.
const (
	Table = "sessions_logins"
	Ended = "sessions_ended"
)

// Schema lists the statements that create the tables.
func Schema() []string {
	return []string{
		`CREATE TABLE ` + Table + ` (
			id TEXT PRIMARY KEY, collection TEXT NOT NULL, record TEXT NOT NULL, salt BLOB NOT NULL,
			generation INTEGER NOT NULL, confirmed INTEGER NOT NULL, rotated_at INTEGER NOT NULL,
			created_at INTEGER NOT NULL, used_at INTEGER NOT NULL, auth_at INTEGER NOT NULL,
			idle_until INTEGER NOT NULL, expires_at INTEGER NOT NULL, methods TEXT NOT NULL,
			device_id TEXT NOT NULL, device_name TEXT NOT NULL, platform TEXT NOT NULL, app_version TEXT NOT NULL,
			user_agent TEXT NOT NULL, address TEXT NOT NULL,
			actor TEXT NOT NULL, actor_collection TEXT NOT NULL, reason TEXT NOT NULL, read_only INTEGER NOT NULL
		)`,
		`CREATE INDEX ` + Table + `_owner ON ` + Table + ` (collection, record, used_at)`,
		`CREATE INDEX ` + Table + `_idle ON ` + Table + ` (idle_until)`,
		`CREATE TABLE ` + Ended + ` (id TEXT PRIMARY KEY, ended_at INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID`,
		`CREATE INDEX ` + Ended + `_time ON ` + Ended + ` (ended_at)`,
	}
}

// Login is a session's row; times are Unix milliseconds.
type Login struct {
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
const columns = `l.*, COALESCE(e.ended_at, 0) AS ended_at FROM ` + Table + ` l LEFT JOIN ` + Ended + ` e ON e.id = l.id`

// ErrNone says that there is no such session.
var ErrNone = errors.New("no such session")

// Find returns a session, also one that has ended; [ErrNone] if there is none.
func Find(db dbx.Builder, id string) (*Login, error) {
	var l Login
	err := db.NewQuery(`SELECT ` + columns + ` WHERE l.id = {:id}`).Bind(dbx.Params{"id": id}).One(&l)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("find session: %w", err)
	}
	return &l, nil
}

// Alive reports whether the session counts.
func (l *Login) Alive(now time.Time) bool {
	ms := now.UnixMilli()
	return l.EndedAt == 0 && ms < l.IdleUntil && ms < l.ExpiresAt
}

// Until is when the session ends by itself.
func (l *Login) Until() time.Time { return time.UnixMilli(min(l.IdleUntil, l.ExpiresAt)) }

// AMR lists the methods by which the user has signed in (RFC 8176 in spirit; the names are PocketBase's).
func (l *Login) AMR() []string { return strings.Fields(l.Methods) }

// State is what the rule of refresh tokens judges by.
func (l *Login) State() refresh.State {
	return refresh.State{Generation: l.Generation, Confirmed: l.Confirmed, RotatedAt: time.UnixMilli(l.RotatedAt)}
}

// Lives are the lifetimes of a new session.
type Lives struct{ Idle, Max time.Duration }

// New begins a session of a user; it is not stored yet.
func New(record *core.Record, d Device, method string, now time.Time, lives Lives) *Login {
	l := &Login{
		ID: security.RandomStringWithAlphabet(core.DefaultIdLength, core.DefaultIdAlphabet), Collection: record.Collection().Id, Record: record.Id,
		Salt: make([]byte, saltSize), Generation: 1, RotatedAt: now.UnixMilli(),
		CreatedAt: now.UnixMilli(), AuthAt: now.UnixMilli(), ExpiresAt: now.Add(lives.Max).UnixMilli(),
		Methods: method,
	}
	_, _ = rand.Read(l.Salt) // crashes the program rather than fail
	l.Seen(d, now, lives.Idle)
	return l
}

// saltSize is that of the key of a session's MACs, in bytes.
const saltSize = 16

// Seen notes where and when the session was used. What the client does not tell stays as it was.
func (l *Login) Seen(d Device, now time.Time, idle time.Duration) {
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

// Use is what [Login.Seen] has set, for an update.
func (l *Login) Use() dbx.Params {
	return dbx.Params{
		"used_at": l.UsedAt, "idle_until": l.IdleUntil, "device_id": l.DeviceID, "device_name": l.DeviceName,
		"platform": l.Platform, "app_version": l.AppVersion, "user_agent": l.UserAgent, "address": l.Address,
	}
}

// touchEvery is how often uses of a session are noted when there is no other news: an app may renew its stock token with
// every start and every screen, and a write waits for the disk.
const touchEvery = time.Minute

// News is what a use of the session would change in its row, and whether that is worth a write: uses are noted to an
// accuracy of [touchEvery], or of a tenth of the idle life if that is less.
func (l *Login) News(d Device, now time.Time, idle time.Duration) (dbx.Params, bool) {
	before, after := *l, *l
	after.Seen(d, now, idle)
	before.UsedAt, before.IdleUntil = after.UsedAt, after.IdleUntil
	late := now.Sub(time.UnixMilli(l.UsedAt)) >= min(touchEvery, idle/10)
	return after.Use(), late || !maps.Equal(before.Use(), after.Use())
}

// Touch notes a use of the session if that is news.
func (l *Login) Touch(app core.App, d Device, now time.Time, idle time.Duration) error {
	set, news := l.News(d, now, idle)
	if !news {
		return nil
	}
	if _, err := app.NonconcurrentDB().Update(Table, set, dbx.HashExp{"id": l.ID}).Execute(); err != nil {
		return fmt.Errorf("note use of session: %w", err)
	}
	return nil
}

// Confirm notes that the client holds a generation, once for each.
func (l *Login) Confirm(app core.App, generation int64) error {
	if generation <= l.Confirmed {
		return nil
	}
	_, err := app.NonconcurrentDB().NewQuery(`UPDATE ` + Table + ` SET confirmed = {:generation} WHERE id = {:id} AND confirmed < {:generation}`).
		Bind(dbx.Params{"generation": generation, "id": l.ID}).Execute()
	return err
}

// Insert stores a new session.
func (l *Login) Insert(app core.App) error {
	row := l.Use()
	maps.Copy(row, dbx.Params{
		"id": l.ID, "collection": l.Collection, "record": l.Record, "salt": l.Salt, "generation": l.Generation, "confirmed": l.Confirmed,
		"rotated_at": l.RotatedAt, "created_at": l.CreatedAt, "auth_at": l.AuthAt, "expires_at": l.ExpiresAt, "methods": l.Methods,
		"actor": l.Actor, "actor_collection": l.ActorCollection, "reason": l.Reason, "read_only": l.ReadOnly,
	})
	if _, err := app.NonconcurrentDB().Insert(Table, row).Execute(); err != nil {
		return fmt.Errorf("store session: %w", err)
	}
	return nil
}

// End ends the sessions that the condition finds among the live ones, and returns their ids. It must run in a
// transaction if what it depends on does. It looks before it writes: a write to the table of ends, even one of no rows,
// makes the tokens of all users be verified again, and most sign-ins end nothing.
func End(app core.App, now time.Time, reason, where string, params dbx.Params) ([]string, error) {
	all := dbx.Params{"now": now.UnixMilli(), "reason": reason}
	maps.Copy(all, params)
	from := ` FROM ` + Table + ` l WHERE (` + where + `) AND NOT EXISTS (SELECT 1 FROM ` + Ended + ` e WHERE e.id = l.id)`
	var found bool
	if err := app.ConcurrentDB().NewQuery(`SELECT EXISTS (SELECT 1` + from + `)`).Bind(all).Row(&found); err != nil {
		return nil, fmt.Errorf("find sessions to end: %w", err)
	}
	if !found {
		return nil, nil
	}
	var ids []string
	err := app.NonconcurrentDB().NewQuery(`INSERT INTO ` + Ended + ` (id, ended_at, reason)
		SELECT l.id, {:now}, {:reason}` + from + ` RETURNING id`).Bind(all).Column(&ids)
	if err != nil {
		return nil, fmt.Errorf("end sessions: %w", err)
	}
	return ids, nil
}

// Owned is the condition for the sessions of a user, whose parameters [Owner] makes.
const Owned = `l.collection = {:collection} AND l.record = {:record}`

// Acting is the condition for the sessions in which the owner that [Owner] names acts for others.
const Acting = `l.actor <> '' AND l.actor = {:record} AND l.actor_collection = {:collection}`

// IndexActors makes the sessions that [Acting] finds cheap to find.
func IndexActors(unix int64) extensions.Migration {
	return extensions.Migration{
		Unix: unix, What: "index_actors",
		Up: func(app core.App) error {
			_, err := app.NonconcurrentDB().NewQuery(`CREATE INDEX ` + Table + `_actor ON ` + Table + ` (actor) WHERE actor <> ''`).Execute()
			return err
		},
		Down: func(app core.App) error {
			_, err := app.NonconcurrentDB().DropIndex(Table, Table+"_actor").Execute()
			return err
		},
	}
}

// Owner names a user in conditions.
func Owner(record *core.Record) dbx.Params {
	return dbx.Params{"collection": record.Collection().Id, "record": record.Id}
}

// sweepChunk bounds a transaction of the sweep to a few milliseconds, so that other writers hardly wait for it.
const sweepChunk = 200

// Sweep removes the sessions that ended or expired before a moment, a chunk at a time. An end goes with its session: a
// session without its end would live again. It writes only where there is something to remove, as [End] does.
func Sweep(ctx context.Context, app core.App, before time.Time) error {
	expired := `SELECT id FROM ` + Table + ` WHERE idle_until < {:before} ORDER BY idle_until LIMIT {:chunk}`
	ended := `SELECT id FROM ` + Ended + ` WHERE ended_at < {:before} ORDER BY ended_at, id LIMIT {:chunk}`
	err := sweep(ctx, app, before, expired, Table)
	if err == nil {
		err = sweep(ctx, app, before, ended, Table, Ended)
	}
	if err != nil {
		return fmt.Errorf("sweep sessions: %w", err)
	}
	return nil
}

// sweep removes the rows with the ids that the query finds from the tables, the one that the query reads last, until it
// finds none.
func sweep(ctx context.Context, app core.App, before time.Time, ids string, tables ...string) error {
	params := dbx.Params{"before": before.UnixMilli(), "chunk": sweepChunk}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var found bool
		if err := app.ConcurrentDB().NewQuery(`SELECT EXISTS (` + ids + `)`).Bind(params).Row(&found); err != nil || !found {
			return err
		}
		err := app.RunInTransaction(func(tx core.App) error {
			for _, table := range tables {
				if _, err := tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + table + ` WHERE id IN (` + ids + `)`).Bind(params).Execute(); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// ErrCursor says that a cursor is not one of [Page].
var ErrCursor = errors.New("the cursor is not valid")

// Page reads live sessions by the time of their last use. The cursor is the last row of the page before; it needs no
// seal, because it only says where to begin among what the caller may see.
func Page(app core.App, now time.Time, collection, user string, limit int, cursor string) (rows []Login, next string, err error) {
	where := []string{`e.id IS NULL AND l.idle_until > {:now} AND l.expires_at > {:now}`}
	params := dbx.Params{"now": now.UnixMilli(), "limit": limit + 1}
	if user != "" {
		where = append(where, Owned)
		params["collection"], params["record"] = collection, user
	}
	if cursor != "" {
		used, id, _ := strings.Cut(cursor, ".")
		before, err := strconv.ParseInt(used, 10, 64)
		if err != nil || id == "" {
			return nil, "", ErrCursor
		}
		where = append(where, `(l.used_at, l.id) < ({:used}, {:id})`)
		params["used"], params["id"] = before, id
	}
	err = app.ConcurrentDB().NewQuery(`SELECT ` + columns + ` WHERE ` + strings.Join(where, " AND ") +
		` ORDER BY l.used_at DESC, l.id DESC LIMIT {:limit}`).Bind(params).All(&rows)
	if err != nil {
		return nil, "", fmt.Errorf("list sessions: %w", err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		last := rows[limit-1]
		next = strconv.FormatInt(last.UsedAt, 10) + "." + last.ID
	}
	return rows, next, nil
}
