package queue

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// The measurement works; its numbers mean nothing here. BENCH_JOBS asks for more of them.
func TestMeasure(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("BENCH_JOBS"))
	n = max(n, 500)
	r, err := Measure(t.Context(), t.TempDir(), n, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if r.Jobs != 2*n || r.Rate <= 0 || r.Enqueue <= 0 || r.CPU <= 0 || r.Writer <= 0 {
		t.Errorf("%+v", r)
	}
	t.Logf("in %.0f/s, out %.0f/s, %s CPU a job, writer p99 %s, %s CPU in a second of rest", r.Enqueue, r.Rate, r.CPU, r.Writer, r.Idle)
}
