//go:build !windows

package presence

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lock tries to lock the file for as long as it is open. It does not wait.
func lock(file *os.File) (bool, error) {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
