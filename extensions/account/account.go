// Package account lets people take their data with them and delete their account, as the app stores and the GDPR demand.
//
// Which records belong to an account is derived from the schema and can be said otherwise in Go, see [Map]. An export is a
// zip file, sealed by the vault, that only its owner downloads and that is deleted after a week. A deletion waits for the
// grace period, in which its owner can sign in and cancel it and do nothing else. Then a background job deletes the
// records from the leaves on in transactions of a few milliseconds, so that no other writer notices, and the account last.
//
// Settings: SATCHEL_ACCOUNT_*. Tables: account_deletions, account_exports. Folder: account_exports in the data folder.
// Operations: account.export, account.delete, account.cancelDeletion, account.status. Route:
// GET /api/v1/account/exports/{id}. Commands: account. Failure modes: a record that a hook does not let go keeps its
// account; the job tries again for most of a day, and the log tells of it.
package account

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/account/ownership"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/settings"
)

// Codes of what is refused.
var (
	ErrBlocked     = &extensions.Code{Name: "account.blocked", Status: http.StatusConflict, Title: "Something must be settled before the account can be deleted"}
	ErrPending     = &extensions.Code{Name: "account.deletion_pending", Status: http.StatusForbidden, Title: "The account is going to be deleted"}
	ErrStarted     = &extensions.Code{Name: "account.deletion_started", Status: http.StatusConflict, Title: "The account is being deleted already"}
	ErrExportLimit = &extensions.Code{Name: "account.export_limit", Status: http.StatusTooManyRequests, Title: "There were enough exports today"}
	ErrTooLarge    = &extensions.Code{Name: "account.export_too_large", Status: http.StatusRequestEntityTooLarge, Title: "The data is too much for one export"}
)

// Config is read from SATCHEL_ACCOUNT_*.
type Config struct {
	Grace         time.Duration  `env:"GRACE" default:"14d" help:"how long a deletion can be cancelled, at most 30d; 0: it begins at once"`
	ExportLife    time.Duration  `env:"EXPORT_LIFE" default:"7d" help:"how long an export can be downloaded"`
	ExportsPerDay int            `env:"EXPORTS_PER_DAY" default:"3" help:"exports of one account in 24 hours"`
	ExportSize    settings.Bytes `env:"EXPORT_SIZE" default:"4GB" help:"an export that would be larger fails"`
}

// longestGrace leaves no more than the month that the GDPR gives (article 12(3)).
const longestGrace = 30 * 24 * time.Hour

// Validate reports values that cannot work.
func (c Config) Validate() error {
	var problems []error
	if c.Grace < 0 || c.Grace > longestGrace {
		problems = append(problems, errors.New("GRACE: must be 0 to 30d"))
	}
	if c.ExportLife < time.Hour {
		problems = append(problems, errors.New("EXPORT_LIFE: must be at least 1h"))
	}
	if c.ExportsPerDay < 1 {
		problems = append(problems, errors.New("EXPORTS_PER_DAY: must be at least 1"))
	}
	if c.ExportSize < 1<<20 {
		problems = append(problems, errors.New("EXPORT_SIZE: must be at least 1MiB"))
	}
	return errors.Join(problems...)
}

const (
	// jobQueue holds the exports and deletions, which take long and are done few at a time.
	jobQueue = "account"

	// attempts and firstWait make a job be tried for most of a day.
	attempts  = 25
	firstWait = 5 * time.Second
)

// Map says, by the name of a collection, what of it belongs to an account.
type Map = ownership.Map

// Rule says which records of a collection belong to an account and what becomes of them.
type Rule = ownership.Rule

// What becomes of a record when its account is deleted.
const (
	Erase = ownership.Erase
	Blank = ownership.Blank
)

// Section is what another feature holds of an account. Each function may be nil. Export writes one JSON value, which
// becomes <Name>.json. Before the account is deleted, Clear is called, for what takes long, and then Delete, in a transaction
// of its own; it must be quick. Both may be called again.
type Section struct {
	Name   string
	Export func(ctx context.Context, app core.App, account *core.Record, w io.Writer) error
	Clear  Clear
	Delete func(tx core.App, account *core.Record) error
}

// Clear deletes what is held of an account in transactions of its own, which are short and rest in between.
type Clear func(ctx context.Context, app core.App, account *core.Record) error

// Blocker is a reason not to delete an account now, such as a team that would be left without an owner. Kind and ID name
// it for the app, Message says to a person what to do.
type Blocker struct{ Kind, ID, Message string }

