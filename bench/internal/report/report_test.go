package report_test

import (
	"strings"
	"testing"

	"github.com/satchelbase/satchel/bench/internal/report"
)

func row() report.Row {
	result := func(lane string, c int, cpu, rate float64) report.Result {
		return report.Result{
			Lane: lane, Contender: lane, Connections: c, Operations: 10,
			Values: map[report.Metric]float64{report.CPU: cpu, report.Rate: rate},
		}
	}
	return report.Row{
		ID: "2", Title: "get one", Connections: 8, Columns: []report.Metric{report.CPU, report.Rate}, Compared: []report.Metric{report.Rate},
		Results: []report.Result{
			result("satchel", 1, 1, 1), result("satchel", 8, 100, 6000), result("stock", 8, 400, 2000), result("limit", 8, 50, 12_000),
		},
	}
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		target report.Target
		want   string
	}{
		"met":      {report.Target{Lane: "satchel", Metric: report.Rate, Against: "stock", AtLeast: 3}, "satchel: per s ≥ 3 × stock: 3.00, met"},
		"missed":   {report.Target{Lane: "satchel", Metric: report.Rate, Against: "limit", AtLeast: 0.7}, "satchel: per s ≥ 0.7 × limit: 0.50, MISSED"},
		"at most":  {report.Target{Lane: "satchel", Metric: report.CPU, Against: "stock", AtMost: 0.25}, "satchel: CPU µs/op ≤ 0.25 × stock: 0.25, met"},
		"too much": {report.Target{Lane: "satchel", Metric: report.CPU, Against: "limit", AtMost: 1.5}, "satchel: CPU µs/op ≤ 1.5 × limit: 2.00, MISSED"},
		"absolute": {report.Target{Lane: "satchel", Metric: report.CPU, AtMost: 150}, "satchel: CPU µs/op ≤ 150: 100.00, met"},
		"other metric": {
			report.Target{Lane: "satchel", Metric: report.CPU, Against: "stock", Base: report.Rate, AtMost: 1}, "satchel: CPU µs/op ≤ 1 × stock's per s: 0.05, met",
		},
		"no lane":   {report.Target{Lane: "satchel", Metric: report.Rate, Against: "node-pg", AtLeast: 1}, "satchel: per s ≥ 1 × node-pg: not measured"},
		"no metric": {report.Target{Lane: "satchel", Metric: report.Start, AtMost: 150}, "satchel: start ms ≤ 150: not measured"},
	} {
		r := row()
		r.Judge([]report.Target{c.target})
		if got := r.Verdicts[0].String(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestText(t *testing.T) {
	r := row()
	r.Void, r.ForeignCPU = true, 0.42
	var b strings.Builder
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(b.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{"satchel 8 100.0 6000 3.00 0.50", "satchel 1 1.0 1 – –", "VOID: others kept 42 % of a processor busy"} {
		if !strings.Contains(strings.Join(lines, "\n"), want) {
			t.Errorf("no line %q in\n%s", want, &b)
		}
	}
}

func TestMarkdown(t *testing.T) {
	full := report.Report{Rows: []report.Row{row()}, Skipped: []report.Skipped{{Name: "node-pg", Reason: "PostgreSQL is not installed"}}}
	full.Rows[0].Judge([]report.Target{{Lane: "satchel", Metric: report.Rate, Against: "stock", AtLeast: 4}})
	var b strings.Builder
	if err := full.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| 2 | get one | satchel: per s ≥ 4 × stock | 3.00 | **missed** |",
		"| satchel | 8 | 100.0 | 6000 | 3.00 | 0.50 |",
		"node-pg did not take part: PostgreSQL is not installed.",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}

func TestFailures(t *testing.T) {
	r := report.Report{Rows: []report.Row{row(), {ID: "3", Void: true, ForeignCPU: 0.5}}}
	if failed, void := r.Failures(); len(failed) != 0 || len(void) != 1 {
		t.Errorf("failed %v, void %v", failed, void)
	}
	r.Rows[0].Results[1].Failures, r.Rows[0].Results[1].Failure = 3, "status 500"
	if failed, _ := r.Failures(); len(failed) != 1 || !strings.Contains(failed[0], "3 of 10 failed, first: status 500") {
		t.Errorf("failed %v", failed)
	}
}
