package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// disk is what a disk would hold, made from the system calls of a process. A write is certain after an fsync that began
// when the write had ended; a new file is certain after an fsync of its folder.
type disk struct {
	dir     string
	content map[string][]byte // as the process sees it
	certain map[string][]byte // as it is after a power failure at the least
	pending map[string][]pwrite
	created map[string]bool
	answers []answer
	syncs   int            // of the write-ahead log
	clock   int            // counts changes
	since   map[string]int // the clock of certain
}

type pwrite struct {
	clock  int
	offset int64
	data   []byte
}

// answer is an acknowledged transaction and the disk at that moment.
type answer struct {
	n       int64
	certain map[string][]byte
	pending map[string][]pwrite
}

// call is one line of strace, or the two lines of a call that others interrupted.
type call struct {
	name, args string

	// Of an fsync, at its start: the file, its content, and the clock.
	path     string
	snapshot []byte
	clock    int
}

var (
	callPattern    = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	resumedPattern = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	pwritePattern  = regexp.MustCompile(`^\d+<([^>]*)>, "([^"]*)", (\d+), (\d+)`)
	filePattern    = regexp.MustCompile(`^\d+<([^>]*)>(?:, (\d+))?`)
	writePattern   = regexp.MustCompile(`^1<[^>]*>, "([^"]*)"`)
	openPattern    = regexp.MustCompile(`^[^"]*"([^"]*)", (\S+)`)
)

func unhex(text string) []byte {
	data := make([]byte, 0, len(text)/4)
	for _, digits := range strings.Split(text, `\x`)[1:] {
		b, err := strconv.ParseUint(digits, 16, 8)
		if err != nil {
			panic(err)
		}
		data = append(data, byte(b))
	}
	return data
}

// replay reads a trace. Acknowledgements count from the start of their write, everything else from its end.
func (d *disk) replay(trace string) error {
	f, err := os.Open(trace)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	open := map[string]*call{}
	for lines.Scan() {
		line := lines.Text()
		if m := resumedPattern.FindStringSubmatch(line); m != nil {
			if c := open[m[1]]; c != nil {
				delete(open, m[1])
				c.args += m[3]
				d.end(c)
			}
			continue
		}
		m := callPattern.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		c := &call{name: m[2], args: m[3]}
		d.begin(c)
		if args, unfinished := strings.CutSuffix(c.args, " <unfinished ...>"); unfinished {
			c.args = args
			open[m[1]] = c
			continue
		}
		d.end(c)
	}
	return lines.Err()
}

func (d *disk) begin(c *call) {
	switch c.name {
	case "write":
		if m := writePattern.FindStringSubmatch(c.args); m != nil {
			for text := range strings.FieldsSeq(string(unhex(m[1]))) {
				if n, err := strconv.ParseInt(text, 10, 64); err == nil {
					d.answers = append(d.answers, answer{n: n, certain: maps.Clone(d.certain), pending: maps.Clone(d.pending)})
				}
			}
		}
	case "fsync", "fdatasync":
		if m := filePattern.FindStringSubmatch(c.args); m != nil {
			c.path = string(unhex(m[1]))
			c.snapshot, c.clock = d.content[c.path], d.clock
		}
	}
}

func (d *disk) end(c *call) {
	switch c.name {
	case "pwrite64":
		m := pwritePattern.FindStringSubmatch(c.args)
		if m == nil || !d.has(string(unhex(m[1]))) {
			return
		}
		path := string(unhex(m[1]))
		offset, _ := strconv.ParseInt(m[4], 10, 64)
		d.clock++
		w := pwrite{clock: d.clock, offset: offset, data: unhex(m[2])}
		if strconv.Itoa(len(w.data)) != m[3] {
			panic("strace has cut a write")
		}
		d.content[path] = w.apply(d.content[path])
		d.pending[path] = append(slices.Clone(d.pending[path]), w)
	case "ftruncate":
		m := filePattern.FindStringSubmatch(c.args)
		if m == nil || !d.has(string(unhex(m[1]))) {
			return
		}
		path := string(unhex(m[1]))
		d.clock++
		size, _ := strconv.Atoi(m[2])
		d.content[path] = d.content[path][:min(size, len(d.content[path]))]
	case "openat":
		m := openPattern.FindStringSubmatch(c.args)
		if m == nil || !d.has(string(unhex(m[1]))) || !strings.Contains(m[2], "O_CREAT") {
			return
		}
		path := string(unhex(m[1]))
		if _, known := d.content[path]; !known {
			d.content[path] = nil
			d.created[path] = true
		}
	case "fsync", "fdatasync":
		if c.path == d.dir {
			clear(d.created)
		}
		if !d.has(c.path) {
			return
		}
		if strings.HasSuffix(c.path, "-wal") {
			d.syncs++
		}
		if !d.created[c.path] && c.clock >= d.since[c.path] {
			d.certain[c.path], d.since[c.path] = c.snapshot, c.clock
			d.pending[c.path] = slices.DeleteFunc(slices.Clone(d.pending[c.path]), func(w pwrite) bool { return w.clock <= c.clock })
		}
	}
}

