// Command stock is PocketBase as its own release program is: the library with the plugins and settings of that program
// (but for the command that updates it), and nothing of Satchel's.
//
// With BENCH_SYNC_DELAY, a duration, data.db commits with synchronous=FULL on a disk that is as much slower. That is
// the only change that it ever receives, for the rows about durable writes.
package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/plugins/jsvm"
	"github.com/pocketbase/pocketbase/plugins/migratecmd"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/bench/rivals/slowsync"
)

// hooksPool is the number of prepared JavaScript runtimes in PocketBase's release program.
const hooksPool = 15

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "stock:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run() error {
	var cfg pocketbase.Config
	if text := os.Getenv("BENCH_SYNC_DELAY"); text != "" {
		delay, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("read BENCH_SYNC_DELAY: %w", err)
		}
		cfg.DBConnect = durable(delay)
	}
	app := pocketbase.NewWithConfig(cfg)
	jsvm.MustRegister(app, jsvm.Config{HooksWatch: true, HooksPoolSize: hooksPool})
	migratecmd.MustRegister(app, app.RootCmd, migratecmd.Config{TemplateLang: migratecmd.TemplateLangJS, Automigrate: true})
	app.OnServe().Bind(&hook.Handler[*core.ServeEvent]{
		Priority: 999, // after the routes that others add
		Func: func(e *core.ServeEvent) error {
			if !e.Router.HasRoute(http.MethodGet, "/{path...}") {
				e.Router.GET("/{path...}", apis.Static(os.DirFS("pb_public"), true))
			}
			return e.Next()
		},
	})
	return app.Start()
}

// durable connects as core.DefaultDBConnect does, but for FULL and the delay on data.db.
func durable(delay time.Duration) core.DBConnectFunc {
	return func(path string) (*dbx.DB, error) {
		if filepath.Base(path) != "data.db" {
			return core.DefaultDBConnect(path)
		}
		db, err := slowsync.Open(path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=journal_size_limit(200000000)"+
			"&_pragma=synchronous(FULL)&_pragma=foreign_keys(ON)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-32000)&_defensive=1", delay)
		if err != nil {
			return nil, err
		}
		return dbx.NewFromDB(db, "sqlite"), nil
	}
}
