// Package machine reads what the benchmark needs to know of the computer from Linux's /proc: processor time and memory
// of processes, processor time of everything else, and what hardware it is.
package machine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of processor time in /proc; the kernel's interface fixes it.
const tick = 10 * time.Millisecond

// Places in /proc/<pid>/stat after the name of the program (proc(5)).
const (
	statParent = 1
	statUser   = 11
	statSystem = 12
)

// Process is the user and system time that a process and its descendants have used, to 10 ms. A process that has ended
// counts as zero.
type Process struct {
	PID int

	// Forks makes the descendants count, which costs a walk through all processes.
	Forks bool
}

// CPU is the processor time used so far.
func (p Process) CPU() time.Duration {
	var sum time.Duration
	for _, pid := range p.tree() {
		if f, err := stat(pid); err == nil {
			sum += ticks(f[statUser]) + ticks(f[statSystem])
		}
	}
	return sum
}

// Memory is the resident memory in bytes. Descendants count with their share of what they have in common, because
// PostgreSQL's processes all map the same buffers.
func (p Process) Memory() int64 {
	var sum int64
	for _, pid := range p.tree() {
		file, field := "status", "VmRSS:"
		if p.Forks {
			file, field = "smaps_rollup", "Pss:"
		}
		sum += kilobytes(fmt.Sprintf("/proc/%d/%s", pid, file), field)
	}
	return sum
}

func (p Process) tree() []int {
	tree := []int{p.PID}
	if !p.Forks {
		return tree
	}
	parents := map[int]int{}
	names, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		if f, err := stat(pid); err == nil {
			parents[pid], _ = strconv.Atoi(f[statParent])
		}
	}
	for i := 0; i < len(tree); i++ {
		for pid, parent := range parents {
			if parent == tree[i] {
				tree = append(tree, pid)
			}
		}
	}
	return tree
}

// Busy is the time that all processors together have worked since the machine started.
func Busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read processor times: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	f := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq steal guest guest_nice; the guests' time is in user already.
	if len(f) < 9 {
		return 0, fmt.Errorf("read processor times: %q has too few fields", line)
	}
	var sum time.Duration
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		sum += ticks(f[i])
	}
	return sum, nil
}

// stat returns the fields of /proc/<pid>/stat after the program's name, which may itself hold blanks.
func stat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) <= statSystem {
		return nil, fmt.Errorf("the state of process %d has too few fields", pid)
	}
	return f, nil
}

func ticks(text string) time.Duration {
	n, _ := strconv.ParseInt(text, 10, 64) // the kernel writes numbers
	return time.Duration(n) * tick
}

// kilobytes returns a field of a file such as /proc/meminfo in bytes, 0 if there is none.
func kilobytes(path, field string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == field {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// Description says on what a result was measured.
type Description struct {
	Processor string  `json:"processor"`
	Cores     int     `json:"cores"`
	MemoryGiB float64 `json:"memoryGiB"`
	System    string  `json:"system"`

	// SyncMedian and SyncP95 are how long the disk takes to make 4 KiB durable, in milliseconds.
	SyncMedian float64 `json:"syncMedianMs"`
	SyncP95    float64 `json:"syncP95Ms"`
}

// Describe reads the hardware, and measures the disk below dir.
func Describe(dir string) (Description, error) {
	d := Description{
		Processor: processor(), Cores: runtime.NumCPU(),
		MemoryGiB: float64(kilobytes("/proc/meminfo", "MemTotal:")) / (1 << 30),
		System:    runtime.GOOS + "/" + runtime.GOARCH,
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		d.System += " " + strings.TrimSpace(string(release))
	}
	times, err := syncTimes(dir)
	if err != nil {
		return Description{}, fmt.Errorf("measure disk: %w", err)
	}
	slices.Sort(times)
	d.SyncMedian, d.SyncP95 = milliseconds(times[len(times)/2]), milliseconds(times[len(times)*95/100])
	return d, nil
}

func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func syncTimes(dir string) ([]time.Duration, error) {
	const samples, block = 100, 4 << 10
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(f.Name()) }() // the folder is temporary
	defer f.Close()
	var times []time.Duration
	for range samples {
		start := time.Now()
		if _, err := f.Write(make([]byte, block)); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }
