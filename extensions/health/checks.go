package health

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/settings"
)

const checkDatabase = "database"

func ownChecks(cfg Config) []extensions.Check {
	return []extensions.Check{
		{Name: checkDatabase, Ready: true, Run: database},
		{Name: "migrations", Ready: true, Run: migrations},
		{Name: "disk", Ready: true, Offline: true, Run: disk(cfg.MinFree)},
	}
}

// database asks both files whether they can be read and written. An update of no row takes the lock of the writer and
// is refused where a real one would be, but changes no page and so costs no write to the disk.
func database(ctx context.Context, h *extensions.Host) extensions.Result {
	for _, db := range []struct {
		file, table string
		read, write dbx.Builder
	}{
		{"data.db", "_collections", h.App.ConcurrentDB(), h.App.NonconcurrentDB()},
		{"auxiliary.db", core.LogsTableName, h.App.AuxConcurrentDB(), h.App.AuxNonconcurrentDB()},
	} {
		var rows []int
		read := db.read.NewQuery("SELECT 1 FROM {{" + db.table + "}} LIMIT 1").WithContext(ctx)
		if err := read.Column(&rows); err != nil {
			return fail(db.file+" cannot be read: "+err.Error(), "satchel doctor")
		}
		if err := tryWrite(ctx, db.write, db.table); err != nil {
			return fail(db.file+" cannot be written: "+err.Error(), "satchel doctor")
		}
	}
	return extensions.Result{Message: "readable and writable"}
}

// errTried ends a trial. Rolled back, it costs no fsync and announces no change.
var errTried = errors.New("tried")

func tryWrite(ctx context.Context, db dbx.Builder, table string) error {
	d, ok := db.(*dbx.DB)
	if !ok {
		return fmt.Errorf("unexpected connection %T", db)
	}
	err := d.TransactionalContext(ctx, nil, func(tx *dbx.Tx) error {
		if _, err := tx.NewQuery("UPDATE {{" + table + "}} SET [[id]] = [[id]] WHERE 0").WithContext(ctx).Execute(); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}

// migrations compares what the program knows with what the database remembers.
func migrations(ctx context.Context, h *extensions.Host) extensions.Result {
	var rows []string
	query := h.App.ConcurrentDB().Select("file").From(core.DefaultMigrationsTable).WithContext(ctx)
	if err := query.Column(&rows); err != nil {
		return fail("cannot be read: "+err.Error(), "satchel doctor")
	}
	applied := make(map[string]bool, len(rows))
	for _, file := range rows {
		applied[file] = true
	}
	var pending []string
	for _, list := range []core.MigrationsList{core.SystemMigrations, core.AppMigrations} {
		for _, m := range list.Items() {
			if !applied[m.File] {
				pending = append(pending, m.File)
			}
		}
	}
	if len(pending) > 0 {
		return fail(fmt.Sprintf("%d not applied, the first is %s", len(pending), pending[0]), "satchel migrate up")
	}
	return extensions.Result{Message: fmt.Sprintf("%d applied", len(rows))}
}

// disk measures where the data folder is or will be.
func disk(least settings.Bytes) func(context.Context, *extensions.Host) extensions.Result {
	return func(_ context.Context, h *extensions.Host) extensions.Result {
		if least == 0 {
			return extensions.Result{Level: extensions.Skip, Message: "SATCHEL_HEALTH_MIN_FREE is 0"}
		}
		free, err := freeAbove(h.App.DataDir())
		switch {
		case err != nil:
			return fail("free space is unknown: "+err.Error(), "set SATCHEL_HEALTH_MIN_FREE=0 if the system cannot tell")
		case free < uint64(least):
			return fail(fmt.Sprintf("%s free, below %s", size(free), least), "free space, or lower SATCHEL_HEALTH_MIN_FREE")
		}
		return extensions.Result{Message: size(free) + " free"}
	}
}

// freeAbove is the free space for this user at path or, as long as it does not exist, at the nearest folder above it.
func freeAbove(path string) (uint64, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return 0, fmt.Errorf("resolve data folder: %w", err)
	}
	for {
		n, err := freeSpace(path)
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return n, err
		}
		path = parent
	}
}

// size is for people.
func size(n uint64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if value < 1000 {
			break
		}
		value, unit = value/1000, next
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

func fail(message, next string) extensions.Result {
	return extensions.Result{Level: extensions.Fail, Message: message, Next: next}
}
