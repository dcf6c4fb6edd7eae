//go:build unix

package trigger_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

const (
	killVariable = "TRIGGER_TEST_KILL"

	// triggerKills is how often a process is killed while triggers work; TRIGGER_KILLS says another number.
	triggerKills = 5
)

// TestKill kills the process at moments that nobody has chosen. Every note that was committed has each of its effects, and
// has it once.
func TestKill(t *testing.T) {
	if dir := os.Getenv(killVariable); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	kills := triggerKills
	if n, err := strconv.Atoi(os.Getenv("TRIGGER_KILLS")); err == nil {
		kills = n
	}
	dir := t.TempDir()
	_, stop := start(t, dir, three) // which makes the tables
	stop()
	acknowledged := 0
	for range kills {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), killVariable+"="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var wrote atomic.Int64
		first := make(chan struct{})
		read := make(chan struct{})
		go func() {
			defer close(read)
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if lines.Text() == "wrote" && wrote.Add(1) == 1 {
					close(first)
				}
			}
		}()
		select {
		case <-first:
		case <-read:
			t.Fatal("the child has written nothing")
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) // where it strikes is the test's only dice
		must(t, cmd.Process.Kill())
		<-read
		_ = cmd.Wait()
		acknowledged += int(wrote.Load())
	}
	f, _ := start(t, dir, three)
	f.settle(t)
	await(t, "the jobs that several kills have cut off, which wait a little", func() bool {
		return f.count(t, fmt.Sprintf("%s WHERE state <> %d AND kind IN ('push.trigger', 'notes.job')", table.Queue, table.IsDead)) == 0
	})
	notes := f.count(t, `notes WHERE title <> 'settle'`)
	if notes < acknowledged {
		t.Errorf("%d notes were acknowledged, %d are there", acknowledged, notes)
	}
	for what, query := range map[string]string{
		"jobs":           `effects WHERE by = 'job'`,
		"their notes":    `(SELECT DISTINCT e.record FROM effects e JOIN notes n ON n.id = e.record WHERE by = 'job')`,
		"operations":     `effects WHERE by = 'operation'`,
		"notes of these": `(SELECT DISTINCT e.record FROM effects e JOIN notes n ON n.id = e.record WHERE by = 'operation')`,
		"messages":       `push_messages`,
		"notes in them":  `(SELECT DISTINCT n.id FROM push_messages m JOIN notes n ON n.id = m.spec ->> '$.data.record')`,
	} {
		if n := f.count(t, query); n != notes {
			t.Errorf("%s: %d, want %d", what, n, notes)
		}
	}
	t.Logf("%d kills, %d notes", kills, notes)
}

func writeUntilKilled(t *testing.T, dir string) {
	f := prepare(t, dir, t.Output(), three)
	must(t, f.problem)
	apptest.Serve(t, f.App)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for n := range 1000 {
				f.write(t, fmt.Sprint("note ", w, n))
				_, _ = fmt.Fprintln(os.Stdout, "\nwrote") // in one write
				if n%10 == 9 {
					time.Sleep(30 * time.Millisecond) // so that some are killed with nothing left to write
				}
			}
		})
	}
	writers.Wait()
	select {}
}
