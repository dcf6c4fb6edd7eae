package doctor

import (
	"io/fs"
	"os"
)

// writable reports the read-only attribute; what access lists forbid shows only when the server writes.
func writable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o200 == 0 {
		return &fs.PathError{Op: "access", Path: path, Err: fs.ErrPermission}
	}
	return nil
}
