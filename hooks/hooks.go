// Package hooks is the policy of this app: what must happen when its records change, and what is refused. One file holds
// one collection or event. A feature that another app would want unchanged belongs into an extension instead.
//
// A hook runs inside the write's transaction, which holds the only writer of the database: it must be quick and must not
// call the network. Inside a hook use the event's app, never another one, or the write waits for itself.
package hooks

import (
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/push/device"
)

// Deps is what the policy may use of the extensions; main.go fills it. A hook that sends a push message, for example,
// gets the queue through a field here.
type Deps struct{}

// Channels are the broadcast channels of this app, beside those of SATCHEL_LIVE_CHANNELS; it has none.
func Channels() []channel.Channel { return nil }

// Topics are what devices can join, beside those of SATCHEL_PUSH_TOPICS; this app has none. A rule sees the variables of
// its pattern:
//
//	member := `@collection.team_members.team ?= @request.query.id && @collection.team_members.user ?= @request.auth.id`
//	[]channel.Channel{{Pattern: "team:{id}", Join: &member}}
func Topics() []channel.Channel { return nil }

// Categories are the kinds of notification that people can switch on and off, beside those of SATCHEL_PUSH_CATEGORIES;
// this app has none:
//
//	[]device.Category{{Name: "likes", Policy: device.Collapse, Cap: device.Cap{Count: 10, Per: time.Hour}}}
func Categories() []device.Category { return nil }

// Bind registers the app's hooks. It must run before the application is opened.
func Bind(app core.App, _ Deps) {
	bindNotes(app)
}
