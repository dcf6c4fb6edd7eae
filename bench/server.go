package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/machine"
)

const (
	startLimit = time.Minute
	stopLimit  = 15 * time.Second
	pollEvery  = time.Millisecond
)

// server is a running contender.
type server struct {
	contender *contender
	addr      string
	dir       string
	process   machine.Process
	parts     []machine.Process // processes beside it that work for it, such as PostgreSQL
	ready     time.Duration     // from the start of the process to the first answer
	accounts  []account
	postgres  string // address of its PostgreSQL

	cancel context.CancelFunc
	exited chan struct{}
	end    func() // stops parts
}

// startOptions are what differs between the servers of one contender.
type startOptions struct {
	dir     string        // existing folder; empty for a new one with a copy of the database
	durable time.Duration // a disk that is as much slower, and durable commits

	settings []string // of Satchel beside the usual ones
}

// start runs a contender until it answers.
func (b *bench) start(ctx context.Context, c *contender, o startOptions) (*server, error) {
	s := &server{contender: c, dir: o.dir, end: func() {}}
	var err error
	if s.addr, err = machine.FreeAddr(ctx); err != nil {
		return nil, err
	}
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp(b.dir, c.name+"-"); err != nil {
			return nil, fmt.Errorf("create folder: %w", err)
		}
		if err := os.CopyFS(filepath.Join(s.dir, "pb_data"), os.DirFS(b.seeded())); err != nil {
			return nil, fmt.Errorf("copy database: %w", err)
		}
	}
	if c.before != nil {
		if err := c.before(ctx, b, s); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", c.name, err)
		}
	}
	if err := b.launch(ctx, s, o); err != nil {
		s.end()
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return s, nil
}

func (b *bench) launch(ctx context.Context, s *server, o startOptions) error {
	line, env := s.contender.command(b, s, o)
	if b.pinned() {
		line = append([]string{b.taskset, "--cpu-list", serverCore}, line...)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "output.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := machine.Command(running, s.dir, line[0], line[1:]...)
	cmd.WaitDelay = stopLimit
	cmd.Stdout, cmd.Stderr = log, log
	// Nothing of the caller's settings, so that a run is the same everywhere.
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + s.dir}, env...)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		cancel()
		return err
	}
	s.process.PID, s.cancel, s.exited = cmd.Process.Pid, cancel, make(chan struct{})
	go func() {
		_ = cmd.Wait() // a server is ended by a signal, which counts as an error
		close(s.exited)
	}()
	if err := s.wait(ctx); err != nil {
		s.stop()
		text, _ := os.ReadFile(log.Name()) // it only explains
		return fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
	}
	s.ready = time.Since(begin)
	return nil
}

// wait polls until the server answers.
func (s *server) wait(ctx context.Context) error {
	probe := load.NewRequest(http.MethodGet, s.addr, "/api/health", nil)
	for end := time.Now().Add(startLimit); time.Now().Before(end); {
		answer, err := load.Fetch(ctx, s.addr, probe)
		if err == nil && answer.Status == http.StatusOK {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	return fmt.Errorf("it did not answer within %v", startLimit)
}

// stop ends the server with all that works for it; it may be called twice.
func (s *server) stop() {
	s.halt()
	s.end()
}

// halt ends the server alone, so that it can be launched again.
func (s *server) halt() {
	s.cancel()
	<-s.exited
}

// cpu is the processor time of the server and of all that works for it.
func (s *server) cpu() time.Duration {
	sum := s.process.CPU()
	for _, p := range s.parts {
		sum += p.CPU()
	}
	return sum
}

// memory is in MiB.
func (s *server) memory() float64 {
	sum := s.process.Memory()
	for _, p := range s.parts {
		sum += p.Memory()
	}
	return float64(sum) / (1 << 20)
}
