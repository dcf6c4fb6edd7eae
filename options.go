//go:build !benchsync

package main

import (
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/sync"
)

// storeOptions are what the program decides about its database files.
func storeOptions() store.Options {
	return store.Options{Quiet: append(changes.Tables(), sync.Tables()...)}
}
