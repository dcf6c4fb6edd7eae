//go:build unix

package runs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

const childVariable = "RUNS_TEST_CHILD"

// effects is how many steps the run of the test has.
const effects = 400

// step does one thing after the other, each in the transaction that moves the position.
func step(ctx context.Context, run *Run) error {
	var next int
	if err := run.State(&next); err != nil {
		return err
	}
	for ; next < effects; next++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := run.runs.app.RunInTransaction(func(tx core.App) error {
			if _, err := tx.NonconcurrentDB().NewQuery(fmt.Sprintf("INSERT INTO effects (n) VALUES (%d)", next)).Execute(); err != nil {
				return err
			}
			return run.Checkpoint(tx, next+1)
		})
		if err != nil {
			return err
		}
		time.Sleep(time.Millisecond) // there is work to be killed in
	}
	return nil
}

// TestKill ends the process in the middle of a run, as kill -9 does, three times. Every step happens once.
func TestKill(t *testing.T) {
	if dir := os.Getenv(childVariable); dir != "" {
		runUntilKilled(t, dir)
	}
	app, r := start(t, step)
	if _, err := app.NonconcurrentDB().NewQuery("CREATE TABLE effects (n INTEGER)").Execute(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := r.mustEnqueue(t, Owner{}, nil, Options{})
	count := func() (all, distinct int) {
		if err := app.ConcurrentDB().NewQuery("SELECT count(*), count(DISTINCT n) FROM effects").Row(&all, &distinct); err != nil {
			t.Fatal(err)
		}
		return all, distinct
	}
	for kills := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$", "-test.v")
		cmd.Env = append(os.Environ(), childVariable+"="+app.DataDir())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "working"); {
		}
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if all, _ := count(); all >= (kills+1)*40 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the child does nothing")
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	before, _ := count()
	if before >= effects {
		t.Fatal("the work was done before the process was killed")
	}
	restarted := time.Now()
	if err := r.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if all, _ := count(); all > before {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the run was not taken up")
		}
	}
	if took := time.Since(restarted); took > staleAfter/2 {
		t.Errorf("the run was taken up after %s, not at once", took)
	}
	r.await(t, id, Succeeded)
	if all, distinct := count(); all != effects || distinct != effects {
		t.Errorf("%d effects, %d distinct, want %d", all, distinct, effects)
	}
}

func runUntilKilled(t *testing.T, dir string) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	r := New(Config{Concurrency: 1, Keep: time.Hour})
	r.Register("test", step)
	r.app, r.logger = &apptest.App{App: app}, app.Logger()
	if err := r.start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	fmt.Println("working")
	time.Sleep(time.Minute)
	t.Fatal("nobody has killed this process")
}
