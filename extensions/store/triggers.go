package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"

	"github.com/satchelbase/satchel/extensions/store/statement"
)

// lookForTriggers finds out whether a write to one table may change another that has a version. The caller holds the
// gate and there is a writer.
func (f *file) lookForTriggers() {
	ctx := context.Background()
	schema, err := f.writer.number(ctx, "PRAGMA schema_version")
	if err == nil && schema == f.tables.schema {
		return
	}
	spreads := false
	if err == nil {
		err = f.writer.texts(ctx, "SELECT sql FROM sqlite_schema WHERE type = 'trigger'", func(text string) {
			spreads = spreads || !statement.Contained(text, f.options.quiet)
		})
	}
	if f.tables.triggers, f.tables.schema = spreads, schema; err != nil {
		f.tables.triggers, f.tables.schema = true, 0 // look again
	}
}

// texts calls fn with the first column of each row.
func (c *connection) texts(ctx context.Context, query string, fn func(text string)) (err error) {
	r, p, err := c.query(ctx, query, statement.Statement{Verb: statement.Read}, nil)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, r.Close())
		if p != nil {
			p.busy = false
		}
	}()
	row := make([]driver.Value, len(r.Columns()))
	for err = r.Next(row); err == nil; err = r.Next(row) {
		text, _ := row[0].(string)
		fn(text)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
