package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// threeLines is an error as the command line writes it: what, why (which may go on below, indented) and what next.
var threeLines = regexp.MustCompile(`^error: \S[^\n]*\nwhy:   \S[^\n]*(\n {7}[^\n]*)*\nnext:  \S[^\n]*\n$`)

// TestScripts runs the command line as testdata/script/*.txtar says. Beside testscript's own commands there are
//
//	exits CODE [args...]   run satchel and assert its exit code
//	threelines             the last error was written in three lines: what, why, next
//	serve [args...]        start a server on $ADDR with the data in pb_data, wait until it is ready
//	halt                   stop it and assert that it ends well; the end of the script does so as well
//	get STATUS PATH        ask the server and assert the status; the body is stdout
//	occupy                 listen on $ADDR
//
// and the condition [root], because permissions do not bind that user.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		ContinueOnError:    true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("ADDR", freeAddr(t))
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      scriptExits,
			"threelines": scriptThreeLines,
			"serve":      scriptServe,
			"halt":       scriptHalt,
			"get":        scriptGet,
			"occupy":     scriptOccupy,
		},
	})
}

func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: exits CODE [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec("satchel", args[1:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("satchel: %v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func scriptThreeLines(ts *testscript.TestScript, neg bool, _ []string) {
	if text := ts.ReadFile("stderr"); threeLines.MatchString(text) == neg {
		ts.Fatalf("three lines: %v, in:\n%s", !neg, text)
	}
}

// scriptServerFile remembers the server of a script for halt.
const scriptServerFile = ".server-pid"

func scriptServe(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(binary, append([]string{"serve", "--http", ts.Getenv("ADDR")}, args...)...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	log, err := os.Create(ts.MkAbs("server.log"))
	ts.Check(err)
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	ts.Check(os.WriteFile(ts.MkAbs(scriptServerFile), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600))
	exited := make(chan error, 1)
	go func() {
		exited <- cmd.Wait()
		log.Close()
	}()
	ts.Defer(func() {
		// halt may have ended it: then the signal has no receiver and the error is known.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-exited; err != nil {
			text, _ := os.ReadFile(ts.MkAbs("server.log"))
			ts.Fatalf("server: %v\n%s", err, text)
		}
	})
	deadline := time.Now().Add(startTimeout)
	for time.Now().Before(deadline) {
		resp, err := http.Get("http://" + ts.Getenv("ADDR") + "/api/v1/health/ready")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("the server is not ready:\n%s", ts.ReadFile("server.log"))
}

func scriptHalt(ts *testscript.TestScript, _ bool, _ []string) {
	pid, err := strconv.Atoi(ts.ReadFile(scriptServerFile))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGTERM))
	deadline := time.Now().Add(stopTimeout)
	for time.Now().Before(deadline) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("the server did not end")
}

func scriptGet(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: get STATUS PATH")
	}
	resp, err := http.Get("http://" + ts.Getenv("ADDR") + args[1])
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
	if got := strconv.Itoa(resp.StatusCode); got != args[0] {
		ts.Fatalf("status %s, want %s: %s", got, args[0], body)
	}
}

func scriptOccupy(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", ts.Getenv("ADDR"))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// Every command has a script that runs it, so that a new one cannot be forgotten.
func TestEveryCommandHasAScript(t *testing.T) {
	t.Parallel()
	var scripts strings.Builder
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scripts.Write(text)
	}
	dir := t.TempDir()
	commands := listCommands(t, dir)
	if len(commands) < 15 {
		t.Errorf("only %d commands were found: %q", len(commands), commands)
	}
	for _, c := range commands {
		if !regexp.MustCompile(`(?m)^(exits \d|serve).*\b` + regexp.QuoteMeta(c) + `\b|^` + c + `\b`).MatchString(scripts.String()) {
			t.Errorf("satchel %s: no script runs it", c)
		}
	}
}

// listCommands walks the help texts for the paths of all commands that do something.
func listCommands(t *testing.T, dir string, path ...string) []string {
	t.Helper()
	help := command(t, dir, nil, append(path, "--help")...)
	_, list, grouped := strings.Cut(help.stdout, "Available Commands:\n")
	if !grouped {
		return []string{strings.Join(path, " ")}
	}
	list, _, _ = strings.Cut(list, "\n\n")
	var out []string
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
			out = append(out, listCommands(t, dir, append(slices.Clip(path), name)...)...)
		}
	}
	return out
}
