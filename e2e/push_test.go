package e2e

import (
	"bufio"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stubs runs satchel dev stubs and returns what it prints: the settings, the commands that connect, and the addresses.
func stubs(t *testing.T) (settings []string, connect [][]string, found map[string]string) {
	t.Helper()
	dir := t.TempDir()
	c := exec.Command(binary, "dev", "stubs", "--port", "0", "--dir", dir)
	c.Dir, c.Env = dir, environment(dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the stubs ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			_ = c.Process.Kill()
			t.Error("the stubs do not end")
		}
	})
	found = map[string]string{"ca": filepath.Join(dir, "ca.pem"), "key": filepath.Join(dir, "apns.p8")}
	flag := regexp.MustCompile(`--(key-id|team-id|topic) (\S+)`)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		name, value, _ := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "SATCHEL_"):
			settings = append(settings, line)
			if short, ok := map[string]string{"SATCHEL_PUSH_APNS_ENDPOINT": "apns", "SATCHEL_PUSH_APNS_SANDBOX_ENDPOINT": "sandbox", "SATCHEL_PUSH_EXPO_ENDPOINT": "expo"}[name]; ok {
				found[short] = value
			}
		case strings.HasPrefix(line, "satchel push connect"):
			connect = append(connect, strings.Fields(line)[1:])
			for _, m := range flag.FindAllStringSubmatch(line, -1) {
				found[map[string]string{"key-id": "keyId", "team-id": "teamId", "topic": "topic"}[m[1]]] = m[2]
			}
		case strings.HasPrefix(line, "What arrives: "):
			found["page"] = strings.TrimPrefix(line, "What arrives: ")
		case strings.HasSuffix(line, "/subscribe"):
			found["webpush"] = strings.TrimSuffix(line[strings.LastIndex(line, " ")+1:], "/subscribe")
		case strings.HasPrefix(line, "Ctrl-C"):
			return settings, connect, found
		}
	}
	t.Fatal("the stubs ended before they were ready")
	return nil, nil, nil
}

// TestPush points clients of others at the stubs, and the stubs at the program, with what satchel dev stubs prints.
func TestPush(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	installSDK(t)
	settings, connect, found := stubs(t)
	s := start(t, relaxed(settings...)...)
	s.createSuperuser(t)
	if len(connect) != 4 {
		t.Fatalf("%d commands are printed", len(connect))
	}
	for _, args := range connect {
		if r := command(t, s.Dir, settings, append(args, "--dir", filepath.Join(s.Dir, "pb_data"))...); r.exit != 0 {
			t.Fatalf("%v: %s%s", args, r.stdout, r.stderr)
		}
	}
	control := httptest.NewServer(s.control())
	defer control.Close()
	known, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	passed := s.runNode(t, []string{"sdk/push/push.test.mjs"}, "E2E_PATHS=stock", "E2E_CONTROL="+control.URL,
		"E2E_STUBS="+string(known), "NODE_EXTRA_CA_CERTS="+found["ca"], "EXPO_BASE_URL="+found["expo"])
	if passed < 9 {
		t.Errorf("hardly any test ran: %d", passed)
	}
}
