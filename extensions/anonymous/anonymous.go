// Package anonymous lets people use an app before they say who they are. An anonymous user is a record without an e-mail
// address, with an id, sessions and data like anybody's; row rules see no difference. Adding an address and a password
// keeps the record.
//
// Whoever loses the tokens of an anonymous account has lost the account: there is nothing to sign in with again. And
// whoever can send requests can make accounts, so the feature is off until a setting names the collections, and accounts
// that are not used can be removed.
//
// Settings: SATCHEL_ANONYMOUS_*. Table: anonymous_users, a row for each user who is anonymous still. Routes: POST
// /api/v1/auth/anonymous and /api/v1/auth/upgrade. Failure modes: an account whose tokens never arrived stays behind
// until the sweep takes it. The id of the device cannot find it again, for it is no secret.
package anonymous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit"
)

// Codes of what is refused.
var (
	ErrDisabled      = &extensions.Code{Name: "anonymous.disabled", Status: http.StatusForbidden, Title: "Anonymous users are switched off"}
	ErrEmailRequired = &extensions.Code{Name: "anonymous.email_required", Status: http.StatusBadRequest, Title: "The collection does not take users without an e-mail address"}
	ErrUnfit         = &extensions.Code{Name: "anonymous.collection_unfit", Status: http.StatusBadRequest, Title: "The collection does not allow this"}
	ErrSignedIn      = &extensions.Code{Name: "anonymous.signed_in", Status: http.StatusConflict, Title: "Somebody is signed in already"}
	ErrNotAnonymous  = &extensions.Code{Name: "anonymous.not_anonymous", Status: http.StatusConflict, Title: "The account is not anonymous"}
	ErrEmailTaken    = &extensions.Code{Name: "anonymous.email_taken", Status: http.StatusConflict, Title: "There is an account with this e-mail already"}
)

// Config is read from SATCHEL_ANONYMOUS_*.
type Config struct {
	Collections []string      `env:"COLLECTIONS" default:"" help:"collections whose users need not say who they are, such as users; the first is the default; empty: off"`
	MaxUnused   time.Duration `env:"MAX_UNUSED" default:"0s" help:"an anonymous account that is not used for so long is deleted with its data; 0: never, else at least 7d"`
}

// leastUnused is longer than an app with one of PocketBase's tokens can go without a sign of use: five days.
const leastUnused = 7 * 24 * time.Hour

// Validate reports values that cannot work.
func (c Config) Validate() error {
	if c.MaxUnused != 0 && c.MaxUnused < leastUnused {
		return errors.New("MAX_UNUSED: must be 0 or at least 7d")
	}
	return nil
}

// Sessions is what the feature needs of the sessions.
type Sessions interface {
	// SignIn begins a session and returns its tokens and the record.
	SignIn(e *core.RequestEvent, record *core.Record, method string) (session, recordJSON json.RawMessage, err error)

	// KeepCurrent is the context in which a change of credentials ends all sessions but the request's.
	KeepCurrent(e *core.RequestEvent) context.Context

	// Reissue returns the tokens of the request's session once more, nil if it has none.
	Reissue(e *core.RequestEvent, method string) (json.RawMessage, error)

	// LastUse is when the user last signed in or refreshed; the zero time is never.
	LastUse(app core.App, collection, record string) (time.Time, error)
}

// accounts is the feature.
type accounts struct {
	cfg      Config
	sessions Sessions
	record   func(tx core.App, e audit.Entry) error
	now      func() time.Time
	app      core.App
	logger   *slog.Logger
}

// New returns the extension. record writes an entry of the audit, in the transaction of tx.
func New(cfg Config, sessions Sessions, record func(tx core.App, e audit.Entry) error) extensions.Extension {
	return (&accounts{cfg: cfg, sessions: sessions, record: record, now: time.Now}).extension()
}

func (a *accounts) extension() extensions.Extension {
	return extensions.Extension{
		Name:       "anonymous",
		Group:      "auth",
		Settings:   a.cfg,
		Codes:      []*extensions.Code{ErrDisabled, ErrEmailRequired, ErrUnfit, ErrSignedIn, ErrNotAnonymous, ErrEmailTaken},
		Tables:     []string{table},
		Migrations: []extensions.Migration{{Unix: 1795360000, What: "create_users", Up: createUsers, Down: dropUsers}},
		Bind:       a.bind,
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.POST("/anonymous", a.handleSignIn)
			g.POST("/upgrade", a.handleUpgrade)
		},
		Start: func(ctx context.Context, _ *extensions.Host) error {
			if a.cfg.MaxUnused > 0 {
				go a.tend(ctx)
			}
			return nil
		},
		Checks: []extensions.Check{{Name: "anonymous users", Run: a.check}},
	}
}

// table holds a row for each anonymous user; created_at is Unix milliseconds.
const table = "anonymous_users"

