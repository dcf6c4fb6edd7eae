package console

import (
	"context"
	"fmt"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// metrics begin with the age of the oldest job: whatever is wrong with a queue, it grows.
func metrics(j *jobs.Jobs) []extensions.Metric {
	count := func(state int) func() float64 {
		return func() float64 {
			return number(j, fmt.Sprintf(`SELECT count(*) FROM %s WHERE state = %d`, table.Queue, state))
		}
	}
	return append(byKind(j), []extensions.Metric{
		{Name: "satchel_jobs_oldest_seconds", Help: "How long the oldest ready job has been waiting.", Read: func() float64 { return oldest(j) }},
		{Name: "satchel_jobs_ready_count", Help: "Jobs that are due and wait for a worker.", Read: count(table.IsReady)},
		{Name: "satchel_jobs_scheduled_count", Help: "Jobs that wait for their time.", Read: count(table.IsScheduled)},
		{Name: "satchel_jobs_running_count", Help: "Jobs that are being done.", Read: count(table.IsRunning)},
		{Name: "satchel_jobs_dead_count", Help: "Jobs that have failed for good and wait for a decision.", Read: count(table.IsDead)},
		{Name: "satchel_jobs_attempts_total", Help: "Attempts that have ended.", Counter: true, Read: func() float64 { ended, _ := j.Attempts(); return float64(ended) }},
		{Name: "satchel_jobs_failed_attempts_total", Help: "Attempts that have failed.", Counter: true, Read: func() float64 { _, failed := j.Attempts(); return float64(failed) }},
	}...)
}

func number(j *jobs.Jobs, query string) float64 {
	if j.App() == nil || !j.App().IsBootstrapped() {
		return 0
	}
	var n float64
	_ = j.App().ConcurrentDB().NewQuery(query).Row(&n) // a metric has nobody to tell an error to
	return n
}

// oldest looks at the first job of each priority in each queue, however many wait behind it.
func oldest(j *jobs.Jobs) float64 {
	first := number(j, table.OldestQuery())
	if first == 0 {
		return 0
	}
	return max(time.Since(time.UnixMilli(int64(first))).Seconds(), 0)
}

// check tells of dead jobs, and of kinds that this program does not know.
func check(_ context.Context, h *extensions.Host) extensions.Result {
	var gone, waiting, unknown int
	err := h.App.ConcurrentDB().NewQuery(`SELECT (SELECT count(*) FROM `+table.Queue+` WHERE state = 3), (SELECT count(*) FROM `+table.Queue+` WHERE state = 0),
		(SELECT count(*) FROM `+table.Queue+` WHERE state = 4 AND lane = '')`).Row(&gone, &waiting, &unknown)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Fail, Message: fmt.Sprintf("jobs cannot be read: %v", err)}
	case gone > 0:
		return extensions.Result{Level: extensions.Warn, Message: fmt.Sprintf("%d jobs are dead", gone), Next: "satchel jobs list --state dead"}
	case unknown > 0:
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("%d jobs are of kinds that this program does not know", unknown), Next: "satchel jobs list --state held",
		}
	}
	return extensions.Result{Message: fmt.Sprintf("%d waiting, none dead", waiting)}
}
