package hooks

import (
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/hint"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/template"
	"github.com/satchelbase/satchel/extensions/push/trigger"
)

// Templates are the texts of this app's notifications, by language. A translator can change them without knowing who
// sends them.
func Templates() []message.Template {
	return []message.Template{{Name: "messages.new", Texts: template.Texts{
		template.Default: {Title: "{room}", Body: "{author}: {text}"},
		"de":             {Title: "{room}", Body: "{author} schreibt: {text}"},
	}}}
}

// Hints say whom a change of a collection concerns, so that apps that are not open sync; this app sends none:
//
//	[]hint.Hint{{Collection: "tasks", To: func(_ core.App, task *core.Record) (message.To, bool) { … }}}
func Hints() []hint.Hint { return nil }

// Effects are what triggers may do.
type Effects struct {
	Outbox     *outbox.Outbox
	Jobs       *jobs.Jobs
	Operations *operations.Operations
}

// Triggers are what happens after records have changed: never in the writer's way, and once for each change. One may also
// ask for a job or call an operation:
//
//	{Name: "orders.confirm", Collection: "orders", If: "total > 100", Do: trigger.Enqueue(to.Jobs, "orders.confirm",
//		func(c *trigger.Change) (string, error) { return c.ID, nil })}
//	{Name: "orders.close", Collection: "orders", On: []trigger.Event{trigger.Deleted}, Do: trigger.Call(to.Operations, "orders.close",
//		func(c *trigger.Change) (closing, error) { return closing{Order: c.ID}, nil })}
func Triggers(to Effects) []trigger.Trigger {
	return []trigger.Trigger{
		{Name: "messages.notify", Collection: "demo_messages", Do: trigger.Send(to.Outbox, tellRoom)},
	}
}

// tellRoom tells the members of a room's team, except the author, of a message in it. The collections are those of
// `satchel demo`; without them nothing happens.
func tellRoom(c *trigger.Change) (message.Message, error) {
	if problems := c.App.ExpandRecord(c.Record, []string{"room", "author"}, nil); len(problems) > 0 {
		return message.Message{}, trigger.ErrNothing // the room or the author is gone, and with them the message
	}
	room, author := c.Record.ExpandedOne("room"), c.Record.ExpandedOne("author")
	if room == nil || author == nil {
		return message.Message{}, trigger.ErrNothing
	}
	return message.Message{
		To: message.To{Filter: &message.Filter{
			Collection: "team_members", Account: "user", Where: "team = {:team} && user != {:author}",
			Params: map[string]any{"team": room.GetString("team"), "author": author.Id},
		}},
		Template: "messages.new", Category: "messages", Collapse: "room " + room.Id,
		Values: map[string]any{"room": room.GetString("name"), "author": author.GetString("name"), "text": excerpt(c.Record.GetString("text"))},
		Data:   map[string]string{"room": room.Id, "message": c.Record.Id},
		Sound:  "default",
	}, nil
}

// excerpt is the beginning of a text, as much of it as a lock screen shows.
func excerpt(text string) string {
	const most = 200
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}
