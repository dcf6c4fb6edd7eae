//go:build benchsync

package main

import (
	"os"
	"time"

	"github.com/satchelbase/satchel/extensions/store"
)

// storeOptions of the benchmark's build make every sync slower by BENCH_SYNC_DELAY, as a slow disk would be.
func storeOptions() store.Options {
	delay, err := time.ParseDuration(os.Getenv("BENCH_SYNC_DELAY"))
	if err != nil {
		panic(err)
	}
	return store.Options{Quiet: quietTables(), Sync: func(f *os.File) error {
		time.Sleep(delay)
		return f.Sync()
	}}
}
