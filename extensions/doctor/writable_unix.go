//go:build !windows

package doctor

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// writable asks the system whether this user may write to a file or folder, without touching it.
func writable(path string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}
