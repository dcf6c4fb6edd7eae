package secret

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// ErrExposed says that others than the owner may read or write a key file.
var ErrExposed = errors.New("other users may read or write it")

// maxKeyFile bounds what is read of a key file, in bytes; a key in hexadecimal has 64.
const maxKeyFile = 1024

// ReadKeyFile reads the master key from a file. With private, a file that its group or others have any right to is
// refused with [ErrExposed]; Windows has no such rights. A file that does not exist is fs.ErrNotExist. Errors do not hold
// what the file holds.
func ReadKeyFile(path string, private bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read master key: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read master key: %w", err)
	}
	if private && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s has mode %04o: %w", path, info.Mode().Perm(), ErrExposed)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read master key: %w", err)
	}
	key, err := ParseKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return key, nil
}

// WriteKeyFile makes a key file for its owner alone and makes it durable. It never replaces a file: one that exists is
// fs.ErrExist. Where the file system has hard links, the file appears under its name whole or not at all, also when the
// machine stops in the middle.
func WriteKeyFile(path string, key []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".satchel.key.*") // O_EXCL and 0600
	if err != nil {
		return fmt.Errorf("create key file: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // a second name of the key, or the rest of a failure
	if err := fill(f, key); err != nil {
		return err
	}
	err = os.Link(f.Name(), path) // unlike a rename, it replaces nothing
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = createKeyFile(path, key)
	}
	if err != nil {
		return fmt.Errorf("create key file: %w", err)
	}
	return syncDir(dir)
}

// createKeyFile is for file systems without hard links.
func createKeyFile(path string, key []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return fill(f, key)
}

// fill writes the key to a new file and closes it.
func fill(f *os.File, key []byte) error {
	_, err := f.WriteString(FormatKey(key) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return nil
}

// syncDir makes the names in a folder durable. Windows cannot and need not.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder of the key file: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder of the key file: %w", err)
	}
	return nil
}

// Inside reports whether path lies in the folder dir or below, as far as both exist after following links. Backups hold
// all of the data folder, so the key must not be there.
func Inside(path, dir string) (bool, error) {
	real, err := resolve(path)
	if err != nil {
		return false, err
	}
	folder, err := resolve(dir)
	if err != nil {
		return false, err
	}
	rel, err := filepath.Rel(folder, real)
	if err != nil {
		return false, nil //nolint:nilerr // on different drives
	}
	return filepath.IsLocal(rel), nil
}

// resolve follows the links of the part of path that exists.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve path: %w", err)
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return "", fmt.Errorf("resolve path: %w", err)
		}
		path, rest = parent, filepath.Join(filepath.Base(path), rest)
	}
}
