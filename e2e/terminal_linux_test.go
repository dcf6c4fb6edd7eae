package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var installLink = regexp.MustCompile(`pbinstall/([\w-]+\.[\w-]+\.[\w-]+)`)

// openTerminal returns both ends of a pseudo-terminal.
func openTerminal(t testing.TB) (screen, program *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("unlock terminal: %v", err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("name terminal: %v", err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("open terminal: %v", err)
	}
	return screen, program
}

// onTerminal is up with a terminal as the server's output; it returns what appears there.
func (s *server) onTerminal(t testing.TB) *output {
	t.Helper()
	screen, program := openTerminal(t)
	defer program.Close()
	s.cmd = exec.Command(binary, "serve", "--http", s.Addr, "--dir", filepath.Join(s.Dir, "pb_data"))
	s.cmd.Dir, s.cmd.Env = s.Dir, append(environment(s.Dir, s.settings...), "TERM=xterm")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = program, program, program
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start server: %v", err)
	}
	exited, shown := make(chan struct{}), &output{}
	s.exited = exited
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd)
	go read(screen, shown)
	if err := s.waitReady(); err != nil {
		s.kill()
		t.Fatalf("%v\n%s", err, shown)
	}
	return shown
}

// read copies what appears on a screen until the program has closed its end, which is an error here and no EOF.
func read(screen *os.File, shown *output) { _, _ = io.Copy(shown, screen) }

// Colours are for terminals, and not for those who say that they do not want them (https://no-color.org).
func TestNoColor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	onTerminal := func(settings []string, args ...string) string {
		screen, program := openTerminal(t)
		c := exec.Command(binary, args...)
		c.Dir, c.Env = dir, append(environment(dir, settings...), "TERM=xterm")
		c.Stdin, c.Stdout, c.Stderr = program, program, program
		_ = c.Run() // some of the commands fail on purpose
		program.Close()
		shown := &output{}
		read(screen, shown)
		return shown.String()
	}
	upsert := []string{"superuser", "upsert", superuserEmail, superuserPassword}
	if text := onTerminal(nil, upsert...); !strings.Contains(text, "\x1b[") {
		t.Errorf("a terminal was not recognised: %q", text)
	}
	for _, args := range [][]string{upsert, {"doctor"}, {"nonsense"}, {"demo"}, {"config", "print"}, {"--help"}} {
		if text := onTerminal([]string{"NO_COLOR=1"}, args...); text == "" || strings.Contains(text, "\x1b[") {
			t.Errorf("satchel %s with NO_COLOR: %q", strings.Join(args, " "), text)
		}
	}
}

func TestFirstAdminLink(t *testing.T) {
	t.Parallel()
	s := start(t, "SATCHEL_LOGS_LEVEL=debug") // its output is a pipe
	time.Sleep(500 * time.Millisecond)
	if text := s.output.String(); installLink.MatchString(text) || strings.Contains(text, "eyJ") {
		t.Fatalf("a link for the first admin in a log:\n%s", text)
	}
	s.stop(t)

	shown := s.onTerminal(t)
	eventually(t, "the link appears", 5*time.Second, func() bool { return installLink.MatchString(shown.String()) })
	time.Sleep(300 * time.Millisecond)
	links := installLink.FindAllStringSubmatch(shown.String(), -1)
	if len(links) != 1 {
		t.Fatalf("the link was shown %d times:\n%s", len(links), shown)
	}
	if strings.Count(shown.String(), links[0][1][:20]) != 1 {
		t.Errorf("the token was shown elsewhere too:\n%s", shown)
	}

	// The link works: the dashboard creates the admin with its token.
	made := s.do(t, request{Method: http.MethodPost, Path: "/api/collections/_superusers/records", Token: links[0][1], JSON: map[string]any{
		"email": superuserEmail, "password": superuserPassword, "passwordConfirm": superuserPassword,
	}})
	made.assertStatus(t, http.StatusOK)
	logs := s.do(t, request{Path: "/api/logs?perPage=500", Token: s.signIn(t, "_superusers", superuserEmail, superuserPassword)})
	logs.assertStatus(t, http.StatusOK)
	if strings.Contains(string(logs.Body), links[0][1]) || strings.Contains(string(logs.Body), "pbinstall") {
		t.Error("the link is in the log store")
	}
	s.stop(t)

	if shown = s.onTerminal(t); strings.Contains(shown.String(), "pbinstall") {
		t.Errorf("the link was shown although an admin exists:\n%s", shown)
	}
}
