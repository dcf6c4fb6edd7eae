package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	superuserEmail    = "admin@example.com"
	superuserPassword = "correct horse battery"

	// startTimeout is generous, because tests share the machine; TestStartsQuickly measures.
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// server is a running program and the folder it runs in. The data is in Dir/pb_data.
type server struct {
	URL, Addr, Dir string

	settings []string
	cmd      *exec.Cmd
	exited   chan struct{}
	output   *output
}

// output collects what a process writes while tests read it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs `satchel serve` in an empty folder until it is ready, and stops it when the test ends.
func start(t testing.TB, settings ...string) *server {
	t.Helper()
	return startIn(t, t.TempDir(), settings...)
}

// startIn is start in a folder that may hold data, hooks and migrations.
func startIn(t testing.TB, dir string, settings ...string) *server {
	t.Helper()
	return startAt(t, dir, freeAddr(t), settings...)
}

// startAt is startIn at an address that the settings name, too.
func startAt(t testing.TB, dir, addr string, settings ...string) *server {
	t.Helper()
	s := &server{URL: "http://" + addr, Addr: addr, Dir: dir, settings: settings, output: &output{}}
	s.up(t)
	t.Cleanup(func() {
		if s.running() {
			s.stop(t)
		}
		if t.Failed() {
			t.Logf("output of %s:\n%s", addr, tail(s.output.String(), 60))
		}
	})
	return s
}

// up starts the process, again after stop or kill, on the same address and data.
func (s *server) up(t testing.TB) {
	t.Helper()
	if err := s.launch(); err != nil {
		t.Fatalf("%v\n%s", err, s.output)
	}
}

// launch is up for goroutines, which must not end the test.
func (s *server) launch() error {
	s.cmd = exec.Command(binary, "serve", "--http", s.Addr, "--dir", filepath.Join(s.Dir, "pb_data"))
	s.cmd.Dir, s.cmd.Env = s.Dir, environment(s.Dir, s.settings...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait() // the exit code is in ProcessState
		close(exited)
	}(s.cmd)
	if err := s.waitReady(); err != nil {
		s.kill()
		return err
	}
	return nil
}

// waitReady polls the readiness probe, as a load balancer does.
func (s *server) waitReady() error {
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		if !s.running() {
			return fmt.Errorf("the server ended with exit code %d", s.cmd.ProcessState.ExitCode())
		}
		resp, err := http.Get(s.URL + "/api/v1/health/ready")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("the server was not ready within %v", startTimeout)
}

func (s *server) running() bool {
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// stop asks the server to end and asserts that it does so well.
func (s *server) stop(t testing.TB) {
	t.Helper()
	s.terminate(t)
	if err := s.ended(); err != nil {
		t.Fatalf("%v\n%s", err, s.output)
	}
}

// terminate sends SIGTERM and does not wait.
func (s *server) terminate(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("signal server: %v", err)
	}
}

// ended waits for the end and reports one that was late or not successful.
func (s *server) ended() error {
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		s.kill()
		return fmt.Errorf("the server did not end within %v", stopTimeout)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the server ended with exit code %d", code)
	}
	return nil
}

// kill ends the server as a power cut would.
func (s *server) kill() {
	_ = s.cmd.Process.Kill() // an error means that it ended before
	<-s.exited
}

// restart stops the server and starts it again on the same address and data.
func (s *server) restart() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("signal server: %w", err)
	}
	if err := s.ended(); err != nil {
		return err
	}
	return s.launch()
}

// createSuperuser makes the admin by the command line, which works beside a running server.
func (s *server) createSuperuser(t testing.TB) {
	t.Helper()
	got := command(t, s.Dir, s.settings, "superuser", "upsert", superuserEmail, superuserPassword, "--dir", filepath.Join(s.Dir, "pb_data"))
	if got.exit != 0 {
		t.Fatalf("superuser upsert: exit code %d\n%s%s", got.exit, got.stdout, got.stderr)
	}
}

// superuser makes the admin and returns its token.
func (s *server) superuser(t testing.TB) string {
	t.Helper()
	s.createSuperuser(t)
	return s.signIn(t, "_superusers", superuserEmail, superuserPassword)
}

// user signs up in the collection users and returns the id and a token.
func (s *server) user(t testing.TB, email string) (id, token string) {
	t.Helper()
	const password = "a long password"
	made := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/collections/users/records", JSON: map[string]any{
		"email": email, "password": password, "passwordConfirm": password,
	}})
	made.assertStatus(t, http.StatusOK)
	return made.text(t, "id"), s.signIn(t, "users", email, password)
}

func (s *server) signIn(t testing.TB, collection, email, password string) string {
	t.Helper()
	auth := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/collections/" + collection + "/auth-with-password", JSON: map[string]any{
		"identity": email, "password": password,
	}})
	auth.assertStatus(t, http.StatusOK)
	return auth.text(t, "token")
}

// request is one call; JSON wins over Body.
type request struct {
	Method, Path, Token string
	Header              map[string]string
	Body                string
	JSON                any
}

// response is an answer that was read to its end.
type response struct {
	Status int
	Proto  string
	Header http.Header
	Body   []byte
}

func (s *server) do(t testing.TB, r request) response {
	t.Helper()
	answer, err := s.try(t.Context(), http.DefaultClient, r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	return answer
}

// try is do for calls that may fail and for goroutines, which must not end the test.
func (s *server) try(ctx context.Context, client *http.Client, r request) (response, error) {
	body := io.Reader(strings.NewReader(r.Body))
	if r.JSON != nil {
		raw, err := json.Marshal(r.JSON)
		if err != nil {
			return response{}, err
		}
		body = bytes.NewReader(raw)
	}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, s.URL+r.Path, body)
	if err != nil {
		return response{}, err
	}
	if r.JSON != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	for name, value := range r.Header {
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{}, err
	}
	return response{Status: resp.StatusCode, Proto: resp.Proto, Header: resp.Header, Body: raw}, nil
}

func (r response) assertStatus(t testing.TB, want int) {
	t.Helper()
	if r.Status != want {
		t.Fatalf("status %d, want %d: %s", r.Status, want, r.Body)
	}
}

func (r response) assertProblem(t testing.TB, status int, code string) {
	t.Helper()
	if r.Status != status || r.text(t, "code") != code {
		t.Errorf("status %d, want %d with code %s: %s", r.Status, status, code, r.Body)
	}
}

func (r response) assertHeader(t testing.TB, name, want string) {
	t.Helper()
	if got := r.Header.Get(name); got != want {
		t.Errorf("header %s is %q, want %q", name, got, want)
	}
}

// json is the body as an object.
func (r response) json(t testing.TB) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(r.Body, &out); err != nil {
		t.Fatalf("parse body: %v: %s", err, r.Body)
	}
	return out
}

// text is a string member of the body; "" if there is none.
func (r response) text(t testing.TB, member string) string {
	t.Helper()
	text, _ := r.json(t)[member].(string)
	return text
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually polls until a condition holds.
func eventually(t testing.TB, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// write puts a file below a folder.
func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatalf("write %s: %v", name, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatalf("write %s: %v", name, err)
	}
}
