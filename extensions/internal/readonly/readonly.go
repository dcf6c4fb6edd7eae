// Package readonly reads an SQLite file without changing anything in or around it, whether a server has it open, has left
// it, or has crashed. Settings, tables and routes: none.
package readonly

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// ErrUnindexedLog says that a database was copied or cut off in a way that only a writer can mend.
var ErrUnindexedLog = errors.New("its write-ahead log has no index; the next start recovers it")

// Open returns a handle that cannot write and creates no file. Even a reader of a database in WAL mode creates the
// -wal and -shm files where they are missing, so without them the file is opened as immutable: nobody has it open then.
// With them, the reader takes part in the locking of a running server, or ignores the index that a crash has left
// (readonly_shm keeps it from rebuilding it).
func Open(path string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolve database: %w", err)
	}
	options := "mode=ro&_pragma=busy_timeout(5000)&_pragma=query_only(1)"
	log, logErr := os.Stat(abs + "-wal")
	_, indexErr := os.Stat(abs + "-shm")
	switch {
	case indexErr == nil:
		options += "&readonly_shm=1"
	case logErr == nil && log.Size() > 0:
		return nil, ErrUnindexedLog
	default:
		options += "&immutable=1"
	}
	path = filepath.ToSlash(abs)
	if !strings.HasPrefix(path, "/") { // a drive letter
		path = "/" + path
	}
	uri := url.URL{Scheme: "file", Path: path, RawQuery: options}
	// PocketBase links the driver.
	db, err := sql.Open("sqlite", uri.String())
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}