// has reports whether a path is a file of the database. The shared memory is made anew after a crash.
func (d *disk) has(path string) bool {
	return strings.HasPrefix(path, d.dir+"/") && !strings.HasSuffix(path, "-shm")
}

func (w pwrite) apply(content []byte) []byte {
	end := int(w.offset) + len(w.data)
	out := make([]byte, max(end, len(content)))
	copy(out, content)
	copy(out[w.offset:], w.data)
	return out
}

// afterPowerFailure writes what the disk holds at an answer to a folder. Of what is not certain, some may be there too.
func (a answer) afterPowerFailure(t *testing.T, random *rand.Rand) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range a.certain {
		if random != nil {
			for _, w := range a.pending[path] {
				if random.IntN(2) == 0 {
					content = w.apply(content)
				}
			}
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// traced runs a storm under strace and returns the disk that its system calls make.
func traced(t *testing.T, mode string) *disk {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed; apt-get install strace")
	}
	dir := prepareStorm(t)
	d := &disk{
		dir: dir, content: map[string][]byte{}, certain: map[string][]byte{}, pending: map[string][]pwrite{}, created: map[string]bool{},
		since: map[string]int{},
	}
	data := filepath.Join(dir, dataFile)
	before, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	d.content[data], d.certain[data] = before, before
	trace := filepath.Join(t.TempDir(), "trace")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	storm := stormCommand(ctx, dir, mode, 0, 150)
	cmd := exec.CommandContext(ctx, strace, "-f", "-y", "-xx", "-s", "8192", "-o", trace,
		"-e", "trace=pwrite64,write,fsync,fdatasync,ftruncate,openat", "-e", "signal=none", storm.Path)
	cmd.Env = storm.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "ptrace") {
			t.Skipf("strace may not trace here: %s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	if err := d.replay(trace); err != nil {
		t.Fatal(err)
	}
	return d
}

var errLost = errors.New("lost")

// firstLoss fails the power at the answers, and returns what was lost at the first one that lost something.
func (d *disk) firstLoss(t *testing.T) error {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var acknowledged []int64
	for i, a := range d.answers {
		acknowledged = append(acknowledged, a.n)
		if i%5 != 0 && i != len(d.answers)-1 {
			continue
		}
		for _, r := range []*rand.Rand{nil, random} {
			found, err := damage(a.afterPowerFailure(t, r), acknowledged)
			if err != nil {
				found = err.Error()
			}
			if found != "" {
				return fmt.Errorf("%w: at answer %d: %s", errLost, i, found)
			}
		}
	}
	return nil
}

func TestPowerFailure(t *testing.T) {
	d := traced(t, Full)
	if len(d.answers) != 150 || d.syncs == 0 {
		t.Fatalf("%d answers and %d syncs in the trace", len(d.answers), d.syncs)
	}
	if err := d.firstLoss(t); err != nil {
		t.Error(err)
	}
	t.Logf("%d answers, %d syncs of the log", len(d.answers), d.syncs)
}

// The same checker must find the losses of the modes that promise nothing.
func TestPowerFailureCheckCanFail(t *testing.T) {
	for _, mode := range []string{Normal, "off"} {
		d := traced(t, mode)
		if len(d.answers) != 150 {
			t.Fatalf("%s: %d answers in the trace", mode, len(d.answers))
		}
		if err := d.firstLoss(t); !errors.Is(err, errLost) {
			t.Errorf("%s: nothing was lost", mode)
		} else {
			t.Logf("%s: %v", mode, err)
		}
	}
}
