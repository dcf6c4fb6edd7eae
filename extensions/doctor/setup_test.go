package doctor_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/doctor"
	"github.com/satchelbase/satchel/extensions/settings"
)

// setup is what a test changes before the command runs.
type setup struct {
	dir  string
	env  []string
	info doctor.Info
	list []extensions.Extension
	args []string
}

type report struct {
	text string
	exit int
}

type testConfig struct {
	Greeting string `env:"GREETING" default:"hello" help:"a word"`
	Key      string `env:"KEY" secret:"true" help:"a secret"`
}

// examine runs the real command.
func examine(t *testing.T, s setup) report {
	t.Helper()
	all := settings.Load(s.env)
	settings.Section[testConfig](all, "test")
	s.info.Settings = all
	s.info.DataDir = func() string { return s.dir }
	if s.info.Addr == nil {
		s.info.Addr = func() string { return "127.0.0.1:8090" }
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: s.dir})
	h := &extensions.Host{App: app, Version: "test", Logger: slog.New(slog.DiscardHandler)}
	x := doctor.New(func() []extensions.Extension { return s.list }, s.info)

	root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(x.Commands(h)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"doctor"}, s.args...))
	err := root.ExecuteContext(t.Context())
	got := report{text: out.String()}
	var f *cli.Failure
	switch {
	case errors.As(err, &f):
		got.exit = f.Exit
	case err != nil:
		t.Fatalf("doctor: %v", err)
	}
	return got
}

// seeded is a data folder as a stopped server leaves it, with 500 records.
var seeded = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "doctor-seed-*")
	if err != nil {
		return "", err
	}
	app, err := open(dir)
	if err != nil {
		return "", err
	}
	notes := core.NewBaseCollection("notes")
	notes.ListRule, notes.ViewRule = new("@request.auth.id != ''"), new("@request.auth.id != ''")
	notes.Fields.Add(&core.TextField{Name: "title"})
	if err := app.Save(notes); err != nil {
		return "", err
	}
	for i := range 500 {
		r := core.NewRecord(notes)
		r.Set("title", strings.Repeat(fmt.Sprintf("note %d ", i), 20))
		if err := app.Save(r); err != nil {
			return "", err
		}
	}
	return dir, app.ClearBootstrap()
})

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverEnv); dir != "" {
		if err := playServer(dir); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if dir, err := seeded(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func open(dir string) (core.App, error) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if err := app.Bootstrap(); err != nil {
		return nil, err
	}
	return app, app.RunAllMigrations()
}

func dataFolder(t *testing.T) string {
	t.Helper()
	src, err := seeded()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pb_data")
	if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// change opens the folder as the server does.
func change(t *testing.T, dir string, do func(app core.App) error) {
	t.Helper()
	app, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := do(app); err != nil {
		t.Fatal(err)
	}
	if err := app.ClearBootstrap(); err != nil {
		t.Fatal(err)
	}
}

func execute(statement string) func(t *testing.T, s *setup) {
	return func(t *testing.T, s *setup) {
		change(t, s.dir, func(app core.App) error {
			_, err := app.NonconcurrentDB().NewQuery(statement).Execute()
			return err
		})
	}
}

// listing describes every file of a folder, so that any change shows.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) && path == dir {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content []byte
		if !d.IsDir() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintf(&b, "%s %s %s %x\n", path, info.Mode(), info.ModTime().Format(time.RFC3339Nano), crc(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func crc(b []byte) uint32 { return crc32.ChecksumIEEE(b) }

func matchesAny(pattern *regexp.Regexp, lines []string) bool {
	return slices.ContainsFunc(lines, pattern.MatchString)
}

func overwrite(t *testing.T, dir, name string, at int64, with []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(with, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// rawDelete changes the database without the server, which would apply the migration again at once.
func rawDelete(statement string) func(t *testing.T, s *setup) {
	return func(t *testing.T, s *setup) {
		db, err := core.DefaultDBConnect(filepath.Join(s.dir, "data.db"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.NewQuery(statement).Execute(); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
