package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/bench/internal/device"
	"github.com/satchelbase/satchel/bench/internal/report"
)

// TestSmoke runs every row with few requests, so that neither the benchmark nor a contender rots. The Express stacks
// take part where their modules are installed.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and starts all servers")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the benchmark needs Linux")
	}
	dir := t.TempDir()
	results, page := filepath.Join(dir, "results.json"), filepath.Join(dir, "page.md")
	var out strings.Builder
	if err := run(t.Context(), []string{"-smoke", "-dir", dir, "-json", results, "-md", page}, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	var r report.Report
	text, err := os.ReadFile(results)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, row := range r.Rows {
		seen = append(seen, row.ID)
		checkRow(t, row)
	}
	if !slices.Equal(seen, ids()) {
		t.Errorf("rows %v, want %v", seen, ids())
	}
	for _, s := range r.Skipped {
		if s.Name != nodeSQLite && s.Name != nodePG {
			t.Errorf("%s was skipped: %s", s.Name, s.Reason)
		}
	}
	markdown, err := os.ReadFile(page)
	if err != nil || !strings.Contains(string(markdown), "| 12 | footprint |") {
		t.Errorf("the page has no scorecard: %v\n%s", err, markdown)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "satchel-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

// TestRivals runs the tests of the contenders' own module, which the tests of this module do not reach.
func TestRivals(t *testing.T) {
	if testing.Short() {
		t.Skip("builds stock PocketBase")
	}
	for _, task := range []string{"vet", "test"} {
		c := exec.CommandContext(t.Context(), "go", task, "./...")
		c.Dir = "rivals"
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("go %s: %v\n%s", task, err, out)
		}
	}
}

func checkRow(t *testing.T, row report.Row) {
	t.Helper()
	want := []string{satchel, report.Stock, report.Limit}
	switch row.ID {
	case "logins", "15", "17":
		want = want[:2]
	case "18", "19", "20", "jobs", "pushes":
		want = want[:1]
	case "13", "14":
		want = []string{satchel, accessLane, report.Stock}
	case "16":
		want = []string{satchel, keyedLane, report.Stock}
	case "capture-create", "capture-update":
		want = []string{satchel, unrecorded}
	case "sync":
		want = []string{device.Pull, device.Fold, device.First, device.List}
	}
	for _, name := range want {
		if !slices.ContainsFunc(row.Results, func(r report.Result) bool { return r.Lane == name }) {
			t.Errorf("row %s has no result of %s; notes: %v", row.ID, name, row.Notes)
		}
	}
	for _, result := range row.Results {
		if result.Operations == 0 || result.Failures > 0 {
			t.Errorf("row %s, %s: %d operations, %d failures: %s", row.ID, result.Lane, result.Operations, result.Failures, result.Failure)
		}
		if row.ID == "5" && result.Lane == versioned && result.Values[report.Bytes] != 0 {
			t.Errorf("an unchanged list takes %v bytes", result.Values[report.Bytes])
		}
	}
	for _, v := range row.Verdicts {
		// 9 asks for PostgreSQL, and pushes for a program in Node; 10 divides by what may be 0 here, and so does every ratio of CPU: the kernel counts it in
		// steps of 10 ms, and a smoke slice may use less.
		if v.Value == nil && row.ID != "9" && row.ID != "pushes" && row.ID != "10" && !strings.Contains(v.Text, "CPU") {
			t.Errorf("row %s: target not measured: %s", row.ID, v.Text)
		}
	}
}
