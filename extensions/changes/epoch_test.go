package changes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes/capture"
)

// reopen does what the start of a server does, with what lies in the data folder.
func (f *fixture) reopen() Position {
	f.t.Helper()
	f.mark.written = waterMark{}
	f.tail.Store(nil)
	f.must(f.open(f.App))
	return f.at()
}

func TestEpochs(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(f *fixture)
		other bool
	}{
		{"a restart", func(*fixture) {}, false},
		{"a crash before the mark was written", func(f *fixture) { f.note("a", "") }, false},
		{"a database from before", func(f *fixture) {
			f.note("a", "")
			f.must(f.writeMark(f.t.Context()))
			f.exec("DELETE FROM changes_log WHERE seq = (SELECT max(seq) FROM changes_log)", "UPDATE sqlite_sequence SET seq = seq - 1 WHERE name = 'changes_log'")
		}, true},
		{"a database without the mark", func(f *fixture) { f.must(os.Remove(filepath.Join(f.DataDir(), markFile))) }, true},
		{"a broken mark", func(f *fixture) { f.must(os.WriteFile(filepath.Join(f.DataDir(), markFile), []byte("{"), 0o600)) }, true},
		{"the database of another epoch", func(f *fixture) { f.exec("UPDATE changes_state SET epoch = 'aaaaaaaaaaaa'") }, true},
		{"the command", func(f *fixture) {
			if _, err := f.BeginEpoch(); err != nil {
				f.t.Fatal(err)
			}
		}, true},
		{"a restore by PocketBase", func(f *fixture) {
			// The program is replaced at the end of a restore, so nothing comes after what the hook has done by then.
			stop := errors.New("replaced")
			f.OnBackupRestore().BindFunc(func(e *core.BackupEvent) error {
				m, found := readMark(f.DataDir())
				if !found || !m.Restored || !strings.Contains(strings.Join(e.Exclude, " "), markFile) {
					f.t.Errorf("during the restore: %+v %v %v", m, found, e.Exclude)
				}
				f.must(f.writeMark(f.t.Context())) // the server still runs
				f.note("b", "")
				f.must(f.writeMark(f.t.Context()))
				if raw, err := os.ReadFile(filepath.Join(f.DataDir(), markFile)); err == nil {
					f.must(os.WriteFile(filepath.Join(f.DataDir(), "kept"), raw, 0o600))
				}
				return stop
			})
			if err := f.RestoreBackup(f.t.Context(), "x.zip"); !errors.Is(err, stop) {
				f.t.Fatal(err)
			}
			f.must(os.Rename(filepath.Join(f.DataDir(), "kept"), filepath.Join(f.DataDir(), markFile)))
		}, true},
		{"a restore that fails", func(f *fixture) {
			if err := f.RestoreBackup(f.t.Context(), "missing.zip"); err == nil {
				f.t.Fatal("a missing backup was restored")
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, defaults())
			before := f.at()
			c.do(f)
			after := f.reopen()
			if (after.Epoch != before.Epoch) != c.other {
				t.Errorf("epoch %s, then %s", before.Epoch, after.Epoch)
			}
			_, _, err := f.Since(t.Context(), before, 0)
			if _, reset := errors.AsType[*ResetError](err); reset != c.other {
				t.Errorf("the old position: %v", err)
			}
			if again := f.reopen(); again.Epoch != after.Epoch {
				t.Error("the next start begins another epoch")
			}
		})
	}
}

// Backups do not hold the mark, so that a backup put in place by hand is noticed.
func TestBackupWithoutMark(t *testing.T) {
	f := start(t, defaults())
	f.OnBackupCreate().BindFunc(func(e *core.BackupEvent) error {
		if !strings.Contains(strings.Join(e.Exclude, " "), markFile) {
			t.Errorf("excluded: %v", e.Exclude)
		}
		return nil
	})
	f.must(f.CreateBackup(t.Context(), "x.zip"))
}

// Triggers that were lost come back with the next start; what was written meanwhile cannot be told, so the collection
// begins anew.
func TestLostTriggers(t *testing.T) {
	for name, lose := range map[string]string{
		"dropped":  "DROP TRIGGER changes_%_update",
		"replaced": "DROP TRIGGER changes_%_update; CREATE TRIGGER changes_%_update AFTER UPDATE ON notes BEGIN SELECT 1; END",
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, defaults())
			a, b := f.note("a", ""), f.note("b", "")
			before, err := f.Collection(t.Context(), "notes")
			f.must(err)
			version := f.heads("notes")[a.Id].Version
			for _, text := range strings.SplitAfter(strings.ReplaceAll(lose, "%", number(before.C)), "_update; ") {
				f.exec(strings.TrimSuffix(text, "; "))
			}
			f.exec("UPDATE notes SET title = 'unseen' WHERE id = '" + a.Id + "'")
			if result := f.check(t.Context(), f.Host); result.Next != Mending {
				t.Errorf("check: %+v", result)
			}
			from := f.at()
			f.reopen()
			equal(t, "entries", f.since(from), "reset")
			after, err := f.Collection(t.Context(), "notes")
			f.must(err)
			heads := f.heads("notes")
			if after.C == before.C || after.Base <= version || len(heads) != 2 || heads[a.Id].Version != after.Base || heads[b.Id].Deleted {
				t.Errorf("%+v, then %+v: %+v", before, after, heads)
			}
			_, err = f.HeadsAfter(t.Context(), "notes", version, 0)
			if _, reset := errors.AsType[*ResetError](err); !reset {
				t.Errorf("a reader of the old heads goes on: %v", err)
			}
			equal(t, "a write", f.during(func() { f.exec("UPDATE notes SET title = 'x' WHERE id = '" + a.Id + "'") }), "update "+a.Id)
			f.sound("notes")
			if result := f.check(t.Context(), f.Host); result.Level != 0 {
				t.Errorf("check: %+v", result)
			}
		})
	}
}

// A collection that exists before the capture gets heads in chunks, also while it is written to.
func TestFill(t *testing.T) {
	cfg := defaults()
	cfg.Exclude = []string{"notes"}
	f := start(t, cfg)
	f.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) INSERT INTO notes (id) SELECT printf('%015d', i) FROM n`)
	f.cfg.Exclude = nil
	f.reopen()
	k, err := f.Collection(t.Context(), "notes")
	f.must(err)
	f.exec("UPDATE notes SET title = 'x' WHERE id = '000000000000007'", "DELETE FROM notes WHERE id = '000000000000009'")
	f.must(f.fillAll(t.Context()))
	heads := f.heads("notes")
	if len(heads) != 2500 || heads["000000000000001"].Version != k.Base || heads["000000000000007"].Version <= k.Base || !heads["000000000000009"].Deleted {
		t.Errorf("%d heads", len(heads))
	}
	f.sound("notes")
	// Excluded again: gone.
	f.cfg.Exclude = []string{"notes"}
	from := f.at()
	f.reopen()
	equal(t, "excluded", f.since(from), "gone")
	stored, err := capture.StoredTriggers(f.ConcurrentDB())
	f.must(err)
	for name := range stored {
		if strings.Contains(name, "_"+number(k.C)+"_") {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestMigrationDown(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	f.must(capture.Migration().Down(f.App))
	f.note("a", "") // no trigger is left that would fail
}
