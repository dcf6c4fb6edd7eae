// Package console is what operators do with messages: they send, look at and cancel them.
package console

import (
	"errors"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/template"
)

type target struct {
	ID string `json:"id" minLength:"1" maxLength:"20"`
}

// Draft is texts to look at.
type Draft struct {
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

func preview(app core.App, o *outbox.Outbox, in Draft) (Preview, error) {
	m := message.Message{Title: in.Title, Body: in.Body, Texts: in.Texts, Template: in.Template}
	set, err := o.Resolve(app, &m)
	if err == nil && set == nil {
		err = outbox.Invalid(errors.New("texts: there is nothing to show"))
	}
	if err != nil {
		return Preview{}, err
	}
	text, err := set.Render(in.Locale, in.Values)
	if err != nil {
		return Preview{}, outbox.Invalid(err)
	}
	return Preview{set.Locale(in.Locale), m.Version, text}, nil
}

// Operations are for admins, for API keys with their scopes, and for hooks.
func Operations(o *outbox.Outbox) []operations.Operation {
	callers := operations.Callers{Collections: []string{}, Role: "operator", Scope: true}
	readers := operations.Callers{Collections: []string{}, Role: "viewer", Scope: true}
	return []operations.Operation{
		operations.Define(operations.Spec[message.Message, outbox.Sent]{
			Name: "push.send", Summary: "Send a notification to users, to the accounts of a filter, to a topic or to all", KeyOptional: true, Callers: callers,
			Audit: []string{"key", "category", "template"}, Codes: []*extensions.Code{outbox.ErrKeyReused},
			Do: func(c *operations.Call, in message.Message) (outbox.Sent, error) {
				sent, err := o.Send(c.App, in)
				c.Detail("message", sent.ID)
				c.Detail("target", in.To.Kind())
				return sent, err
			},
		}),
		operations.Define(operations.Spec[target, outbox.View]{
			Name: "push.cancel", Summary: "Stop a message that is scheduled or being sent", KeyOptional: true, Callers: callers,
			Audit: []string{"id"}, Codes: []*extensions.Code{outbox.ErrEnded},
			Do: func(c *operations.Call, in target) (outbox.View, error) { return o.Cancel(c.App, in.ID) },
		}),
		operations.Define(operations.Spec[outbox.List, outbox.Page]{
			Name: "push.messages", Summary: "List messages, the newest first", Read: true, Callers: readers,
			Do: func(c *operations.Call, in outbox.List) (outbox.Page, error) { return o.List(c.App, in) },
		}),
		operations.Define(operations.Spec[target, outbox.View]{
			Name: "push.message", Summary: "Show a message with how many devices it has reached", Read: true, Callers: readers,
			Codes: []*extensions.Code{api.ErrNotFound},
			Do:    func(c *operations.Call, in target) (outbox.View, error) { return o.Show(c.App, in.ID) },
		}),
		operations.Define(operations.Spec[Draft, Preview]{
			Name: "push.preview", Summary: "Show what somebody with a locale would read", KeyOptional: true, Callers: readers,
			Do: func(c *operations.Call, in Draft) (Preview, error) { return preview(c.App, o, in) },
		}),
	}
}
