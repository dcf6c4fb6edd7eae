// Package report holds the results of a benchmark run, judges them against targets, and writes them as text, JSON and
// Markdown.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/machine"
)

// The contenders that results are compared with.
const (
	Stock = "stock"
	Limit = "limit"
)

// Metric names a measured value of a row.
type Metric string

// Metrics. Times are means or quantiles over all operations of one lane.
const (
	CPU     Metric = "cpuMicroseconds" // of the server, an operation
	Rate    Metric = "perSecond"
	P50     Metric = "p50Ms"
	P95     Metric = "p95Ms"
	P99     Metric = "p99Ms"
	Bytes   Metric = "bytes" // of a body
	Hundred Metric = "secondsPer100k"

	WriterAlone Metric = "writerAloneMs"      // p50 of a create without subscribers
	Writer      Metric = "writerMs"           // p50 of a create with subscribers
	PerClient   Metric = "kilobytesPerClient" // resident
	Seconds     Metric = "seconds"            // until the last one was served
	ReadAlone   Metric = "p99AloneMs"         // p99 of a read without logins
	ReadLogins  Metric = "p99WithLoginsMs"    // p99 of a read while others log in
	Logins      Metric = "loginsPerSecond"    //
	Start       Metric = "startMs"            // from the start of the process to the first answer
	Idle        Metric = "idleMiB"            // resident
	Loaded      Metric = "loadedMiB"          // resident, under 64 connections
	Binary      Metric = "binaryMiB"          // stripped
	WriterQueue Metric = "p99WithJobsMs"      // p99 of a write while the queue works at full speed
	IdleCPU     Metric = "idleCpuMs"          // in a second
	WriterPush  Metric = "p99WithPushesMs"    // p99 of a write while pushes are sent
	Growth      Metric = "growthMiB"          // resident, above that before
)

// title is how a table names the metric, and digits how many decimals it shows.
func (m Metric) title() (name string, digits int) {
	switch m {
	case CPU:
		return "CPU µs/op", 1
	case Rate:
		return "per s", 0
	case P50:
		return "p50 ms", 2
	case P95:
		return "p95 ms", 2
	case P99:
		return "p99 ms", 2
	case Bytes:
		return "bytes", 0
	case Hundred:
		return "s per 100 k", 1
	case WriterAlone:
		return "writer p50 ms, nobody listening", 2
	case Writer:
		return "writer p50 ms", 2
	case PerClient:
		return "KiB per subscriber", 0
	case Seconds:
		return "s for all", 1
	case ReadAlone:
		return "get p99 ms, no logins", 2
	case ReadLogins:
		return "get p99 ms, logins running", 2
	case Logins:
		return "logins per s", 1
	case Start:
		return "start ms", 0
	case Idle:
		return "idle MiB", 1
	case Loaded:
		return "loaded MiB", 1
	case Binary:
		return "binary MiB", 1
	case WriterQueue:
		return "write p99 ms, queue running", 2
	case WriterPush:
		return "write p99 ms, pushes running", 2
	case Growth:
		return "more MiB", 1
	case IdleCPU:
		return "idle CPU ms/s", 2
	}
	return string(m), 2
}

// Result is what one lane of a row measured with one number of connections.
type Result struct {
	Lane        string             `json:"lane"`      // contender, and the URL when it has two
	Contender   string             `json:"contender"` //
	Connections int                `json:"connections"`
	Operations  int                `json:"operations"`
	Failures    int                `json:"failures"`
	Failure     string             `json:"failure,omitempty"` // the first
	Values      map[Metric]float64 `json:"values"`
}

// Measured makes a result of counts; per is how many operations a request stands for.
func Measured(lane, contender string, connections, per int, t load.Tally, cpu, busy time.Duration) Result {
	r := Result{
		Lane: lane, Contender: contender, Connections: connections,
		Operations: t.Ops * per, Failures: t.Failures, Failure: t.Failure, Values: map[Metric]float64{},
	}
	if t.Ops == 0 || busy == 0 {
		r.Failures, r.Failure = r.Failures+1, "no answer at all"
		return r
	}
	n := float64(r.Operations)
	quantile := func(q float64) float64 { return t.Latency.Quantile(q).Seconds() * 1000 }
	r.Values[CPU] = float64(cpu.Microseconds()) / n
	r.Values[Rate] = n / busy.Seconds()
	r.Values[Hundred] = 100_000 * busy.Seconds() / n
	r.Values[Bytes] = float64(t.Bytes) / float64(t.Ops)
	r.Values[P50], r.Values[P95], r.Values[P99] = quantile(0.50), quantile(0.95), quantile(0.99)
	return r
}

