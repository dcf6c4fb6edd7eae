package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/internal/readonly"
)

const (
	// verifyEvery is how often the server verifies what is new since it did so last.
	verifyEvery = 24 * time.Hour

	// expireEvery is how often old entries are looked for.
	expireEvery = time.Hour

	// sumEvery is how often failures that were only counted become entries.
	sumEvery = time.Minute
)

// bind connects the log to the application that it writes to.
func (l *Log) bind(h *extensions.Host) error {
	l.app, l.logger = h.App, h.Logger
	l.Connect(h.App, l.file, l.warn)
	// Commands write entries inside their transactions, where the vault could not make its root key any more, and so does
	// the server before it listens. A missing key is the error of the first entry and of nothing else.
	h.App.OnBootstrap().Bind(&hook.Handler[*core.BootstrapEvent]{Id: "satchelAuditUnlock", Priority: -1000, Func: func(e *core.BootstrapEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		_ = l.Unlock()
		l.Reopen()
		l.opened.Store(true)
		return nil
	}})
	h.App.OnBootstrapClear().Bind(&hook.Handler[*core.BootstrapEvent]{Id: "satchelAuditClose", Func: func(e *core.BootstrapEvent) error {
		l.close()
		return e.Next()
	}})
	l.watch(h.App)
	return nil
}

func (l *Log) warn(err error) {
	l.logger.Warn("the newest audit entry could not be written to the checkpoint file", slog.String("file", l.file()), slog.Any("error", err))
}

// close writes what is still to be written, before the databases are closed.
func (l *Log) close() {
	if !l.Ready() {
		return
	}
	if err := l.summarise(l.app, true); err != nil {
		l.logger.Warn("failures could not be counted in the audit", slog.Any("error", err))
	}
	if err := l.Close(); err != nil {
		l.warn(err)
	}
}

// serve refuses to begin with a file where it proves nothing, and takes note of a backup that was restored.
func (l *Log) serve(*extensions.Host, *core.ServeEvent) error {
	if err := l.Outside(); err != nil {
		return err
	}
	return l.afterRestore()
}

// file is where the newest entry is written, empty if nowhere.
func (l *Log) file() string {
	switch l.cfg.CheckpointFile {
	case fileOff:
		return ""
	case "":
		dir, err := filepath.Abs(l.app.DataDir())
		if err != nil {
			dir = l.app.DataDir()
		}
		return dir + ".audit"
	}
	return l.cfg.CheckpointFile
}

// afterRestore ends a restore: the file was told about it before, and now follows the database that came.
func (l *Log) afterRestore() error {
	if l.File() == "" {
		return nil
	}
	marks, err := l.Marks()
	if err != nil {
		return err
	}
	for _, m := range marks {
		if m.Restore == nil {
			continue
		}
		last, lastErr := ledger.Newest(l.app.ConcurrentDB())
		kept, err := m.Kept(l.app.ConcurrentDB())
		if err = errors.Join(lastErr, err); err != nil {
			return fmt.Errorf("look for restored backup: %w", err)
		}
		outcome := Success
		if kept { // nothing was replaced
			outcome = Failure
		}
		err = l.Append(l.app, Entry{Action: "backups.restored", Outcome: outcome, Actor: m.Restore.By, Details: map[string]any{
			"name": m.Restore.Name, "entriesBefore": m.Entry, "entriesRestored": last.ID,
		}})
		if err != nil {
			return err
		}
		return l.WriteMarks(func(ledger.Mark) bool { return true }, nil)
	}
	return nil
}

func (l *Log) start(ctx context.Context, _ *extensions.Host) error {
	ctx, l.cancel = context.WithCancel(ctx)
	l.ended = make(chan struct{})
	go l.tend(ctx)
	return nil
}

