// Package extensions holds the contract between the program and its features.
//
// A feature is a value of type [Extension]: main.go lists the values it wants and [Install] binds them to a PocketBase
// application. Nothing registers itself, so the list in main.go is the whole truth about what a binary contains, and a
// test can walk it. The package depends on PocketBase alone; it refuses to look up features by name.
package extensions

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"
)

// Extension is one feature. The zero value of every field but Name means "has none".
//
// Name is one lower-case word and is the same word in nine places: the directory, the settings section
// (SATCHEL_<NAME>_*), the route group (/api/v1/<name>), the table prefix (<name>_*), the owner part of migration names,
// the log attribute, the metric prefix (satchel_<name>_*), the prefix of error codes (<name>.*) and the anchor in the
// reference documentation.
type Extension struct {
	Name string

	// Group replaces Name in the route group below /api/v1, for features that share a path segment ("auth").
	Group string

	// Settings is the extension's configuration, a struct with settings tags. It feeds `config print` and the reference.
	Settings any

	// Codes lists every error code that the extension can answer.
	Codes []*Code

	// Tables lists the plain tables that the migrations create.
	Tables []string

	// Migrations are applied on start and by every command that opens the database.
	Migrations []Migration

	// Bind registers hooks on the application. It runs once, before the application is opened, also for commands.
	Bind func(h *Host) error

	// Handler wraps the whole server, outside PocketBase's router. The first extension in the list is the outermost.
	Handler func(next http.Handler) http.Handler

	// Middlewares run on every route of the router, PocketBase's own included, in the order of their priority.
	Middlewares []*hook.Handler[*core.RequestEvent]

	// Routes adds the routes of the group /api/v1/<group>.
	Routes func(g *router.RouterGroup[*core.RequestEvent])

	// Serve may change the server before it listens: routes outside the group, timeouts, protocols.
	Serve func(h *Host, e *core.ServeEvent) error

	// Start begins background work once the server is about to listen. The context ends when the server has stopped.
	Start func(ctx context.Context, h *Host) error

	// Stop ends background work. Extensions stop in the reverse order of the list, each within StopTimeout (default 5 s).
	Stop        func(ctx context.Context) error
	StopTimeout time.Duration

	// Checks are the lines that `doctor` and the readiness probe show.
	Checks []Check

	// Metrics are read on demand; names start with satchel_<name>_ and end in their unit. What is read must be cheap.
	Metrics []Metric

	// Commands adds commands to the command line.
	Commands func(h *Host) []*cobra.Command
}

// RouteGroup is the path segment below /api/v1 that the extension owns.
func (x Extension) RouteGroup() string {
	if x.Group != "" {
		return x.Group
	}
	return x.Name
}

// Host is what the program lends to an extension. It is safe for concurrent use after [Install].
type Host struct {
	App     core.App
	Version string

	// Production reports SATCHEL_MODE=production.
	Production bool

	// Logger writes structured logs; every extension receives a Host whose logger carries its name.
	Logger *slog.Logger
}

// Code is one registered error of the HTTP interface. It is a sentinel: compare with errors.Is. Name is
// "<extension>.<reason>" and never changes once released, because clients switch on it.
type Code struct {
	Name   string
	Status int
	Title  string
}

// Error makes a code usable as an error value.
func (c *Code) Error() string { return c.Name + ": " + c.Title }

// Migration changes the database once. Its stored name is "<unix>_<extension>_<what>.go"; Unix orders it among all
// migrations, PocketBase's and the app's included, and must never change after a release.
type Migration struct {
	Unix int64
	What string
	Up   func(app core.App) error
	Down func(app core.App) error
}

// Tables is a migration that runs the statements, which create the tables, and drops these on the way down.
func Tables(unix int64, what string, statements []string, tables ...string) Migration {
	return Migration{
		Unix: unix, What: what,
		Up: func(app core.App) error {
			for _, statement := range statements {
				if _, err := app.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
					return fmt.Errorf("create %s: %w", strings.Join(tables, ", "), err)
				}
			}
			return nil
		},
		Down: func(app core.App) error {
			for _, table := range tables {
				if _, err := app.NonconcurrentDB().DropTable(table).Execute(); err != nil {
					return fmt.Errorf("drop table %s: %w", table, err)
				}
			}
			return nil
		},
	}
}

// Columns is a migration that adds columns to a table, each by its definition, and drops them on the way down.
func Columns(unix int64, what, table string, definitions ...string) Migration {
	alter := func(app core.App, change string) error {
		if _, err := app.NonconcurrentDB().NewQuery(`ALTER TABLE ` + table + ` ` + change).Execute(); err != nil {
			return fmt.Errorf("alter %s: %w", table, err)
		}
		return nil
	}
	return Migration{
		Unix: unix, What: what,
		Up: func(app core.App) error {
			for _, definition := range definitions {
				if err := alter(app, `ADD COLUMN `+definition); err != nil {
					return err
				}
			}
			return nil
		},
		Down: func(app core.App) error {
			for _, definition := range definitions {
				name, _, _ := strings.Cut(definition, " ")
				if err := alter(app, `DROP COLUMN `+name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// Metric is one number, or with Labels several, read when somebody asks. Counter says that it only grows.
type Metric struct {
	Name    string
	Help    string
	Counter bool
	Read    func() float64

	// Labels name what tells several numbers apart, and Series adds these, instead of Read. There are as many as the program
	// knows values of the labels; none is a client's choice.
	Labels []string
	Series func(add func(Sample))
}

// Sample is one of several numbers of a metric, or a distribution if that is set, with a value for each label.
type Sample struct {
	Labels       []string
	Value        float64
	Distribution *Distribution
}

// Distribution is how often values were observed, and their sum. Buckets are, by upper bounds, the numbers of those that were
// not larger.
type Distribution struct {
	Count   uint64
	Sum     float64
	Buckets map[float64]uint64
}

// Level orders the results of checks.
type Level int

// Levels of a check, from good to bad. Only Fail makes `doctor` exit with 3 and readiness answer 503.
const (
	OK Level = iota
	Info
	Skip
	Warn
	Fail
)

// String is the word that reports show.
func (l Level) String() string {
	return [...]string{"ok", "info", "skip", "warn", "fail"}[l]
}

// Result is the outcome of a check. Next is the command or setting that mends it.
type Result struct {
	Level   Level
	Message string
	Next    string
}

// Check is one line of what admins see of a running server, at GET /api/v1/health. Offline checks are lines of `doctor`,
// too, and must work without an open database (h.App is not bootstrapped then). Ready checks also decide the readiness
// probe: they must be cheap.
type Check struct {
	Name    string
	Offline bool
	Ready   bool
	Run     func(ctx context.Context, h *Host) Result
}
