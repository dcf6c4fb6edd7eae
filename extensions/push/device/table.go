package device

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/push/caps"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// The tables. Times are Unix milliseconds; accounts are the id of a collection and that of a record.
const (
	table       = "push_devices"
	topics      = "push_topics"
	preferences = "push_preferences"
	counts      = caps.Table
)

// Tables lists the tables. No rule depends on them, so that they are quiet in the store's options.
func Tables() []string { return []string{table, topics, preferences, counts} }

// Migrations make the tables.
func Migrations(unix int64) []extensions.Migration {
	return []extensions.Migration{extensions.Tables(unix, "create_devices", append([]string{
		`CREATE TABLE ` + table + ` (
			id TEXT PRIMARY KEY NOT NULL, collection TEXT NOT NULL, record TEXT NOT NULL, session TEXT NOT NULL,
			platform TEXT NOT NULL, environment TEXT NOT NULL, hash TEXT NOT NULL, token TEXT NOT NULL,
			app TEXT NOT NULL, locale TEXT NOT NULL, time_zone TEXT NOT NULL, app_version TEXT NOT NULL,
			registered_at INTEGER NOT NULL, seen_at INTEGER NOT NULL, dead_at INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT ''
		) STRICT`,
		`CREATE UNIQUE INDEX ` + table + `_token ON ` + table + ` (platform, hash)`,
		`CREATE UNIQUE INDEX ` + table + `_owner ON ` + table + ` (collection, record, session)`,
		`CREATE INDEX ` + table + `_session ON ` + table + ` (session)`,
		`CREATE INDEX ` + table + `_seen ON ` + table + ` (seen_at)`,
		`CREATE TABLE ` + topics + ` (
			topic TEXT NOT NULL, device TEXT NOT NULL, joined_at INTEGER NOT NULL, PRIMARY KEY (topic, device)
		) STRICT, WITHOUT ROWID`,
		`CREATE INDEX ` + topics + `_device ON ` + topics + ` (device)`,
		`CREATE TABLE ` + preferences + ` (
			collection TEXT NOT NULL, record TEXT NOT NULL, data TEXT NOT NULL, updated_at INTEGER NOT NULL, PRIMARY KEY (collection, record)
		) STRICT, WITHOUT ROWID`,
	}, caps.Create()...), table, topics, preferences, counts), caps.Migration(1795513010)}
}

// forgetting are the statements that delete devices and what hangs on them.
func forgetting(where string) []string {
	return []string{
		`DELETE FROM ` + topics + ` WHERE device IN (SELECT id FROM ` + table + ` WHERE ` + where + `)`,
		`DELETE FROM ` + table + ` WHERE ` + where,
	}
}

// forget deletes the devices that a condition finds. app is a transaction.
func forget(app core.App, where string, params dbx.Params) error {
	for _, statement := range forgetting(where) {
		if _, err := app.NonconcurrentDB().NewQuery(statement).Bind(params).Execute(); err != nil {
			return fmt.Errorf("delete devices: %w", err)
		}
	}
	return nil
}

// Serve makes the end of a session delete its device, in the same statement and so by whatever way it ends. A trigger
// that is there stays: another body needs another name.
func (r *Registry) Serve(h *extensions.Host) error {
	if r.deps.Endings == "" {
		return nil
	}
	body := forgetting(`session = NEW.id`)
	_, err := h.App.NonconcurrentDB().NewQuery(`CREATE TRIGGER IF NOT EXISTS ` + table + `_ended AFTER INSERT ON ` + r.deps.Endings + `
		BEGIN ` + body[0] + `; ` + body[1] + `; END`).Execute()
	if err != nil {
		return fmt.Errorf("tie devices to sessions: %w", err)
	}
	// Those that have ended while there was no trigger.
	err = h.App.RunInTransaction(func(tx core.App) error {
		return forget(tx, `session IN (SELECT id FROM `+r.deps.Endings+`)`, nil)
	})
	return err
}

const hookPriority = 100

// Bind deletes what belongs to an account with the account, and the devices of its tokens without a session when these
// are not good any more.
func (r *Registry) Bind(h *extensions.Host) error {
	if err := r.options.Check(); err != nil {
		return fmt.Errorf("categories: %w", err)
	}
	r.app = h.App
	h.App.OnRecordUpdateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelPushUpdate", Priority: hookPriority, Func: func(e *core.RecordEvent) error {
		if !e.Record.Collection().IsAuth() || e.Record.Original().TokenKey() == e.Record.TokenKey() {
			return e.Next()
		}
		outer := e.App
		return e.App.RunInTransaction(func(tx core.App) error {
			e.App = tx
			defer func() { e.App = outer }()
			if err := forget(tx, owned+` AND session LIKE '`+sessionless+`%'`, AccountOf(e.Record).params()); err != nil {
				return err
			}
			return e.Next()
		})
	}})
	h.App.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelPushDelete", Priority: hookPriority, Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		return forgetAll(e.App, owned, AccountOf(e.Record).params())
	}})
	h.App.OnCollectionDeleteExecute().Bind(&hook.Handler[*core.CollectionEvent]{Id: "satchelPushCollection", Priority: hookPriority, Func: func(e *core.CollectionEvent) error {
		if err := e.Next(); err != nil || !e.Collection.IsAuth() {
			return err
		}
		return forgetAll(e.App, `collection = {:collection}`, dbx.Params{"collection": e.Collection.Id})
	}})
	return nil
}

