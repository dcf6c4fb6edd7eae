//go:build unix

package account

import (
	"bufio"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/settings"
)

const childVariable = "ACCOUNT_TEST_CHILD"

// TestKill ends the process that deletes an account again and again, as kill -9 does, at any point. In the end all is gone
// that belonged to the account, its files too, and nothing else.
func TestKill(t *testing.T) {
	if dir := os.Getenv(childVariable); dir != "" {
		deleteUntilKilled(t, dir)
	}
	f := start(t, atOnce)
	f.world(t)
	const more = 200
	f.insert(t, "notes", more, func(i int) dbx.Params {
		return dbx.Params{"id": fmt.Sprintf("note%011d", i), "owner": f.ada.Id, "file": "[]"}
	})
	for i := range more / 8 { // some with files below them
		f.add(t, "attachments", "ada-attachment", map[string]any{"note": fmt.Sprintf("note%011d", i*8)}, "content")
	}
	hurry := func() { f.hurry(t) } // a job whose process has died often has to wait, which is tested elsewhere
	x := f.jobs.Extension(jobs.Deps{})
	if err := x.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer[Status](t, f.call(t, f.signIn(t, "ada@example.test"), "account.delete"))
	killed := 0
	for f.count(t, "users WHERE id = '"+f.ada.Id+"'") > 0 && killed < 5 {
		before := f.count(t, "notes")
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$", "-test.v")
		cmd.Env = append(os.Environ(), childVariable+"="+f.DataDir())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "working"); {
		}
		await(t, "some progress", func() bool {
			hurry()
			return f.count(t, "notes") < before || f.count(t, "users WHERE id = '"+f.ada.Id+"'") == 0
		})
		time.Sleep(rand.N(100 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		killed++
	}
	if killed < 2 {
		t.Errorf("the process was killed %d times only", killed)
	}
	if err := x.Start(t.Context(), f.Host); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the run", func() bool {
		hurry()
		return f.count(t, "jobs_history WHERE outcome = 'succeeded'") == 1
	})
	f.remains(t)
}

func deleteUntilKilled(t *testing.T, dir string) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	r := jobs.New(settings.Defaults[jobs.Config]())
	a := New(settings.Defaults[Config](), Deps{Jobs: r})
	h := &extensions.Host{App: app, Logger: slog.New(slog.DiscardHandler)}
	if err := extensions.Install(h, []extensions.Extension{r.Extension(jobs.Deps{}), a.Extension()}); err != nil {
		t.Fatal(err)
	}
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if err := r.Extension(jobs.Deps{}).Start(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	fmt.Println("working")
	time.Sleep(2 * time.Minute)
	t.Fatal("nobody has killed this process")
}
