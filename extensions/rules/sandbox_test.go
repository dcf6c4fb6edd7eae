package rules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

// dataFolder is the folder of a program that has been used: ada has written a diary, settings point to a bucket and
// limit requests. The application is still running.
func dataFolder(t *testing.T) core.App {
	t.Helper()
	app, err := openApp(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.ClearBootstrap() })
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	ada := core.NewRecord(users)
	ada.SetEmail("ada@example.com")
	ada.SetRandomPassword()
	diaries, err := app.FindCollectionByNameOrId("diaries")
	if err != nil {
		t.Fatal(err)
	}
	diary := core.NewRecord(diaries)
	diary.Id = "oldestdiary0001"
	if err := errors.Join(app.Save(ada), func() error { diary.Set("owner", ada.Id); return app.Save(diary) }()); err != nil {
		t.Fatal(err)
	}
	s := app.Settings()
	s.S3 = core.S3Config{Enabled: true, Bucket: "real", Region: "x", Endpoint: "http://127.0.0.1:1", AccessKey: "a", Secret: "b"}
	s.RateLimits = core.RateLimitsConfig{Enabled: true, Rules: []core.RateLimitRule{{Label: "/api/", MaxRequests: 1, Duration: 60}}}
	if err := app.Save(s); err != nil {
		t.Fatal(err)
	}
	return app
}

// folder is what is in a data folder: names, sizes, times and content.
func folder(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&all, path, info.Size(), info.ModTime().UnixNano())
		if strings.HasSuffix(path, ".db") || strings.HasSuffix(path, "-wal") {
			content, err := os.ReadFile(path)
			fmt.Fprintf(&all, "%x\n", content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

const withData = `
as ada users/ada@example.com {"name":"Ada"}
given diaries/today {"owner":"@ada"}
ada   can    list   diaries only today oldestdiary0001
ada   can    update diaries/oldestdiary0001 {"text":"changed"}
guest can    view   diaries/oldestdiary0001
ada   can    delete users/ada
ada   cannot delete diaries/oldestdiary0001
`

func TestDataIsOnlyRead(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%t", running), func(t *testing.T) {
			inTemp(t)
			app := dataFolder(t)
			if !running {
				if err := app.ClearBootstrap(); err != nil {
					t.Fatal(err)
				}
			}
			before := folder(t, app.DataDir())
			report, err := Test(t.Context(), app.DataDir(), write(t, withData), openApp)
			if err != nil || report.Failed > 0 {
				t.Fatalf("%v %+v", err, report)
			}
			if after := folder(t, app.DataDir()); after != before {
				t.Errorf("the data folder has changed")
			}
			if _, err := os.Stat(filepath.Join(app.DataDir(), "data.db-wal")); running == errors.Is(err, fs.ErrNotExist) {
				t.Errorf("write-ahead log: %v; the test does not show what it should", err)
			}
		})
	}
}

// A server that writes meanwhile must be neither blocked nor copied half.
func TestCopyWhileWriting(t *testing.T) {
	inTemp(t)
	app := dataFolder(t)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				done <- n
				return
			default:
			}
			if _, err := app.NonconcurrentDB().NewQuery("UPDATE diaries SET items = items + 1").Execute(); err != nil {
				t.Error(err)
			}
			n++
		}
	}()
	report, err := Test(t.Context(), app.DataDir(), write(t, withData), openApp)
	close(stop)
	if n := <-done; n == 0 {
		t.Error("nothing was written: the test shows nothing")
	}
	if err != nil || report.Failed > 0 {
		t.Fatalf("%v %+v", err, report)
	}
}

// The copy must not send mail, and must not reach the bucket that the copied settings name.
func TestCopyIsCutOff(t *testing.T) {
	app := dataFolder(t)
	dir := t.TempDir()
	if err := copyData(t.Context(), app.DataDir(), dir); err != nil {
		t.Fatal(err)
	}
	box, err := openSandbox(t.Context(), dir, openApp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := box.close(); err != nil {
			t.Error(err)
		}
	}()
	sent := false
	box.app.OnMailerSend().BindFunc(func(e *core.MailerEvent) error { sent = true; return e.Next() })
	err = box.app.OnMailerSend().Trigger(&core.MailerEvent{App: box.app}, func(*core.MailerEvent) error { sent = true; return nil })
	if err != nil || sent {
		t.Errorf("mail goes out (%v)", err)
	}
	if err := box.app.ReloadSettings(); err != nil {
		t.Fatal(err)
	}
	if s := box.app.Settings(); s.S3.Enabled || s.RateLimits.Enabled || !app.Settings().S3.Enabled {
		t.Errorf("bucket %t, limits %t; real bucket %t", s.S3.Enabled, s.RateLimits.Enabled, app.Settings().S3.Enabled)
	}
}

// An interrupt ends the run and still deletes the copy.
func TestInterrupt(t *testing.T) {
	inTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	opened := 0
	open := func(dir string) (core.App, error) {
		if opened++; opened == 2 {
			cancel()
		}
		return openApp(dir)
	}
	_, err := Test(ctx, noData(t), write(t, everybody+strings.Repeat("ada can list diaries\n", 3)), open)
	if !errors.Is(err, context.Canceled) || opened != 2 {
		t.Fatalf("got %v after %d copies", err, opened)
	}
}

func TestDamagedDatabase(t *testing.T) {
	inTemp(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.db"), []byte(strings.Repeat("this is no database. ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Test(t.Context(), dir, write(t, "guest cannot list users"), openApp)
	var m *Mistake
	if err == nil || errors.As(err, &m) || !strings.Contains(err.Error(), "data.db") {
		t.Fatalf("got %v", err)
	}
}
