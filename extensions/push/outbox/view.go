package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/meter"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// Totals are how many deliveries of a message stand where. Devices is all of them, and the sum of the others but Opened.
type Totals struct {
	Devices   int `json:"devices"`
	Queued    int `json:"queued"`
	Accepted  int `json:"accepted"`
	Dead      int `json:"dead"`
	Rejected  int `json:"rejected"`
	Failed    int `json:"failed"`
	Expired   int `json:"expired"`
	Skipped   int `json:"skipped"`
	Collapsed int `json:"collapsed"`
	Cancelled int `json:"cancelled"`
	Opened    int `json:"opened"`

	// Codes are the reasons of those that were not accepted, such as live, quiet_hours or what a provider says.
	Codes map[string]int `json:"codes"`
}

// maxCodes bounds the reasons that are shown; the others are summed up.
const maxCodes = 20

// count counts the deliveries of a message.
func count(app core.App, id int64) (Totals, error) {
	var rows []struct {
		State  int    `db:"state"`
		Code   string `db:"code"`
		N      int    `db:"n"`
		Opened int    `db:"opened"`
	}
	err := app.DB().NewQuery(`SELECT state, code, count(*) AS n, sum(opened_at > 0) AS opened FROM ` + deliveriesTable + `
		WHERE message = {:id} GROUP BY state, code ORDER BY n DESC`).Bind(dbx.Params{"id": id}).All(&rows)
	if err != nil {
		return Totals{}, fmt.Errorf("count deliveries: %w", err)
	}
	t := Totals{Codes: map[string]int{}}
	in := map[int]*int{
		queued: &t.Queued, accepted: &t.Accepted, dead: &t.Dead, rejected: &t.Rejected, failed: &t.Failed, expired: &t.Expired,
		skipped: &t.Skipped, collapsed: &t.Collapsed, stopped: &t.Cancelled,
	}
	for _, r := range rows {
		t.Devices += r.N
		t.Opened += r.Opened
		*in[r.State] += r.N
		if r.Code == "" || r.State == accepted {
			continue
		}
		if _, known := t.Codes[r.Code]; !known && len(t.Codes) >= maxCodes {
			r.Code = "others"
		}
		t.Codes[r.Code] += r.N
	}
	return t, nil
}

// View is a message as admins see it. Message is null once the texts are forgotten.
type View struct {
	ID        string          `json:"id"`
	Key       string          `json:"key"`
	State     State           `json:"state"`
	Target    string          `json:"target"`
	Category  string          `json:"category"`
	Template  string          `json:"template"`        // empty if it brought its own texts
	Version   int             `json:"templateVersion"` // 0 is what the program declares
	CreatedAt time.Time       `json:"createdAt"`
	DueAt     time.Time       `json:"dueAt"`
	DoneAt    *time.Time      `json:"doneAt"`
	Totals    *Totals         `json:"totals"` // null in lists as long as the message is under way
	Message   json.RawMessage `json:"message"`
}

func (r *row) view() (View, error) {
	v := View{
		ID: serial.Format(r.ID), Key: r.Key, State: states()[r.State], Target: r.Target, Category: r.Category,
		Template: r.Template, Version: r.Version, CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), DueAt: time.UnixMilli(r.DueAt).UTC(), DoneAt: moment(r.DoneAt), Message: json.RawMessage("null"),
	}
	if r.Totals != "" {
		v.Totals = &Totals{}
		if err := json.Unmarshal([]byte(r.Totals), v.Totals); err != nil {
			return v, fmt.Errorf("read totals of message %s: %w", v.ID, err)
		}
	}
	return v, nil
}

// show is a message with its totals of now.
func (o *Outbox) show(app core.App, text string) (View, error) {
	id, err := parse(text)
	if err != nil {
		return View{}, api.ErrNotFound
	}
	r, err := find(app, id)
	if errors.Is(err, errNone) {
		return View{}, api.ErrNotFound
	}
	if err != nil {
		return View{}, err
	}
	v, err := r.view()
	if err != nil {
		return v, err
	}
	if r.Spec != "" {
		v.Message = json.RawMessage(r.Spec)
	}
	if r.Fanned < 2 { // the rows are there
		t, err := count(app, id)
		if err != nil {
			return v, err
		}
		v.Totals = &t
	}
	return v, nil
}

// Metrics are those of messages.
func (o *Outbox) Metrics() []extensions.Metric {
	return append(o.meter.Metrics(), meter.Messages(func() core.App { return o.app }, messagesTable, states()))
}

// list chooses messages. Cursor is the id behind which a page begins.
type list struct {
	State    string `json:"state,omitempty" enum:"scheduled,sending,done,cancelled"`
	Category string `json:"category,omitempty" maxLength:"100"`
	Template string `json:"template,omitempty" maxLength:"100"`
	Cursor   string `json:"cursor,omitempty" maxLength:"20"`
	Limit    int    `json:"limit,omitempty" minimum:"1" maximum:"100"`
}

