package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/secret"
)

func TestParseKey(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0xff, 0x00, 0x3e}, 8)
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"base64":              {base64.StdEncoding.EncodeToString(key), true},
		"base64, no padding":  {base64.RawStdEncoding.EncodeToString(key), true},
		"base64url":           {base64.URLEncoding.EncodeToString(key), true},
		"base64url, unpadded": {base64.RawURLEncoding.EncodeToString(key), true},
		"hexadecimal":         {hex.EncodeToString(key), true},
		"HEXADECIMAL":         {strings.ToUpper(hex.EncodeToString(key)), true},
		"with a line end":     {"  " + secret.FormatKey(key) + "\r\n", true},
		"empty":               {"", false},
		"a password":          {"correct-horse-battery", false},
		"31 bytes":            {base64.StdEncoding.EncodeToString(key[1:]), false},
		"33 bytes":            {base64.StdEncoding.EncodeToString(append(key, 1)), false},
		"16 bytes in hex":     {hex.EncodeToString(key[:16]), false},
		"broken lines":        {secret.FormatKey(key)[:20] + "\n" + secret.FormatKey(key)[20:], false},
		"zeros":               {strings.Repeat("0", 64), false},
		"a placeholder":       {base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'x'}, 32)), false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := secret.ParseKey(c.text)
			if (err == nil) != c.ok || c.ok && !bytes.Equal(got, key) {
				t.Errorf("read %x, %v", got, err)
			}
			if err != nil && len(c.text) > 8 && strings.Contains(err.Error(), c.text[:8]) {
				t.Errorf("the error holds the text: %v", err)
			}
		})
	}
}

func TestRoot(t *testing.T) {
	master, other, root := secret.NewKey(), secret.NewKey(), secret.NewKey()
	sealed, err := secret.SealRoot(master, root)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := secret.OpenRoot(master, sealed); err != nil || !bytes.Equal(got, root) {
		t.Errorf("the root key came back as %x, %v", got, err)
	}
	if _, err := secret.OpenRoot(other, sealed); !errors.Is(err, secret.ErrOtherKey) {
		t.Errorf("another master key: %v", err)
	}
	if _, err := secret.OpenRoot(master, sealed[:len(sealed)-2]); !errors.Is(err, secret.ErrDamaged) {
		t.Errorf("a cut value: %v", err)
	}
	short, err := secret.SealRoot(master, root[:8])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secret.OpenRoot(master, short); !errors.Is(err, secret.ErrDamaged) {
		t.Errorf("a short root key: %v", err)
	}
	// What one key seals as a value is no root key, and the other way round.
	if _, err := secret.Fixed(master).Open("secrets_keys|sealed|root", sealed); err == nil {
		t.Error("a root key opens as a value")
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "satchel.key")
	if _, err := secret.ReadKeyFile(path, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	key := secret.NewKey()
	if err := secret.WriteKeyFile(path, key); err != nil {
		t.Fatal(err)
	}
	if got, err := secret.ReadKeyFile(path, true); err != nil || !bytes.Equal(got, key) {
		t.Errorf("read %x, %v", got, err)
	}
	if err := secret.WriteKeyFile(path, secret.NewKey()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing file: %v", err)
	}
	if got, err := secret.ReadKeyFile(path, true); err != nil || !bytes.Equal(got, key) {
		t.Errorf("the file was replaced: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("files are left behind: %v, %v", left, err)
	}
	if err := secret.WriteKeyFile(filepath.Join(dir, "none", "satchel.key"), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if err := os.WriteFile(path, []byte("hunter2 is not a key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := secret.ReadKeyFile(path, true); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), path) {
		t.Errorf("not a key: %v", err)
	}
}

func TestKeyFileOfOthers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such rights")
	}
	path := filepath.Join(t.TempDir(), "satchel.key")
	if err := secret.WriteKeyFile(path, secret.NewKey()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := secret.ReadKeyFile(path, true); !errors.Is(err, secret.ErrExposed) {
			t.Errorf("mode %v: %v", mode, err)
		}
		if _, err := secret.ReadKeyFile(path, false); err != nil {
			t.Errorf("mode %v, not private: %v", mode, err)
		}
	}
}

// Of many that make the file at once, one wins, and all read its key.
func TestKeyFileRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "satchel.key")
	keys := make([][]byte, 8)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			if err := secret.WriteKeyFile(path, secret.NewKey()); err != nil && !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
			var err error
			if keys[i], err = secret.ReadKeyFile(path, true); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, key := range keys {
		if !bytes.Equal(key, keys[0]) {
			t.Fatal("two read different keys")
		}
	}
}

func TestInside(t *testing.T) {
	root := t.TempDir()
	data := filepath.Join(root, "pb_data")
	if err := os.MkdirAll(filepath.Join(data, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(root, "link")
	if err := os.Symlink(filepath.Join(data, "deep"), link); err != nil {
		t.Skip("links cannot be made here: ", err)
	}
	for path, want := range map[string]bool{
		filepath.Join(root, "satchel.key"):               false,
		filepath.Join(root, "pb_data.key"):               false,
		filepath.Join(root, "pb_data2", "satchel.key"):   false,
		filepath.Join(data, "..", "satchel.key"):         false,
		filepath.Join(data, "satchel.key"):               true,
		filepath.Join(data, "..satchel.key"):             true,
		filepath.Join(data, "new", "folder", "key"):      true,
		filepath.Join(link, "satchel.key"):               true,
		filepath.Join(root, "pb_data", ".", "deep", "k"): true,
	} {
		if got, err := secret.Inside(path, data); err != nil || got != want {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
	if got, err := secret.Inside(filepath.Join(root, "none", "key"), filepath.Join(root, "none")); err != nil || !got {
		t.Errorf("a folder that does not exist yet: %v, %v", got, err)
	}
}
