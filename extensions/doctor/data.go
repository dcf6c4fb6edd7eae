package doctor

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions"
)

// The databases of a data folder.
const (
	dataFile      = "data.db"
	auxiliaryFile = "auxiliary.db"
)

const restoreHint = "stop the server and restore a backup"

// errUnindexedLog says that a database was copied or cut off in a way that only a writer can mend.
var errUnindexedLog = errors.New("its write-ahead log has no index; the next start recovers it")

// database reads one SQLite file without changing anything around it. It opens the file anew for each question, since
// a command asks few.
type database struct{ path string }

// data holds both databases of a folder.
type data struct {
	dir             string
	main, auxiliary database
}

func newData(dir string) data {
	return data{dir, database{filepath.Join(dir, dataFile)}, database{filepath.Join(dir, auxiliaryFile)}}
}

func (d database) exists() bool {
	_, err := os.Stat(d.path)
	return !errors.Is(err, fs.ErrNotExist)
}

// open returns a handle that cannot write and creates no file. Even a reader of a database in WAL mode creates the
// -wal and -shm files where they are missing, so without them the file is opened as immutable: nobody has it open then.
// With them, the reader takes part in the locking of a running server, or ignores the index that a crash has left
// (readonly_shm keeps it from rebuilding it).
func (d database) open() (*sql.DB, error) {
	abs, err := filepath.Abs(d.path)
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
		return nil, errUnindexedLog
	default:
		options += "&immutable=1"
	}
	path := filepath.ToSlash(abs)
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

// query calls scan for each row.
func (d database) query(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) (err error) {
	db, err := d.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("query %s: %w", filepath.Base(d.path), err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return fmt.Errorf("scan %s: %w", filepath.Base(d.path), err)
		}
	}
	return rows.Err()
}

// strings returns the first column.
func (d database) strings(ctx context.Context, query string, args ...any) ([]string, error) {
	var out []string
	err := d.query(ctx, func(rows *sql.Rows) error {
		var s string
		err := rows.Scan(&s)
		out = append(out, s)
		return err
	}, query, args...)
	return out, err
}

// journal reads from the header how the file is written (https://www.sqlite.org/fileformat.html section 1.3).
func (d database) journal() (string, error) {
	const headerSize, versionAt, walVersion = 100, 18, 2
	f, err := os.Open(d.path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was only read
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(f, header); err != nil || !bytes.HasPrefix(header, []byte("SQLite format 3\x00")) {
		return "", errors.New("file is not a database")
	}
	if header[versionAt] == walVersion {
		return "WAL", nil
	}
	return "no WAL", nil
}

// integrityLines check both files page by page.
func (d data) integrityLines(ctx context.Context) []Line {
	const name = "database"
	if !d.main.exists() {
		if d.auxiliary.exists() {
			return []Line{line(name, extensions.Fail, dataFile+" is missing beside "+auxiliaryFile, restoreHint)}
		}
		return []Line{line(name, extensions.Skip, "none yet", "")}
	}
	lines := []Line{d.main.integrityLine(ctx)}
	if !d.auxiliary.exists() {
		return append(lines, line(name, extensions.Warn, auxiliaryFile+" is missing; the next start creates it without the old logs", ""))
	}
	return append(lines, d.auxiliary.integrityLine(ctx))
}

func (d database) integrityLine(ctx context.Context) Line {
	const name = "database"
	file := filepath.Base(d.path)
	journal, err := d.journal()
	if err != nil {
		return line(name, extensions.Fail, fmt.Sprintf("%s: %v", file, err), restoreHint)
	}
	start := time.Now()
	found, err := d.strings(ctx, "PRAGMA quick_check(10)")
	took := time.Since(start).Round(time.Millisecond)
	switch {
	case errors.Is(err, errUnindexedLog):
		return line(name, extensions.Warn, fmt.Sprintf("%s: not checked, %v", file, err), "start the server once")
	case ctx.Err() != nil:
		return line(name, extensions.Warn, fmt.Sprintf("%s: not checked to its end in %s", file, took), "")
	case err != nil:
		return line(name, extensions.Fail, fmt.Sprintf("%s: %v", file, err), restoreHint)
	case len(found) != 1 || found[0] != "ok":
		return line(name, extensions.Fail, fmt.Sprintf("%s is damaged: %s", file, strings.Join(found, "; ")), restoreHint)
	}
	return line(name, extensions.OK, fmt.Sprintf("%s: %s, integrity ok (%s)", file, journal, took), "")
}
