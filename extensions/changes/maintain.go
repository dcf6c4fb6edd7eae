package changes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

const (
	// beat is how often the mark is written and the length of the unfolded log is looked at.
	beat = time.Second

	// foldAt is how many unfolded changes are folded even if nobody needs the heads; foldEvery, after how long fewer are.
	// Records that change often cost one fold however often they did.
	foldAt    = 2000
	foldEvery = 30 * time.Second

	// purgeEvery is how often old rows are deleted; purgeChunk, how many at a time: about five milliseconds of the writer.
	purgeEvery = time.Minute
	purgeChunk = 500
)

// maintain folds, purges and writes the mark until the server ends.
func (l *Log) maintain(ctx context.Context) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	folded, purged := l.now(), l.now()
	l.report(ctx, "fill heads", l.fillAll(ctx))
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.store.Version() // so that a long silence of this process does not hide another's commits
		l.report(ctx, "write mark", l.writeMark(ctx))
		if due, err := l.foldDue(ctx, folded); err != nil {
			l.report(ctx, "look at log", err)
		} else if due {
			_, err := l.Fold(ctx)
			l.report(ctx, "fold", err)
			folded = l.now()
		}
		if l.now().Sub(purged) >= purgeEvery {
			l.report(ctx, "purge", l.purge(ctx))
			l.report(ctx, "fill heads", l.fillAll(ctx))
			purged = l.now()
		}
	}
}

func (l *Log) report(ctx context.Context, what string, err error) {
	if err != nil && ctx.Err() == nil {
		l.log.Warn("the change log is not maintained", "work", what, "error", err)
	}
}

func (l *Log) foldDue(ctx context.Context, last time.Time) (bool, error) {
	s, err := capture.ReadState(ctx, l.app.ConcurrentDB())
	if err != nil {
		return false, err
	}
	waiting := s.Horizon - s.Folded
	return waiting >= foldAt || waiting > 0 && l.now().Sub(last) >= foldEvery, nil
}

// fillAll gives records from before the capture their heads.
func (l *Log) fillAll(ctx context.Context) error {
	t, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	for _, k := range t.registry.byNumber {
		if k.Gone == 0 && !k.Filled {
			if _, err := l.complete(ctx, k.ID); err != nil && !errors.Is(err, ErrNotCaptured) {
				return err
			}
		}
	}
	return nil
}

// purge deletes what need not be kept any longer.
func (l *Log) purge(ctx context.Context) error {
	if _, err := l.Fold(ctx); err != nil { // only what is folded may go
		return err
	}
	if err := l.stamp(ctx); err != nil {
		return err
	}
	to, err := l.purgeable(ctx)
	if err != nil {
		return err
	}
	for {
		more, err := l.purgeLog(ctx, to)
		if err != nil {
			return fmt.Errorf("purge log: %w", err)
		}
		if !more {
			break
		}
	}
	if err := l.purgeHeads(ctx); err != nil {
		return fmt.Errorf("purge heads: %w", err)
	}
	return l.purgeReaders(ctx)
}

// stamp notes how far the log is now, so that its rows need no time.
func (l *Log) stamp(ctx context.Context) error {
	return l.app.RunInTransaction(func(tx core.App) error {
		s, err := capture.ReadState(ctx, tx.DB())
		if err != nil {
			return err
		}
		now := l.now()
		if err := l.trustClock(tx, now.Unix()); err != nil {
			return err
		}
		err = capture.Exec(tx.DB(), `INSERT INTO changes_marks (at, seq) SELECT {:at}, {:seq}
			WHERE {:seq} > coalesce((SELECT seq FROM changes_marks ORDER BY at DESC LIMIT 1), -1) ON CONFLICT (at) DO UPDATE SET seq = excluded.seq`,
			dbx.Params{"at": now.Unix(), "seq": s.Horizon})
		if err != nil {
			return err
		}
		return capture.Exec(tx.DB(), "DELETE FROM changes_marks WHERE at < {:at} AND at < (SELECT max(at) FROM changes_marks WHERE at < {:at})",
			dbx.Params{"at": now.Add(-l.cfg.ReaderRetention).Unix()})
	})
}

// errClock: a time noted now would make changes look old that are not.
var errClock = errors.New("the clock is behind the time that was noted last; nothing is purged until it is right")

const (
	// firstDay is a time before which no clock is right.
	firstDay = 1735689600 // 2025-01-01

	// maxAhead is how far the noted time may be ahead of the clock, in seconds, for the clock to be thought wrong and not
	// the note: a year and some weeks.
	maxAhead = 400 * 24 * 60 * 60
)

// trustClock refuses a clock that was set back. Notes of one that was years ahead are thrown away.
func (l *Log) trustClock(tx core.App, now int64) error {
	var newest int64
	if err := tx.DB().NewQuery("SELECT coalesce(max(at), 0) FROM changes_marks").Row(&newest); err != nil {
		return fmt.Errorf("read marks: %w", err)
	}
	switch {
	case newest <= now:
		return nil
	case now < firstDay || newest-now < maxAhead:
		return errClock
	}
	return capture.Exec(tx.DB(), "DELETE FROM changes_marks WHERE at > {:at}", dbx.Params{"at": now})
}

