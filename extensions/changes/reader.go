package changes

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

// Reader has a position in the database, for work that must be done for every change, at least once. Changes are kept
// for it longer than for others, see Config.ReaderRetention. It is safe for concurrent use.
type Reader struct {
	log  *Log
	name string
}

// Reader returns the reader with the name. It begins at the horizon of its first use.
func (l *Log) Reader(name string) *Reader {
	l.readers.Store(name, true)
	return &Reader{l, name}
}

// Position is where the reader stands.
func (r *Reader) Position(ctx context.Context) (Position, error) {
	p, err := r.stored(ctx, r.log.app.ConcurrentDB())
	if !errors.Is(err, sql.ErrNoRows) {
		return p, err
	}
	now, err := r.log.Horizon(ctx)
	if err != nil {
		return Position{}, err
	}
	err = capture.Exec(r.log.app.NonconcurrentDB(), "INSERT INTO changes_readers (name, epoch, seq) VALUES ({:name}, {:epoch}, {:seq}) ON CONFLICT DO NOTHING",
		dbx.Params{"name": r.name, "epoch": now.Epoch, "seq": now.Seq})
	if err != nil {
		return Position{}, fmt.Errorf("begin reader %s: %w", r.name, err)
	}
	return r.stored(ctx, r.log.app.NonconcurrentDB())
}

func (r *Reader) stored(ctx context.Context, db dbx.Builder) (Position, error) {
	var p Position
	err := db.NewQuery("SELECT epoch, seq FROM changes_readers WHERE name = {:name}").Bind(dbx.Params{"name": r.name}).WithContext(ctx).
		Row(&p.Epoch, &p.Seq)
	if err != nil {
		return p, fmt.Errorf("read position of %s: %w", r.name, err)
	}
	return p, nil
}

// Next waits for changes behind the reader's position and returns them with the position to advance to, as
// [Log.Since] does. Without an Advance it returns the same ones again.
func (r *Reader) Next(ctx context.Context, limit int) ([]Change, Position, error) {
	at, err := r.Position(ctx)
	if err != nil {
		return nil, at, err
	}
	for {
		changed := r.log.Changed()
		list, to, err := r.log.Since(ctx, at, limit)
		if err != nil || len(list) > 0 {
			return list, to, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, at, ctx.Err()
		}
	}
}

// Advance stores a position that Next returned, in the transaction of app if it is one. It never goes back. It returns a
// [ResetError] when the epoch has changed meanwhile.
func (r *Reader) Advance(app core.App, to Position) error {
	db := app.NonconcurrentDB()
	result, err := db.NewQuery("UPDATE changes_readers SET seq = max(seq, {:seq}) WHERE name = {:name} AND epoch = {:epoch}").
		Bind(dbx.Params{"name": r.name, "epoch": to.Epoch, "seq": to.Seq}).Execute()
	if err != nil {
		return fmt.Errorf("advance %s: %w", r.name, err)
	}
	if n, err := result.RowsAffected(); err != nil || n > 0 {
		return err
	}
	s, err := capture.ReadState(context.Background(), db)
	if err != nil {
		return err
	}
	return &ResetError{OtherEpoch, Position{s.Epoch, s.Horizon}}
}

// Reset moves the reader to a position, in the transaction of app if it is one: after a [ResetError] to its Now, once the
// reader has read the present state.
func (r *Reader) Reset(app core.App, to Position) error {
	err := capture.Exec(app.NonconcurrentDB(), `INSERT INTO changes_readers (name, epoch, seq) VALUES ({:name}, {:epoch}, {:seq})
		ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq`,
		dbx.Params{"name": r.name, "epoch": to.Epoch, "seq": to.Seq})
	if err != nil {
		return fmt.Errorf("reset reader %s: %w", r.name, err)
	}
	return nil
}
