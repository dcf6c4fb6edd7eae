package table

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/serial"
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

func (r *Row) view() View {
	return View{
		Status: r.Status(), Error: r.Error, Priority: r.Priority, Lane: r.Lane, Owner: r.Owner, RequestID: r.Request,
		ExpiresAt: Moment(r.ExpiresAt), Sealed: r.Sealed != 0, Payload: json.RawMessage("null"),
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

// Show is one job with what it was given. The error is api.ErrNotFound if there is none.
func Show(app core.App, id string) (View, error) {
	found, err := Find(app, id)
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

// List reads from the table that holds the state; without one it shows what is in the queue.
func List(app core.App, f Filter) (Page, error) {
	page := Page{Jobs: []View{}}
	if f.Limit == 0 {
		f.Limit = 25
	}
	where := dbx.HashExp{}
	from := Queue
	if at := slices.Index(States(), State(f.State)); at >= 0 {
		where["state"] = at
	} else if f.State != "" {
		from, where["outcome"] = History, f.State
	}
	if f.Kind != "" {
		where["kind"] = f.Kind
	}
	if f.Queue != "" {
		where["queue"] = f.Queue
	}
	q := app.ConcurrentDB().Select("*").From(from).Where(where)
	rows, next, err := serial.Newest(q, f.Cursor, f.Limit, func(r *Row) int64 { return r.ID })
	if errors.Is(err, serial.ErrForm) {
		return page, api.InvalidBody(api.FieldError{Field: "cursor", Code: api.ErrValidation.Name, Message: "is not the id of a job"})
	}
	if err != nil {
		return page, fmt.Errorf("list jobs: %w", err)
	}
	page.Next = next
	for i := range rows {
		page.Jobs = append(page.Jobs, rows[i].view())
	}
	return page, nil
}

// KindCount is how many jobs of a kind are in a state, and when the first of them was due, in Unix milliseconds.
type KindCount struct {
	Kind  string `db:"kind"`
	State int    `db:"state"`
	N     int    `db:"n"`
	First int64  `db:"first"`
}

// CountKinds counts the jobs of each kind. It reads the whole queue.
func CountKinds(app core.App) (list []KindCount, err error) {
	err = app.ConcurrentDB().NewQuery(`SELECT kind, state, count(*) AS n, min(run_at) AS first FROM ` + Queue + ` GROUP BY kind, state`).All(&list)
	if err != nil {
		return nil, fmt.Errorf("count jobs of kinds: %w", err)
	}
	return list, nil
}

// Overview counts the jobs of each queue.
func Overview(app core.App, now time.Time, workers map[string]int) ([]QueueView, error) {
	var counts []struct {
		Queue  string `db:"queue"`
		State  int    `db:"state"`
		N      int    `db:"n"`
		Oldest int64  `db:"oldest"`
	}
	err := app.ConcurrentDB().NewQuery(`SELECT queue, state, count(*) AS n, min(run_at) AS oldest FROM ` + Queue + ` GROUP BY queue, state`).All(&counts)
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	var paused []struct {
		Name string `db:"name"`
		At   int64  `db:"paused_at"`
	}
	if err := app.ConcurrentDB().NewQuery(`SELECT name, paused_at FROM ` + Paused).All(&paused); err != nil {
		return nil, fmt.Errorf("read paused queues: %w", err)
	}
	views := map[string]*QueueView{}
	of := func(name string) *QueueView {
		if views[name] == nil {
			views[name] = &QueueView{Name: name}
		}
		return views[name]
	}
	for name, n := range workers {
		of(name).Workers = n
	}
	for _, p := range paused {
		of(p.Name).PausedAt = Moment(p.At)
	}
	for _, c := range counts {
		v := of(c.Queue)
		*[...]*int{&v.Ready, &v.Running, &v.Scheduled, &v.Dead, &v.Held}[c.State] = c.N
		if c.State == IsReady {
			v.OldestSeconds = max(now.Sub(time.UnixMilli(c.Oldest)).Seconds(), 0)
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
