package doctor_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

// serverEnv makes the test binary play the server: the files' locks are those of another process then.
const serverEnv = "DOCTOR_TEST_SERVER"

// playServer opens the folder, leaves a change in the write-ahead log, holds the writer's lock until a line comes in and
// then writes until the input ends.
func playServer(dir string) error {
	app, err := open(dir)
	if err != nil {
		return err
	}
	notes, err := app.FindCollectionByNameOrId("notes")
	if err != nil {
		return err
	}
	save := func(app core.App) error {
		r := core.NewRecord(notes)
		r.Set("title", "written while the doctor looks")
		return app.Save(r)
	}
	if _, err := app.NonconcurrentDB().NewQuery("INSERT INTO _migrations (file, applied) VALUES ('9999999999_live.go', 1)").Execute(); err != nil {
		return err
	}
	input := bufio.NewReader(os.Stdin)
	err = app.RunInTransaction(func(tx core.App) error {
		if err := save(tx); err != nil {
			return err
		}
		fmt.Println("holding the lock")
		_, err := input.ReadString('\n')
		return err
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, input)
		close(ended)
	}()
	fmt.Println("writing")
	for {
		select {
		case <-ended:
			return app.ClearBootstrap()
		default:
			if err := save(app); err != nil {
				return err
			}
		}
	}
}

// TestBesideServer runs the command while another process has the folder open, holds the lock, and writes.
func TestBesideServer(t *testing.T) {
	dir := dataFolder(t)
	server := exec.CommandContext(t.Context(), os.Args[0])
	server.Env = append(os.Environ(), serverEnv+"="+dir)
	server.Stderr = os.Stderr
	stdin, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	output := bufio.NewReader(stdout)
	expect := func(want string) {
		t.Helper()
		if got, err := output.ReadString('\n'); err != nil || got != want+"\n" {
			t.Fatalf("the server says %q, %v", got, err)
		}
	}
	look := func() {
		t.Helper()
		got := examine(t, setup{dir: dir})
		if got.exit != 0 || !strings.Contains(got.text, "data.db: WAL, integrity ok") || !strings.Contains(got.text, "9999999999_live.go") {
			t.Errorf("exit %d, or the report lacks what stands in the log alone:\n%s", got.exit, got.text)
		}
	}
	expect("holding the lock")
	look()
	if _, err := io.WriteString(stdin, "go on\n"); err != nil {
		t.Fatal(err)
	}
	expect("writing")
	for range 10 {
		look()
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("the server was disturbed: %v", err)
	}
	look()
}

// TestAfterCrash looks at a folder whose server was killed: the log and its index are there and nobody has them open.
func TestAfterCrash(t *testing.T) {
	live := dataFolder(t)
	app, err := open(live)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.NonconcurrentDB().NewQuery("INSERT INTO _migrations (file, applied) VALUES ('9999999999_crash.go', 1)").Execute(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pb_data")
	if err := os.CopyFS(dir, os.DirFS(live)); err != nil {
		t.Fatal(err)
	}
	if err := app.ClearBootstrap(); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	if !strings.Contains(before, "data.db-wal") || !strings.Contains(before, "data.db-shm") {
		t.Fatalf("the copy has no log:\n%s", before)
	}
	got := examine(t, setup{dir: dir})
	if after := listing(t, dir); after != before {
		t.Errorf("the folder was changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if !strings.Contains(got.text, "data.db: WAL, integrity ok") || !strings.Contains(got.text, "9999999999_crash.go") {
		t.Errorf("the report does not read the log:\n%s", got.text)
	}
}
