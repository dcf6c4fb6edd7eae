// Package hooks is the policy of this app: what must happen when its records change, and what is refused. One file holds
// one collection or event. A feature that another app would want unchanged belongs into an extension instead.
//
// A hook runs inside the write's transaction, which holds the only writer of the database: it must be quick and must not
// call the network. Inside a hook use the event's app, never another one, or the write waits for itself.
package hooks

import (
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live/channel"
)

// Deps is what the policy may use of the extensions; main.go fills it. A hook that sends a push message, for example,
// gets the queue through a field here.
type Deps struct{}

// Channels are the broadcast channels of this app, beside those of SATCHEL_LIVE_CHANNELS; it has none.
func Channels() []channel.Channel { return nil }

// Bind registers the app's hooks. It must run before the application is opened.
func Bind(app core.App, _ Deps) {
	bindNotes(app)
}
