package rules

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

// databases are the files of a data folder that a copy needs. Uploaded files are left out: no rule reads them.
func databases() []string { return []string{"data.db", "auxiliary.db"} }

// copyData copies the databases of a folder as they are at one moment, without writing to the folder. A missing folder
// or database is an empty one.
func copyData(ctx context.Context, from, to string) error {
	for _, name := range databases() {
		source := filepath.Join(from, name)
		if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("find database: %w", err)
		}
		if err := copyDatabase(ctx, source, filepath.Join(to, name)); err != nil {
			return fmt.Errorf("copy %s: %w", source, err)
		}
	}
	return nil
}

// copyDatabase lets SQLite copy what is committed, so that a running server may go on writing. Opening a database that
// nobody uses would create its -wal and -shm files; then the file alone is complete and is read as immutable, unless
// somebody starts to use it meanwhile.
func copyDatabase(ctx context.Context, source, target string) error {
	before, quiet, err := unused(source)
	if err != nil {
		return err
	}
	if quiet {
		if err := vacuumInto(ctx, source, "immutable=1", target); err != nil {
			return err
		}
		after, stillQuiet, err := unused(source)
		if err != nil || stillQuiet && after.ModTime().Equal(before.ModTime()) && after.Size() == before.Size() {
			return err
		}
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	return vacuumInto(ctx, source, "mode=ro", target)
}

// unused reports whether the database has no write-ahead log, that is, whether no program has it open.
func unused(source string) (fs.FileInfo, bool, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, false, err
	}
	_, err = os.Stat(source + "-wal")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	return info, err != nil, nil
}

func vacuumInto(ctx context.Context, source, mode, target string) error {
	db, err := openDatabase(source, mode)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // it was only read
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", target)
	return err
}

// openDatabase uses the driver that PocketBase registers.
func openDatabase(file, mode string) (*sql.DB, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	name := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: mode + "&_pragma=busy_timeout(10000)"}
	return sql.Open("sqlite", name.String())
}

// sandbox is an application on a copy, and its router.
type sandbox struct {
	app     core.App
	handler http.Handler
	watch   *sql.DB // one connection that sees whether others have written
	version int64
}

// openSandbox opens the program's application on a copy and cuts it off from the world.
func openSandbox(ctx context.Context, dir string, open Open) (*sandbox, error) {
	app, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("make application: %w", err)
	}
	app.OnMailerSend().Bind(&hook.Handler[*core.MailerEvent]{
		Id: "satchelRulesNoMail", Priority: -9999,
		Func: func(*core.MailerEvent) error { return nil }, // the chain ends here
	})
	app.OnSettingsReload().BindFunc(func(e *core.SettingsReloadEvent) error {
		err := e.Next()
		// The copied settings may name a bucket with the real files, and limits that a table would exceed.
		settings := e.App.Settings()
		settings.S3.Enabled, settings.Backups.S3.Enabled, settings.RateLimits.Enabled = false, false, false
		settings.SuperuserIPs, settings.Logs.MaxDays = nil, 0
		return err
	})
	if err := app.Bootstrap(); err != nil {
		return nil, fmt.Errorf("open copy: %w", err)
	}
	s := &sandbox{app: app}
	if err := app.RunAllMigrations(); err != nil {
		return nil, errors.Join(fmt.Errorf("migrate copy: %w", err), s.close())
	}
	router, err := apis.NewRouter(app)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make router: %w", err), s.close())
	}
	if s.handler, err = router.BuildMux(); err != nil {
		return nil, errors.Join(fmt.Errorf("build router: %w", err), s.close())
	}
	if err := s.startWatch(ctx, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("watch copy: %w", err), s.close())
	}
	return s, nil
}

func (s *sandbox) startWatch(ctx context.Context, dir string) (err error) {
	if s.watch, err = openDatabase(filepath.Join(dir, databases()[0]), "mode=ro"); err != nil {
		return err
	}
	s.watch.SetMaxOpenConns(1) // data_version counts the writes of other connections
	s.version, err = s.dataVersion(ctx)
	return err
}

func (s *sandbox) dataVersion(ctx context.Context) (version int64, err error) {
	err = s.watch.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version)
	return version, err
}

// changed reports whether anything was written since the sandbox was opened.
func (s *sandbox) changed(ctx context.Context) (bool, error) {
	version, err := s.dataVersion(ctx)
	return version != s.version, err
}

// close ends the application as the program's end would.
func (s *sandbox) close() error {
	var watchErr error
	if s.watch != nil {
		watchErr = s.watch.Close()
	}
	e := &core.TerminateEvent{App: s.app}
	return errors.Join(watchErr, s.app.OnTerminate().Trigger(e, func(e *core.TerminateEvent) error { return e.App.ClearBootstrap() }))
}
