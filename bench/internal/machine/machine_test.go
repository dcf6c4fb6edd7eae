package machine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
)

func linux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("processes are read from /proc")
	}
}

func TestCPUOfAProcess(t *testing.T) {
	linux(t)
	self := machine.Process{PID: os.Getpid()}
	before, busy := self.CPU(), mustBusy(t)
	const work = 200 * time.Millisecond
	for end := time.Now().Add(10 * work); self.CPU()-before < work; {
		if time.Now().After(end) {
			t.Fatalf("%v of processor time counted after %v of work", self.CPU()-before, 10*work)
		}
	}
	if all := mustBusy(t) - busy; all < work/2 {
		t.Errorf("all processors worked %v, this process alone %v", all, work)
	}
}

func TestDescendantsCount(t *testing.T) {
	linux(t)
	flag := filepath.Join(t.TempDir(), "run")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The parent waits for a child that works until the file is gone.
	shell := exec.Command("sh", "-c", `(while [ -e "$0" ]; do :; done); true`, flag)
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = os.Remove(flag)
		_ = shell.Wait()
	}()
	alone, family := machine.Process{PID: shell.Process.Pid}, machine.Process{PID: shell.Process.Pid, Forks: true}
	for end := time.Now().Add(10 * time.Second); family.CPU() < 100*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child's work is not counted")
		}
	}
	if own := alone.CPU(); own > 50*time.Millisecond {
		t.Errorf("the parent alone has used %v", own)
	}
	if alone.Memory() == 0 || family.Memory() == 0 {
		t.Error("no memory counted")
	}
}

func TestDescribe(t *testing.T) {
	linux(t)
	d, err := machine.Describe(t.TempDir())
	if err != nil || d.Cores == 0 || d.MemoryGiB <= 0 || d.Processor == "" || d.SyncP95 < d.SyncMedian || d.SyncMedian <= 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

func mustBusy(t *testing.T) time.Duration {
	t.Helper()
	b, err := machine.Busy()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
