//go:build !unix

package queue

import "time"

// processCPU is not known: the benchmark needs Linux.
func processCPU() time.Duration { return 0 }
