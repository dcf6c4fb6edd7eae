package jobs

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/operations"
)

// View is a job as admins see it.
type View struct {
	Status

	Error     string     `json:"error"` // of the last attempt
	Priority  int        `json:"priority"`
	Lane      string     `json:"lane"`
	Owner     string     `json:"owner"` // the id of the account on whose behalf it works
	RequestID string     `json:"requestId"`
	ExpiresAt *time.Time `json:"expiresAt"`
	Sealed    bool       `json:"sealed"`

	// Payload is what the job was given. It is shown for one job, while it is in the queue, and never when it is sealed.
	Payload json.RawMessage `json:"payload"`
}

func (r *row) view() View {
	return View{
		Status: r.status(), Error: r.Error, Priority: r.Priority, Lane: r.Lane, Owner: r.Owner, RequestID: r.Request,
		ExpiresAt: moment(r.ExpiresAt), Sealed: r.Sealed != 0, Payload: json.RawMessage("null"),
	}
}

// Filter chooses jobs. Cursor is the id behind which a page begins.
type Filter struct {
	State  string `json:"state,omitempty" enum:"ready,running,scheduled,dead,held,succeeded,cancelled,expired"`
	Kind   string `json:"kind,omitempty" maxLength:"100"`
	Queue  string `json:"queue,omitempty" maxLength:"100"`
	Cursor string `json:"cursor,omitempty" maxLength:"20"`
	Limit  int    `json:"limit,omitempty" minimum:"1" maximum:"100"`
}

// Page is a part of a list of jobs, the newest first. Next is the cursor of the next one, empty at the end.
type Page struct {
	Jobs []View `json:"jobs"`
	Next string `json:"next"`
}

// QueueView is a queue as admins see it.
type QueueView struct {
	Name          string     `json:"name"`
	Workers       int        `json:"workers"` // 0 if this program has no kind of job for it
	PausedAt      *time.Time `json:"pausedAt"`
	Ready         int        `json:"ready"`
	Running       int        `json:"running"`
	Scheduled     int        `json:"scheduled"`
	Held          int        `json:"held"`
	Dead          int        `json:"dead"`
	OldestSeconds float64    `json:"oldestSeconds"` // how long the oldest ready job has been waiting
}

type target struct {
	ID string `json:"id" minLength:"1" maxLength:"20"`
}

type retryInput struct {
	ID      string          `json:"id" minLength:"1" maxLength:"20"`
	Payload json.RawMessage `json:"payload,omitempty" description:"what the job is given instead"`
}

type queueInput struct {
	Queue string `json:"queue" minLength:"1" maxLength:"100"`
}

// Operations are those that admins may call. Kinds, queues and payloads are the app's, so nobody else may.
func (j *Jobs) Operations() []operations.Operation {
	callers := operations.Callers{Collections: []string{}, Role: "operator"}
	return []operations.Operation{
		operations.Define(operations.Spec[Filter, Page]{
			Name: "jobs.list", Summary: "List jobs, the newest first", Read: true, Callers: callers,
			Do: func(c *operations.Call, in Filter) (Page, error) { return j.list(c.App, in) },
		}),
		operations.Define(operations.Spec[target, View]{
			Name: "jobs.show", Summary: "Show a job with what it was given", Read: true, Callers: callers, Codes: []*extensions.Code{api.ErrNotFound},
			Do: func(c *operations.Call, in target) (View, error) { return j.show(c.App, in.ID) },
		}),
		operations.Define(operations.Spec[struct{}, []QueueView]{
			Name: "jobs.queues", Summary: "Show the queues and how long their oldest jobs wait", Read: true, Callers: callers,
			Do: func(c *operations.Call, _ struct{}) ([]QueueView, error) { return j.overview(c.App) },
		}),
		operations.Define(operations.Spec[retryInput, View]{
			Name: "jobs.retry", Summary: "Make a dead or scheduled job due now, with another payload if one is given", KeyOptional: true, Callers: callers,
			Audit: []string{"id"}, Codes: []*extensions.Code{ErrRunning, ErrNotWaiting, ErrKeyTaken},
			Do: func(c *operations.Call, in retryInput) (View, error) {
				c.Detail("edited", in.Payload != nil)
				return j.decided(c.App, in.ID, j.Retry(c.App, in.ID, in.Payload))
			},
		}),
		operations.Define(operations.Spec[target, View]{
			Name: "jobs.cancel", Summary: "End a job that has not ended, also one that is running", KeyOptional: true, Callers: callers,
			Audit: []string{"id"}, Codes: []*extensions.Code{ErrNotWaiting},
			Do: func(c *operations.Call, in target) (View, error) {
				return j.decided(c.App, in.ID, j.Interrupt(c.App, in.ID))
			},
		}),
		operations.Define(operations.Spec[queueInput, []QueueView]{
			Name: "jobs.pause", Summary: "Begin no more jobs of a queue", KeyOptional: true, Callers: callers, Audit: []string{"queue"},
			Do: func(c *operations.Call, in queueInput) ([]QueueView, error) {
				if err := j.Pause(c.App, in.Queue); err != nil {
					return nil, err
				}
				return j.overview(c.App)
			},
		}),
		operations.Define(operations.Spec[queueInput, []QueueView]{
			Name: "jobs.resume", Summary: "Begin jobs of a paused queue again", KeyOptional: true, Callers: callers, Audit: []string{"queue"},
			Do: func(c *operations.Call, in queueInput) ([]QueueView, error) {
				if err := j.Resume(c.App, in.Queue); err != nil {
					return nil, err
				}
				return j.overview(c.App)
			},
		}),
	}
}

