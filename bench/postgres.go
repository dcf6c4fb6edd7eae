package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/bench/internal/postgres"
	"github.com/satchelbase/satchel/bench/internal/report"
)

func findPostgres(ctx context.Context, b *bench) error {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := postgres.Program(name); err != nil {
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
	data, err := postgres.Folder()
	if err != nil {
		return err
	}
	initdb, err := postgres.Program("initdb")
	if err != nil {
		return err
	}
	line := postgres.Unprivileged(initdb, "--pgdata", data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C")
	if _, err := machine.Output(ctx, data, line[0], line[1:]...); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	if err := b.runPostgres(ctx, s, data); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	load := machine.Command(ctx, s.dir, "node", filepath.Join(b.root, "bench", "node", "load-pg.js"))
	load.Env = append(os.Environ(), append(postgresEnv(s), "SQLITE="+filepath.Join(s.dir, "pb_data", "data.db"))...)
	if text, err := load.CombinedOutput(); err != nil {
		s.end()
		return fmt.Errorf("load rows: %w\n%s", err, text)
	}
	return nil
}

// runPostgres starts the server and waits until it accepts connections.
func (b *bench) runPostgres(ctx context.Context, s *server, data string) error {
	addr, err := machine.FreeAddr(ctx)
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(addr, ":")
	program, err := postgres.Program("postgres")
	if err != nil {
		return err
	}
	line := postgres.Unprivileged(program, "-D", data, "-p", port, "-k", data, "-c", "listen_addresses=127.0.0.1")
	if b.pinned() {
		line = append([]string{b.taskset, "--cpu-list", serverCore}, line...)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := machine.Command(running, data, line[0], line[1:]...)
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

func postgresVersions(ctx context.Context, _ *bench) ([]report.Version, error) {
	program, err := postgres.Program("postgres")
	if err != nil {
		return nil, err
	}
	text, err := machine.Output(ctx, "", program, "--version")
	if err != nil {
		return nil, err
	}
	f := strings.Fields(text)
	return []report.Version{{Name: "PostgreSQL", Version: f[min(2, len(f)-1)]}}, nil
}
