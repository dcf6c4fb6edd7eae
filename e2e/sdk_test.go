package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sdkInstallAttempts is for registries that drop a connection now and then.
const sdkInstallAttempts = 3

// TestSDKOverWebSocket runs the realtime part of the suite with the EventSource for React Native, over WebSockets.
func TestSDKOverWebSocket(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	installSDK(t)
	s := start(t, relaxed()...)
	s.createSuperuser(t)
	control := httptest.NewServer(s.control())
	defer control.Close()
	passed := s.runNode(t, []string{"sdk/test/realtime.test.mjs"}, "E2E_PATHS=stock", "E2E_REALTIME=websocket",
		"E2E_CONTROL="+control.URL, "NODE_OPTIONS=--experimental-websocket")
	if passed < 8 {
		t.Errorf("hardly any test ran: %d", passed)
	}
}

// TestSDK runs the suite of the stock JavaScript SDK in sdk/ against the server: once with the paths that the SDK uses,
// once with a hook that sends them to /api/v1, as an app would. Without Node it is skipped, but not in CI.
func TestSDK(t *testing.T) {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	installSDK(t)
	for _, paths := range []string{"stock", "versioned"} {
		t.Run(paths, func(t *testing.T) {
			t.Parallel()
			runSDK(t, paths)
		})
	}
}

// installSDK brings node_modules to what the lock file says, and does nothing if it is there already.
func installSDK(t *testing.T) {
	t.Helper()
	lock, err := os.ReadFile("sdk/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(lock)
	want, stamp := hex.EncodeToString(sum[:]), filepath.Join("sdk", "node_modules", ".installed")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == want {
		return
	}
	for attempt := 1; ; attempt++ {
		install := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
		install.Dir = "sdk"
		out, err := install.CombinedOutput()
		if err == nil {
			break
		}
		if attempt == sdkInstallAttempts {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
		time.Sleep(time.Duration(attempt) * time.Second)
	}
	if err := os.WriteFile(stamp, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// control lets a suite restart the server (POST /restart) and use the command line beside it (POST /command with the
// arguments as a JSON array; the answer is what it printed, 500 when it failed).
func (s *server) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /restart", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.restart(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /command", func(w http.ResponseWriter, r *http.Request) {
		var args []string
		if err := json.NewDecoder(r.Body).Decode(&args); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		c := exec.CommandContext(r.Context(), binary, append(args, "--dir", filepath.Join(s.Dir, "pb_data"))...)
		c.Dir, c.Env = s.Dir, environment(s.Dir, s.settings...)
		out, err := c.Output()
		if err != nil {
			http.Error(w, fmt.Sprintf("%v\n%s", err, out), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(out)
	})
	return mux
}

func runSDK(t *testing.T, paths string) {
	s := start(t, relaxed("SATCHEL_ANONYMOUS_COLLECTIONS=visitors")...)
	s.createSuperuser(t)
	control := httptest.NewServer(s.control())
	defer control.Close()

	suites, err := filepath.Glob("sdk/test/*.test.mjs")
	if err != nil || len(suites) == 0 {
		t.Fatalf("no suites: %v", err)
	}
	if passed := s.runNode(t, suites, "E2E_PATHS="+paths, "E2E_CONTROL="+control.URL); passed < 50 {
		t.Errorf("hardly any test ran: %d", passed)
	}
}

// runNode runs suites below sdk/ against the server and returns how many tests passed.
func (s *server) runNode(t *testing.T, suites []string, env ...string) int {
	t.Helper()
	args := []string{"--test", "--test-concurrency=1", "--test-timeout=60000", "--test-reporter=spec"}
	for _, suite := range suites {
		args = append(args, strings.TrimPrefix(suite, "sdk/"))
	}
	node := exec.CommandContext(t.Context(), "node", args...)
	node.Dir = "sdk"
	node.Env = append(append(os.Environ(), env...),
		"E2E_URL="+s.URL, "E2E_SUPERUSER_EMAIL="+superuserEmail, "E2E_SUPERUSER_PASSWORD="+superuserPassword, "NO_COLOR=1", "FORCE_COLOR=0")
	out, err := node.CombinedOutput()
	text := string(out)
	counts := regexp.MustCompile(`(?m)^ℹ (tests|pass|fail|skipped) (\d+)$`).FindAllString(text, -1)
	t.Log(strings.Join(counts, ", "))
	if err != nil {
		if _, failures, found := strings.Cut(text, "failing tests:"); found {
			text = failures
		}
		t.Fatalf("%v\n%s", err, text)
	}
	passed := regexp.MustCompile(`(?m)^ℹ pass (\d+)$`).FindStringSubmatch(text)
	if passed == nil {
		t.Fatalf("no summary:\n%s", text)
	}
	n, err := strconv.Atoi(passed[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
