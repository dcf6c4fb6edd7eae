// Package hint wakes apps that are not open when there is something to sync.
package hint

import (
	"fmt"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/trigger"
)

// life is how long a hint makes sense: later the app has synced by itself.
const life = time.Hour

// Hint tells apps that are not open to sync when a collection changes: a silent push that says nothing else. It is sent to
// devices that are not connected, seldom, and one that has not arrived is replaced by the next. Systems deliver silent
// pushes as they please, so an app must not depend on them.
type Hint struct {
	Collection string

	// To says whom the change of a record concerns. With false it is nobody.
	To func(app core.App, record *core.Record) (message.To, bool)

	// Every is the time in which the changes of the same record make one hint [1 minute].
	Every time.Duration
}

// Trigger is the trigger that sends the hints through the outbox.
func (h Hint) Trigger(o *outbox.Outbox) trigger.Trigger {
	if h.Every <= 0 {
		h.Every = time.Minute
	}
	return trigger.Trigger{
		Name: "hint." + h.Collection, Collection: h.Collection, On: []trigger.Event{trigger.Created, trigger.Updated},
		Do: func(c *trigger.Change) error {
			if c.Record == nil {
				return nil
			}
			to, ok := h.To(c.App, c.Record)
			if !ok {
				return nil
			}
			at := time.Now().Truncate(h.Every).Add(h.Every)
			_, err := o.Send(c.App, message.Message{
				Key: fmt.Sprintf("hint/%s/%s/%d", h.Collection, c.ID, at.UnixMilli()), To: to, Silent: true, Hint: true, Collapse: "sync",
				Data: map[string]string{"sync": h.Collection}, TTL: int(life / time.Second), SendAt: &at, Presence: message.PresenceDevice,
			})
			return err
		},
	}
}
