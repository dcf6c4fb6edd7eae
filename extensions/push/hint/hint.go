// Package hint wakes apps that are not open when there is something to sync.
package hint

import (
	"crypto/sha256"
	"encoding/json"
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

	// Every is the time in which all changes that concern the same receivers make one hint [1 minute], at least a second.
	Every time.Duration
}

// Trigger is the trigger that sends the hints through the outbox.
func (h Hint) Trigger(o *outbox.Outbox) trigger.Trigger {
	if h.Every <= 0 {
		h.Every = time.Minute
	}
	return trigger.Trigger{
		Name: "hint." + h.Collection, Collection: h.Collection, On: []trigger.Event{trigger.Created, trigger.Updated},
		Do: trigger.Send(o, func(c *trigger.Change) (message.Message, error) {
			to, ok := h.To(c.App, c.Record)
			if !ok {
				return message.Message{}, trigger.ErrNothing
			}
			to = to.Clean()
			receivers, err := json.Marshal(to)
			if err != nil {
				return message.Message{}, fmt.Errorf("encode receivers: %w", err)
			}
			sum := sha256.Sum256(receivers)
			at := time.Now().Truncate(h.Every).Add(h.Every)
			return message.Message{
				Key: fmt.Sprintf("hint/%s/%d/%x", c.Record.Collection().Id, at.UnixMilli(), sum[:16]), To: to, Silent: true, Hint: true, Collapse: "sync",
				Data: map[string]string{"sync": h.Collection}, TTL: int(life / time.Second), SendAt: &at, Presence: message.PresenceDevice,
			}, nil
		}),
	}
}