// Page is a part of a list of messages, the newest first. Next is the cursor of the next one, empty at the end.
type Page struct {
	Messages []View `json:"messages"`
	Next     string `json:"next"`
}

func (o *Outbox) list(app core.App, in list) (Page, error) {
	page := Page{Messages: []View{}}
	if in.Limit == 0 {
		in.Limit = 25
	}
	q := app.ConcurrentDB().Select("id", "key", "state", "target", "category", "template", "template_version", "totals", "due_at", "created_at", "done_at").From(messagesTable)
	if in.State != "" {
		q.AndWhere(dbx.HashExp{"state": slices.Index(states(), State(in.State))})
	}
	if in.Category != "" {
		q.AndWhere(dbx.HashExp{"category": in.Category})
	}
	if in.Template != "" {
		q.AndWhere(dbx.HashExp{"template": in.Template})
	}
	rows, next, err := serial.Newest(q, in.Cursor, in.Limit, func(r *row) int64 { return r.ID })
	if errors.Is(err, serial.ErrForm) {
		return page, api.InvalidBody(api.FieldError{Field: "cursor", Code: api.ErrValidation.Name, Message: "is not the id of a message"})
	}
	if err != nil {
		return page, fmt.Errorf("list messages: %w", err)
	}
	page.Next = next
	for i := range rows {
		v, err := rows[i].view()
		if err != nil {
			return page, err
		}
		page.Messages = append(page.Messages, v)
	}
	return page, nil
}

type target struct {
	ID string `json:"id" minLength:"1" maxLength:"20"`
}

type preview struct {
	Title    string         `json:"title,omitempty" maxLength:"4096"`
	Body     string         `json:"body,omitempty" maxLength:"4096"`
	Texts    template.Texts `json:"texts,omitempty"`
	Template string         `json:"template,omitempty" maxLength:"100"`
	Values   map[string]any `json:"values,omitempty"`
	Locale   string         `json:"locale,omitempty" maxLength:"40"`
}

// Preview is what somebody with a locale would read.
type Preview struct {
	Locale  string `json:"locale"`          // of the text that is used
	Version int    `json:"templateVersion"` // 0 is what the program declares, or the request
	template.Text
}

func (o *Outbox) preview(app core.App, in preview) (Preview, error) {
	m := message.Message{Title: in.Title, Body: in.Body, Texts: in.Texts, Template: in.Template}
	set, err := o.resolve(app, &m)
	if err == nil && set == nil {
		err = invalid(errors.New("texts: there is nothing to show"))
	}
	if err != nil {
		return Preview{}, err
	}
	text, err := set.Render(in.Locale, in.Values)
	if err != nil {
		return Preview{}, invalid(err)
	}
	return Preview{set.Locale(in.Locale), m.Version, text}, nil
}

// Operations are for admins, for API keys with their scopes, and for hooks.
func (o *Outbox) Operations() []operations.Operation {
	callers := operations.Callers{Collections: []string{}, Role: "operator", Scope: true}
	readers := operations.Callers{Collections: []string{}, Role: "viewer", Scope: true}
	return []operations.Operation{
		operations.Define(operations.Spec[message.Message, Sent]{
			Name: "push.send", Summary: "Send a notification to users, to the accounts of a filter, to a topic or to all", KeyOptional: true, Callers: callers,
			Audit: []string{"key", "category", "template"}, Codes: []*extensions.Code{ErrKeyReused},
			Do: func(c *operations.Call, in message.Message) (Sent, error) {
				sent, err := o.Send(c.App, in)
				c.Detail("message", sent.ID)
				c.Detail("target", in.To.Kind())
				return sent, err
			},
		}),
		operations.Define(operations.Spec[target, View]{
			Name: "push.cancel", Summary: "Stop a message that is scheduled or being sent", KeyOptional: true, Callers: callers,
			Audit: []string{"id"}, Codes: []*extensions.Code{ErrEnded},
			Do: func(c *operations.Call, in target) (View, error) { return o.Cancel(c.App, in.ID) },
		}),
		operations.Define(operations.Spec[list, Page]{
			Name: "push.messages", Summary: "List messages, the newest first", Read: true, Callers: readers,
			Do: func(c *operations.Call, in list) (Page, error) { return o.list(c.App, in) },
		}),
		operations.Define(operations.Spec[target, View]{
			Name: "push.message", Summary: "Show a message with how many devices it has reached", Read: true, Callers: readers,
			Codes: []*extensions.Code{api.ErrNotFound},
			Do:    func(c *operations.Call, in target) (View, error) { return o.show(c.App, in.ID) },
		}),
		operations.Define(operations.Spec[preview, Preview]{
			Name: "push.preview", Summary: "Show what somebody with a locale would read", KeyOptional: true, Callers: readers,
			Do: func(c *operations.Call, in preview) (Preview, error) { return o.preview(c.App, in) },
		}),
	}
}
