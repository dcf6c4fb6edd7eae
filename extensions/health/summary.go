package health

import (
	"math"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// Words of the summary.
const (
	statusOK       = "ok"
	statusDegraded = "degraded"
	databaseFails  = "fail"
)

type summaryJSON struct {
	Status   string `json:"status"`
	Database string `json:"database"`
	Time     string `json:"time"`
	Version  string `json:"version"`
	*detailJSON
}

// detailJSON is for admins.
type detailJSON struct {
	UptimeSeconds int64              `json:"uptimeSeconds"`
	Memory        memoryJSON         `json:"memory"`
	Checks        []checkJSON        `json:"checks"`
	Metrics       map[string]float64 `json:"metrics"`
}

type memoryJSON struct {
	HeapBytes  uint64 `json:"heapBytes"`
	RSSBytes   uint64 `json:"rssBytes,omitempty"` // only where the system tells
	Goroutines uint64 `json:"goroutines"`
}

type checkJSON struct {
	Name    string `json:"name"`
	Level   string `json:"level"`
	Message string `json:"message"`
	Next    string `json:"next,omitempty"`
}

func (s *service) summary(e *core.RequestEvent) error {
	noStore(e)
	results := s.probe.results(e.Request.Context())
	out := summaryJSON{
		Status: statusOK, Database: statusOK, Time: time.Now().UTC().Format(time.RFC3339), Version: s.host.Version,
	}
	failing := failed(results)
	if len(failing) > 0 {
		out.Status = statusDegraded
	}
	if slices.Contains(failing, checkDatabase) {
		out.Database = databaseFails
	}
	if e.Auth != nil && s.may(e, "viewer") == nil {
		out.detailJSON = s.detail(slices.Concat(results, s.others.results(e.Request.Context())))
	}
	return api.Write(e, http.StatusOK, out)
}

func (s *service) detail(results []named) *detailJSON {
	d := &detailJSON{
		UptimeSeconds: int64(time.Since(time.Unix(0, s.started.Load())).Seconds()),
		Memory:        memory(), Checks: []checkJSON{}, Metrics: map[string]float64{},
	}
	for _, r := range results {
		d.Checks = append(d.Checks, checkJSON{Name: r.name, Level: r.Level.String(), Message: r.Message, Next: r.Next})
	}
	for _, x := range s.installed() {
		for _, m := range x.Metrics {
			if m.Read == nil { // several numbers; they are on the page for Prometheus
				continue
			}
			// JSON has no form for the others.
			if v := m.Read(); !math.IsNaN(v) && !math.IsInf(v, 0) {
				d.Metrics[m.Name] = v
			}
		}
	}
	return d
}

// memory reads the runtime's counters, which, unlike runtime.ReadMemStats, do not stop the world.
func memory() memoryJSON {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(samples)
	m := memoryJSON{RSSBytes: residentSet(), Goroutines: uint64(max(0, runtime.NumGoroutine()))}
	if samples[0].Value.Kind() == metrics.KindUint64 {
		m.HeapBytes = samples[0].Value.Uint64()
	}
	return m
}

// residentSet is the memory that the process holds, from Linux's /proc/self/statm; 0 elsewhere.
func residentSet() uint64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(max(0, os.Getpagesize()))
}
