//go:build !benchsync

package main

import (
	"github.com/satchelbase/satchel/extensions/store"
)

// storeOptions are what the program decides about its database files.
func storeOptions() store.Options {
	return store.Options{Quiet: quietTables()}
}
