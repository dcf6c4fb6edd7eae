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
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/meter"
)

// Totals are how many deliveries of a message stand where.
type Totals = ledger.Totals

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
	Totals    *Totals         `json:"totals"` // null in lists until they are counted, and in a transaction if that would take long
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

// Show is a message with its totals of now.
func (o *Outbox) Show(app core.App, text string) (View, error) {
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
	if r.Fanned >= ledger.Archived {
		return v, nil
	}
	countable := true          // the rows are there
	if app.IsTransactional() { // others wait
		if countable, err = ledger.Few(app, id); err != nil {
			return v, err
		}
	}
	v.Totals = nil
	if countable {
		t, err := ledger.Count(app, id, r.State)
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

// List chooses messages. Cursor is the id behind which a page begins.
type List struct {
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

// List lists messages, the newest first.
func (o *Outbox) List(app core.App, in List) (Page, error) {
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
