package logs

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
)

const (
	// leastMaxSize leaves room for the rows that are always kept.
	leastMaxSize = 1_000_000

	checkInterval = time.Minute

	// trimTarget is the share of the limit at which deletion ends, so that it does not begin anew every minute.
	trimTarget = 0.9

	// trimBudget bounds the deletion in one second: new rows and other writers of the file wait meanwhile.
	trimBudget = 300 * time.Millisecond

	// trimRows is how many rows one DELETE takes; it holds the write lock for some 10 ms.
	trimRows = 500

	// keptRows are never deleted for their size: something else may have filled the file.
	keptRows = 1000

	// used is the size of the file without its free pages, which SQLite fills again before the file grows.
	used = `SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size`
)

// deleteOldest goes by the number of the row: rows are added in the order of time, and created has no index.
const deleteOldest = `DELETE FROM _logs WHERE rowid IN (SELECT rowid FROM _logs ORDER BY rowid LIMIT {:rows})
AND rowid < (SELECT rowid FROM _logs ORDER BY rowid DESC LIMIT 1 OFFSET {:kept} - 1)`

// trim keeps auxiliary.db below its limit. It looks once a minute and, while there is more to delete, every second. The
// file does not shrink, but does not grow either.
func (t *table) trim(ctx context.Context, now time.Time) error {
	if t.maxSize == 0 || !t.over && now.Sub(t.checkedAt) < checkInterval {
		return nil
	}
	size, err := t.size(ctx)
	if err != nil {
		return err
	}
	t.checkedAt = now
	t.over = size > t.maxSize || t.over && float64(size) > trimTarget*float64(t.maxSize)
	for t.over && time.Since(now) < trimBudget {
		n, err := t.delete(ctx)
		if err != nil {
			return err
		}
		if size, err = t.size(ctx); err != nil {
			return err
		}
		t.over = n > 0 && float64(size) > trimTarget*float64(t.maxSize)
	}
	return nil
}

func (t *table) size(ctx context.Context) (int64, error) {
	db, ok := t.host.App.AuxConcurrentDB().(*dbx.DB)
	if !ok {
		return 0, errNoDatabase
	}
	var n int64
	if err := db.NewQuery(used).WithContext(ctx).Row(&n); err != nil {
		return 0, fmt.Errorf("measure auxiliary.db: %w", err)
	}
	return n, nil
}

func (t *table) delete(ctx context.Context) (int64, error) {
	db, ok := t.host.App.AuxNonconcurrentDB().(*dbx.DB)
	if !ok {
		return 0, errNoDatabase
	}
	result, err := db.NewQuery(deleteOldest).Bind(dbx.Params{"rows": trimRows, "kept": keptRows}).WithContext(ctx).Execute()
	if err != nil {
		return 0, fmt.Errorf("delete from auxiliary.db: %w", err)
	}
	return result.RowsAffected()
}