func (l *Log) stop(ctx context.Context) error {
	if l.cancel == nil {
		return nil
	}
	l.cancel()
	select {
	case <-l.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tend does the regular work until ctx ends.
func (l *Log) tend(ctx context.Context) {
	defer close(l.ended)
	sum, expire, verify := time.NewTicker(sumEvery), time.NewTicker(expireEvery), time.NewTicker(verifyEvery)
	defer sum.Stop()
	defer expire.Stop()
	defer verify.Stop()
	var known *ledger.Link
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-sum.C:
			err = l.summarise(l.app, false)
		case now := <-expire.C:
			if l.cfg.Retention > 0 {
				_, err = l.Expire(ctx, l.app, now.Add(-l.cfg.Retention))
			}
		case <-verify.C:
			known, err = l.verifyNew(ctx, known)
		}
		if err != nil && ctx.Err() == nil {
			l.logger.Error("the audit log could not be tended", slog.Any("error", err))
		}
	}
}

// verifyNew verifies what is new, says what is wrong, and returns up to where all is well.
func (l *Log) verifyNew(ctx context.Context, known *ledger.Link) (*ledger.Link, error) {
	r, err := l.Verify(ctx, l.app, known)
	if err != nil {
		return known, err
	}
	for _, p := range r.Problems {
		l.logger.Error("the audit log is not intact", slog.String("code", p.Code), slog.Int64("entry", p.Entry), slog.String("detail", p.Detail))
	}
	if r.OK {
		known = &r.End
	}
	return known, nil
}

// check compares the database with the file. It needs no key, and so works beside a server and without one; whether the
// entries are what was sealed is the business of `audit verify`.
func (l *Log) check(_ context.Context, h *extensions.Host) extensions.Result {
	path := l.file()
	if path == "" {
		return extensions.Result{Level: extensions.Info, Message: "no checkpoint file: a tail that is cut off will not be missed"}
	}
	if err := l.Outside(); err != nil {
		return extensions.Result{Level: extensions.Fail, Message: err.Error()}
	}
	db, done, err := database(h)
	if db == nil {
		if err != nil {
			return extensions.Result{Level: extensions.Skip, Message: "the database cannot be read: " + err.Error()}
		}
		return extensions.Result{Level: extensions.Info, Message: "nothing is stored yet"}
	}
	defer done()
	marks, bad, err := ledger.ReadMarks(path, nil)
	last, lastErr := ledger.Newest(db)
	switch {
	case lastErr != nil:
		return extensions.Result{Level: extensions.Skip, Message: lastErr.Error()}
	case l.FileError() != nil:
		return extensions.Result{Level: extensions.Warn, Message: l.FileError().Error(), Next: "set SATCHEL_AUDIT_CHECKPOINT_FILE to a file that can be written"}
	case errors.Is(err, fs.ErrNotExist) && last.ID > 0:
		return extensions.Result{Level: extensions.Warn, Message: path + " is missing; the next entry makes it anew", Next: "satchel audit verify"}
	case errors.Is(err, fs.ErrNotExist):
		return extensions.Result{Message: "no entry yet"}
	case err != nil:
		return extensions.Result{Level: extensions.Warn, Message: err.Error()}
	case len(bad) > 0:
		return extensions.Result{Level: extensions.Fail, Message: path + " was changed", Next: "satchel audit verify"}
	}
	for _, m := range marks {
		ok, err := m.Kept(db)
		if err != nil {
			return extensions.Result{Level: extensions.Skip, Message: err.Error()}
		}
		if !ok {
			return extensions.Result{
				Level: extensions.Fail, Message: fmt.Sprintf("entry %d, seen on %s, is missing or another one", m.Entry, m.At.Format(time.RFC3339)),
				Next: "satchel audit verify; after restoring an older copy: satchel audit accept",
			}
		}
	}
	return extensions.Result{Message: fmt.Sprintf("%d entries, the newest is the one in %s or behind it", last.ID, path)}
}

// database is that of the open application, or else the file, to be read only; nil if there is none yet.
func database(h *extensions.Host) (dbx.Builder, func(), error) {
	if h.App.IsBootstrapped() {
		return h.App.ConcurrentDB(), func() {}, nil
	}
	path := filepath.Join(h.App.DataDir(), "data.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	raw, err := readonly.Open(path)
	if err != nil {
		return nil, nil, err
	}
	var n int
	if err := raw.QueryRow("SELECT count(*) FROM sqlite_master WHERE name = 'audit_chain'").Scan(&n); err != nil || n == 0 {
		return nil, nil, errors.Join(err, raw.Close())
	}
	return dbx.NewFromDB(raw, "sqlite"), func() { _ = raw.Close() }, nil
}
