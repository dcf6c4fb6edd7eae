package console

import (
	"cmp"
	"encoding/json"
	"errors"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/operations"
)

type target struct {
	ID string `json:"id" minLength:"1" maxLength:"20"`
}

type retryInput struct {
	ID      string          `json:"id" minLength:"1" maxLength:"20"`
	Payload json.RawMessage `json:"payload,omitempty" description:"what the job is given instead"`
}

type revival struct {
	Kind  string `json:"kind" minLength:"1" maxLength:"100"`
	Limit int    `json:"limit,omitempty" minimum:"1" maximum:"1000" description:"how many at most; 500 by default"`
}

type queueInput struct {
	Queue string `json:"queue" minLength:"1" maxLength:"100"`
}

// Operations are those that admins may call. Kinds, queues and payloads are the app's, so nobody else may.
func Operations(j *jobs.Jobs) []operations.Operation {
	callers := operations.Callers{Collections: []string{}, Role: "operator"}
	return []operations.Operation{
		operations.Define(operations.Spec[table.Filter, table.Page]{
			Name: "jobs.list", Summary: "List jobs, the newest first", Read: true, Callers: callers,
			Do: func(c *operations.Call, in table.Filter) (table.Page, error) { return table.List(c.App, in) },
		}),
		operations.Define(operations.Spec[target, table.View]{
			Name: "jobs.show", Summary: "Show a job with what it was given", Read: true, Callers: callers, Codes: []*extensions.Code{api.ErrNotFound},
			Do: func(c *operations.Call, in target) (table.View, error) { return table.Show(c.App, in.ID) },
		}),
		operations.Define(operations.Spec[struct{}, []table.QueueView]{
			Name: "jobs.queues", Summary: "Show the queues and how long their oldest jobs wait", Read: true, Callers: callers,
			Do: func(c *operations.Call, _ struct{}) ([]table.QueueView, error) { return overview(c.App, j) },
		}),
		operations.Define(operations.Spec[retryInput, table.View]{
			Name: "jobs.retry", Summary: "Make a dead or scheduled job due now, with another payload if one is given", KeyOptional: true, Callers: callers,
			Audit: []string{"id"}, Codes: []*extensions.Code{jobs.ErrRunning, jobs.ErrNotWaiting, jobs.ErrKeyTaken},
			Do: func(c *operations.Call, in retryInput) (table.View, error) {
				c.Detail("edited", in.Payload != nil)
				return decided(c.App, in.ID, j.Retry(c.App, in.ID, in.Payload))
			},
		}),
		operations.Define(operations.Spec[revival, table.Revived]{
			Name: "jobs.retryDead", Summary: "Make the dead jobs of a kind due now, as many as the limit says, the oldest first", KeyOptional: true, Callers: callers,
			Audit: []string{"kind"},
			Do: func(c *operations.Call, in revival) (table.Revived, error) {
				r, err := retryDead(c.App, j, in.Kind, cmp.Or(in.Limit, atOnce))
				c.Detail("retried", r.Retried)
				return r, err
			},
		}),
		operations.Define(operations.Spec[target, table.View]{
			Name: "jobs.cancel", Summary: "End a job that has not ended, also one that is running", KeyOptional: true, Callers: callers,
			Audit: []string{"id"}, Codes: []*extensions.Code{jobs.ErrNotWaiting},
			Do: func(c *operations.Call, in target) (table.View, error) {
				return decided(c.App, in.ID, j.Interrupt(c.App, in.ID))
			},
		}),
		operations.Define(operations.Spec[queueInput, []table.QueueView]{
			Name: "jobs.pause", Summary: "Begin no more jobs of a queue", KeyOptional: true, Callers: callers, Audit: []string{"queue"},
			Codes: []*extensions.Code{ErrNoQueue},
			Do: func(c *operations.Call, in queueInput) ([]table.QueueView, error) {
				if err := pause(c.App, j, in.Queue, true); err != nil {
					return nil, err
				}
				return overview(c.App, j)
			},
		}),
		operations.Define(operations.Spec[queueInput, []table.QueueView]{
			Name: "jobs.resume", Summary: "Begin jobs of a paused queue again", KeyOptional: true, Callers: callers, Audit: []string{"queue"},
			Codes: []*extensions.Code{ErrNoQueue},
			Do: func(c *operations.Call, in queueInput) ([]table.QueueView, error) {
				if err := pause(c.App, j, in.Queue, false); err != nil {
					return nil, err
				}
				return overview(c.App, j)
			},
		}),
	}
}

// decided shows a job after a decision.
func decided(app core.App, id string, err error) (table.View, error) {
	if errors.Is(err, jobs.ErrNotFound) {
		return table.View{}, api.ErrNotFound
	}
	if err != nil {
		return table.View{}, err
	}
	return table.Show(app, id)
}

func overview(app core.App, j *jobs.Jobs) ([]table.QueueView, error) {
	return table.Overview(app, time.Now(), j.Workers())
}
