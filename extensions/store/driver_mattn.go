//go:build mattn

package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/mattn/go-sqlite3"
)

const (
	driverName = "mattn"

	// driverCaches says that the driver below keeps prepared statements itself. This one must: it reads the columns of
	// other statements before their first step, when they may be those of an older schema.
	driverCaches = true
)

// pragmas are those of PocketBase's own connections, in its order, and recursive_triggers, without which REPLACE deletes
// rows past the triggers that record deletions.
func pragmas() []string {
	return []string{
		"busy_timeout=10000", "journal_mode=WAL", "journal_size_limit=200000000", "synchronous=NORMAL", "foreign_keys=ON",
		"temp_store=MEMORY", "cache_size=-32000", "recursive_triggers=ON",
	}
}

// dial opens a connection of the SQLite driver. Unlike the default driver it cannot switch SQLite's defensive mode on.
func dial(ctx context.Context, path string) (link, error) {
	conn, err := (&sqlite3.SQLiteDriver{}).Open("file:" + path + "?_stmt_cache_size=128")
	if err != nil {
		return nil, err
	}
	l, ok := conn.(link)
	if !ok {
		return nil, fmt.Errorf("connection %T lacks a method", conn)
	}
	for _, p := range pragmas() {
		if _, err := l.ExecContext(ctx, "PRAGMA "+p, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("set %s: %w", p, err), l.Close())
		}
	}
	return l, nil
}

// watch reports commits and rollbacks of the connection, also those that SQLite decides on. Nil functions end it.
func watch(l link, committed, rolledBack func()) {
	conn, ok := l.(*sqlite3.SQLiteConn)
	if !ok {
		return
	}
	if committed == nil {
		conn.RegisterCommitHook(nil)
		conn.RegisterRollbackHook(nil)
		return
	}
	conn.RegisterCommitHook(func() int { committed(); return 0 })
	conn.RegisterRollbackHook(rolledBack)
}

// resultCode is SQLite's extended result code behind an error.
func resultCode(err error) (int, bool) {
	if e, ok := errors.AsType[sqlite3.Error](err); ok {
		return int(e.ExtendedCode), true
	}
	return 0, false
}
