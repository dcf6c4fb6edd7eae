package memory

import (
	"math"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func files(pairs ...string) fstest.MapFS {
	root := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		root[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return root
}

const meminfo = "MemTotal:        8388608 kB\nMemFree:          123456 kB\nHugePages_Total:       0\n"

func TestAvailable(t *testing.T) {
	for _, test := range []struct {
		name   string
		root   fstest.MapFS
		bytes  uint64
		source string
	}{
		{"nothing known", files(), 0, ""},
		{"machine", files("proc/meminfo", meminfo), 8 * gib, "machine"},
		{"garbage", files("proc/meminfo", "MemTotal: lots kB\n", "proc/self/cgroup", "::\nx\n0:\n", "sys/fs/cgroup/memory.max", "7"), 0, ""},
		{"version 2 at the mount", files("proc/meminfo", meminfo, "proc/self/cgroup", "0::/\n", "sys/fs/cgroup/memory.max", "536870912\n"), 512 * mib, "control group"},
		{"version 2 unlimited", files("proc/meminfo", meminfo, "proc/self/cgroup", "0::/\n", "sys/fs/cgroup/memory.max", "max\n"), 8 * gib, "machine"},
		{"version 2 in a unit", files(
			"proc/meminfo", meminfo, "proc/self/cgroup", "0::/system.slice/satchel.service\n",
			"sys/fs/cgroup/system.slice/satchel.service/memory.max", "max\n",
			"sys/fs/cgroup/system.slice/satchel.service/memory.high", "1073741824\n",
			"sys/fs/cgroup/system.slice/memory.max", "2147483648\n"), gib, "control group"},
		{"version 2 limited above", files(
			"proc/meminfo", meminfo, "proc/self/cgroup", "0::/system.slice/satchel.service\n",
			"sys/fs/cgroup/system.slice/satchel.service/memory.max", "4294967296\n",
			"sys/fs/cgroup/system.slice/memory.max", "2147483648\n"), 2 * gib, "control group"},
		{"version 2 with the host's path", files(
			"proc/meminfo", meminfo, "proc/self/cgroup", "0::/docker/0123\n", "sys/fs/cgroup/memory.max", "268435456\n"), 256 * mib, "control group"},
		{"version 1", files(
			"proc/meminfo", meminfo, "proc/self/cgroup", "12:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/a\n",
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "1073741824\n"), gib, "control group"},
		{"version 1 unlimited", files(
			"proc/meminfo", meminfo, "proc/self/cgroup", "4:memory:/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"), 8 * gib, "machine"},
		{"both versions", files(
			"proc/meminfo", meminfo, "proc/self/cgroup", "4:memory:/\n0::/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824", "sys/fs/cgroup/memory.max", "max"), gib, "control group"},
		{"more than the machine", files("proc/meminfo", meminfo, "proc/self/cgroup", "0::/", "sys/fs/cgroup/memory.max", "99999999999"), 8 * gib, "machine"},
		{"a path that climbs out", files("proc/self/cgroup", "0::/../../x\n", "sys/fs/cgroup/x/memory.max", "1073741824"), gib, "control group"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if bytes, source := available(test.root); bytes != test.bytes || source != test.source {
				t.Errorf("%d from %q, want %d from %q", bytes, source, test.bytes, test.source)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	known := files("proc/meminfo", meminfo)
	tiny := files("proc/meminfo", meminfo, "proc/self/cgroup", "0::/", "sys/fs/cgroup/memory.max", "50331648")
	for _, test := range []struct {
		name    string
		cfg     Config
		env     map[string]string
		root    fstest.MapFS
		gogc    int
		limit   uint64
		level   extensions.Level
		message string
	}{
		{"automatic", Config{GOGC: 400}, nil, known, 400, 6012954214, extensions.OK, "GOGC 400, limit 5734 MiB of 8192 MiB (machine)"},
		{"given", Config{GOGC: 100, Limit: gib}, nil, known, 100, gib, extensions.OK, "GOGC 100, limit 1024 MiB of 8192 MiB (machine)"},
		{"unknown", Config{GOGC: 400}, nil, files(), 400, 0, extensions.Info, "GOGC 400, no limit; how much memory there is cannot be found out"},
		{"unknown but given", Config{GOGC: 400, Limit: gib}, nil, files(), 400, gib, extensions.OK, "limit 1024 MiB; how much"},
		{"environment wins", Config{GOGC: 400, Limit: gib}, map[string]string{"GOGC": "off", "GOMEMLIMIT": "3GiB"}, known, 0, 0, extensions.OK, "GOGC off from the environment, limit 3GiB from the environment of 8192 MiB"},
		{"only GOGC in the environment", Config{GOGC: 400, Limit: gib}, map[string]string{"GOGC": "50"}, known, 0, gib, extensions.OK, "GOGC 50 from the environment, limit 1024 MiB"},
		{"container too small", Config{GOGC: 400}, nil, tiny, 400, leastLimit, extensions.Warn, "limit 64 MiB of 48 MiB (control group)"},
		{"more than there is", Config{GOGC: 400, Limit: 9 * gib}, nil, known, 400, 9 * gib, extensions.Warn, "limit 9216 MiB of 8192 MiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPlan(test.cfg, func(name string) string { return test.env[name] }, test.root)
			if p.gogc != test.gogc || p.limit != test.limit {
				t.Errorf("GOGC %d and limit %d, want %d and %d", p.gogc, p.limit, test.gogc, test.limit)
			}
			r := p.check()
			if r.Level != test.level || !strings.Contains(r.Message, test.message) {
				t.Errorf("%s %q, want %s %q", r.Level, r.Message, test.level, test.message)
			}
			if (r.Level == extensions.OK) != (r.Next == "") {
				t.Errorf("next step %q at level %s", r.Next, r.Level)
			}
		})
	}
}

// TestStart looks at what the runtime was told.
func TestStart(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	})
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if v, set := os.LookupEnv(name); set {
			t.Setenv(name, v) // restores it at the end
			os.Unsetenv(name)
		}
	}
	x := New(Config{GOGC: 321, Limit: gib})
	apptest.New(t, x)
	if got := debug.SetGCPercent(100); got != 321 {
		t.Errorf("GOGC %d", got)
	}
	if got := x.Metrics[0].Read(); got != gib {
		t.Errorf("limit %v", got)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	if got := x.Metrics[0].Read(); !math.IsInf(got, 1) {
		t.Errorf("no limit reads as %v", got)
	}
}

func TestConfig(t *testing.T) {
	if c := settings.Defaults[Config](); c.GOGC != 400 || c.Limit != 0 || c.Validate() != nil {
		t.Errorf("defaults %+v: %v", c, c.Validate())
	}
	for want, c := range map[string]Config{
		"GOGC: ":  {GOGC: 5},
		"GOGC:":   {GOGC: -1},
		"LIMIT: ": {GOGC: 100, Limit: mib},
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
