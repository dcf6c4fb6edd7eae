package health

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// freeSpace is what this user may still write, in bytes.
func freeSpace(path string) (uint64, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, fmt.Errorf("encode %s: %w", path, err)
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, fmt.Errorf("measure %s: %w", path, err)
	}
	return free, nil
}
