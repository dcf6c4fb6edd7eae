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
	// pollFresh is how old the knowledge about commits of other processes may be when somebody asks.
	pollFresh = time.Millisecond

	// pollWaiting is how often they are looked for while somebody waits.
	pollWaiting = 250 * time.Millisecond

	defaultLimit = 1000
	maxLimit     = 10_000
)

// tail is the end of the log as all readers share it. It is immutable, but for room behind the end of changes that only
// the next tail uses.
type tail struct {
	capture.State
	noted    uint64   // commits that it is sure to contain
	start    int64    // changes holds everything after start, up to Horizon
	changes  []Change // by Seq
	registry *registry
}

func (t *tail) position() Position { return Position{t.Epoch, t.Horizon} }

// check returns why the log cannot be read from the position, or nil.
func (t *tail) check(from Position) error {
	switch {
	case from.Epoch != t.Epoch:
		return &ResetError{OtherEpoch, t.position()}
	case from.Seq > t.Horizon:
		return &ResetError{Ahead, t.position()}
	case from.Seq < t.LogFloor:
		return &ResetError{Floor, t.position()}
	}
	return nil
}

// note is called after each commit, with the store's gate held.
func (l *Log) note() {
	l.noted.Add(1)
	if l.watched.Load() {
		select {
		case l.poke <- struct{}{}:
		default:
		}
	}
}

// fresh returns a tail with all that was committed before the call: in this process, and by others as far as the store
// can tell without waiting for a writer. All who ask at the same time share one read.
func (l *Log) fresh(ctx context.Context) (*tail, error) {
	if now := time.Now().UnixNano(); now-l.polled.Load() > int64(pollFresh) {
		l.polled.Store(now)
		l.store.Version()
	}
	want := l.noted.Load()
	if t := l.tail.Load(); t != nil && t.noted >= want {
		return t, nil
	}
	l.refresh.Lock()
	defer l.refresh.Unlock()
	old := l.tail.Load()
	if old != nil && old.noted >= want {
		return old, nil
	}
	t, err := l.read(context.WithoutCancel(ctx), old) // others wait for it
	if err != nil {
		return nil, err
	}
	l.tail.Store(t)
	if old == nil || t.Horizon != old.Horizon || t.Epoch != old.Epoch {
		l.publish()
	}
	return t, nil
}

// read makes the next tail. Entries are appended only, so what is read after the horizon is at least up to it. It is
// shown to nobody before it is on disk, see the package comment. The caller holds refresh.
func (l *Log) read(ctx context.Context, old *tail) (*tail, error) {
	noted, db := l.noted.Load(), l.app.ConcurrentDB()
	s, err := capture.ReadState(ctx, db)
	if err != nil {
		return nil, err
	}
	t := &tail{State: s, noted: noted}
	if old == nil || old.Epoch != s.Epoch || s.Horizon < old.Horizon || s.Horizon-old.Horizon > int64(l.cfg.Tail) {
		t.start = max(s.LogFloor, s.Horizon-int64(l.cfg.Tail))
		if err := l.load(ctx, db, t, t.start); err != nil {
			return nil, err
		}
		err = l.loadLast(ctx, db, t)
	} else {
		t.start, t.changes, t.registry = old.start, old.changes, old.registry
		if s.Horizon > old.Horizon {
			err = l.load(ctx, db, t, old.Horizon)
		}
	}
	if err != nil {
		return nil, err
	}
	if old == nil || s.Horizon != old.Horizon || s.Epoch != old.Epoch {
		if err := l.store.Durable(); err != nil {
			return nil, err
		}
	}
	if keep := l.cfg.Tail; len(t.changes) > 2*keep {
		cut := len(t.changes) - keep
		t.start = t.changes[cut-1].Seq
		t.changes = append(make([]Change, 0, 2*keep), t.changes[cut:]...)
	}
	return t, nil
}