// owned is the condition for the rows of an account, whose parameters params makes.
const owned = `collection = {:collection} AND record = {:record}`

func (a Account) params() dbx.Params { return dbx.Params{"collection": a.Collection, "record": a.ID} }

// forgetAll deletes everything that a condition on accounts finds.
func forgetAll(app core.App, where string, params dbx.Params) error {
	return app.RunInTransaction(func(tx core.App) error {
		for _, t := range []string{preferences, counts} {
			if _, err := tx.NonconcurrentDB().Delete(t, dbx.NewExp(where, params)).Execute(); err != nil {
				return fmt.Errorf("delete %s: %w", t, err)
			}
		}
		return forget(tx, where, params)
	})
}

// row is a device as the table has it.
type row struct {
	ID           string `db:"id"`
	Collection   string `db:"collection"`
	Record       string `db:"record"`
	Session      string `db:"session"`
	Platform     string `db:"platform"`
	Environment  string `db:"environment"`
	Hash         string `db:"hash"`
	Token        string `db:"token"`
	App          string `db:"app"`
	Locale       string `db:"locale"`
	TimeZone     string `db:"time_zone"`
	AppVersion   string `db:"app_version"`
	RegisteredAt int64  `db:"registered_at"`
	SeenAt       int64  `db:"seen_at"`
	DeadAt       int64  `db:"dead_at"`
	Reason       string `db:"reason"`
}

func (r row) account() Account { return Account{r.Collection, r.Record} }

func (r row) device() Device {
	return Device{
		ID: r.ID, User: r.account(), Session: r.Session, App: r.App, Platform: sender.Platform(r.Platform),
		Environment: sender.Environment(r.Environment), Locale: r.Locale, TimeZone: r.TimeZone, AppVersion: r.AppVersion,
		LastSeen: at(r.SeenAt), RegisteredAt: at(r.RegisteredAt), token: r.Token,
	}
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// living is the condition for devices that are sent to.
const living = `d.dead_at = 0 AND d.seen_at > {:stale}`

// List returns devices that can be sent to, in the order of their ids and beginning after one of them. Fewer than limit
// are the last. Of a topic, it returns those whose users may join it now.
func (r *Registry) List(ctx context.Context, app core.App, a Audience, after string, limit int) ([]Device, error) {
	admit := func([]row) (map[Account]bool, error) { return nil, nil }
	if a.Topic != "" {
		family, values, ok := channel.Find(r.options.Families, a.Topic)
		if !ok {
			return nil, nil
		}
		if family.Join == nil || *family.Join != "" {
			admit = func(rows []row) (map[Account]bool, error) { return admitted(app, family, values, rows) }
		}
	}
	var out []Device
	for {
		rows, err := r.page(ctx, app, a, after, limit)
		if err != nil {
			return nil, err
		}
		may, err := admit(rows)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if after = row.ID; may != nil && !may[row.account()] {
				continue
			}
			if out = append(out, row.device()); len(out) == limit {
				return out, nil
			}
		}
		if len(rows) < limit {
			return out, nil
		}
	}
}

// page is List without rules.
func (r *Registry) page(ctx context.Context, app core.App, a Audience, after string, limit int) ([]row, error) {
	params := dbx.Params{"stale": time.Now().Add(-Stale).UnixMilli(), "after": after, "limit": limit}
	query := `SELECT d.* FROM ` + table + ` d WHERE d.id > {:after} AND ` + living + ` ORDER BY d.id LIMIT {:limit}`
	switch {
	case a.Topic != "":
		params["topic"] = a.Topic
		query = `SELECT d.* FROM ` + topics + ` t CROSS JOIN ` + table + ` d ON d.id = t.device
			WHERE t.topic = {:topic} AND t.device > {:after} AND ` + living + ` ORDER BY t.device LIMIT {:limit}`
	case len(a.Accounts) > 0:
		raw, err := encode(a.Accounts)
		if err != nil {
			return nil, err
		}
		params["accounts"] = raw
		query = `SELECT DISTINCT d.* FROM json_each({:accounts}) j CROSS JOIN ` + table + ` d ON ` + listed("d") + `
			WHERE d.id > {:after} AND ` + living + ` ORDER BY d.id LIMIT {:limit}`
	case !a.All:
		return nil, nil
	}
	var rows []row
	if err := app.ConcurrentDB().NewQuery(query).Bind(params).WithContext(ctx).All(&rows); err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return rows, nil
}

// listed ties a table to the accounts of json_each AS j, which encode makes.
func listed(alias string) string {
	return alias + `.collection = j.value ->> 0 AND ` + alias + `.record = j.value ->> 1`
}

