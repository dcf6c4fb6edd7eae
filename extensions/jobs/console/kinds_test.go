package console_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/console"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// series are the numbers of the extension by name and labels; of distributions, how much was observed.
func (f *fixture) series(x extensions.Extension) map[string]float64 {
	out := map[string]float64{}
	for _, metric := range x.Metrics {
		if metric.Series == nil {
			continue
		}
		metric.Series(func(s extensions.Sample) {
			name := strings.Join(append([]string{strings.TrimPrefix(metric.Name, "satchel_jobs_")}, s.Labels...), " ")
			if out[name] = s.Value; s.Distribution != nil {
				out[name] = float64(s.Distribution.Count)
			}
		})
	}
	return out
}

// What is done and what waits is told by kind; the kinds that nobody has declared are one.
func TestMetricsByKind(t *testing.T) {
	napped := make(chan struct{}, 1)
	f := start(t, func(_ context.Context, job *jobs.Job, n int) error {
		switch n {
		case 1:
			return jobs.Permanent(errors.New("no"))
		case 2:
			return jobs.RetryAfter(time.Hour, errors.New("later"))
		case 3:
			select {
			case napped <- struct{}{}:
				return jobs.Snooze(0)
			default:
			}
		}
		return nil
	})
	for n, state := range []jobs.State{jobs.Succeeded, jobs.Dead, jobs.Scheduled, jobs.Succeeded} {
		f.await(t, f.enqueue(t, n, jobs.Options{}), state)
	}
	f.await(t, f.enqueue(t, 0, jobs.Options{Expires: time.Now().Add(-time.Hour)}), jobs.Expired)
	if err := f.jobs.Pause(f.App.App, "tests"); err != nil {
		t.Fatal(err)
	}
	late := time.Now().Add(-time.Hour)
	f.enqueue(t, 0, jobs.Options{At: late})
	f.enqueue(t, 0, jobs.Options{})
	for i, kind := range []string{"gone.a", "gone.b"} {
		if _, err := f.NonconcurrentDB().NewQuery(`INSERT INTO ` + table.Queue + ` (id, queue, kind, state, priority, run_at, expires_at, max_attempts, unique_key, lane,
			owner_collection, owner, request, payload, sealed, created_at) VALUES ({:id}, 'old', {:kind}, 4, 5, 1, 0, 1, '', '', '', '', '', '1', 0, 1)`).
			Bind(map[string]any{"id": i + 1, "kind": kind}).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]float64{
		"depth_count test.job ready": 2, "depth_count test.job running": 0, "depth_count test.job scheduled": 1, "depth_count test.job dead": 1,
		"depth_count test.job held": 0, "depth_count other held": 2, "wait_seconds test.job": 6, "run_seconds test.job": 6,
		"outcomes_total test.job succeeded": 2, "outcomes_total test.job dead": 1, "outcomes_total test.job failed": 1, "outcomes_total test.job snoozed": 1,
		"outcomes_total test.job expired": 1,
	}
	var got map[string]float64
	var age float64
	same := false
	for end := time.Now().Add(20 * time.Second); !same && time.Now().Before(end); time.Sleep(2 * time.Millisecond) { // an end is counted once it is written
		got = f.series(f.x)
		age = got["kind_oldest_seconds test.job"]
		delete(got, "kind_oldest_seconds test.job")
		same = maps.Equal(got, want)
	}
	if !same || age < 3600 || age > 3700 {
		t.Errorf("the oldest waits %v s\n got %v\nwant %v", age, got, want)
	}
	// A program that has not opened its database has nothing to tell.
	fresh := jobs.New(jobs.Config{Workers: 1})
	if got := f.series(console.Extend(fresh.Extension(jobs.Deps{}), fresh)); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
