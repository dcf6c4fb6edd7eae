package changes

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

const (
	// foldChunk is how many changes one transaction folds: a few milliseconds of the writer, and about ten when the records
	// lie scattered among a million others.
	foldChunk = 250

	// fillChunk is how many records get their first head in one transaction.
	fillChunk = 1000
)

// Head is the state of a record. Version is the number of its last write. HID is a small integer that stands for the
// record for ever and is never given to another one.
type Head struct {
	HID     int64
	Record  string
	Version int64
	Deleted bool
}

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
	db := l.app.ConcurrentDB()
	list, err := readHeads(ctx, db, headsAfter, dbx.Params{"c": k.C, "after": after, "limit": min(limit, maxLimit)})
	if err != nil {
		return nil, err
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
	list, err := l.headsIn(ctx, collection, headsByRecord, records)
	out := make(map[string]Head, len(list))
	for _, h := range list {
		out[h.Record] = h
	}
	return out, err
}

// HeadsByHID returns the heads with these numbers.
func (l *Log) HeadsByHID(ctx context.Context, collection string, hids []int64) ([]Head, error) {
	hids = slices.Compact(slices.Sorted(slices.Values(hids))) // DISTINCT would build a tree
	return l.headsIn(ctx, collection, headsByNumber, hids)
}

// headsAfter finds all it wants in an index. Of the others the values come first and each is looked up. SQLite chooses
// otherwise as soon as it has statistics, and then goes through all heads of the collection; the plus keeps it from that.
const (
	headsAfter    = "SELECT hid, rec, seq, del FROM changes_heads WHERE c = {:c} AND seq > {:after} ORDER BY seq LIMIT {:limit}"
	headsIn       = "SELECT h.hid, h.rec, h.seq, h.del FROM json_each({:values}) j CROSS JOIN changes_heads h ON "
	headsByNumber = headsIn + "h.hid = j.value AND +h.c = {:c}"
	headsByRecord = headsIn + "h.c = {:c} AND h.rec = j.value"
)

func (l *Log) headsIn(ctx context.Context, collection, query string, values any) ([]Head, error) {
	k, err := l.complete(ctx, collection)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	return readHeads(ctx, l.app.ConcurrentDB(), query, dbx.Params{"c": k.C, "values": string(raw)})
}

// readHeads scans by hand: there may be many thousands.
func readHeads(ctx context.Context, db dbx.Builder, query string, params dbx.Params) (list []Head, err error) {
	found, err := db.NewQuery(query).Bind(params).WithContext(ctx).Rows()
	if err != nil {
		return nil, fmt.Errorf("read heads: %w", err)
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		var h Head
		if err := found.Scan(&h.HID, &h.Record, &h.Version, &h.Deleted); err != nil {
			return nil, fmt.Errorf("read heads: %w", err)
		}
		list = append(list, h)
	}
	return list, found.Err()
}

// versionSQL finds a collection and the last change of a record, as its number times four with the action. What the heads
// do not contain stands in the log behind the number up to which it was folded.
const versionSQL = `SELECT name, base, filled, max(
		coalesce((SELECT max(seq * 4 + op) FROM changes_log WHERE seq > (SELECT folded FROM changes_state) AND c = k.c AND rec = {:rec} AND op <= 3), 0),
		coalesce((SELECT seq * 4 + CASE del WHEN 1 THEN 3 ELSE 2 END FROM changes_heads WHERE c = k.c AND rec = {:rec}), 0)) AS last
	FROM changes_collections k WHERE gone = 0 AND (collection = {:key} OR name = {:key} COLLATE NOCASE)
	ORDER BY collection = {:key} DESC LIMIT 1`

// VersionIn returns the number of the last change of a record as app has it, and whether it was its deletion; 0 for a
// record that never was. Unlike the heads it shows the uncommitted writes of app's own transaction, and it writes
// nothing, so it may be called inside of one.
func (l *Log) VersionIn(app core.App, collection, record string) (version int64, deleted bool, err error) {
	var found struct {
		Name   string `db:"name"`
		Base   int64  `db:"base"`
		Filled bool   `db:"filled"`
		Last   int64  `db:"last"`
	}
	err = app.DB().NewQuery(versionSQL).Bind(dbx.Params{"key": collection, "rec": record}).One(&found)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, false, ErrNotCaptured
	case err != nil:
		return 0, false, fmt.Errorf("read version: %w", err)
	case found.Last > 0 || found.Filled:
		return found.Last / 4, Action(found.Last%4) == Delete, nil
	}
	var there bool // since before the capture: it has no head yet
	err = app.DB().NewQuery("SELECT EXISTS (SELECT 1 FROM " + capture.Quote(found.Name) + " WHERE id = {:rec})").Bind(dbx.Params{"rec": record}).Row(&there)
	if err != nil {
		return 0, false, fmt.Errorf("look for record: %w", err)
	}
	if !there {
		return 0, false, nil
	}
	return found.Base, false, nil
}
