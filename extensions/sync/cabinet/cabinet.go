// Package cabinet keeps the views of devices in an SQLite file of its own beside the database. The file is a cache: it may
// be deleted at any time, and is thrown away when it may be older than what devices were told, that is when the machine
// went down without the program having closed it. A killed program does no harm, because the operating system keeps what
// it was given. A file that is thrown away costs every device a fresh start, and no data.
package cabinet

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/satchelbase/satchel/extensions/sync/view"
)

// File is the name of the file in the data folder.
const File = "sync_views.db"

const (
	nonceLength = 8

	// clean stands in the place of the boot when the file was closed in good order.
	clean = "clean"

	// touchAfter is how old the note of the last use of a view gets before it is renewed.
	touchAfter = 24 * time.Hour

	// mostViews is how many views one owner has, of all devices together: RxDB needs one for each collection.
	mostViews = 1000
)

func schema() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS meta (k INTEGER PRIMARY KEY CHECK (k = 1), nonce TEXT NOT NULL, boot TEXT NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS devices (device TEXT PRIMARY KEY, state BLOB, used INTEGER NOT NULL) WITHOUT ROWID`,
		`CREATE TABLE IF NOT EXISTS runs (device TEXT NOT NULL, run INTEGER NOT NULL, fixed BLOB, moving BLOB, UNIQUE (device, run))`,
		`CREATE INDEX IF NOT EXISTS devices_used ON devices (used)`,
	}
}

// Cabinet is the store. It is safe for concurrent use once it is open.
type Cabinet struct {
	path string
	boot func() string
	now  func() time.Time
	most int // views of one owner

	mu    sync.RWMutex
	db    *sql.DB
	nonce string
}

// New prepares a store. Devices have one owner when their names do not differ before the first slash; those of an owner
// with too many that were not used for longest are forgotten, and start over.
func New() *Cabinet { return &Cabinet{boot: bootID, now: time.Now, most: mostViews} }

// bootID names the time since the machine was started, empty where nobody can tell.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Open opens the file in the data folder. A file that cannot be read is replaced.
func (c *Cabinet) Open(dataDir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.path = filepath.Join(dataDir, File)
	if err := c.open(); err == nil {
		return nil
	}
	return c.replace()
}

// replace throws the file away. The caller holds mu.
func (c *Cabinet) replace() error {
	if c.db != nil {
		_ = c.db.Close() // it is of no use any more
		c.db = nil
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(c.path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replace views: %w", err)
		}
	}
	return c.open()
}

func (c *Cabinet) open() (err error) {
	path, err := filepath.Abs(c.path) // a URI takes no other
	if err != nil {
		return fmt.Errorf("resolve path of views: %w", err)
	}
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") { // a drive letter
		path = "/" + path
	}
	uri := url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=journal_size_limit(67108864)"}
	db, err := sql.Open("sqlite", uri.String()) // PocketBase links the driver
	if err != nil {
		return fmt.Errorf("open views: %w", err)
	}
	db.SetMaxOpenConns(1)
	defer func() {
		if err != nil {
			_ = db.Close()
		}
	}()
	ctx := context.Background()
	for _, statement := range schema() {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("prepare views: %w", err)
		}
	}
	var nonce, boot string
	err = db.QueryRowContext(ctx, "SELECT nonce, boot FROM meta").Scan(&nonce, &boot)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read views: %w", err)
	}
	now := c.boot()
	if boot != clean && (now == "" || boot != now) {
		nonce = strings.ToLower(rand.Text()[:nonceLength])
		for _, statement := range []string{"DELETE FROM devices", "DELETE FROM runs"} {
			if _, err := db.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("empty views: %w", err)
			}
		}
	}
	if err := note(ctx, db, nonce, now); err != nil {
		return err
	}
	c.db, c.nonce = db, nonce
	return nil
}

// note writes how the file is used, and syncs it to the disk.
func note(ctx context.Context, db *sql.DB, nonce, boot string) error {
	const upsert = `INSERT INTO meta (k, nonce, boot) VALUES (1, ?, ?) ON CONFLICT (k) DO UPDATE SET nonce = excluded.nonce, boot = excluded.boot`
	if _, err := db.ExecContext(ctx, upsert, nonce, boot); err != nil {
		return fmt.Errorf("note state of views: %w", err)
	}
	if _, err := db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return fmt.Errorf("sync views: %w", err)
	}
	return nil
}

// Close closes the file in good order.
func (c *Cabinet) Close(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil {
		return nil
	}
	err := errors.Join(note(ctx, c.db, c.nonce, clean), c.db.Close())
	c.db = nil
	return err
}

// Abandon closes the file as a crash would: the next Open decides whether it can be trusted.
func (c *Cabinet) Abandon() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == nil {
		return nil
	}
	err := c.db.Close()
	c.db = nil
	return err
}

// Nonce implements [view.Store].
func (c *Cabinet) Nonce() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.nonce
}

// errClosed: the server is going down.
var errClosed = errors.New("the views are closed")

// with runs fn on the file. One that is broken is replaced, so that the next request finds an empty one.
func (c *Cabinet) with(fn func(db *sql.DB) error) error {
	c.mu.RLock()
	db := c.db
	if db == nil {
		c.mu.RUnlock()
		return errClosed
	}
	err := fn(db)
	c.mu.RUnlock()
	if err == nil || !broken(err) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db == db {
		err = errors.Join(err, c.replace())
	}
	return err
}

// broken reports that the file is not what SQLite wrote.
func broken(err error) bool {
	coded, ok := errors.AsType[interface {
		error
		Code() int
	}](err)
	const corrupt, notADatabase, primary = 11, 26, 0xff
	return ok && (coded.Code()&primary == corrupt || coded.Code()&primary == notADatabase)
}

// Load implements [view.Store].
func (c *Cabinet) Load(ctx context.Context, device string) (view.Stored, error) {
	var out view.Stored
	err := c.with(func(db *sql.DB) error {
		var used int64
		err := db.QueryRowContext(ctx, "SELECT coalesce(state, x''), used FROM devices WHERE device = ?", device).Scan(&out.State, &used)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if now := c.now(); used < now.Add(-touchAfter).Unix() {
			if _, err := db.ExecContext(ctx, "UPDATE devices SET used = ? WHERE device = ?", now.Unix(), device); err != nil {
				return err
			}
		}
		out.Runs, err = loadRuns(ctx, db, device)
		return err
	})
	if err != nil {
		return view.Stored{}, fmt.Errorf("read views: %w", err)
	}
	return out, nil
}

func loadRuns(ctx context.Context, db *sql.DB, device string) (out map[int64]view.StoredRun, err error) {
	rows, err := db.QueryContext(ctx, "SELECT run, fixed, moving FROM runs WHERE device = ?", device)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	out = map[int64]view.StoredRun{}
	for rows.Next() {
		var run int64
		var r view.StoredRun
		if err := rows.Scan(&run, &r.Fixed, &r.Moving); err != nil {
			return nil, err
		}
		out[run] = r
	}
	return out, rows.Err()
}

// Save implements [view.Store].
func (c *Cabinet) Save(ctx context.Context, device string, changed view.Stored, removed []int64) error {
	err := c.with(func(db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := c.save(ctx, tx, device, changed, removed); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	})
	if err != nil {
		return fmt.Errorf("write views: %w", err)
	}
	return nil
}

func (c *Cabinet) save(ctx context.Context, tx *sql.Tx, device string, changed view.Stored, removed []int64) error {
	const putDevice = `INSERT INTO devices (device, state, used) VALUES (?, ?, ?)
		ON CONFLICT (device) DO UPDATE SET state = coalesce(excluded.state, state), used = excluded.used`
	var state any
	if changed.State != nil {
		state = changed.State
	}
	if err := c.room(ctx, tx, device); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, putDevice, device, state, c.now().Unix()); err != nil {
		return err
	}
	for _, run := range removed {
		if _, err := tx.ExecContext(ctx, "DELETE FROM runs WHERE device = ? AND run = ?", device, run); err != nil {
			return err
		}
	}
	const putRun = `INSERT INTO runs (device, run, fixed, moving) VALUES (?, ?, ?, ?)
		ON CONFLICT (device, run) DO UPDATE SET fixed = coalesce(excluded.fixed, fixed), moving = coalesce(excluded.moving, moving)`
	for run, r := range changed.Runs {
		if _, err := tx.ExecContext(ctx, putRun, device, run, blob(r.Fixed), blob(r.Moving)); err != nil {
			return err
		}
	}
	return nil
}

// room forgets devices of the owner of a new one, if there are too many.
func (c *Cabinet) room(ctx context.Context, tx *sql.Tx, device string) error {
	owner, _, owned := strings.Cut(device, "/")
	var known bool
	err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM devices WHERE device = ?)", device).Scan(&known)
	if err != nil || known || !owned {
		return err
	}
	const old = "(SELECT device FROM devices WHERE device > ? AND device < ? ORDER BY used DESC LIMIT -1 OFFSET ?)"
	for _, statement := range []string{"DELETE FROM runs WHERE device IN " + old, "DELETE FROM devices WHERE device IN " + old} {
		if _, err := tx.ExecContext(ctx, statement, owner+"/", owner+"0", c.most-1); err != nil { // 0 comes after /
			return err
		}
	}
	return nil
}

// blob makes a missing part NULL.
func blob(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}

// sweepChunk is how many devices one transaction forgets.
const sweepChunk = 200

// Sweep forgets devices that were not seen since the time.
func (c *Cabinet) Sweep(ctx context.Context, before time.Time) error {
	for {
		var n int64
		err := c.with(func(db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			const old = "(SELECT device FROM devices WHERE used < ? ORDER BY used LIMIT ?)"
			_, err = tx.ExecContext(ctx, "DELETE FROM runs WHERE device IN "+old, before.Unix(), sweepChunk)
			if err != nil {
				return errors.Join(err, tx.Rollback())
			}
			result, err := tx.ExecContext(ctx, "DELETE FROM devices WHERE device IN "+old, before.Unix(), sweepChunk)
			if err != nil {
				return errors.Join(err, tx.Rollback())
			}
			if n, err = result.RowsAffected(); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		})
		if err != nil {
			return fmt.Errorf("forget views: %w", err)
		}
		if n < sweepChunk {
			return nil
		}
	}
}

// Devices counts the views.
func (c *Cabinet) Devices(ctx context.Context) (n int64, err error) {
	err = c.with(func(db *sql.DB) error { return db.QueryRowContext(ctx, "SELECT count(*) FROM devices").Scan(&n) })
	return n, err
}
