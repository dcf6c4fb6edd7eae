//go:build !mattn

package store

import (
	"context"
	"errors"
	"fmt"

	sqlite "modernc.org/sqlite"
)

const (
	driverName = "modernc"

	// driverCaches says that the driver below keeps prepared statements itself.
	driverCaches = false

	// parameters are those of PocketBase's own connections and recursive_triggers, without which REPLACE deletes rows
	// past the triggers that record deletions. busy_timeout is first: setting the journal mode may already have to wait
	// for another connection.
	parameters = "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=journal_size_limit(200000000)" +
		"&_pragma=synchronous(NORMAL)&_pragma=recursive_triggers(ON)&_pragma=foreign_keys(ON)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-32000)&_defensive=1"
)

// dial opens a connection of the SQLite driver.
func dial(ctx context.Context, path string) (link, error) {
	connector, err := sqlite.NewConnector(path + parameters)
	if err != nil {
		return nil, err
	}
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	l, ok := conn.(link)
	if !ok {
		return nil, fmt.Errorf("connection %T lacks a method", conn)
	}
	return l, nil
}

// watch reports commits and rollbacks of the connection, also those that SQLite decides on. Nil functions end it.
func watch(l link, committed, rolledBack func()) {
	hooks, ok := l.(sqlite.HookRegisterer)
	if !ok {
		return
	}
	if committed == nil {
		hooks.RegisterCommitHook(nil)
		hooks.RegisterRollbackHook(nil)
		return
	}
	hooks.RegisterCommitHook(func() int32 { committed(); return 0 })
	hooks.RegisterRollbackHook(rolledBack)
}

// resultCode is SQLite's extended result code behind an error.
func resultCode(err error) (int, bool) {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code(), true
	}
	return 0, false
}