// purgeable is the last number that nobody needs: old enough for those who follow in memory, and behind every durable
// reader, unless that has not moved for too long.
func (l *Log) purgeable(ctx context.Context) (int64, error) {
	db, now := l.app.ConcurrentDB(), l.now()
	until := func(age time.Duration) (n int64, err error) {
		err = db.NewQuery("SELECT coalesce(max(seq), 0) FROM changes_marks WHERE at <= {:at}").
			Bind(dbx.Params{"at": now.Add(-age).Unix()}).WithContext(ctx).Row(&n)
		return n, err
	}
	to, err := until(l.cfg.LogRetention)
	if err != nil {
		return 0, fmt.Errorf("read marks: %w", err)
	}
	anyway, err := until(l.cfg.ReaderRetention)
	if err != nil {
		return 0, fmt.Errorf("read marks: %w", err)
	}
	slowest := to
	err = db.NewQuery("SELECT min({:to}, coalesce(min(seq), {:to})) FROM changes_readers").Bind(dbx.Params{"to": to}).WithContext(ctx).Row(&slowest)
	if err != nil {
		return 0, fmt.Errorf("read positions: %w", err)
	}
	return max(slowest, anyway), nil
}

// purgeLog deletes a chunk of the log and reports whether there is more. The newest row stays: the next number comes
// after it.
func (l *Log) purgeLog(ctx context.Context, to int64) (more bool, err error) {
	err = l.app.RunInTransaction(func(tx core.App) error {
		s, err := capture.ReadState(ctx, tx.DB())
		if err != nil {
			return err
		}
		end := min(to, s.Folded, s.Horizon-1)
		next := min(end, s.LogFloor+purgeChunk)
		if next <= s.LogFloor {
			return nil
		}
		more = next < end
		params := dbx.Params{"next": next}
		if err := capture.Exec(tx.DB(), "DELETE FROM changes_log WHERE seq <= {:next}", params); err != nil {
			return err
		}
		return capture.Exec(tx.DB(), "UPDATE changes_state SET log_floor = {:next}", params)
	})
	return more, err
}

// purgeHeads forgets deletions of long ago, and collections that are gone for as long, chunk by chunk.
func (l *Log) purgeHeads(ctx context.Context) error {
	before := dbx.Params{"before": l.now().Add(-l.cfg.TombstoneRetention).Unix(), "n": purgeChunk}
	steps := []string{
		// The heads of a collection that is gone serve nobody: its readers are told of the collection.
		"DELETE FROM changes_heads WHERE hid IN (SELECT hid FROM changes_heads WHERE c IN (SELECT c FROM changes_collections WHERE gone > 0) LIMIT {:n})",
		"DELETE FROM changes_heads WHERE hid IN (SELECT hid FROM changes_heads WHERE del = 1 AND at < {:before} ORDER BY at LIMIT {:n})",
		"DELETE FROM changes_collections WHERE gone > 0 AND gone <= (SELECT log_floor FROM changes_state) AND gone_at < {:before}",
	}
	floors := []string{
		"",
		`UPDATE changes_state SET heads_floor = max(heads_floor, coalesce((SELECT max(seq) FROM
			(SELECT seq FROM changes_heads WHERE del = 1 AND at < {:before} ORDER BY at LIMIT {:n})), 0))`,
		`UPDATE changes_state SET heads_floor = max(heads_floor, coalesce((SELECT max(gone) FROM changes_collections
			WHERE gone > 0 AND gone <= log_floor AND gone_at < {:before}), 0))`,
	}
	for i, step := range steps {
		for n := int64(purgeChunk); n == purgeChunk; {
			err := l.app.RunInTransaction(func(tx core.App) error {
				if floors[i] != "" {
					if err := capture.Exec(tx.DB(), floors[i], before); err != nil {
						return err
					}
				}
				result, err := tx.DB().NewQuery(step).Bind(before).WithContext(ctx).Execute()
				if err != nil {
					return err
				}
				n, err = result.RowsAffected()
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// purgeReaders forgets readers that this program no longer has, once they have missed something.
func (l *Log) purgeReaders(ctx context.Context) error {
	var lost []string
	err := l.app.ConcurrentDB().NewQuery("SELECT name FROM changes_readers WHERE seq < (SELECT log_floor FROM changes_state)").
		WithContext(ctx).Column(&lost)
	if err != nil {
		return fmt.Errorf("read readers: %w", err)
	}
	lost = slices.DeleteFunc(lost, func(name string) bool { _, ours := l.readers.Load(name); return ours })
	for _, name := range lost {
		if err := capture.Exec(l.app.NonconcurrentDB(), "DELETE FROM changes_readers WHERE name = {:name}", dbx.Params{"name": name}); err != nil {
			return err
		}
	}
	return nil
}
