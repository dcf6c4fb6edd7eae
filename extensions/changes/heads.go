package changes

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

const (
	// foldChunk is how many changes one transaction folds: about five milliseconds of the writer.
	foldChunk = 500

	// fillChunk is how many records get their first head in one transaction.
	fillChunk = 1000
)

// Head is the state of a record. Version is the number of its last write. HID is a small integer that stands for the
// record for ever and is never given to another one.
type Head struct {
	HID     int64  `db:"hid"`
	Record  string `db:"rec"`
	Version int64  `db:"seq"`
	Deleted bool   `db:"del"`
}

const selectHeads = "SELECT hid, rec, seq, del FROM changes_heads WHERE c = {:c} AND "

// foldSQL gives each record in a stretch of the log its last change. With max, SQLite takes the other columns from the
// row that has the maximum.
const foldSQL = `INSERT INTO changes_heads (c, rec, seq, del, at)
	SELECT c, rec, max(seq), op = 3, {:now} FROM changes_log
	WHERE seq > {:from} AND seq <= {:to} AND op <= 3 AND rec IS NOT NULL AND c IN (SELECT c FROM changes_collections WHERE gone = 0)
	GROUP BY c, rec ORDER BY max(seq)
	ON CONFLICT (c, rec) DO UPDATE SET seq = excluded.seq, del = excluded.del, at = excluded.at`

// Fold brings the heads up to the present and returns the position that they have then, at least. It writes, so it must
// not be called inside a transaction; when nothing is new it costs no query.
func (l *Log) Fold(ctx context.Context) (Position, error) {
	p, err := l.Horizon(ctx)
	if err != nil || l.folded.Load() >= p.Seq {
		return p, err
	}
	l.fold.Lock()
	defer l.fold.Unlock()
	for l.folded.Load() < p.Seq {
		if err := l.foldChunk(ctx); err != nil {
			return p, fmt.Errorf("fold change log: %w", err)
		}
	}
	return p, nil
}

// foldChunk folds the next stretch. The caller holds fold.
func (l *Log) foldChunk(ctx context.Context) error {
	var to int64
	err := l.app.RunInTransaction(func(tx core.App) error {
		s, err := capture.ReadState(ctx, tx.NonconcurrentDB())
		if err != nil {
			return err
		}
		to = min(s.Folded+foldChunk, s.Horizon)
		if to <= s.Folded {
			return nil
		}
		if err := capture.Exec(tx.DB(), foldSQL, dbx.Params{"from": s.Folded, "to": to, "now": l.now().Unix()}); err != nil {
			return err
		}
		return capture.Exec(tx.DB(), "UPDATE changes_state SET folded = {:to}", dbx.Params{"to": to})
	})
	if err == nil {
		l.folded.Store(to)
	}
	return err
}

// complete finds a collection and makes its heads complete: folded, and with the records from before the capture.
func (l *Log) complete(ctx context.Context, idOrName string) (Collection, error) {
	k, err := l.Collection(ctx, idOrName)
	if err != nil {
		return k, err
	}
	if _, err := l.Fold(ctx); err != nil {
		return k, err
	}
	if _, done := l.filled.Load(k.C); done || k.Filled {
		return k, nil
	}
	return k, l.fill(ctx, k)
}

// fill gives the records that were there before the capture their heads, in chunks. Those written since have theirs.
func (l *Log) fill(ctx context.Context, k Collection) error {
	l.fold.Lock()
	defer l.fold.Unlock()
	if _, done := l.filled.Load(k.C); done {
		return nil
	}
	last, table := "", capture.Quote(k.Name)
	chunk := "(SELECT id FROM " + table + " WHERE id > {:last} ORDER BY id LIMIT {:n})"
	params := dbx.Params{"c": k.C, "seq": k.Base, "n": fillChunk}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var next string
		params["last"], params["now"] = last, l.now().Unix()
		err := l.app.RunInTransaction(func(tx core.App) error {
			if err := tx.DB().NewQuery("SELECT coalesce(max(id), '') FROM " + chunk).Bind(params).Row(&next); err != nil {
				return err
			}
			if next == "" {
				return capture.Exec(tx.DB(), "UPDATE changes_collections SET filled = 1 WHERE c = {:c}", params)
			}
			return capture.Exec(tx.DB(), "INSERT INTO changes_heads (c, rec, seq, del, at) SELECT {:c}, id, {:seq}, 0, {:now} FROM "+chunk+
				" WHERE true ON CONFLICT (c, rec) DO NOTHING", params)
		})
		if err != nil {
			return fmt.Errorf("fill heads of %s: %w", k.Name, err)
		}
		if next == "" {
			l.filled.Store(k.C, true)
			return nil
		}
		last = next
	}
}

// HeadsAfter returns the heads of a collection with a higher version than after, by version, at most limit of them (0
// means 1,000). With after = 0 the reader is taken to have nothing. A [ResetError] says that deletions after the number
// may be forgotten by now.
func (l *Log) HeadsAfter(ctx context.Context, collection string, after int64, limit int) ([]Head, error) {
	k, err := l.complete(ctx, collection)
	if err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = defaultLimit
	}
	var list []Head
	db := l.app.ConcurrentDB()
	err = db.NewQuery(selectHeads + "seq > {:after} ORDER BY seq, hid LIMIT {:limit}").
		Bind(dbx.Params{"c": k.C, "after": after, "limit": min(limit, maxLimit)}).WithContext(ctx).All(&list)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	s, err := capture.ReadState(ctx, db) // after the heads: see stored
	if err != nil {
		return nil, err
	}
	if after > 0 && after < max(s.HeadsFloor, k.Base) {
		return nil, &ResetError{Floor, Position{s.Epoch, s.Folded}}
	}
	return list, nil
}

// HeadsOf returns the heads of records by their ids; those that never existed have none.
func (l *Log) HeadsOf(ctx context.Context, collection string, records []string) (map[string]Head, error) {
	list, err := l.headsIn(ctx, collection, "rec", records)
	out := make(map[string]Head, len(list))
	for _, h := range list {
		out[h.Record] = h
	}
	return out, err
}

// HeadsByHID returns the heads with these numbers.
func (l *Log) HeadsByHID(ctx context.Context, collection string, hids []int64) ([]Head, error) {
	return l.headsIn(ctx, collection, "hid", hids)
}

func (l *Log) headsIn(ctx context.Context, collection, column string, values any) ([]Head, error) {
	k, err := l.complete(ctx, collection)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	var list []Head
	err = l.app.ConcurrentDB().NewQuery(selectHeads + column + " IN (SELECT value FROM json_each({:values}))").
		Bind(dbx.Params{"c": k.C, "values": string(raw)}).WithContext(ctx).All(&list)
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	return list, nil
}
