package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/satchelbase/satchel/extensions/store/statement"
)

// link is what a connection of a SQLite driver must offer.
type link interface {
	driver.Conn
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
}

// connection is a real SQLite connection with its statement cache. It serves one goroutine at a time.
type connection struct {
	link
	file  *file
	cache statements

	committed  bool // SQLite has committed a write transaction since this was reset
	rolledBack bool // SQLite has rolled a transaction back since this was reset
	suspect    bool // a statement has failed: the connection may still carry an interrupt
	broken     bool // nothing is known about its transaction
}

// connect opens a connection to the file.
func (f *file) connect(ctx context.Context) (*connection, error) {
	l, err := dial(ctx, f.path)
	if err != nil {
		return nil, mapped(fmt.Errorf("open %s: %w", f.path, err))
	}
	c := &connection{link: l, file: f}
	watch(l, func() { c.committed = true }, func() { c.rolledBack = true })
	return c, nil
}

// Close ends the connection and its statements.
func (c *connection) Close() error {
	c.cache.clear()
	watch(c.link, nil, nil)
	return c.link.Close()
}

// statement returns the cached statement for the text, or nil if the text is to run without one.
func (c *connection) statement(ctx context.Context, text string, st statement.Statement) (*prepared, error) {
	if driverCaches || !st.Cacheable() {
		return nil, nil
	}
	if p := c.cache.get(text); p != nil {
		if p.busy {
			return nil, nil
		}
		c.file.hits.Add(1)
		return p, nil
	}
	c.file.misses.Add(1)
	if !c.file.seen.Again(text) {
		return nil, nil
	}
	stmt, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	p := c.cache.add(text, stmt)
	if p == nil {
		return nil, stmt.Close()
	}
	return p, nil
}

func (c *connection) exec(ctx context.Context, text string, st statement.Statement, args []driver.NamedValue) (driver.Result, error) {
	p, err := c.statement(ctx, text, st)
	if err != nil {
		return nil, c.failed(nil, err)
	}
	if p == nil {
		result, err := c.ExecContext(ctx, text, args)
		return result, c.failed(nil, err)
	}
	run, ok := p.Stmt.(driver.StmtExecContext)
	if !ok {
		return nil, fmt.Errorf("statement %T lacks ExecContext", p.Stmt)
	}
	result, err := run.ExecContext(ctx, args)
	return result, c.failed(p, err)
}

// query returns rows that give their statement back when they are closed.
func (c *connection) query(ctx context.Context, text string, st statement.Statement, args []driver.NamedValue) (driver.Rows, *prepared, error) {
	p, err := c.statement(ctx, text, st)
	if err != nil {
		return nil, nil, c.failed(nil, err)
	}
	if p == nil {
		r, err := c.QueryContext(ctx, text, args)
		return r, nil, c.failed(nil, err)
	}
	run, ok := p.Stmt.(driver.StmtQueryContext)
	if !ok {
		return nil, nil, fmt.Errorf("statement %T lacks QueryContext", p.Stmt)
	}
	r, err := run.QueryContext(ctx, args)
	if err != nil {
		return nil, nil, c.failed(p, err)
	}
	p.busy = true
	return r, p, nil
}

// failed notes that a statement went wrong. A cached one is not trusted any more.
func (c *connection) failed(p *prepared, err error) error {
	if err == nil {
		return nil
	}
	c.suspect = true
	if p != nil {
		c.cache.drop(p)
	}
	return err
}

// run executes a statement of the driver's own.
func (c *connection) run(ctx context.Context, text string) error {
	_, err := c.exec(ctx, text, statement.Statement{Verb: statement.Read}, nil)
	return err
}

// alive makes sure that an interrupt meant for an earlier statement cannot hit the next one, and reports whether the
// connection is good. SQLite clears the mark of an interrupt when a statement starts while no other runs.
func (c *connection) alive(ctx context.Context) bool {
	if c.broken || !c.suspect {
		return !c.broken
	}
	c.suspect = false
	v, ok := c.link.(driver.Validator)
	if !ok || v.IsValid() {
		return true
	}
	_, err := c.number(ctx, "SELECT 1")
	return err == nil && v.IsValid()
}

// number reads one integer.
func (c *connection) number(ctx context.Context, text string) (int64, error) {
	r, p, err := c.query(ctx, text, statement.Statement{Verb: statement.Read}, nil)
	if err != nil {
		return 0, err
	}
	defer func() {
		if p != nil {
			p.busy = false
		}
	}()
	value := make([]driver.Value, len(r.Columns()))
	if err := r.Next(value); err != nil && !errors.Is(err, io.EOF) {
		return 0, errors.Join(err, r.Close())
	}
	n, ok := value[0].(int64)
	if !ok {
		return 0, errors.Join(fmt.Errorf("%s answered %v", text, value[0]), r.Close())
	}
	return n, r.Close()
}
