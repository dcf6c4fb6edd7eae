package rows

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
)

// NewMark makes a value that stands for another one while a query is built. No client can know it, so it cannot be
// mistaken for a value of theirs.
func NewMark() string { return "mark" + rand.Text() }

// Query is a compiled SELECT. It is immutable and safe for concurrent use.
type Query struct {
	text  string
	args  []any
	slots []slot
}

// slot is an argument that the caller gives: the value with this index.
type slot struct{ arg, value int }

// errMarkLost: a mark became part of the text or of a longer value, so that it cannot be replaced.
var errMarkLost = errors.New("a value cannot be bound")

// Compile freezes a query. Wherever an argument is one of the marks, [Query.Each] puts the value with the same index.
// It is an error if a mark was built into something else, as by the operator ~. A limit must be part of the query:
// SQLite prepares a statement anew whenever the parameter of a LIMIT is bound.
func Compile(db *dbx.DB, q *dbx.SelectQuery, marks []string) (*Query, error) {
	built := q.Build()
	c := &capture{}
	probe := dbx.NewQuery(db, c, built.SQL()).Bind(built.Params())
	probe.LogFunc, probe.PerfFunc, probe.QueryLogFunc = nil, nil, nil
	if _, err := probe.Rows(); !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("compile query: %w", err)
	}
	out := &Query{text: c.text, args: c.args}
	for i, arg := range c.args {
		text, ok := arg.(string)
		if !ok {
			continue
		}
		if m := slices.Index(marks, text); m >= 0 {
			out.slots = append(out.slots, slot{i, m})
		} else if containsAny(text, marks) {
			return nil, errMarkLost
		}
	}
	if containsAny(c.text, marks) {
		return nil, errMarkLost
	}
	return out, nil
}

func containsAny(text string, marks []string) bool {
	return slices.ContainsFunc(marks, func(m string) bool { return m != "" && strings.Contains(text, m) })
}

// Each runs the query and calls fn with every row. The row and what it holds are valid during the call only.
func (q *Query) Each(ctx context.Context, db *dbx.DB, values []any, fn func(row []any) error) (err error) {
	args := slices.Clone(q.args)
	for _, s := range q.slots {
		args[s.arg] = values[s.value]
	}
	start := time.Now()
	found, err := db.DB().QueryContext(ctx, q.text, args...)
	if db.QueryLogFunc != nil {
		db.QueryLogFunc(ctx, time.Since(start), q.text, found, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	columns, err := found.Columns()
	if err != nil {
		return err
	}
	s, _ := scans.Get().(*scan)
	defer s.release()
	s.grow(len(columns))
	for found.Next() {
		if err := found.Scan(s.targets...); err != nil {
			return err
		}
		if err := fn(s.row); err != nil {
			return err
		}
	}
	return found.Err()
}

// scan is where rows are read into.
type scan struct {
	row     []any
	targets []any // pointers into row
}

// scans are reused between queries.
var scans = sync.Pool{New: func() any { return &scan{} }} //nolint:gochecknoglobals // a pool is shared by nature

func (s *scan) grow(n int) {
	if cap(s.row) < n {
		s.row, s.targets = make([]any, n), make([]any, n)
		for i := range s.row {
			s.targets[i] = &s.row[i]
		}
	}
	s.row, s.targets = s.row[:n], s.targets[:n]
}

func (s *scan) release() {
	clear(s.row)
	scans.Put(s)
}

// errCaptured ends a query that was only to be seen.
var errCaptured = errors.New("captured")

// capture is a database that notes what it is asked.
type capture struct {
	text string
	args []any
}

func (c *capture) Query(text string, args ...any) (*sql.Rows, error) {
	c.text, c.args = text, args
	return nil, errCaptured
}

func (c *capture) QueryContext(_ context.Context, text string, args ...any) (*sql.Rows, error) {
	return c.Query(text, args...)
}

func (*capture) Exec(string, ...any) (sql.Result, error) { return nil, errCaptured }

func (*capture) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	return nil, errCaptured
}

func (*capture) Prepare(string) (*sql.Stmt, error) { return nil, errCaptured }
