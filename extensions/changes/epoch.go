package changes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

// markFile lies in the data folder, beside the database and not in it, and is part of no backup. A database without it,
// or behind it, is another one than the server had before.
const markFile = "changes.mark"

// waterMark is the content of the file: how far the log had come at least.
type waterMark struct {
	Epoch    string `json:"epoch"`
	Seq      int64  `json:"seq"`
	Restored bool   `json:"restored,omitempty"` // a restore is on its way
}

// mark is what was last written to the file.
type mark struct {
	sync.Mutex
	written   waterMark
	restoring bool
}

// examine begins a new epoch when the data may have gone back in time: when a backup was restored, or the database lies
// behind the mark, as after a manual restore, a lost write-ahead log or a move without the mark.
func (l *Log) examine(app core.App) error {
	s, err := capture.ReadState(context.Background(), app.ConcurrentDB())
	if err != nil {
		return err
	}
	before, found := readMark(app.DataDir())
	if !found || before.Restored || before.Epoch != s.Epoch || before.Seq > s.Horizon {
		if s, err = renew(app); err != nil {
			return err
		}
		if found {
			l.log.Warn("the data has gone back in time: a new epoch begins, and devices start over", "epoch", s.Epoch)
		}
	}
	l.mark.Lock()
	defer l.mark.Unlock()
	return l.mark.write(app.DataDir(), waterMark{Epoch: s.Epoch, Seq: s.Horizon})
}

// renew begins a new epoch.
func renew(app core.App) (s capture.State, err error) {
	err = app.RunInTransaction(func(tx core.App) error {
		if err := capture.Exec(tx.DB(), "UPDATE changes_state SET epoch = {:epoch}", dbx.Params{"epoch": capture.NewEpoch()}); err != nil {
			return err
		}
		s, err = capture.ReadState(context.Background(), tx.DB())
		return err
	})
	if err != nil {
		return s, fmt.Errorf("begin epoch: %w", err)
	}
	return s, nil
}

func readMark(dir string) (waterMark, bool) {
	var m waterMark
	raw, err := os.ReadFile(filepath.Join(dir, markFile))
	if err != nil || json.Unmarshal(raw, &m) != nil {
		return waterMark{}, false
	}
	return m, true
}

// write replaces the file. The caller holds the lock.
func (m *mark) write(dir string, w waterMark) error {
	w.Restored = w.Restored || m.restoring
	if w == m.written {
		return nil
	}
	raw, err := json.Marshal(w)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, markFile)
	if err := os.WriteFile(path+".new", append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write mark: %w", err)
	}
	m.written = w
	return nil
}

// writeMark notes how far the log has come. What is noted is on disk, or a power failure would look like a restore.
func (l *Log) writeMark(ctx context.Context) error {
	s, err := capture.ReadState(ctx, l.app.ConcurrentDB())
	if err != nil {
		return err
	}
	l.mark.Lock()
	defer l.mark.Unlock()
	now := waterMark{Epoch: s.Epoch, Seq: s.Horizon}
	if now == l.mark.written || l.mark.restoring { // during a restore the mark says so, and the files are another database's
		return nil
	}
	if err := l.store.Durable(); err != nil {
		return err
	}
	return l.mark.write(l.app.DataDir(), now)
}

// bindBackups keeps the mark out of backups and where it is when one is restored. The restored program, which PocketBase
// starts in this one's place, finds in it that it is another database.
func (l *Log) bindBackups(app core.App) {
	app.OnBackupCreate().Bind(&hook.Handler[*core.BackupEvent]{Id: "satchelChanges", Func: func(e *core.BackupEvent) error {
		e.Exclude = append(slices.Clone(e.Exclude), markFile, markFile+".new")
		return e.Next()
	}})
	app.OnBackupRestore().Bind(&hook.Handler[*core.BackupEvent]{Id: "satchelChanges", Func: func(e *core.BackupEvent) error {
		e.Exclude = append(slices.Clone(e.Exclude), markFile, markFile+".new")
		if err := l.restoring(e.App, true); err != nil {
			return err
		}
		err := e.Next()
		if err != nil { // otherwise another program runs by now
			err = errors.Join(err, l.restoring(e.App, false))
		}
		return err
	}})
}

func (l *Log) restoring(app core.App, on bool) error {
	l.mark.Lock()
	defer l.mark.Unlock()
	before, found := readMark(app.DataDir())
	if !found {
		before = l.mark.written
	}
	l.mark.restoring = on
	before.Restored = on
	return l.mark.write(app.DataDir(), before)
}

// BeginEpoch begins a new epoch, after a restore that nobody could notice. A running server follows at once.
func (l *Log) BeginEpoch() (epoch string, err error) {
	s, err := renew(l.app)
	if err != nil {
		return "", err
	}
	l.note()
	l.mark.Lock()
	defer l.mark.Unlock()
	err = l.mark.write(l.app.DataDir(), waterMark{Epoch: s.Epoch, Seq: s.Horizon})
	if errors.Is(err, fs.ErrPermission) {
		err = nil // the file belongs to the server, which writes it itself
	}
	return s.Epoch, err
}
