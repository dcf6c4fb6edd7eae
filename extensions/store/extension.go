package store

import (
	"context"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

const (
	// writers bounds how many sessions of the write pool can wait, for their turn or for the disk, before others wait
	// for a session without a time limit. A waiting session takes about a kilobyte.
	writers = 256

	// readers are kept open. PocketBase keeps 15 of up to 120, so that under load connections were opened all the time:
	// an eighth of the CPU time of 64 clients that create records.
	readers = 48

	// errorsPriority is inside the middleware that writes errors and outside everything that uses the database.
	errorsPriority = -1090
)

// New makes the store a feature: the write pool is widened, failures become 503, and checks and metrics are shown. The
// application must have been created with s.Connect.
func New(s *Store) extensions.Extension {
	return extensions.Extension{
		Name:        "store",
		Settings:    s.cfg,
		Codes:       []*extensions.Code{ErrUnavailable},
		Bind:        s.bind,
		Middlewares: []*hook.Handler[*core.RequestEvent]{storeErrors()},
		Checks: []extensions.Check{
			{Name: "writable log", Ready: true, Offline: true, Run: s.checkHealth},
			{Name: "durability", Offline: true, Run: s.checkDurability},
		},
		Metrics: s.metrics(),
	}
}

// bind lets many writers wait for the disk at the same time. PocketBase limits its write pool to one connection, and
// does so while it opens the database.
func (s *Store) bind(h *extensions.Host) error {
	h.App.OnBootstrap().Bind(&hook.Handler[*core.BootstrapEvent]{
		Id: "satchelStorePool",
		Func: func(e *core.BootstrapEvent) error {
			if err := e.Next(); err != nil {
				return err
			}
			write, ok := e.App.NonconcurrentDB().(*dbx.DB)
			if !ok {
				return fmt.Errorf("widen write pool: PocketBase writes through %T", e.App.NonconcurrentDB())
			}
			write.DB().SetMaxOpenConns(writers)
			write.DB().SetMaxIdleConns(writers)
			read, ok := e.App.ConcurrentDB().(*dbx.DB)
			if !ok {
				return fmt.Errorf("widen read pool: PocketBase reads through %T", e.App.ConcurrentDB())
			}
			read.DB().SetMaxIdleConns(readers)
			return nil
		},
	})
	return nil
}

// storeErrors answers 503 where a handler's error comes from the database's state and not from the request. PocketBase
// would say 400, or 404 for a read, and a client would drop its data.
func storeErrors() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id: "satchelStoreErrors", Priority: errorsPriority,
		Func: func(e *core.RequestEvent) error {
			err := e.Next()
			if err == nil || e.Written() {
				return err
			}
			f, ok := find(err)
			if !ok {
				return err
			}
			return &api.Problem{Code: ErrUnavailable, RetryAfter: f.RetryAfter, Cause: f}
		},
	}
}

func (s *Store) checkHealth(context.Context, *extensions.Host) extensions.Result {
	if err := s.Healthy(); err != nil {
		return extensions.Result{
			Level: extensions.Fail, Message: err.Error() + "; writes are refused",
			Next: "look after the disk, then restart the server",
		}
	}
	return extensions.Result{Message: "no sync has failed"}
}

func (s *Store) checkDurability(_ context.Context, h *extensions.Host) extensions.Result {
	if s.cfg.Durability == Full {
		return extensions.Result{Message: "full: an answered write is on disk (" + driverName + ")"}
	}
	level := extensions.Info
	if h.Production {
		level = extensions.Warn
	}
	return extensions.Result{
		Level: level, Message: "normal: a power failure may lose the last answered writes (" + driverName + ")",
		Next: "set SATCHEL_DB_DURABILITY=full",
	}
}

func (s *Store) metrics() []extensions.Metric {
	counter := func(name, help string, read func(statistics) float64) extensions.Metric {
		return extensions.Metric{
			Name: "satchel_store_" + name, Help: help, Counter: true,
			Read: func() float64 { return read(s.statistics()) },
		}
	}
	return []extensions.Metric{
		counter("commits_total", "Committed writes.", func(t statistics) float64 { return float64(t.commits) }),
		counter("syncs_total", "Syncs of the write-ahead log, each shared by the commits that waited.", func(t statistics) float64 { return float64(t.syncs) }),
		counter("write_wait_seconds", "Time that writers have waited for their turn.", func(t statistics) float64 { return t.wait.Seconds() }),
		counter("statement_hits_total", "Statements found prepared.", func(t statistics) float64 { return float64(t.hits) }),
		counter("statement_misses_total", "Statements that had to be prepared.", func(t statistics) float64 { return float64(t.misses) }),
	}
}