func encode(accounts []Account) (string, error) {
	pairs := make([][2]string, len(accounts))
	for i, a := range accounts {
		pairs[i] = [2]string{a.Collection, a.ID}
	}
	raw, err := json.Marshal(pairs)
	if err != nil {
		return "", fmt.Errorf("encode accounts: %w", err)
	}
	return string(raw), nil
}

// Open returns where to send to. It needs the vault, so that it is not for transactions.
func (r *Registry) Open(d Device) (sender.Target, error) {
	plain, err := r.deps.Vault.Open(aad(d.ID), d.token)
	if err != nil {
		return sender.Target{}, fmt.Errorf("open token: %w", err)
	}
	return sender.Target{Token: string(plain), Environment: d.Environment, App: d.App}, nil
}

// aad ties a sealed token to its row.
func aad(id string) string { return table + "|token|" + id }

// maxReason bounds what a provider says.
const maxReason = 200

// Dead notes that a provider does not know the token any more since a moment, and forgets the token. A device that has
// registered later is alive, and nothing happens; without a moment, or with one of the zero time, none has.
func (r *Registry) Dead(tx core.App, id string, since time.Time, reason string) error {
	if since.IsZero() {
		since = time.Now()
	}
	result, err := tx.NonconcurrentDB().Update(table,
		dbx.Params{"dead_at": time.Now().UnixMilli(), "reason": reason[:min(len(reason), maxReason)], "token": ""},
		dbx.NewExp("id = {:id} AND dead_at = 0 AND seen_at <= {:since}", dbx.Params{"id": id, "since": since.UnixMilli()})).Execute()
	if err != nil {
		return fmt.Errorf("note dead device: %w", err)
	}
	if n, err := result.RowsAffected(); err == nil && n > 0 {
		r.dead.Add(1)
	}
	return nil
}

// sweepChunk bounds a transaction of the sweep to some milliseconds.
const sweepChunk = 500

// Sweep deletes devices whose sessions are over, that were not seen for long, those that died long ago, and counts that no cap looks at any more.
func (r *Registry) Sweep(ctx context.Context, app core.App) error {
	now := time.Now()
	if err := r.expire(ctx, app); err != nil {
		return err
	}
	if err := r.sweep(ctx, app, counts, `at < {:before}`, dbx.Params{"before": now.Add(-r.longest()).UnixMilli()}); err != nil {
		return err
	}
	return r.sweep(ctx, app, table, `seen_at < {:before} OR dead_at BETWEEN 1 AND {:dead}`,
		dbx.Params{"before": now.Add(-Keep).UnixMilli(), "dead": now.Add(-Stale).UnixMilli()})
}

// sweep deletes the rows that a condition finds. It looks for them while others write, and writes only if there are any.
func (r *Registry) sweep(ctx context.Context, app core.App, from, where string, params dbx.Params) error {
	params["after"], params["n"] = int64(0), sweepChunk
	for {
		var ids []int64
		err := app.ConcurrentDB().NewQuery(`SELECT rowid FROM ` + from + ` WHERE rowid > {:after} AND (` + where + `) ORDER BY rowid LIMIT {:n}`).
			Bind(params).WithContext(ctx).Column(&ids)
		if err != nil {
			return fmt.Errorf("find old rows of %s: %w", from, err)
		}
		if len(ids) == 0 {
			return nil
		}
		params["after"] = ids[len(ids)-1]
		list, err := json.Marshal(ids)
		if err != nil {
			return fmt.Errorf("encode ids: %w", err)
		}
		params["ids"] = string(list)
		chunk := `rowid IN (SELECT value FROM json_each({:ids})) AND (` + where + `)`
		err = app.RunInTransaction(func(tx core.App) error {
			if from == table {
				return forget(tx, chunk, params)
			}
			_, err := tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + from + ` WHERE ` + chunk).Bind(params).Execute()
			return err
		})
		if err != nil {
			return fmt.Errorf("delete old rows of %s: %w", from, err)
		}
	}
}

// platform is how many devices a platform has.
type platform struct {
	Platform sender.Platform `db:"platform"`
	Count    int             `db:"n"`
}

// credentials is the platform whose credentials it takes.
func (p platform) credentials() sender.Platform {
	if p.Platform == sender.UnifiedPush {
		return sender.WebPush
	}
	return p.Platform
}

// waiting are the platforms that devices have and that nobody has given credentials for, the largest first.
func (r *Registry) waiting(app core.App) ([]platform, error) {
	connected, err := r.deps.Connected(app)
	if err != nil {
		return nil, err
	}
	list, err := platforms(app)
	return slices.DeleteFunc(list, func(p platform) bool { _, ok := connected[p.credentials()]; return ok }), err
}

// platforms are those that devices have which can be sent to, the largest first.
func platforms(app core.App) (list []platform, err error) {
	err = app.ConcurrentDB().NewQuery(`SELECT d.platform, COUNT(*) AS n FROM ` + table + ` d WHERE ` + living + ` GROUP BY d.platform ORDER BY n DESC, d.platform`).
		Bind(dbx.Params{"stale": time.Now().Add(-Stale).UnixMilli()}).All(&list)
	return list, err
}
