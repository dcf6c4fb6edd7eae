//go:build unix

package logs_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

const childVariable = "LOGS_TEST_CHILD"

// TestKill ends a server in the middle of its work, as kill -9 does, and looks at what it left.
func TestKill(t *testing.T) {
	t.Parallel()
	if os.Getenv(childVariable) != "" {
		serveUntilKilled(t)
	}
	folder := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$", "-test.v")
	cmd.Env = append(os.Environ(), childVariable+"=1", "TMPDIR="+folder)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var url, dir string
	for lines := bufio.NewScanner(out); url == "" && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "serving %s %s", &url, &dir)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if !strings.HasPrefix(dir, folder) {
		t.Fatalf("the child serves %q from %q", url, dir)
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				resp, err := http.Get(url + "/api/v1/routes/plain")
				if err != nil {
					return // it is dead
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	time.Sleep(2500 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	group.Wait()

	db, err := core.DefaultDBConnect(filepath.Join(dir, "auxiliary.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var verdict string
	if err := db.NewQuery("PRAGMA integrity_check").Row(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity check: %s %v", verdict, err)
	}
	var rows, good int
	if err := db.NewQuery("SELECT COUNT(*), SUM(json_valid(data) AND data->>'status' = 500 AND length(id) = 15) FROM _logs").Row(&rows, &good); err != nil {
		t.Fatal(err)
	}
	if rows < 200 || rows != good {
		t.Errorf("%d rows are left, %d of them good", rows, good)
	}
}

func serveUntilKilled(t *testing.T) {
	app, _ := startWith(t, defaults(), io.Discard)
	fmt.Printf("\nserving %s %s\n", app.URL, app.DataDir())
	time.Sleep(time.Minute)
	t.Fatal("nobody has killed this process")
}
