// Package slowsync opens SQLite databases on a disk that seems slower than it is: every commit that has something to
// make durable takes longer, while it still holds the write lock, as a slow fsync does. It serves the rows about
// durable writes and nothing else.
package slowsync

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver below
)

// Open returns a database on modernc's driver whose commits take delay longer. The pragmas of dsn decide what a commit
// is: with synchronous(FULL) each one also waits for the real disk.
func Open(dsn string, delay time.Duration) (*sql.DB, error) {
	plain, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	defer func() { _ = plain.Close() }() // it has not connected; only its driver is wanted
	return sql.OpenDB(connector{dsn: dsn, delay: delay, driver: plain.Driver()}), nil
}

type connector struct {
	dsn    string
	delay  time.Duration
	driver driver.Driver
}

// Driver is the wrapped driver.
func (c connector) Driver() driver.Driver { return c.driver }

// Connect opens one connection.
func (c connector) Connect(context.Context) (driver.Conn, error) {
	inner, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	full, ok := inner.(sqliteConn)
	if !ok {
		_ = inner.Close() // the other error says more
		return nil, fmt.Errorf("a %T lacks methods that database/sql uses", inner)
	}
	return &conn{sqliteConn: full, delay: c.delay}, nil
}

// sqliteConn is what modernc's connections can do.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// conn is used by one goroutine at a time, as database/sql promises.
type conn struct {
	sqliteConn
	delay  time.Duration
	inTx   bool
	unsync bool // the transaction has written
}

// BeginTx starts a transaction.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	inner, err := c.sqliteConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.inTx, c.unsync = true, false
	return tx{Tx: inner, conn: c}, nil
}

// ExecContext runs a statement; outside a transaction a write commits at once.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.sqliteConn.ExecContext(ctx, query, args)
	c.wrote(query, err)
	return result, err
}

// PrepareContext prepares a statement that counts as ExecContext does.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	inner, err := c.sqliteConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	full, ok := inner.(sqliteStmt)
	if !ok {
		_ = inner.Close() // the other error says more
		return nil, fmt.Errorf("a %T lacks methods that database/sql uses", inner)
	}
	return &stmt{sqliteStmt: full, conn: c, query: query}, nil
}

// wrote notes a write, or waits when it has been its own transaction. The caller holds the connection meanwhile; both
// rivals have one for writing, so that nobody else writes either.
func (c *conn) wrote(query string, err error) {
	switch {
	case err != nil || !writes(query):
	case c.inTx:
		c.unsync = true
	default:
		time.Sleep(c.delay)
	}
}

func writes(query string) bool {
	word, _, _ := strings.Cut(strings.TrimSpace(query), " ")
	return slices.Contains([]string{"INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "ALTER", "DROP"}, strings.ToUpper(word))
}

type sqliteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type stmt struct {
	sqliteStmt
	conn  *conn
	query string
}

// ExecContext runs the statement.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	result, err := s.sqliteStmt.ExecContext(ctx, args)
	s.conn.wrote(s.query, err)
	return result, err
}

type tx struct {
	driver.Tx
	conn *conn
}

// Commit waits before the commit, because the write lock is free after it.
func (t tx) Commit() error {
	t.conn.inTx = false
	if t.conn.unsync {
		time.Sleep(t.conn.delay)
	}
	return t.Tx.Commit()
}

// Rollback leaves nothing to make durable.
func (t tx) Rollback() error {
	t.conn.inTx = false
	return t.Tx.Rollback()
}
