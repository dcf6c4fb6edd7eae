package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

// Names of contenders that code speaks of, beside report.Stock and report.Limit.
const (
	satchel    = "satchel"
	nodeSQLite = "node-sqlite"
	nodePG     = "node-pg"
)

// boundless stands for "no limit" in settings that cannot be switched off; it is the most that Satchel accepts.
const boundless = "1000000000"

// contender is a program that can be measured.
type contender struct {
	name     string
	build    func(ctx context.Context, b *bench) error // an unavailableError leaves the contender out
	before   func(ctx context.Context, b *bench, s *server) error
	command  func(b *bench, s *server, o startOptions) (line, env []string)
	versions func(ctx context.Context, b *bench) ([]report.Version, error)
}

// unavailableError says what the machine lacks for a contender.
type unavailableError string

func (e unavailableError) Error() string { return string(e) }

func contenders() []*contender {
	return []*contender{
		{name: satchel, build: buildSatchel, command: satchelCommand},
		{name: report.Stock, build: buildRival, command: stockCommand},
		{name: report.Limit, build: buildRival, command: limitCommand},
		{name: nodeSQLite, build: installNode, command: nodeCommand, versions: nodeVersions},
		{name: nodePG, build: findPostgres, before: startPostgres, command: nodeCommand, versions: postgresVersions},
	}
}

func names() []string {
	var list []string
	for _, c := range contenders() {
		list = append(list, c.name)
	}
	return list
}

// durableSatchel is the binary whose store takes a delay for its sync.
const durableSatchel = "satchel-benchsync"

func buildSatchel(ctx context.Context, b *bench) error {
	return errors.Join(
		machine.GoBuild(ctx, b.root, b.binary(satchel), "."),
		machine.GoBuild(ctx, b.root, b.binary(durableSatchel), ".", "-tags", "benchsync"),
	)
}

func buildRival(ctx context.Context, b *bench) error {
	rivals := filepath.Join(b.root, "bench/rivals")
	return errors.Join(
		machine.GoBuild(ctx, rivals, b.binary(report.Stock), "./stock"),
		machine.GoBuild(ctx, rivals, b.binary(report.Limit), "./limit"),
	)
}

func satchelCommand(b *bench, s *server, o startOptions) (line, env []string) {
	for _, limit := range []string{"IP", "USER", "USER_BURST", "SESSION", "AUTH", "REFRESH"} {
		env = append(env, "SATCHEL_RATELIMIT_"+limit+"="+boundless)
	}
	// The cost of the stored hashes, which is that of all contenders.
	env = append(env, "SATCHEL_PASSWORDS_COST="+strconv.Itoa(seed.HashCost))
	// The logins of a row must not end the sessions that other rows use. All subscribers are on this machine.
	env = append(env, "SATCHEL_SESSIONS_LIMIT=1000", "SATCHEL_LIVE_CONNECTIONS=100000", "SATCHEL_LIVE_USER_CONNECTIONS=100000", "SATCHEL_LIVE_GUEST_CONNECTIONS=100000")
	env = append(env, o.settings...)
	binary := b.binary(satchel)
	if o.durable > 0 {
		binary = b.binary(durableSatchel)
	}
	env = append(env, syncDelay(o.durable)...)
	return []string{binary, "serve", "--http", s.addr, "--dir", filepath.Join(s.dir, "pb_data")}, env
}

func stockCommand(b *bench, s *server, o startOptions) (line, env []string) {
	return []string{b.binary(report.Stock), "serve", "--http", s.addr, "--dir", filepath.Join(s.dir, "pb_data")}, syncDelay(o.durable)
}

func limitCommand(b *bench, s *server, o startOptions) (line, env []string) {
	return []string{b.binary(report.Limit), "-http", s.addr, "-db", filepath.Join(s.dir, "pb_data", "data.db")}, syncDelay(o.durable)
}

// syncDelay is the setting of a slower disk. It has no prefix of Satchel's, whose program refuses settings that it does
// not know.
func syncDelay(d time.Duration) []string {
	if d == 0 {
		return nil
	}
	return []string{"BENCH_SYNC_DELAY=" + d.String()}
}

// installNode makes sure that the Express programs have their modules.
func installNode(ctx context.Context, b *bench) error {
	if _, err := exec.LookPath("node"); err != nil {
		return unavailableError("node is not installed")
	}
	dir := filepath.Join(b.root, "bench", "node")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err == nil {
		return nil
	}
	if !b.plan.install {
		return unavailableError("its modules are not installed (npm ci in bench/node)")
	}
	c := machine.Command(ctx, dir, "npm", "ci", "--no-audit", "--no-fund")
	c.Env = os.Environ()
	if _, err := os.Stat("/usr/include/node/node.h"); err == nil {
		// better-sqlite3 is compiled when no ready build can be fetched; these are the headers of Debian's packages.
		c.Env = append(c.Env, "npm_config_nodedir=/usr")
	}
	if text, err := c.CombinedOutput(); err != nil {
		return unavailableError("npm ci failed: " + machine.LastLine(string(text)))
	}
	return nil
}

func nodeCommand(b *bench, s *server, _ startOptions) (line, env []string) {
	_, port, _ := strings.Cut(s.addr, ":")
	env = []string{"NODE_ENV=production", "PORT=" + port, "LOG=" + filepath.Join(s.dir, "access.log")}
	if s.contender.name == nodePG {
		env = append(env, postgresEnv(s)...)
	} else {
		env = append(env, "SQLITE="+filepath.Join(s.dir, "pb_data", "data.db"))
	}
	return []string{"node", filepath.Join(b.root, "bench", "node", "app.js")}, env
}

func nodeVersions(ctx context.Context, b *bench) ([]report.Version, error) {
	node, err := machine.Output(ctx, "", "node", "--version")
	if err != nil {
		return nil, err
	}
	list := []report.Version{{Name: "Node", Version: strings.TrimPrefix(node, "v")}}
	for _, name := range []string{"express", "better-sqlite3", "pg"} {
		version, err := machine.Output(ctx, filepath.Join(b.root, "bench", "node"), "node", "-p", "require('./package.json').dependencies['"+name+"']")
		if err != nil {
			return nil, err
		}
		list = append(list, report.Version{Name: name, Version: version})
	}
	return list, nil
}
