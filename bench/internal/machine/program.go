package machine

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Output runs a program to its end and returns what it wrote, without the last line's end.
func Output(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := Command(ctx, dir, name, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("run %s %s: %w\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Command is a program that gets an interrupt when the run is broken off.
func Command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...) //nolint:gosec // the programs and their arguments are this program's own
	c.Dir = dir
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 5 * time.Second
	return c
}

// LastLine is the line in which programs say what was wrong.
func LastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// ModuleRoot is the folder of the Go module that this program was started in.
func ModuleRoot(ctx context.Context) (string, error) {
	out, err := Output(ctx, "", "go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	if filepath.Base(out) != "go.mod" {
		return "", errors.New("run this inside Satchel's module")
	}
	return filepath.Dir(out), nil
}

// FreeAddr is a loopback address that nobody listens on.
func FreeAddr(ctx context.Context) (string, error) {
	var l net.ListenConfig
	listener, err := l.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

// Watch starts to observe what else runs on the machine; the function it returns tells how many processors that kept busy
// on average. own is the processor time of what is measured and of who measures.
func Watch(own func() time.Duration) (func() (float64, error), error) {
	ownBefore, begin := own(), time.Now()
	before, err := Busy()
	if err != nil {
		return nil, err
	}
	return func() (float64, error) {
		after, err := Busy()
		if err != nil {
			return 0, err
		}
		return max((after-before-(own()-ownBefore)).Seconds()/time.Since(begin).Seconds(), 0), nil
	}, nil
}

// GoBuild makes a release build of a package.
func GoBuild(ctx context.Context, dir, binary, pkg string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", binary}, flags...)
	c := Command(ctx, dir, "go", append(args, pkg)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}

// Dependency is the version of a module that a Go program was built with.
func Dependency(binary, path string) (string, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", err
	}
	for _, dep := range info.Deps {
		if dep.Path == path {
			return dep.Version, nil
		}
	}
	return "", fmt.Errorf("%s does not contain %s", binary, path)
}

// WriteFile makes a file of what fn writes.
func WriteFile(path string, fn func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return errors.Join(fn(f), f.Close())
}