// load appends the entries after the number.
func (l *Log) load(ctx context.Context, db dbx.Builder, t *tail, after int64) error {
	if t.registry == nil {
		if err := t.reload(db); err != nil {
			return err
		}
	}
	l.last.Lock()
	defer l.last.Unlock()
	reloaded := false
	return eachEntry(ctx, db, after, t.Horizon, -1, func(e entry) error {
		_, known := t.registry.byNumber[e.c]
		if !reloaded && (!known || e.Action >= Schema) {
			reloaded = true
			if err := t.reload(db); err != nil {
				return err
			}
		}
		e.Collection = t.registry.byNumber[e.c].ID
		t.changes = append(t.changes, e.Change)
		if l.last.by != nil {
			l.last.by[e.c] = e.Seq
		}
		return nil
	})
}

func (t *tail) reload(db dbx.Builder) error {
	list, err := capture.List(db)
	if err != nil {
		return err
	}
	t.registry = newRegistry(list)
	return nil
}

// entry is a row of the log.
type entry struct {
	Change
	c int64
}

// eachEntry calls fn with the entries after one number, up to another, at most limit of them if that is not negative.
// Their collections are not filled in. fn may query the database.
func eachEntry(ctx context.Context, db dbx.Builder, after, upTo int64, limit int, fn func(e entry) error) (err error) {
	rows, err := db.NewQuery("SELECT seq, c, coalesce(rec, ''), op FROM changes_log WHERE seq > {:after} AND seq <= {:to} ORDER BY seq LIMIT {:limit}").
		Bind(dbx.Params{"after": after, "to": upTo, "limit": limit}).WithContext(ctx).Rows()
	if err != nil {
		return fmt.Errorf("read change log: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var e entry
		if err := rows.Scan(&e.Seq, &e.c, &e.Record, &e.Action); err != nil {
			return fmt.Errorf("read change log: %w", err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	return rows.Err()
}

// loadLast finds the last change of every collection: in the heads, in what they do not contain yet, and in the
// definitions.
func (l *Log) loadLast(ctx context.Context, db dbx.Builder, t *tail) error {
	by := make(map[int64]int64, len(t.registry.byNumber))
	for c, k := range t.registry.byNumber {
		var n int64
		err := db.NewQuery("SELECT coalesce(max(seq), 0) FROM changes_heads WHERE c = {:c}").Bind(dbx.Params{"c": c}).WithContext(ctx).Row(&n)
		if err != nil {
			return fmt.Errorf("read last change: %w", err)
		}
		by[c] = max(n, k.Changed, k.Gone)
	}
	err := eachEntry(ctx, db, t.Folded, t.Horizon, -1, func(e entry) error {
		by[e.c] = max(by[e.c], e.Seq)
		return nil
	})
	if err != nil {
		return err
	}
	l.last.Lock()
	defer l.last.Unlock()
	l.last.by = by
	return nil
}

// publish wakes those who wait.
func (l *Log) publish() {
	l.wake.Lock()
	defer l.wake.Unlock()
	close(l.wake.changed)
	l.wake.changed = make(chan struct{})
	l.watched.Store(false)
}

// Changed returns a channel that is closed at the next change, or when the epoch changes. Take it before you look, or
// the change between looking and taking is missed.
func (l *Log) Changed() <-chan struct{} {
	l.wake.Lock()
	defer l.wake.Unlock()
	l.watched.Store(true)
	return l.wake.changed
}

// pump reads the log for those who wait, when there is somebody.
func (l *Log) pump(ctx context.Context) {
	tick := time.NewTicker(pollWaiting)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.poke:
		case <-tick.C:
		}
		if !l.watched.Load() {
			continue
		}
		if _, err := l.fresh(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("the change log cannot be read", "error", err) // and is tried again at the next tick
		}
	}
}

// Horizon is the position behind the last change. It includes every write that returned before the call.
func (l *Log) Horizon(ctx context.Context) (Position, error) {
	t, err := l.fresh(ctx)
	if err != nil {
		return Position{}, err
	}
	return t.position(), nil
}

// Floors are the lowest numbers that can be continued: of the log, and of the heads.
type Floors struct{ Log, Heads int64 }

// Floor returns the floors.
func (l *Log) Floor(ctx context.Context) (Floors, error) {
	t, err := l.fresh(ctx)
	if err != nil {
		return Floors{}, err
	}
	return Floors{t.LogFloor, t.HeadsFloor}, nil
}

// Since returns the changes after a position in their order, at most limit of them (0 means 1,000), and the position
// behind the last one. The slice is shared by all readers: read it only. A [ResetError] says that the position cannot be
// continued. Changes in the tail cost no query.
func (l *Log) Since(ctx context.Context, from Position, limit int) ([]Change, Position, error) {
	t, err := l.fresh(ctx)
	if err != nil {
		return nil, from, err
	}
	if err := t.check(from); err != nil {
		return nil, from, err
	}
	if limit <= 0 {
		limit = defaultLimit
	}
	limit = min(limit, maxLimit)
	var list []Change
	if from.Seq >= t.start {
		i, _ := slices.BinarySearchFunc(t.changes, from.Seq+1, func(c Change, seq int64) int { return int(c.Seq - seq) })
		end := min(len(t.changes), i+limit)
		list = t.changes[i:end:end]
	} else if list, err = l.stored(ctx, t, from, limit); err != nil {
		return nil, from, err
	}
	if len(list) > 0 {
		from.Seq = list[len(list)-1].Seq
	}
	return list, from, nil
}

// stored reads from the database what the tail no longer has.
func (l *Log) stored(ctx context.Context, t *tail, from Position, limit int) ([]Change, error) {
	var list []Change
	db := l.app.ConcurrentDB()
	err := eachEntry(ctx, db, from.Seq, t.Horizon, limit, func(e entry) error {
		e.Collection = t.registry.byNumber[e.c].ID
		list = append(list, e.Change)
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The purge raises the floor in the transaction that deletes: had it deleted any of these, this shows it.
	var floor int64
	if err := db.NewQuery("SELECT log_floor FROM changes_state").WithContext(ctx).Row(&floor); err != nil {
		return nil, fmt.Errorf("read floor: %w", err)
	}
	if from.Seq < floor {
		return nil, &ResetError{Floor, t.position()}
	}
	return list, nil
}

// Wait returns when there is a change with a higher number than after, or another epoch, and with the error of the
// context when that ends first. It works while the server runs.
func (l *Log) Wait(ctx context.Context, after int64) error {
	epoch := ""
	for {
		changed := l.Changed()
		t, err := l.fresh(ctx)
		if err != nil {
			return err
		}
		if t.Horizon > after || epoch != "" && t.Epoch != epoch {
			return nil
		}
		epoch = t.Epoch
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// LastChange is the number of the last change of any of the collections, given by id or name: of their records, their
// fields or their rules. It returns ErrNotCaptured if one is not captured.
func (l *Log) LastChange(ctx context.Context, collections ...string) (int64, error) {
	t, err := l.fresh(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	l.last.Lock()
	defer l.last.Unlock()
	for _, name := range collections {
		k, err := t.registry.find(name)
		if err != nil {
			return 0, err
		}
		n = max(n, l.last.by[k.C])
	}
	return n, nil
}

// Touch records an update of records that were not written, for those whose view depends on something else. app may be
// a transaction; then the entries belong to it.
func (l *Log) Touch(app core.App, collection string, records ...string) error {
	k, ok, err := capture.Live(app.NonconcurrentDB(), collection)
	if err == nil && !ok {
		if c, e := app.FindCachedCollectionByNameOrId(collection); e == nil {
			k, ok, err = capture.Live(app.NonconcurrentDB(), c.Id)
		}
	}
	if err != nil {
		return err
	}
	if !ok {
		return ErrNotCaptured
	}
	err = app.RunInTransaction(func(tx core.App) error {
		for _, record := range records {
			if _, err := capture.Append(tx.DB(), k.C, record, Update); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if tx := app.TxInfo(); tx != nil { // the log is quiet: the store tells nobody of a write to it alone
		tx.OnComplete(func(error) error { l.note(); return nil })
		return nil
	}
	l.note()
	return nil
}
