package doctor

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/readonly"
)

// The databases of a data folder.
const (
	dataFile      = "data.db"
	auxiliaryFile = "auxiliary.db"
)

const restoreHint = "stop the server and restore a backup"

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

// query calls scan for each row.
func (d database) query(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) (err error) {
	db, err := readonly.Open(d.path)
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
	case errors.Is(err, readonly.ErrUnindexedLog):
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