// decided shows a job after a decision.
func (j *Jobs) decided(app core.App, id string, err error) (View, error) {
	if errors.Is(err, ErrNotFound) {
		return View{}, api.ErrNotFound
	}
	if err != nil {
		return View{}, err
	}
	return j.show(app, id)
}

func (j *Jobs) show(app core.App, id string) (View, error) {
	found, err := find(app, id)
	if errors.Is(err, ErrNotFound) {
		return View{}, api.ErrNotFound
	}
	if err != nil {
		return View{}, err
	}
	v := found.view()
	if found.Sealed == 0 && found.Payload != "" {
		v.Payload = json.RawMessage(found.Payload)
	}
	return v, nil
}

// list reads from the table that holds the state; without one it shows what is in the queue.
func (j *Jobs) list(app core.App, f Filter) (Page, error) {
	page := Page{Jobs: []View{}}
	if f.Limit == 0 {
		f.Limit = 25
	}
	where := dbx.HashExp{}
	from := queueTable
	if at := slices.Index(states(), State(f.State)); at >= 0 {
		where["state"] = at
	} else if f.State != "" {
		from, where["outcome"] = historyTable, f.State
	}
	if f.Kind != "" {
		where["kind"] = f.Kind
	}
	if f.Queue != "" {
		where["queue"] = f.Queue
	}
	q := app.ConcurrentDB().Select("*").From(from).Where(where).OrderBy("id DESC").Limit(int64(f.Limit) + 1)
	if f.Cursor != "" {
		before, err := parseID(f.Cursor)
		if err != nil {
			return page, api.InvalidBody(api.FieldError{Field: "cursor", Code: api.ErrValidation.Name, Message: "is not the id of a job"})
		}
		q.AndWhere(dbx.NewExp("id < {:before}", dbx.Params{"before": before}))
	}
	var rows []row
	if err := q.All(&rows); err != nil {
		return page, fmt.Errorf("list jobs: %w", err)
	}
	if len(rows) > f.Limit {
		rows = rows[:f.Limit]
		page.Next = formatID(rows[f.Limit-1].ID)
	}
	for i := range rows {
		page.Jobs = append(page.Jobs, rows[i].view())
	}
	return page, nil
}

// overview counts the jobs of each queue.
func (j *Jobs) overview(app core.App) ([]QueueView, error) {
	var counts []struct {
		Queue  string `db:"queue"`
		State  int    `db:"state"`
		N      int    `db:"n"`
		Oldest int64  `db:"oldest"`
	}
	err := app.ConcurrentDB().NewQuery(`SELECT queue, state, count(*) AS n, min(run_at) AS oldest FROM ` + queueTable + ` GROUP BY queue, state`).All(&counts)
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	var paused []struct {
		Name string `db:"name"`
		At   int64  `db:"paused_at"`
	}
	if err := app.ConcurrentDB().NewQuery(`SELECT name, paused_at FROM ` + queuesTable).All(&paused); err != nil {
		return nil, fmt.Errorf("read paused queues: %w", err)
	}
	views := map[string]*QueueView{}
	of := func(name string) *QueueView {
		if views[name] == nil {
			views[name] = &QueueView{Name: name}
		}
		return views[name]
	}
	for _, q := range j.queues {
		of(q.name).Workers = q.workers
	}
	for _, p := range paused {
		of(p.Name).PausedAt = moment(p.At)
	}
	for _, c := range counts {
		v := of(c.Queue)
		*[...]*int{&v.Ready, &v.Running, &v.Scheduled, &v.Dead, &v.Held}[c.State] = c.N
		if c.State == ready {
			v.OldestSeconds = max(j.now().Sub(time.UnixMilli(c.Oldest)).Seconds(), 0)
		}
	}
	list := make([]QueueView, 0, len(views))
	for _, v := range views {
		list = append(list, *v)
	}
	slices.SortFunc(list, func(a, b QueueView) int {
		if a.OldestSeconds != b.OldestSeconds {
			return cmp.Compare(b.OldestSeconds, a.OldestSeconds)
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return list, nil
}

// handleGet shows a job to its owner. To anybody else it does not exist.
func (j *Jobs) handleGet(e *core.RequestEvent) error {
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	found, err := find(e.App, e.Request.PathValue("id"))
	if errors.Is(err, ErrNotFound) || err == nil && found.owner() != OwnerOf(e.Auth) {
		return api.ErrNotFound
	}
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, found.status())
}
