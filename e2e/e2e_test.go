// Package e2e tests the program from outside, as its users meet it: the real binary, started in an empty folder, spoken
// to over HTTP, by the stock SDK and on the command line. It has no code of its own beside tests and imports nothing of
// the program, so that only promised behaviour is relied on.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// binary is the program under test; TestMain builds it once.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "satchel-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "create folder for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "satchel")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, ".")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binary: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// environment is what the program sees: nothing of the caller's settings, only what a test gives.
func environment(dir string, settings ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + os.TempDir(), "SATCHEL_PASSWORDS_COST=4", // hashing is not what is tested
	}, settings...)
}

// relaxed raises the limits for tests that send more than a person does and are not about limits. The limiter stays on.
func relaxed(settings ...string) []string {
	return append([]string{
		"SATCHEL_RATELIMIT_IP=1000000", "SATCHEL_RATELIMIT_USER=1000000", "SATCHEL_RATELIMIT_USER_BURST=1000000",
		"SATCHEL_RATELIMIT_SESSION=1000000", "SATCHEL_RATELIMIT_AUTH=100000", "SATCHEL_RATELIMIT_REFRESH=100000",
	}, settings...)
}

// result is what a finished command left behind.
type result struct {
	stdout, stderr string
	exit           int
}

// command runs the program in a folder until it ends, at most 30 s.
func command(t testing.TB, dir string, settings []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var stdout, stderr strings.Builder
	c := exec.CommandContext(ctx, binary, args...)
	c.Dir, c.Env = dir, environment(dir, settings...)
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if c.ProcessState == nil || !c.ProcessState.Exited() {
		t.Fatalf("satchel %s did not end by itself: %v\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), exit: c.ProcessState.ExitCode()}
}