// Deps is what the feature needs of others. Jobs and Key are required.
type Deps struct {
	Jobs *jobs.Jobs

	// Key derives a key for a purpose, always the same one.
	Key func(purpose string) []byte

	Map      Map
	Sections []Section

	// Recent refuses a user who has not shown a credential lately, unless the account is anonymous: whoever has no
	// credential cannot show one.
	Recent    func(e *core.RequestEvent) error
	Anonymous func(app core.App, account *core.Record) (bool, error)

	// EndSessions ends every session of the account.
	EndSessions func(tx core.App, account *core.Record, reason string) error

	// Blockers says what must be settled before the account can be deleted.
	Blockers func(app core.App, account *core.Record) ([]Blocker, error)

	// Forget takes what identifies the account out of the audit. Collection is a name.
	Forget func(tx core.App, collection, id string) error

	// Audit writes an entry into the transaction; e is nil when the program itself acts.
	Audit func(tx core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

	// Version names the state of a table, as the store's TableVersion does.
	Version func(table string) uint64
}

// Accounts is the feature.
type Accounts struct {
	cfg    Config
	deps   Deps
	now    func() time.Time
	app    core.App
	logger *slog.Logger
	gate   gate
	end    context.CancelFunc // of what tend does; nil before Start
	tended chan struct{}
}

// New returns the feature. [Accounts.Extension] goes into the list, after that of the jobs.
func New(cfg Config, deps Deps) *Accounts {
	if deps.Recent == nil {
		deps.Recent = func(*core.RequestEvent) error { return nil }
	}
	if deps.Anonymous == nil {
		deps.Anonymous = func(core.App, *core.Record) (bool, error) { return false, nil }
	}
	if deps.EndSessions == nil {
		deps.EndSessions = func(core.App, *core.Record, string) error { return nil }
	}
	if deps.Audit == nil {
		deps.Audit = func(core.App, *core.RequestEvent, string, string, *core.Record, map[string]any) error { return nil }
	}
	a := &Accounts{cfg: cfg, deps: deps, now: time.Now}
	deps.Jobs.Add(
		jobs.Define(jobs.Spec[target]{
			Kind: deletionKind, Queue: jobQueue, Attempts: attempts, FirstWait: firstWait, Timeout: jobs.NoTimeout, Resumable: true, Work: a.workDeletion,
		}),
		jobs.Define(jobs.Spec[string]{
			Kind: exportKind, Queue: jobQueue, Attempts: attempts, FirstWait: firstWait, Timeout: jobs.NoTimeout, Resumable: true, Work: a.workExport,
		}),
	)
	return a
}

// Extension is the feature as the program lists it.
func (a *Accounts) Extension() extensions.Extension {
	return extensions.Extension{
		Name:        "account",
		Settings:    a.cfg,
		Codes:       []*extensions.Code{ErrBlocked, ErrPending, ErrStarted, ErrExportLimit, ErrTooLarge},
		Tables:      []string{deletionsTable, exportsTable},
		Migrations:  []extensions.Migration{extensions.Tables(1795430100, "create_tables", schema(), deletionsTable, exportsTable)},
		Bind:        a.bind,
		Middlewares: []*hook.Handler[*core.RequestEvent]{a.gate.middleware()},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("/exports/{id}", a.handleDownload)
		},
		Start:    a.start,
		Stop:     a.stop,
		Checks:   a.checks(),
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{a.command(h)} },
	}
}

func (a *Accounts) checks() []extensions.Check {
	return []extensions.Check{{Name: "account map", Run: a.checkMap}, {Name: "account deletion", Run: a.checkDeletions}}
}

// bind keeps the table of deletions true when an account is deleted past this feature.
func (a *Accounts) bind(h *extensions.Host) error {
	a.app, a.logger = h.App, h.Logger
	h.App.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelAccountDelete", Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		return forgetDeletion(e.App, keyOf(e.Record))
	}})
	return nil
}

func (a *Accounts) start(ctx context.Context, _ *extensions.Host) error {
	if err := a.reload(); err != nil {
		return err
	}
	a.tended = make(chan struct{})
	ctx, a.end = context.WithCancel(ctx)
	go func() { defer close(a.tended); a.tend(ctx) }()
	return nil
}

func (a *Accounts) stop(context.Context) error {
	if a.end != nil {
		a.end()
		<-a.tended
	}
	return nil
}

// plan is what is exported and deleted of accounts of the collection. The schema may have changed since the last time.
func (a *Accounts) plan(app core.App, accounts *core.Collection) (*ownership.Plan, error) {
	p, err := ownership.New(app, accounts, a.deps.Map)
	if err != nil {
		return nil, fmt.Errorf("plan for accounts of %s: %w", accounts.Name, err)
	}
	return p, nil
}

// Operations are those that the feature offers.
func (a *Accounts) Operations() []operations.Operation {
	return []operations.Operation{
		operations.Define(operations.Spec[struct{}, Status]{
			Name: "account.status", Summary: "Tell whether the account is going to be deleted, and which exports there are",
			Read: true,
			Do:   func(c *operations.Call, _ struct{}) (Status, error) { return a.status(c.App, c.Auth) },
		}),
		operations.Define(operations.Spec[struct{}, Status]{
			Name: "account.delete", Summary: "Delete the account with all its data when the grace period is over",
			KeyOptional: true, Codes: []*extensions.Code{ErrBlocked}, Do: a.doDelete,
		}),
		operations.Define(operations.Spec[struct{}, Status]{
			Name: "account.cancelDeletion", Summary: "Keep an account that was going to be deleted",
			KeyOptional: true, Codes: []*extensions.Code{ErrStarted}, Do: a.doCancel,
		}),
		operations.Define(operations.Spec[struct{}, Export]{
			Name: "account.export", Summary: "Make a file of all data of the account for download",
			KeyOptional: true, Codes: []*extensions.Code{ErrExportLimit}, Do: a.doExport,
		}),
	}
}

// recent refuses a caller who has not shown a credential lately. One who has none may.
func (a *Accounts) recent(e *core.RequestEvent, account *core.Record) error {
	if e == nil {
		return nil // the app itself calls
	}
	anonymous, err := a.deps.Anonymous(e.App, account)
	if err != nil || anonymous {
		return err
	}
	return a.deps.Recent(e)
}
