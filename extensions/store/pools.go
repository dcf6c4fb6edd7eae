package store

import (
	"context"
	"database/sql/driver"
	"errors"
)

// readPool opens sessions with a connection of their own.
type readPool struct{ file *file }

// Connect implements driver.Connector.
func (p readPool) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := p.file.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &session{file: p.file, own: c}, nil
}

// Driver implements driver.Connector.
func (readPool) Driver() driver.Driver { return byName{} }

// writePool opens sessions that share the file's writing connection. They cost next to nothing.
type writePool struct{ file *file }

// Connect implements driver.Connector.
func (p writePool) Connect(context.Context) (driver.Conn, error) { return &session{file: p.file}, nil }

// Driver implements driver.Connector.
func (writePool) Driver() driver.Driver { return byName{} }

// Close implements io.Closer for database/sql.
func (p writePool) Close() error { return p.file.Close() }

// byName exists because a connector must name its driver; connections come from the connectors alone.
type byName struct{}

// Open implements driver.Driver.
func (byName) Open(string) (driver.Conn, error) {
	return nil, errors.New("open the database through the store")
}
