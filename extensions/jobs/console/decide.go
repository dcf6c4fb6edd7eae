package console

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// ErrNoQueue says that no kind has a queue, no job is in it and nobody has paused it.
var ErrNoQueue = &extensions.Code{Name: "jobs.queue_unknown", Status: http.StatusNotFound, Title: "There is no such queue"}

// retryDead makes up to n dead jobs of a kind due now, those first that died first. Those stay dead whose key another job has.
func retryDead(tx core.App, j *jobs.Jobs, kind string, n int) (r table.Revived, err error) {
	err = tx.RunInTransaction(func(tx core.App) error {
		if r, err = table.RetryDead(tx, kind, n, time.Now()); err == nil && r.Retried > 0 {
			pb.AfterCommit(tx, j.Wake)
		}
		return err
	})
	return r, err
}

// pause begins a pause of a queue, or ends it.
func pause(tx core.App, j *jobs.Jobs, queue string, begin bool) error {
	workers := j.Workers()
	if _, declared := workers[queue]; !declared {
		names, err := table.Queues(tx)
		if err != nil {
			return err
		}
		if !slices.Contains(names, queue) {
			names = slices.AppendSeq(names, maps.Keys(workers))
			slices.Sort(names)
			return api.Fail(ErrNoQueue, "the queues are "+strings.Join(slices.Compact(names), ", "))
		}
	}
	if begin {
		return j.Pause(tx, queue)
	}
	return j.Resume(tx, queue)
}
