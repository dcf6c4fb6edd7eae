package secrets_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/secrets"
)

const place = "a|b|c"

// Other packages need one line to have a vault in their tests.
func TestVaultInTests(t *testing.T) {
	for name, v := range map[string]*secret.Vault{"new": secret.New(), "fixed": secret.Fixed([]byte("a root key"))} {
		t.Run(name, func(t *testing.T) {
			apptest.New(t, secrets.New(secrets.Config{}, v))
			sealed, err := v.Seal(place, []byte("hunter2"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := v.Open(place, sealed); err != nil || string(got) != "hunter2" {
				t.Errorf("opened %q, %v", got, err)
			}
		})
	}
}

// installation is an empty place for a data folder and a key.
type installation struct {
	t    *testing.T
	root string
}

func newInstallation(t *testing.T) installation {
	t.Helper()
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	return installation{t, t.TempDir()}
}

func (i installation) dataDir() string { return filepath.Join(i.root, "pb_data") }
func (i installation) keyFile() string { return filepath.Join(i.root, "satchel.key") }

// process is one run of the program in the installation.
type process struct {
	*installation
	host  *extensions.Host
	x     extensions.Extension
	vault *secret.Vault
	log   *bytes.Buffer
}

// run opens the application; it is closed with the test.
func (i installation) run(cfg secrets.Config, production bool) process {
	i.t.Helper()
	p := i.closed(cfg, production)
	if err := p.host.App.Bootstrap(); err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { _ = p.host.App.ClearBootstrap() })
	return p
}

func (i installation) closed(cfg secrets.Config, production bool) process {
	i.t.Helper()
	p := process{installation: &i, vault: secrets.NewVault(), log: new(bytes.Buffer)}
	p.x = secrets.New(cfg, p.vault)
	p.host = &extensions.Host{
		App: core.NewBaseApp(core.BaseAppConfig{DataDir: i.dataDir()}), Production: production,
		Logger: slog.New(slog.NewTextHandler(p.log, nil)),
	}
	if err := extensions.Install(p.host, []extensions.Extension{p.x}); err != nil {
		i.t.Fatal(err)
	}
	return p
}

// serve is what the start of the server does.
func (p process) serve() error { return p.x.Serve(p.host, nil) }

// check is the line of doctor.
func (p process) check() extensions.Result { return p.x.Checks[0].Run(p.t.Context(), p.host) }

// stored is the sealed root key.
func (p process) stored() string {
	p.t.Helper()
	var rows []string
	if err := p.host.App.DB().NewQuery("SELECT sealed FROM secrets_keys").Column(&rows); err != nil {
		p.t.Fatal(err)
	}
	return strings.Join(rows, "\n")
}

// refused asserts that the program would end with three lines and exit code 3, and that none of them holds a key.
func refused(t *testing.T, err error, words string, keys ...secrets.Key) {
	t.Helper()
	f, ok := errors.AsType[*cli.Failure](err)
	if !ok || f.Exit != cli.ExitChecks || f.What == "" || f.Why == "" || f.Next == "" {
		t.Fatalf("want a refusal with reason and next step, got %v", err)
	}
	if !strings.Contains(f.Error(), words) {
		t.Errorf("the refusal lacks %q: %v", words, f)
	}
	for _, key := range keys {
		if strings.Contains(f.Error(), string(key)) {
			t.Errorf("the refusal holds the key: %v", f)
		}
	}
}

func newKey() secrets.Key { return secrets.Key(secret.FormatKey(secret.NewKey())) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func TestDevelopmentMakesAKey(t *testing.T) {
	i := newInstallation(t)
	first := i.run(secrets.Config{}, false)
	if exists(i.keyFile()) || first.stored() != "" {
		t.Error("opening the database made a key that nobody used")
	}
	if err := first.serve(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(i.keyFile())
	if err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Fatalf("the key file: %v, %v", info, err)
	}
	text, err := os.ReadFile(i.keyFile())
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(string(text))
	if log := first.log.String(); strings.Contains(log, key) || !strings.Contains(log, "satchel.key") {
		t.Errorf("logged %s", log)
	}
	sealed, err := first.vault.Seal(place, []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}

	// The next run, and production, find the key and the same root.
	for _, production := range []bool{false, true} {
		next := i.run(secrets.Config{}, production)
		if err := next.serve(); err != nil {
			t.Fatal(err)
		}
		if got, err := next.vault.Open(place, sealed); err != nil || string(got) != "hunter2" {
			t.Errorf("the next run opened %q, %v", got, err)
		}
		if !bytes.Equal(next.vault.Key("x"), first.vault.Key("x")) {
			t.Error("the next run derived another key")
		}
	}
}

func TestProductionMakesNone(t *testing.T) {
	i := newInstallation(t)
	p := i.run(secrets.Config{}, true)
	refused(t, p.serve(), "satchel secrets generate --out "+i.keyFile())
	if _, err := p.vault.Seal(place, nil); err == nil {
		t.Error("a vault without a key sealed a value")
	}
	if exists(i.keyFile()) || p.stored() != "" {
		t.Error("a refused start made a key")
	}
	if r := p.check(); r.Level != extensions.Fail || !strings.Contains(r.Next, "generate") {
		t.Errorf("doctor says %+v", r)
	}
	if err := secret.WriteKeyFile(i.keyFile(), secret.NewKey()); err != nil {
		t.Fatal(err)
	}
	if err := p.serve(); err != nil {
		t.Errorf("with the operator's file: %v", err)
	}
}

// Where something is sealed, a missing or wrong key stops the program in every mode, and nothing is made or changed.
func TestWrongKey(t *testing.T) {
	for _, production := range []bool{false, true} {
		t.Run(fmt.Sprintf("production %v", production), func(t *testing.T) {
			i := newInstallation(t)
			right, wrong := newKey(), newKey()
			p := i.run(secrets.Config{MasterKey: right}, production)
			if err := p.serve(); err != nil {
				t.Fatal(err)
			}
			before := p.stored()

			missing := i.run(secrets.Config{}, production)
			refused(t, missing.serve(), "is missing", right)
			other := i.run(secrets.Config{MasterKey: wrong}, production)
			refused(t, other.serve(), "SATCHEL_MASTER_KEY", right, wrong)
			if exists(i.keyFile()) || other.stored() != before {
				t.Error("a refused start made or changed a key")
			}
			for _, p := range []process{missing, other} {
				if r := p.check(); r.Level != extensions.Fail || r.Next == "" {
					t.Errorf("doctor says %+v", r)
				}
			}
			if err := secret.WriteKeyFile(i.keyFile(), secret.NewKey()); err != nil {
				t.Fatal(err)
			}
			refused(t, i.run(secrets.Config{}, production).serve(), i.keyFile())

			again := i.run(secrets.Config{MasterKey: right}, production)
			if err := again.serve(); err != nil {
				t.Errorf("the right key: %v", err)
			}
			if r := again.check(); r.Level != extensions.OK {
				t.Errorf("doctor says %+v", r)
			}
		})
	}
}

func TestDamagedRoot(t *testing.T) {
	i := newInstallation(t)
	p := i.run(secrets.Config{}, false)
	if err := p.serve(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.host.App.DB().NewQuery("UPDATE secrets_keys SET sealed = substr(sealed, 1, 40)").Execute(); err != nil {
		t.Fatal(err)
	}
	damaged := p.stored()
	refused(t, i.run(secrets.Config{}, false).serve(), "cannot be opened")
	if p.stored() != damaged {
		t.Error("the damaged value was replaced")
	}
}

// A crash after the key file was made and before the root key was stored leaves what the next start continues.
func TestCrashBetweenKeyAndRoot(t *testing.T) {
	i := newInstallation(t)
	if err := os.Mkdir(i.dataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	key := secret.NewKey()
	if err := secret.WriteKeyFile(i.keyFile(), key); err != nil {
		t.Fatal(err)
	}
	p := i.run(secrets.Config{}, false)
	if err := p.serve(); err != nil {
		t.Fatal(err)
	}
	if _, err := secret.OpenRoot(key, p.stored()); err != nil {
		t.Errorf("the root key is sealed under another key: %v", err)
	}
}

// Two programs that start on a new folder at once agree on one key.
func TestFirstStartsTogether(t *testing.T) {
	i := newInstallation(t)
	processes := []process{i.run(secrets.Config{}, false), i.run(secrets.Config{}, false), i.run(secrets.Config{}, false)}
	var group sync.WaitGroup
	for _, p := range processes {
		group.Go(func() {
			if err := p.serve(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, p := range processes {
		if !bytes.Equal(p.vault.Key("x"), processes[0].vault.Key("x")) {
			t.Error("two processes have different root keys")
		}
	}
}

// A backup opens nothing: PocketBase packs the data folder, and the key is not in it.
func TestBackupLacksTheKey(t *testing.T) {
	i := newInstallation(t)
	p := i.run(secrets.Config{}, false)
	if err := p.serve(); err != nil {
		t.Fatal(err)
	}
	if err := p.host.App.CreateBackup(t.Context(), "test.zip"); err != nil {
		t.Fatal(err)
	}
	archive, err := zip.OpenReader(filepath.Join(i.dataDir(), "backups", "test.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	text, err := os.ReadFile(i.keyFile())
	if err != nil {
		t.Fatal(err)
	}
	key, err := secret.ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	databases := 0
	for _, f := range archive.File {
		if f.Name == "data.db" {
			databases++
		}
		if strings.Contains(f.Name, "satchel.key") {
			t.Errorf("the backup has %s", f.Name)
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, bytes.TrimSpace(text)) || bytes.Contains(content, key) {
			t.Errorf("%s in the backup holds the key", f.Name)
		}
	}
	if databases != 1 {
		t.Errorf("the backup has %d databases: the test looks at the wrong file", databases)
	}
}

// An application on a copy opens what is sealed with the key of the original, and makes none.
func TestSandbox(t *testing.T) {
	i := newInstallation(t)
	copied := newInstallation(t)
	cfg := secrets.Config{}.Sandbox(i.dataDir())
	unsealed := copied.run(cfg, true)
	if _, err := unsealed.vault.Seal(place, []byte("hunter2")); err != nil {
		t.Errorf("without any key: %v", err)
	}
	if exists(i.keyFile()) || exists(copied.keyFile()) || unsealed.stored() != "" {
		t.Error("a copy made a key")
	}

	p := i.run(secrets.Config{}, false)
	sealed, err := p.vault.Seal(place, []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.host.App.ClearBootstrap(); err != nil {
		t.Fatal(err)
	}
	target := newInstallation(t)
	if err := os.CopyFS(target.dataDir(), os.DirFS(i.dataDir())); err != nil {
		t.Fatal(err)
	}
	if got, err := target.run(cfg, false).vault.Open(place, sealed); err != nil || string(got) != "hunter2" {
		t.Errorf("the copy opened %q, %v", got, err)
	}
	if exists(target.keyFile()) {
		t.Error("a copy made a key")
	}
}

// The check needs no open database and leaves no trace.
func TestOfflineCheck(t *testing.T) {
	i := newInstallation(t)
	if r := i.closed(secrets.Config{}, false).check(); r.Level != extensions.Info || !strings.Contains(r.Message, "first start makes") {
		t.Errorf("before the first start: %+v", r)
	}
	if exists(i.dataDir()) || exists(i.keyFile()) {
		t.Error("the check made something")
	}
	if r := i.closed(secrets.Config{}, true).check(); r.Level != extensions.Fail {
		t.Errorf("production without a key: %+v", r)
	}
	key := newKey()
	if r := i.closed(secrets.Config{MasterKey: key}, true).check(); r.Level != extensions.Info || !strings.Contains(r.Message, "nothing is sealed yet") {
		t.Errorf("production with a key: %+v", r)
	}
	p := i.run(secrets.Config{MasterKey: key}, true)
	if err := p.serve(); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"while it runs", "after it"} {
		if r := i.closed(secrets.Config{MasterKey: key}, true).check(); r.Level != extensions.OK {
			t.Errorf("%s, right key: %+v", state, r)
		}
		if r := i.closed(secrets.Config{MasterKey: newKey()}, true).check(); r.Level != extensions.Fail {
			t.Errorf("%s, wrong key: %+v", state, r)
		}
		if r := i.closed(secrets.Config{}, false).check(); r.Level != extensions.Fail {
			t.Errorf("%s, no key: %+v", state, r)
		}
		if err := p.host.App.ClearBootstrap(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeyDoesNotPrint(t *testing.T) {
	key := newKey()
	printed := fmt.Sprintf("%v %+v %#v %s %q", key, secrets.Config{MasterKey: key, Previous: key}, secrets.Config{Previous: key}, key, key)
	if strings.Contains(printed, string(key)) {
		t.Error(printed)
	}
	var line bytes.Buffer
	slog.New(slog.NewJSONHandler(&line, nil)).Info("x", slog.Any("key", key), slog.Any("cfg", secrets.Config{MasterKey: key}))
	if strings.Contains(line.String(), string(key)) {
		t.Error(line.String())
	}
}
