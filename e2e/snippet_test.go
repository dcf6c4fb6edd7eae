package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var jsBlock = regexp.MustCompile("(?s)```js\n(.*?)```")

// TestReadmeJavaScript runs README's client code in Node, with the stock SDK and nothing else but an EventSource, which
// browsers have and Node 20 has not.
func TestReadmeJavaScript(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	installSDK(t)
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := jsBlock.FindAllSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("README has %d blocks of JavaScript, the test runs one", len(found))
	}
	s := start(t)
	s.do(t, request{Method: http.MethodPost, Path: "/api/v1/collections/users/records", JSON: map[string]any{
		"email": "ada@example.com", "password": "correct-horse", "passwordConfirm": "correct-horse",
	}}).assertStatus(t, http.StatusOK)
	code := `import { EventSource } from "eventsource"; globalThis.EventSource = EventSource;` + "\n" +
		documentedAddr.ReplaceAllString(string(found[0][1]), s.Addr) +
		`await pb.collection("notes").update(page.data[0].id, { done: true });
await new Promise((resolve) => setTimeout(resolve, 500));
console.log("page", JSON.stringify(page.data.map((n) => n.title)));
process.exit(0);`
	file := filepath.Join("sdk", "readme.gen.mjs") // beside node_modules, where Node looks for packages
	if err := os.WriteFile(file, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file) })
	node := exec.CommandContext(t.Context(), "node", filepath.Base(file))
	node.Dir = "sdk"
	out, err := node.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`page ["eggs"]`, "update eggs"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}

// TestMakeRun is the first command of the README, on another port and folder.
func TestMakeRun(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the program")
	}
	addr := freeAddr(t)
	cmd := exec.Command("make", "run", "ARGS=--http "+addr+" --dir "+filepath.Join(t.TempDir(), "pb_data"))
	cmd.Dir = ".."
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // make does not pass signals on to the server
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	defer stop()
	deadline := time.After(5 * time.Minute)
	for ready := false; !ready; {
		select {
		case err := <-exited:
			t.Fatalf("make run ended: %v\n%s", err, out)
		case <-deadline:
			t.Fatalf("no answer\n%s", out)
		case <-time.After(100 * time.Millisecond):
		}
		if resp, err := http.Get("http://" + addr + "/api/v1/health/ready"); err == nil {
			_ = resp.Body.Close()
			ready = resp.StatusCode == http.StatusOK
		}
	}
	stop()
	select {
	case <-exited:
	case <-time.After(stopTimeout):
		t.Errorf("the server did not stop\n%s", out)
	}
}
