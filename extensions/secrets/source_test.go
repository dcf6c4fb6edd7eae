package secrets_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/secrets"
)

// The environment wins over the credential, and that over the file.
func TestOrderOfSources(t *testing.T) {
	i := newInstallation(t)
	credentials := t.TempDir()
	file, credential, environment := secret.NewKey(), secret.NewKey(), newKey()
	if err := secret.WriteKeyFile(i.keyFile(), file); err != nil {
		t.Fatal(err)
	}
	sealedUnder := func(cfg secrets.Config) string {
		t.Helper()
		p := i.run(cfg, true)
		if _, err := p.host.App.DB().NewQuery("DELETE FROM secrets_keys").Execute(); err != nil {
			t.Fatal(err)
		}
		if err := p.serve(); err != nil {
			t.Fatal(err)
		}
		return p.stored()
	}
	opens := func(key []byte, sealed string) {
		t.Helper()
		if _, err := secret.OpenRoot(key, sealed); err != nil {
			t.Error(err)
		}
	}
	opens(file, sealedUnder(secrets.Config{}))
	t.Setenv("CREDENTIALS_DIRECTORY", credentials) // without the credential
	opens(file, sealedUnder(secrets.Config{}))
	if err := os.WriteFile(filepath.Join(credentials, "satchel.key"), []byte(secret.FormatKey(credential)+"\n"), 0o440); err != nil {
		t.Fatal(err)
	}
	opens(credential, sealedUnder(secrets.Config{}))
	given, err := secret.ParseKey(string(environment))
	if err != nil {
		t.Fatal(err)
	}
	opens(given, sealedUnder(secrets.Config{MasterKey: environment}))
	if err := os.Remove(filepath.Join(credentials, "satchel.key")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(credentials, "satchel.key"), []byte("hunter2"), 0o440); err != nil {
		t.Fatal(err)
	}
	refused(t, i.run(secrets.Config{}, true).serve(), "LoadCredential", "hunter2")
}

func TestUnusableFiles(t *testing.T) {
	write := func(t *testing.T, path, text string, mode fs.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	key := newKey()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, i installation) secrets.Config
		words   string
	}{
		"readable by others": {func(t *testing.T, i installation) secrets.Config {
			if runtime.GOOS == "windows" {
				t.Skip("Windows has no such rights")
			}
			write(t, i.keyFile(), string(key), 0o644)
			return secrets.Config{}
		}, "chmod 600"},
		"not a key": {func(t *testing.T, i installation) secrets.Config {
			write(t, i.keyFile(), "hunter2", 0o600)
			return secrets.Config{}
		}, "32 random bytes"},
		"in the data folder": {func(t *testing.T, i installation) secrets.Config {
			path := filepath.Join(i.dataDir(), "satchel.key")
			write(t, path, string(key), 0o600)
			return secrets.Config{KeyFile: path}
		}, "part of every backup"},
		"made in the data folder": {func(_ *testing.T, i installation) secrets.Config {
			return secrets.Config{KeyFile: filepath.Join(i.dataDir(), "satchel.key")}
		}, "part of every backup"},
		"named in the data folder": {func(_ *testing.T, i installation) secrets.Config {
			return secrets.Config{MasterKey: key, MasterKeyFile: filepath.Join(i.dataDir(), "key")}
		}, "part of every backup"},
		"no place for it": {func(_ *testing.T, i installation) secrets.Config {
			return secrets.Config{KeyFile: filepath.Join(i.root, "none", "satchel.key")}
		}, "SATCHEL_MASTER_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			if err := os.Mkdir(i.dataDir(), 0o700); err != nil {
				t.Fatal(err)
			}
			p := i.run(c.prepare(t, i), false)
			refused(t, p.serve(), c.words, key, "hunter2")
			if p.stored() != "" {
				t.Error("a root key was made")
			}
		})
	}
}
