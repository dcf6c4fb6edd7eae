// Package audit keeps the record of who did what, as a chain that cannot be changed unnoticed by whoever holds only the
// database. Features write to it in the transaction of the act itself, so that neither exists without the other.
//
// An entry names the action, its outcome, who acted and on whom, and where the request came from: an address prefix
// (IPv4 /24, IPv6 /48), because a full address is personal data that no question to this table needs. Secrets stay out:
// details whose key is named like one, or whose value is shaped like one, are redacted.
//
// Each entry carries an HMAC-SHA256, under a key derived from the master key, over the one before it and all its own
// columns. Ids are counted without a gap. Accounts are named by the number of a party; what is sealed is a commitment with
// a salt, so that [ledger.Ledger.Forget] can take the account out of the party without breaking the chain. The newest entry is
// written, signed, to a file outside of the data folder, without which a tail that was cut off could not be missed.
//
// Old entries are deleted behind a signed floor. Triggers refuse every other UPDATE, DELETE and REPLACE; they stop
// mistakes, while [ledger.Ledger.Verify] finds what was done past them.
//
// Settings: SATCHEL_AUDIT_*. Tables: audit_chain, audit_parties, audit_checkpoints; the view audit_entries shows them as
// people read them. Routes: /api/v1/admin/audit. Commands: audit. Failure modes: an entry that cannot be written is an
// error, and the transaction of the act should end with it; a file that cannot be written is logged and shown by the check.
package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

// Outcomes of actions. An empty outcome is a success.
const (
	Success = ledger.Success
	Failure = ledger.Failure // it was tried and went wrong
	Denied  = ledger.Denied  // it was refused
	Began   = ledger.Began   // it cannot be part of a transaction, and is about to be done
)

// Kinds of parties.
const (
	User      = ledger.User
	Superuser = ledger.Superuser
	Key       = ledger.Key    // an API key of a server
	System    = ledger.System // the program itself: a command, a job
	Guest     = ledger.Guest
	Record    = ledger.Record // of a collection that nobody signs in to
)

// Entry is one thing that was done; see [ledger.Entry].
type Entry = ledger.Entry

// Party is somebody or something that acts or is acted on.
type Party = ledger.Party

// Log writes and reads entries. It is safe for concurrent use. Its methods Append, Note, NoteFailure and Forget are what
// features are given.
type Log struct {
	*ledger.Ledger

	vault  *secret.Vault
	cfg    Config
	app    core.App
	logger *slog.Logger

	opened    atomic.Bool // the migrations of the program are done
	acting    sync.Map    // a model or *core.TxAppInfo -> the *core.RequestEvent that changes it
	backup    atomic.Pointer[core.RequestEvent]
	restore   atomic.Pointer[Party]
	verifying sync.Mutex
	failures  failures
	cursorKey func() []byte
	ended     chan struct{}
	cancel    context.CancelFunc
}

// NewLog returns the log that [New] makes a feature. It reads nothing.
func NewLog(vault *secret.Vault) *Log {
	return &Log{
		Ledger: ledger.New(vault), vault: vault, logger: slog.New(slog.DiscardHandler),
		failures:  failures{table: gcra.NewTable(failureKeys), counts: map[failure]int{}},
		cursorKey: sync.OnceValue(func() []byte { return vault.Key("audit.cursor") }),
	}
}

// Where the verifier of tokens leaves the id of the session, and the party that acts for the user who is signed in, or
// alone: an API key.
const (
	sessionKey = "satchelSession"
	ActorKey   = "satchelActor"
)

// Config is read from SATCHEL_AUDIT_*.
type Config struct {
	Retention      time.Duration `env:"RETENTION" default:"400d" help:"entries older than this are deleted; 0: never"`
	CheckpointFile string        `env:"CHECKPOINT_FILE" default:"" help:"file that holds the newest entry, signed; empty: the data folder's name with .audit, beside it; off: none"`
}

// fileOff writes no file.
const fileOff = "off"

// leastRetention keeps a slip ("400m") from emptying the log.
const leastRetention = 24 * time.Hour

// Validate reports values that cannot work.
func (c Config) Validate() error {
	if c.Retention != 0 && c.Retention < leastRetention {
		return errors.New("RETENTION: must be 0 or at least 1d")
	}
	return nil
}

// Sandbox is the configuration of an application on a copy of the data: it writes no file and deletes nothing.
func (c Config) Sandbox() Config { return Config{CheckpointFile: fileOff} }

// May reports whether whoever makes the request has the role: "viewer" to read entries, "operator" to export and verify
// them. Its error is the answer.
type May func(e *core.RequestEvent, role string) error

// Roles that May is asked about.
const (
	roleViewer   = "viewer"
	roleOperator = "operator"
)

// Codes of what is refused.
var (
	ErrFilter = &extensions.Code{Name: "audit.filter_invalid", Status: 400, Title: "The filter is not valid"}
	ErrCursor = &extensions.Code{Name: "audit.cursor_invalid", Status: 400, Title: "The cursor is not valid for this list"}
	ErrBusy   = &extensions.Code{Name: "audit.busy", Status: 409, Title: "The audit log is being verified already"}
)

// New returns the extension. may decides who reads; nil lets superusers.
func New(cfg Config, l *Log, may May) extensions.Extension {
	if may == nil {
		may = api.SuperusersOnly
	}
	l.cfg = cfg
	return extensions.Extension{
		Name:     "audit",
		Group:    "admin",
		Settings: cfg,
		Codes:    []*extensions.Code{ErrFilter, ErrCursor, ErrBusy},
		Tables:   []string{ledger.Chain, ledger.Parties, ledger.Checkpoints},
		Migrations: []extensions.Migration{
			{Unix: 1795310000, What: "create_entries", Up: ledger.CreateEntries, Down: ledger.DropEntries},
			{Unix: 1795450000, What: "chain", Up: ledger.Create, Down: ledger.Drop},
		},
		Bind:        l.bind,
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "satchelAudit", Priority: privilegedPriority, Func: l.privileged}},
		Routes:      l.routes(may),
		Serve:       l.serve,
		Start:       l.start,
		Stop:        l.stop,
		Checks:      []extensions.Check{{Name: "audit", Offline: true, Run: l.check}},
		Commands:    func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{l.command(h)} },
	}
}

// From begins an entry with what the request says about itself: who is signed in, the session, the request's id and
// where it came from. The caller adds the action and the subject.
func From(e *core.RequestEvent) Entry {
	out := Entry{Actor: PartyOf(e.Auth), Request: api.RequestOf(e.Request.Context()).ID, Address: api.Network(e.RealIP())}
	out.Session, _ = e.Get(sessionKey).(string)
	if actor, ok := e.Get(ActorKey).(Party); ok {
		if e.Auth != nil {
			out.ActAs = out.Actor
		}
		out.Actor = actor
	}
	return out
}

// PartyOf is the account as a party, or the record of a collection that nobody signs in to; nil is a guest.
func PartyOf(account *core.Record) Party {
	if account == nil {
		return Party{Kind: Guest}
	}
	kind := Record
	switch {
	case account.IsSuperuser():
		kind = Superuser
	case account.Collection().IsAuth():
		kind = User
	}
	return Party{Kind: kind, Collection: account.Collection().Name, ID: account.Id}
}