func createUsers(app core.App) error {
	for _, statement := range []string{
		`CREATE TABLE ` + table + ` (collection TEXT NOT NULL, record TEXT NOT NULL, created_at INTEGER NOT NULL,
			PRIMARY KEY (collection, record)) WITHOUT ROWID`,
		`CREATE INDEX ` + table + `_time ON ` + table + ` (created_at)`,
	} {
		if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			return err
		}
	}
	return nil
}

func dropUsers(app core.App) error {
	_, err := app.NonconcurrentDB().DropTable(table).Execute()
	return err
}

// Is reports whether the user is anonymous.
func Is(app core.App, user *core.Record) (bool, error) {
	var n int
	err := app.ConcurrentDB().Select("count(*)").From(table).Where(of(user)).Row(&n)
	if err != nil {
		return false, fmt.Errorf("look for anonymous user: %w", err)
	}
	return n > 0, nil
}

// Upgraded notes that the user is anonymous no longer, because there is another way now to sign in as him. It belongs into
// the transaction that adds that way. For a user who is not anonymous it does nothing.
func Upgraded(app core.App, user *core.Record) error {
	return forget(app, user.Collection().Id, user.Id)
}

func of(user *core.Record) dbx.HashExp {
	return dbx.HashExp{"collection": user.Collection().Id, "record": user.Id}
}

func forget(app core.App, collection, record string) error {
	_, err := app.NonconcurrentDB().Delete(table, dbx.HashExp{"collection": collection, "record": record}).Execute()
	if err != nil {
		return fmt.Errorf("forget anonymous user: %w", err)
	}
	return nil
}

// bind keeps the table true, whoever changes a user: an address or an identity at a provider ends the anonymity.
func (a *accounts) bind(h *extensions.Host) error {
	a.app, a.logger = h.App, h.Logger
	h.App.OnRecordUpdateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAnonymousUpdate", Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() || e.Record.Email() == "" || e.Record.Original().Email() != "" {
			return err
		}
		return Upgraded(e.App, e.Record)
	}})
	h.App.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAnonymousDelete", Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		return Upgraded(e.App, e.Record)
	}})
	h.App.OnRecordCreateExecute(core.CollectionNameExternalAuths).Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAnonymousLink", Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		return forget(e.App, e.Record.GetString("collectionRef"), e.Record.GetString("recordRef"))
	}})
	return nil
}

// unfit says why a collection cannot have anonymous users.
func unfit(c *core.Collection) (code *extensions.Code, detail string) {
	email, _ := c.Fields.GetByName(core.FieldNameEmail).(*core.EmailField)
	switch {
	case !c.IsAuth() || c.Name == core.CollectionNameSuperusers:
		return ErrUnfit, c.Name + " is no collection of users"
	case email == nil || email.Required:
		return ErrEmailRequired, "the field email of the collection " + c.Name + " must not be required: change it in the dashboard or in a migration"
	case c.MFA.Enabled:
		return ErrUnfit, c.Name + " wants a second factor, which an anonymous user cannot have"
	}
	return nil, ""
}

// check tells an operator what requests would be refused for.
func (a *accounts) check(_ context.Context, h *extensions.Host) extensions.Result {
	if len(a.cfg.Collections) == 0 {
		return extensions.Result{Level: extensions.Skip, Message: "switched off"}
	}
	for _, name := range a.cfg.Collections {
		c, err := h.App.FindCachedCollectionByNameOrId(name)
		if err != nil {
			return extensions.Result{Level: extensions.Fail, Message: "there is no collection " + name, Next: "SATCHEL_ANONYMOUS_COLLECTIONS"}
		}
		if code, detail := unfit(c); code != nil {
			return extensions.Result{Level: extensions.Fail, Message: detail, Next: "or take " + name + " out of SATCHEL_ANONYMOUS_COLLECTIONS"}
		}
	}
	if a.cfg.MaxUnused == 0 {
		return extensions.Result{Level: extensions.Info, Message: "accounts that are not used stay for ever", Next: "SATCHEL_ANONYMOUS_MAX_UNUSED=90d"}
	}
	return extensions.Result{Message: "on for " + strings.Join(a.cfg.Collections, ", ")}
}

// enabled finds the collection that the client asks for, by its name in the setting.
func (a *accounts) enabled(app core.App, name string) (*core.Collection, error) {
	if len(a.cfg.Collections) == 0 {
		return nil, ErrDisabled
	}
	if name == "" {
		name = a.cfg.Collections[0]
	}
	if !slices.Contains(a.cfg.Collections, name) {
		return nil, ErrDisabled
	}
	c, err := app.FindCachedCollectionByNameOrId(name)
	if err != nil {
		return nil, fmt.Errorf("find the collection of SATCHEL_ANONYMOUS_COLLECTIONS: %w", err)
	}
	return c, nil
}
