package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"

	"github.com/satchelbase/satchel/extensions/store/statement"
)

// errNested: SQLite has one transaction per connection.
var errNested = errors.New("cannot start a transaction within a transaction")

// errDangling refuses a transaction that its statement leaves open on the shared connection.
var errDangling = errors.New("the statement left a transaction open and it was rolled back; start it with Begin")

// session is the connection that database/sql sees. A session of the read pool has a connection of its own. A session of
// the write pool has none: it borrows the file's writing connection for one statement or one transaction, in the order
// of arrival, and gives it back before it waits for the fsync. So many sessions can wait while the next one writes, and
// there is still one page cache, one statement cache and one set of connection settings, as in stock PocketBase.
type session struct {
	file *file
	own  *connection // nil in the write pool

	lease bool // holds the file's gate
	tx    bool
	ended error  // why SQLite has ended the transaction before its Commit
	wrote bool   // the transaction has executed a statement that may write
	dirty change // of the data of collections
	rows  int    // open
}

// begin starts a transaction. In the write pool it takes SQLite's write lock at once: a transaction that begins reading
// and writes later would fail if another one has committed between.
func (s *session) begin(ctx context.Context) error {
	if s.tx {
		return errNested
	}
	text := "BEGIN"
	if s.own == nil {
		text = "BEGIN IMMEDIATE"
		if err := s.file.refusal(); err != nil {
			return err
		}
	}
	c, err := s.borrow(ctx, s.own == nil)
	if err != nil {
		return err
	}
	if err := c.run(ctx, text); err != nil {
		c.suspect = true
		s.abandon(c) // it may have begun before the context ended
		s.release()
		return mapped(err)
	}
	s.tx, s.ended, s.wrote = true, nil, false
	s.dirty.reset()
	c.rolledBack = false
	if s.own == nil && s.file.poll(context.WithoutCancel(ctx)) == nil {
		s.file.settle()
	}
	return nil
}

// Commit implements driver.Tx. It returns when the transaction is durable.
func (s *session) Commit() error {
	if s.ended != nil {
		err := s.ended
		s.finish()
		return err
	}
	c, err := s.borrow(context.Background(), s.lease)
	if err != nil {
		s.finish()
		return err
	}
	if s.own == nil {
		s.file.unsettle()
	}
	err = c.run(context.Background(), "COMMIT")
	if err != nil {
		s.abandon(c)
	}
	c.committed = false
	wrote := s.wrote && err == nil
	if !s.dirty.empty() && s.own == nil {
		s.file.announce(&s.dirty) // also after an error: it is not certain that nothing was committed
	}
	s.finish()
	if err != nil {
		return mapped(fmt.Errorf("commit: %w", err))
	}
	if wrote {
		return s.file.sync()
	}
	return nil
}

// Rollback implements driver.Tx. Rolling back what SQLite has rolled back already is no error.
func (s *session) Rollback() error {
	if s.ended == nil {
		c, err := s.borrow(context.Background(), s.lease)
		if err != nil {
			s.finish()
			return err
		}
		s.abandon(c)
	}
	s.finish()
	return nil
}

// abandon rolls back whatever is open. If that fails too, nothing is known about the connection, and closing it is what
// undoes its changes.
func (s *session) abandon(c *connection) {
	if err := c.run(context.Background(), "ROLLBACK"); err != nil {
		code, _ := resultCode(err)
		c.broken = code&0xff != codeError // which says that no transaction is active
	}
}

func (s *session) finish() {
	if s.own == nil {
		s.file.unsettle()
	}
	s.tx, s.ended, s.wrote = false, nil, false
	s.dirty.reset()
	s.release()
}

// borrow returns the connection to run on and, if exclusive, waits for the right to write.
func (s *session) borrow(ctx context.Context, exclusive bool) (*connection, error) {
	if exclusive && !s.lease {
		if err := s.file.gate.Lock(ctx, s.file.patience); err != nil {
			return nil, lockFailure(err, s.file.patience)
		}
		s.lease = true
	}
	if s.own != nil {
		return s.own, nil
	}
	c, err := s.file.connection(context.WithoutCancel(ctx))
	if err != nil {
		s.release()
	}
	return c, err
}

// release gives the right to write back unless something still needs it.
func (s *session) release() {
	if s.lease && !s.tx && s.rows == 0 {
		s.lease = false
		s.file.release()
	}
}

// enter prepares for a statement.
func (s *session) enter(ctx context.Context, st statement.Statement) (*connection, error) {
	if s.ended != nil {
		return nil, s.ended
	}
	if st.Writes() {
		if err := s.file.refusal(); err != nil {
			return nil, err
		}
	}
	c, err := s.borrow(ctx, s.own == nil || st.Writes())
	if err != nil {
		return nil, err
	}
	if s.own == nil && !s.tx && !s.file.polledWithin(pollUnderLoad) {
		_ = s.file.poll(context.WithoutCancel(ctx)) // what fails here fails the statement too
	}
	if st.Verb != statement.Read || st.Script {
		s.wrote = true
		if s.file.dirties(st) {
			s.dirty.add(st)
		}
	}
	return c, nil
}

// leave does what is due after a statement, whose error it returns. Outside a transaction a write is now committed: the
// version changes before the next writer may begin, and the caller waits for the disk after it.
func (s *session) leave(c *connection, st statement.Statement, err error) error {
	if s.tx {
		if c.rolledBack || c.committed {
			if s.own == nil {
				s.file.unsettle()
				s.file.bump()
			}
			c.committed = false
			s.ended = &Failure{Reason: ErrAborted, RetryAfter: retryBusy, Cause: err}
		}
		return mapped(err)
	}
	if st.Script || st.Verb == statement.Savepoint {
		if c.run(context.Background(), "ROLLBACK") == nil && err == nil {
			err = errDangling
		}
	}
	committed := c.committed
	c.committed = false
	if committed && !s.dirty.empty() && s.own == nil {
		s.file.announce(&s.dirty)
	}
	s.wrote = false
	s.dirty.reset()
	s.release()
	if err == nil && committed {
		return s.file.sync()
	}
	return mapped(err)
}

