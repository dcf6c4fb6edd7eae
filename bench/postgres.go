package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// postgresProgram finds a program of PostgreSQL; Debian keeps them outside the path.
func postgresProgram(name string) (string, error) {
	places, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is well-formed
	if len(places) > 0 {
		return places[len(places)-1], nil
	}
	return exec.LookPath(name)
}

func findPostgres(ctx context.Context, b *bench) error {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := postgresProgram(name); err != nil {
			return unavailableError("PostgreSQL is not installed")
		}
	}
	if os.Getuid() == 0 {
		if _, err := user.Lookup("postgres"); err != nil {
			return unavailableError("PostgreSQL refuses to run as root, and there is no user postgres")
		}
	}
	return installNode(ctx, b)
}

// startPostgres makes a cluster, starts it and loads the seeded rows.
func startPostgres(ctx context.Context, b *bench, s *server) error {
	data, err := postgresFolder()
	if err != nil {
		return err
	}
	initdb, err := postgresProgram("initdb")
	if err != nil {
		return err
	}
	line := unprivileged(initdb, "--pgdata", data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C")
	if _, err := output(ctx, data, line[0], line[1:]...); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	if err := b.runPostgres(ctx, s, data); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	load := command(ctx, s.dir, "node", filepath.Join(b.root, "bench", "node", "load-pg.js"))
	load.Env = append(os.Environ(), append(postgresEnv(s), "SQLITE="+filepath.Join(s.dir, "pb_data", "data.db"))...)
	if text, err := load.CombinedOutput(); err != nil {
		s.end()
		return fmt.Errorf("load rows: %w\n%s", err, text)
	}
	return nil
}

// runPostgres starts the server and waits until it accepts connections.
func (b *bench) runPostgres(ctx context.Context, s *server, data string) error {
	addr, err := freeAddr(ctx)
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(addr, ":")
	program, err := postgresProgram("postgres")
	if err != nil {
		return err
	}
	line := unprivileged(program, "-D", data, "-p", port, "-k", data, "-c", "listen_addresses=127.0.0.1")
	if b.pinned() {
		line = append([]string{b.taskset, "--cpu-list", serverCore}, line...)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := command(running, data, line[0], line[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C"}
	if err := cmd.Start(); err != nil {
		cancel()
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ended by a signal
		close(exited)
	}()
	s.end = func() {
		cancel()
		<-exited
		_ = os.RemoveAll(data) // a temporary folder
		s.end = func() {}
	}
	s.parts = []machine.Process{{PID: cmd.Process.Pid, Forks: true}}
	s.postgres = addr
	for end := time.Now().Add(startLimit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var d net.Dialer
		if conn, err := d.DialContext(ctx, "tcp", addr); err == nil {
			return conn.Close()
		}
		select {
		case <-exited:
			s.end()
			return errors.New("PostgreSQL ended at once")
		default:
		}
	}
	s.end()
	return fmt.Errorf("PostgreSQL did not accept connections within %v", startLimit)
}

func postgresEnv(s *server) []string {
	host, port, _ := strings.Cut(s.postgres, ":")
	return []string{"PGHOST=" + host, "PGPORT=" + port, "PGUSER=postgres", "PGDATABASE=postgres"}
}

// postgresFolder is outside the folder of the run, which only the owner of this process may enter.
func postgresFolder() (string, error) {
	dir, err := os.MkdirTemp("", "satchel-bench-pg-")
	if err != nil {
		return "", fmt.Errorf("create folder for PostgreSQL: %w", err)
	}
	if os.Getuid() != 0 {
		return dir, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return "", fmt.Errorf("find user postgres: %w", err)
	}
	uid, errUser := strconv.Atoi(u.Uid)
	gid, errGroup := strconv.Atoi(u.Gid)
	if err := errors.Join(errUser, errGroup, os.Chown(dir, uid, gid)); err != nil {
		return "", fmt.Errorf("give folder to user postgres: %w", err)
	}
	return dir, nil
}

// unprivileged runs a program as the user postgres when this process is root, as PostgreSQL demands. The programs that
// change the user replace themselves, so that the process id stays.
func unprivileged(line ...string) []string {
	if os.Getuid() != 0 {
		return line
	}
	return slices.Concat([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}, line)
}

func postgresVersions(ctx context.Context, _ *bench) ([]report.Version, error) {
	program, err := postgresProgram("postgres")
	if err != nil {
		return nil, err
	}
	text, err := output(ctx, "", program, "--version")
	if err != nil {
		return nil, err
	}
	f := strings.Fields(text)
	return []report.Version{{Name: "PostgreSQL", Version: f[min(2, len(f)-1)]}}, nil
}
