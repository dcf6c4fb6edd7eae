//go:build unix

package queue

import (
	"syscall"
	"time"
)

// processCPU is the processor time of this process without its children, which may be servers under test.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
