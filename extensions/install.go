package extensions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

const (
	// servePriority puts Install's handler outside all others, so that it can wrap the finished server handler.
	servePriority = -9999

	// stopPriority runs after PocketBase has shut the HTTP server down (its handler has -9999).
	stopPriority = -9000

	defaultStopTimeout = 5 * time.Second
)

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

// Install binds the extensions to the host's application, in the order of the list. It must run before the application
// is opened, because migrations are applied then. It refuses names that are not one lower-case word or are used twice.
func Install(h *Host, list []Extension) error {
	seen := map[string]bool{}
	for _, x := range list {
		if !namePattern.MatchString(x.Name) || seen[x.Name] {
			return fmt.Errorf("install extension %q: the name is not a word or is used twice", x.Name)
		}
		seen[x.Name] = true
		registerMigrations(x)
		if x.Bind != nil {
			if err := x.Bind(h.For(x)); err != nil {
				return fmt.Errorf("bind %s: %w", x.Name, err)
			}
		}
	}
	r := &runner{host: h, list: list}
	h.App.OnServe().Bind(&hook.Handler[*core.ServeEvent]{Id: "satchelServe", Priority: servePriority, Func: r.serve})
	h.App.OnTerminate().Bind(&hook.Handler[*core.TerminateEvent]{Id: "satchelStop", Priority: stopPriority, Func: r.stop})
	return nil
}

// For is the host as one extension sees it: its logger carries the extension's name.
func (h *Host) For(x Extension) *Host {
	own := *h
	own.Logger = h.Logger.With(slog.String("extension", x.Name))
	return &own
}

// MigrationFile is the name under which a migration of the extension is remembered.
func (x Extension) MigrationFile(m Migration) string {
	return strconv.FormatInt(m.Unix, 10) + "_" + x.Name + "_" + m.What + ".go"
}

// registerMigrations adds to PocketBase's process-wide list. System migrations run in every command that opens the
// database and before those of the app. A name that is there already is the same migration, registered by another
// application in this process.
func registerMigrations(x Extension) {
	for _, m := range x.Migrations {
		file := x.MigrationFile(m)
		known := slices.ContainsFunc(core.SystemMigrations.Items(), func(have *core.Migration) bool { return have.File == file })
		if !known {
			core.SystemMigrations.Add(&core.Migration{File: file, Up: m.Up, Down: m.Down})
		}
	}
}

// runner starts and stops the extensions with the server.
type runner struct {
	host   *Host
	list   []Extension
	cancel context.CancelFunc
}

func (r *runner) serve(e *core.ServeEvent) error {
	for _, x := range r.list {
		e.Router.Bind(x.Middlewares...)
		if x.Routes != nil {
			x.Routes(e.Router.Group("/api/v1/" + x.RouteGroup()))
		}
		if x.Serve != nil {
			if err := x.Serve(r.host.For(x), e); err != nil {
				return fmt.Errorf("serve %s: %w", x.Name, err)
			}
		}
	}
	if err := e.Next(); err != nil {
		return err
	}
	e.Server.Handler = r.wrap(e.Server.Handler)
	return r.start()
}

// wrap puts the handlers of the extensions around the router; the first in the list is the outermost.
func (r *runner) wrap(h http.Handler) http.Handler {
	for _, x := range slices.Backward(r.list) {
		if x.Handler != nil {
			h = x.Handler(h)
		}
	}
	return h
}

func (r *runner) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	for _, x := range r.list {
		if x.Start == nil {
			continue
		}
		if err := x.Start(ctx, r.host.For(x)); err != nil {
			cancel()
			return fmt.Errorf("start %s: %w", x.Name, err)
		}
	}
	return nil
}

// stop runs for every command; only a server has started anything.
func (r *runner) stop(e *core.TerminateEvent) error {
	if r.cancel == nil {
		return e.Next()
	}
	var failed []error
	for _, x := range slices.Backward(r.list) {
		if x.Stop == nil {
			continue
		}
		timeout := x.StopTimeout
		if timeout == 0 {
			timeout = defaultStopTimeout
		}
		ctx, done := context.WithTimeout(context.Background(), timeout)
		if err := x.Stop(ctx); err != nil {
			failed = append(failed, fmt.Errorf("stop %s: %w", x.Name, err))
		}
		done()
	}
	r.cancel()
	return errors.Join(append(failed, e.Next())...)
}