// control runs BEGIN, COMMIT and ROLLBACK that come as text.
func (s *session) control(ctx context.Context, st statement.Statement) (bool, error) {
	if st.Script {
		return false, nil
	}
	switch st.Verb {
	case statement.Begin:
		return true, s.begin(ctx)
	case statement.Commit, statement.Rollback:
		if !s.tx {
			return true, errors.New("no transaction is active")
		}
		if st.Verb == statement.Commit {
			return true, s.Commit()
		}
		return true, s.Rollback()
	default:
		return false, nil
	}
}

// rewrite makes checkpoints harmless for the one who owns them: TRUNCATE and RESTART wait for readers of the log, and a
// replicator is such a reader all the time.
func (s *session) rewrite(text string, st statement.Statement) string {
	if st.Verb == statement.Pragma && s.file.keep.Load() && statement.IsCheckpoint(text) {
		return "PRAGMA wal_checkpoint(PASSIVE)"
	}
	return text
}

// ExecContext implements driver.ExecerContext.
func (s *session) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	st := statement.Parse(text)
	if done, err := s.control(ctx, st); done {
		return driver.ResultNoRows, err
	}
	c, err := s.enter(ctx, st)
	if err != nil {
		return nil, err
	}
	result, err := c.exec(ctx, s.rewrite(text, st), st, args)
	if err = s.leave(c, st, err); err != nil {
		return nil, err
	}
	return result, nil
}

// QueryContext implements driver.QueryerContext.
func (s *session) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	text, order := statement.Canonical(text)
	args = reorder(args, order)
	st := statement.Parse(text)
	c, err := s.enter(ctx, st)
	if err != nil {
		return nil, err
	}
	r, p, err := c.query(ctx, s.rewrite(text, st), st, args)
	if err != nil {
		return nil, s.leave(c, st, err)
	}
	s.rows++
	return &rows{Rows: r, session: s, on: c, stmt: p, st: st}, nil
}

// BeginTx implements driver.ConnBeginTx. SQLite has one isolation level, serializable, which is at least what is asked.
func (s *session) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Begin implements driver.Conn.
func (s *session) Begin() (driver.Tx, error) {
	return s.BeginTx(context.Background(), driver.TxOptions{})
}

// Close implements driver.Conn. An open transaction is rolled back.
func (s *session) Close() error {
	s.rows = 0
	if s.tx {
		_ = s.Rollback()
	}
	s.release()
	if s.own != nil {
		return s.own.Close()
	}
	return nil
}

// IsValid implements driver.Validator, which database/sql asks when a session comes back to the pool. A transaction that
// somebody began as text and left open ends here; a cancelled query does not cost the pool its connection.
func (s *session) IsValid() bool {
	if s.tx {
		_ = s.Rollback()
	}
	return s.own == nil || s.own.alive(context.Background())
}

// Ping implements driver.Pinger.
func (s *session) Ping(ctx context.Context) error {
	_, err := s.ExecContext(ctx, "SELECT 1", nil)
	return err
}

// Prepare implements driver.Conn.
func (s *session) Prepare(text string) (driver.Stmt, error) {
	return s.PrepareContext(context.Background(), text)
}

// PrepareContext implements driver.ConnPrepareContext. The statement lives in the cache of whichever connection runs it;
// preparing it here finds its mistakes.
func (s *session) PrepareContext(ctx context.Context, text string) (driver.Stmt, error) {
	c, err := s.borrow(ctx, s.own == nil)
	if err != nil {
		return nil, err
	}
	defer s.release()
	stmt, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, mapped(err)
	}
	inputs := stmt.NumInput()
	if err := stmt.Close(); err != nil {
		return nil, mapped(err)
	}
	return &lazy{session: s, text: text, inputs: inputs}, nil
}

// lazy is a prepared statement of a session, which may run on another connection each time.
type lazy struct {
	session *session
	text    string
	inputs  int
}

// NumInput implements driver.Stmt.
func (l *lazy) NumInput() int { return l.inputs }

// Close implements driver.Stmt; the caches own what there is to close.
func (l *lazy) Close() error { return nil }

// ExecContext implements driver.StmtExecContext.
func (l *lazy) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return l.session.ExecContext(ctx, l.text, args)
}

// QueryContext implements driver.StmtQueryContext.
func (l *lazy) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return l.session.QueryContext(ctx, l.text, args)
}

// Exec implements driver.Stmt.
func (l *lazy) Exec(args []driver.Value) (driver.Result, error) {
	return l.ExecContext(context.Background(), named(args))
}

// Query implements driver.Stmt.
func (l *lazy) Query(args []driver.Value) (driver.Rows, error) {
	return l.QueryContext(context.Background(), named(args))
}

// reorder puts the values of the first placeholders where [statement.Canonical] has put their columns.
func reorder(args []driver.NamedValue, order []int) []driver.NamedValue {
	if len(order) == 0 || len(order) > len(args) {
		return args
	}
	moved := slices.Clone(args)
	for to, from := range order {
		moved[to].Value = args[from].Value
	}
	return moved
}

func named(args []driver.Value) []driver.NamedValue {
	list := make([]driver.NamedValue, len(args))
	for i, v := range args {
		list[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	return list
}
