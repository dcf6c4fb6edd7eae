package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A first start that is killed in any moment around the making of the master key locks nobody out: the next start finds
// a whole key, or none and nothing sealed.
func TestKillWhileTheKeyIsMade(t *testing.T) {
	t.Parallel()
	sealed := 0
	for round := range 8 {
		dir := t.TempDir()
		addr := freeAddr(t)
		cmd := exec.Command(binary, "serve", "--http", addr)
		cmd.Dir, cmd.Env = dir, environment(dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		key := filepath.Join(dir, "satchel.key")
		for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
			if left, _ := filepath.Glob(filepath.Join(dir, "*satchel.key*")); len(left) > 0 {
				break
			}
		}
		time.Sleep(time.Duration(round) * 300 * time.Microsecond) // where it strikes is the test's only dice
		_ = cmd.Process.Kill()
		_ = cmd.Wait()

		if r := command(t, dir, nil, "secrets", "check"); r.exit != 0 {
			t.Fatalf("round %d: %s%s", round, r.stdout, r.stderr)
		} else if strings.Contains(r.stdout, "it opens the data") {
			sealed++
		}
		before, err := os.ReadFile(key)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		s := startIn(t, dir)
		s.stop(t)
		after, err := os.ReadFile(key)
		if err != nil || before != nil && string(after) != string(before) {
			t.Errorf("round %d: the key was replaced (%v)", round, err)
		}
		if r := command(t, dir, nil, "secrets", "check"); r.exit != 0 || !strings.Contains(r.stdout, "it opens the data") {
			t.Errorf("round %d: %s%s", round, r.stdout, r.stderr)
		}
	}
	t.Logf("killed before the root key was stored: %d of 8", 8-sealed)
}