// Target is a promise: the value of a lane, or its ratio to another one's, is at least or at most a number.
type Target struct {
	Lane    string
	Metric  Metric
	Against string // lane; empty for an absolute number
	Base    Metric // of Against; empty for Metric
	AtLeast float64
	AtMost  float64
}

// Verdict is a target and what came of it. Value is missing when a lane did not run.
type Verdict struct {
	Text  string   `json:"target"`
	Value *float64 `json:"value"`
	Met   bool     `json:"met"`
}

// Row is one line of the scorecard.
type Row struct {
	ID          string    `json:"id"`
	Title       string    `json:"title"`
	Columns     []Metric  `json:"-"`
	Compared    []Metric  `json:"-"`           // columns that are also shown as ratios to stock and to limit
	Connections int       `json:"connections"` // those that targets are judged at
	Results     []Result  `json:"results"`
	Verdicts    []Verdict `json:"verdicts"`
	Notes       []string  `json:"notes,omitempty"`

	// ForeignCPU is how many processors others kept busy; beyond the bound the row is void.
	ForeignCPU float64 `json:"foreignCpu"`
	Void       bool    `json:"void"`
}

// find returns a lane's result with the scored number of connections.
func (r *Row) find(lane string, connections int) (Result, bool) {
	for _, result := range r.Results {
		if result.Lane == lane && result.Connections == connections {
			return result, true
		}
	}
	return Result{}, false
}

// value is a metric of a lane, nil when it was not measured.
func (r *Row) value(lane string, connections int, m Metric) *float64 {
	result, ok := r.find(lane, connections)
	if !ok {
		return nil
	}
	v, ok := result.Values[m]
	if !ok {
		return nil
	}
	return &v
}

// ratio is a/b, nil when either is missing or b is zero.
func ratio(a, b *float64) *float64 {
	if a == nil || b == nil || *b == 0 {
		return nil
	}
	q := *a / *b
	return &q
}

// Judge fills the verdicts.
func (r *Row) Judge(targets []Target) {
	for _, t := range targets {
		name, _ := t.Metric.title()
		v := r.value(t.Lane, r.Connections, t.Metric)
		unit := ""
		if t.Against != "" {
			base := t.Base
			if base == "" {
				base = t.Metric
			}
			v = ratio(v, r.value(t.Against, r.Connections, base))
			unit = " × " + t.Against
			if base != t.Metric {
				baseName, _ := base.title()
				unit += "'s " + baseName
			}
		}
		verdict := Verdict{Value: v}
		if t.AtLeast > 0 {
			verdict.Text = fmt.Sprintf("%s: %s ≥ %g%s", t.Lane, name, t.AtLeast, unit)
			verdict.Met = v != nil && *v >= t.AtLeast
		} else {
			verdict.Text = fmt.Sprintf("%s: %s ≤ %g%s", t.Lane, name, t.AtMost, unit)
			verdict.Met = v != nil && *v <= t.AtMost
		}
		r.Verdicts = append(r.Verdicts, verdict)
	}
}

// Version is that of a program or library that took part.
type Version struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Skipped is a contender that did not take part.
type Skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Report is one run.
type Report struct {
	Date     time.Time           `json:"date"`
	Machine  machine.Description `json:"machine"`
	Pinned   bool                `json:"pinned"`
	Slice    float64             `json:"sliceMs"`
	Rounds   int                 `json:"rounds"`
	Notes    int                 `json:"notes"`
	Users    int                 `json:"users"`
	Versions []Version           `json:"versions"`
	Skipped  []Skipped           `json:"skipped"`
	Rows     []Row               `json:"rows"`
}

// Failures lists what makes the run worthless: answers that were refused, and rows beside which others worked too much.
func (r *Report) Failures() (failed, void []string) {
	for _, row := range r.Rows {
		if row.Void {
			void = append(void, fmt.Sprintf("row %s: others kept %.0f %% of a processor busy", row.ID, 100*row.ForeignCPU))
		}
		for _, result := range row.Results {
			if result.Failures > 0 {
				failed = append(failed, fmt.Sprintf("row %s, %s, %d connections: %d of %d failed, first: %s",
					row.ID, result.Lane, result.Connections, result.Failures, result.Operations, result.Failure))
			}
		}
	}
	return failed, void
}

// JSON writes the report.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// Choose splits a list and refuses unknown words; an empty one is all.
func Choose(list string, all []string) ([]string, error) {
	if list == "" {
		return all, nil
	}
	words := strings.Split(list, ",")
	for _, w := range words {
		if !slices.Contains(all, w) {
			return nil, fmt.Errorf("%q is not one of %s", w, strings.Join(all, ", "))
		}
	}
	return words, nil
}
