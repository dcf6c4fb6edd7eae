//go:build !windows

package health

import (
	"fmt"
	"syscall"
)

// freeSpace is what an unprivileged user may still write, in bytes.
func freeSpace(path string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:unconvert // the types differ between systems; both are sizes
}
