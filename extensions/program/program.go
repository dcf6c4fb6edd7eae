// Package program makes the application that main runs: PocketBase with what its stock binary has (JavaScript hooks and
// migrations, the migrate and superuser commands, the public folder), and the commands serve and version.
//
// The link with which the first admin is created is shown on a terminal and nowhere else. Settings, tables and routes:
// none of its own.
package program

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dop251/goja"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/plugins/jsvm"
	"github.com/pocketbase/pocketbase/plugins/migratecmd"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/cli"
)

// Info is what main knows about the program.
type Info struct {
	Version string
	DataDir string        // default of --dir
	HTTP    string        // default of serve --http
	Queries time.Duration // default of --queryTimeout

	// DBConnect opens the database files.
	DBConnect core.DBConnectFunc

	// Public is served where the folder of --publicDir has no such file.
	Public fs.FS

	Scripts Scripts

	// Harden seals a token of PocketBase's kind that is made outside of a request; nil leaves it as it is.
	Harden func(record *core.Record, token string) (string, error)
}

// Scripts is what JavaScript hooks may use besides what PocketBase gives them. The zero value is nothing.
type Scripts struct {
	// Globals add to each JavaScript runtime what hooks may call.
	Globals []func(vm *goja.Runtime) error

	// Host adds methods that begin with On to the application: they are events that hooks can bind to.
	Host func(app core.App) core.App
}

func (s Scripts) host(app core.App) core.App {
	if s.Host == nil {
		return app
	}
	return s.Host(app)
}

// New creates the application and its root command with what the stock binary has: flags, JavaScript hooks and
// migrations, the migrate command and the public folder. Its self-update command is left out, because it would replace
// this program by PocketBase. args are the program's arguments without its name.
func New(info Info, args []string) *pocketbase.PocketBase {
	pb := pocketbase.NewWithConfig(pocketbase.Config{
		DefaultDataDir: info.DataDir, DefaultQueryTimeout: info.Queries, HideStartBanner: true, DBConnect: info.DBConnect,
	})
	root := pb.RootCmd
	root.Use, root.Short, root.Version = "satchel", "The backend of a mobile app, in one program", info.Version
	root.SetErr(os.Stderr)
	flags := root.PersistentFlags()
	flags.Bool("json", false, "print machine-readable output")
	hooksDir := flags.String("hooksDir", "", "the folder of JavaScript hooks (default: pb_hooks beside the data folder)")
	hooksWatch := flags.Bool("hooksWatch", true, "restart when a hook file changes")
	hooksPool := flags.Int("hooksPool", 15, "how many JavaScript runtimes are kept ready")
	migrationsDir := flags.String("migrationsDir", "", "the folder of JavaScript migrations (default: pb_migrations beside the data folder)")
	automigrate := flags.Bool("automigrate", true, "write a migration when a collection is changed in the dashboard")
	publicDir := flags.String("publicDir", "pb_public", "the folder of static files")
	indexFallback := flags.Bool("indexFallback", true, "answer index.html for missing static files, as single-page apps need")
	_ = root.ParseFlags(args) // mistakes are reported when the command runs

	hooksErr := jsvm.Register(info.Scripts.host(pb), jsvm.Config{
		MigrationsDir: *migrationsDir, HooksDir: *hooksDir, HooksWatch: *hooksWatch, HooksPoolSize: *hooksPool,
		OnInit: extend(info.Scripts.Globals),
	})
	migratecmd.MustRegister(pb, root, migratecmd.Config{
		TemplateLang: migratecmd.TemplateLangJS, Automigrate: *automigrate, Dir: *migrationsDir,
	})
	pb.OnServe().Bind(&hook.Handler[*core.ServeEvent]{
		Id:       "satchelPublic",
		Priority: 999, // as in the stock binary: routes of the app come first
		Func:     servePublic(overlay{os.DirFS(*publicDir), info.Public}, *indexFallback),
	})
	pb.OnBootstrap().Bind(&hook.Handler[*core.BootstrapEvent]{Id: "satchelDataDir", Priority: -9999, Func: func(e *core.BootstrapEvent) error {
		// Told here and not at once, so that commands which need no database still run.
		if hooksErr != nil {
			return fmt.Errorf("load JavaScript hooks: %w", hooksErr)
		}
		return ownDataDir(e)
	}})
	return pb
}

// Files are the static files that pb serves: those of the public folder, and what it lacks from embedded.
func Files(pb *pocketbase.PocketBase, embedded fs.FS) fs.FS {
	dir, err := pb.RootCmd.PersistentFlags().GetString("publicDir")
	if err != nil {
		return embedded
	}
	return overlay{os.DirFS(dir), embedded}
}

// servePublic serves static files where the app has no route. A mistyped path of the API is not found, instead of
// answered with the index page.
func servePublic(files fs.FS, indexFallback bool) func(*core.ServeEvent) error {
	static := apis.Static(files, indexFallback)
	return func(e *core.ServeEvent) error {
		if !e.Router.HasRoute(http.MethodGet, "/{path...}") {
			e.Router.GET("/{path...}", func(e *core.RequestEvent) error {
				if strings.HasPrefix(e.Request.URL.Path, "/api/") {
					return e.NotFoundError("", nil)
				}
				return static(e)
			})
		}
		return e.Next()
	}
}

// ownDataDir creates the data folder for this user alone: whoever can read it can read everything in it.
func ownDataDir(e *core.BootstrapEvent) error {
	if err := os.MkdirAll(e.App.DataDir(), 0o700); err != nil {
		return fmt.Errorf("create data folder: %w", err)
	}
	return e.Next()
}

// extend makes the function that PocketBase calls for each runtime. It fails only when a name is taken that PocketBase
// itself has locked.
func extend(globals []func(vm *goja.Runtime) error) func(*goja.Runtime) {
	return func(vm *goja.Runtime) {
		for _, add := range globals {
			if err := add(vm); err != nil {
				panic(err)
			}
		}
	}
}

// Sandbox returns an application on another data folder with the JavaScript hooks and migrations of pb. It neither
// reads the command line nor watches for changes, and is not open yet.
func Sandbox(pb *pocketbase.PocketBase, dataDir string, connect core.DBConnectFunc, scripts Scripts) (core.App, error) {
	beside := func(flag, name string) string {
		if dir, err := pb.RootCmd.PersistentFlags().GetString(flag); err == nil && dir != "" {
			return dir
		}
		return filepath.Join(pb.DataDir(), "..", name)
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dataDir, DBConnect: connect})
	err := jsvm.Register(scripts.host(app), jsvm.Config{
		HooksDir: beside("hooksDir", "pb_hooks"), MigrationsDir: beside("migrationsDir", "pb_migrations"), HooksPoolSize: 1,
		OnInit: extend(scripts.Globals),
	})
	if err != nil {
		return nil, fmt.Errorf("load JavaScript hooks: %w", err)
	}
	return app, nil
}

// overlay serves the first file system's file, else the second's.
type overlay struct{ first, second fs.FS }

func (o overlay) Open(name string) (fs.File, error) {
	f, err := o.first.Open(name)
	if err != nil && o.second != nil {
		return o.second.Open(name)
	}
	return f, err
}

// Version is the command that prints the program's version.
func Version(version string) *cobra.Command {
	return cli.NoDatabase(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs, Example: "satchel version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cli.JSON(cmd) {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "{\"version\":%q,\"pocketbase\":%q}\n", version, pocketBaseVersion())
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "satchel %s (PocketBase %s)\n", version, pocketBaseVersion())
			return err
		},
	})
}
