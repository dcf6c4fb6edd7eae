package store

import (
	"database/sql/driver"
	"errors"
	"io"
	"math"
	"reflect"

	"github.com/satchelbase/satchel/extensions/store/statement"
)

// rows are the rows of a query. When they end, so does the statement: outside a transaction a write commits then, and
// the end waits until it is durable.
type rows struct {
	driver.Rows
	session *session
	on      *connection
	stmt    *prepared
	st      statement.Statement
	ended   bool
}

// Next reports a failed end in place of io.EOF, because database/sql ignores the error of the Close that follows.
func (r *rows) Next(dest []driver.Value) error {
	if r.ended {
		return io.EOF
	}
	err := r.Rows.Next(dest)
	if err == nil {
		return nil
	}
	if !errors.Is(err, io.EOF) {
		return r.end(err)
	}
	if err := r.end(nil); err != nil {
		return err
	}
	return io.EOF
}

// Close ends the rows early.
func (r *rows) Close() error {
	if r.ended {
		return nil
	}
	return r.end(nil)
}

func (r *rows) end(err error) error {
	r.ended = true
	if e := r.Rows.Close(); err == nil {
		err = e
	}
	if r.stmt != nil {
		r.stmt.busy = false
	}
	if err != nil {
		_ = r.on.failed(r.stmt, err)
	}
	r.session.rows--
	return r.session.leave(r.on, r.st, err)
}

// ColumnTypeDatabaseTypeName is the declared type of the column.
func (r *rows) ColumnTypeDatabaseTypeName(i int) string {
	if t, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return t.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

// ColumnTypeScanType is the Go type that the column's value in the current row has.
func (r *rows) ColumnTypeScanType(i int) reflect.Type {
	if t, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return t.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

// ColumnTypeNullable reports whether the column may be null.
func (r *rows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if t, has := r.Rows.(driver.RowsColumnTypeNullable); has {
		return t.ColumnTypeNullable(i)
	}
	return true, false
}

// ColumnTypeLength is the greatest length of the column's values.
func (r *rows) ColumnTypeLength(i int) (length int64, ok bool) {
	if t, has := r.Rows.(driver.RowsColumnTypeLength); has {
		return t.ColumnTypeLength(i)
	}
	return math.MaxInt64, false
}

// ColumnTypePrecisionScale is never known: SQLite has no decimals.
func (r *rows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if t, has := r.Rows.(driver.RowsColumnTypePrecisionScale); has {
		return t.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
