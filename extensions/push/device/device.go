// Package device knows whom notifications can reach: the devices that apps have registered, the topics these have joined,
// and what people want to be told, and when.
//
//	PUT|DELETE /api/v1/push/devices/current   the token of the caller's device
//	GET        /api/v1/push/devices           the caller's devices
//	PUT|DELETE /api/v1/push/topics/{topic}    for the caller's device
//	GET|PATCH  /api/v1/push/preferences       categories and quiet hours
//	GET        /api/v1/push/webpush           the key that browsers subscribe with
//
// A device belongs to a session, or to what X-Device-Id names for a token that no session is behind, and goes with it: in
// the transaction that ends the session, changes the password or deletes the account. A token is at one device only, the
// one that has registered it last. Tokens are sealed; what finds them again is a keyed hash.
//
// A session that has expired, or has ended in any other way, is not sent to from that moment on, and its device is deleted
// within [sweepEvery]. A device that has not registered for [Stale] is not sent to, and after [Keep] it is deleted.
//
// Tables: push_devices, push_topics, push_preferences, push_counts. Failure modes: a token that cannot be unsealed is an
// error of Open for that device alone.
package device

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
	_ "time/tzdata" // quiet hours must work on machines without time zones

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/tally"
	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// How long a device is known after it has registered for the last time. FCM calls tokens stale after a month and drops
// them after 270 days without a connection; apps that people open seldom get twice the month.
const (
	Stale = 60 * 24 * time.Hour
	Keep  = 270 * 24 * time.Hour
)

// Codes of the routes.
var (
	ErrDevice       = &extensions.Code{Name: "push.device_required", Status: http.StatusBadRequest, Title: "The device is not known: sign in for a session, or send X-Device-Id"}
	ErrUnregistered = &extensions.Code{Name: "push.device_unregistered", Status: http.StatusConflict, Title: "Register the device first"}
	ErrCaller       = &extensions.Code{Name: "push.caller_unsupported", Status: http.StatusForbidden, Title: "Superusers, and admins who act for a user, have no devices"}
	ErrTopic        = &extensions.Code{Name: "push.topic_denied", Status: http.StatusForbidden, Title: "There is no such topic, or you may not join it"}
	ErrTopics       = &extensions.Code{Name: "push.too_many_topics", Status: http.StatusConflict, Title: "The device has joined too many topics"}
	ErrNoKey        = &extensions.Code{Name: "push.webpush_unavailable", Status: http.StatusNotFound, Title: "Browsers cannot subscribe: Web Push is not connected"}
)

// Codes lists them.
func Codes() []*extensions.Code {
	return []*extensions.Code{ErrDevice, ErrUnregistered, ErrCaller, ErrTopic, ErrTopics, ErrNoKey}
}

// Account is a record of an auth collection. Collection is an id.
type Account struct{ Collection, ID string }

// AccountOf names the account of a record.
func AccountOf(record *core.Record) Account {
	return Account{Collection: record.Collection().Id, ID: record.Id}
}

// Device is one that can be sent to.
type Device struct {
	ID          string
	User        Account
	Session     string // id of the session, or "device/" and the X-Device-Id
	App         string // bundle id; empty is the one of the credentials
	Platform    sender.Platform
	Environment sender.Environment

	Locale, TimeZone, AppVersion string

	LastSeen     time.Time // when it has registered for the last time
	RegisteredAt time.Time // when it has registered this token for the first time

	token string // sealed
}

// Audience is who is to be told: one of the fields is set.
type Audience struct {
	Accounts []Account
	Topic    string
	All      bool
}

// Options are what the program decides.
type Options struct {
	Devices int // of one account; beyond, the one that was seen least recently goes
	Topics  int // of one device

	// Families are the topics that can be joined. Join is asked when a device joins and again when a message goes out, so
	// that whoever has lost the right hears no more. Publish and Presence mean nothing here.
	Families []channel.Channel

	// Categories are what people can switch on and off.
	Categories []Category

	// Cap bounds what one account gets of all categories together, but for those that are Always sent. The zero value does not.
	Cap Cap
}

// Deps is what the package is lent.
type Deps struct {
	Vault *secret.Vault

	// Ended reports whether a session has ended. Nil: none ever does.
	Ended func(db dbx.Builder, session string) (bool, error)

	// Over returns those of the sessions that count no more, because they have ended or have expired. Nil: none is.
	Over func(db dbx.Builder, sessions []string, now time.Time) ([]string, error)

	// Connected lists the platforms that have credentials, with the key that apps subscribe with if there is one.
	Connected func(app core.App) (map[sender.Platform]string, error)

	// Acting reports whether somebody else acts for the caller. Nil: nobody does.
	Acting func(e *core.RequestEvent) bool

	// Endings is the table that gets a row with the id of each session that ends. Empty: there is none.
	Endings string
}

// Registry is the registry of devices. It is safe for concurrent use.
type Registry struct {
	options Options
	deps    Deps
	hashKey func() []byte
	byName  map[string]Category

	mu    sync.Mutex
	zones map[string]*time.Location

	app  core.App
	stop context.CancelFunc
	done chan struct{}

	registered, moved, dead atomic.Uint64
}

// New makes a registry. The options must be valid.
func New(o Options, deps Deps) *Registry {
	r := &Registry{options: o, deps: deps, byName: map[string]Category{}, zones: map[string]*time.Location{}}
	r.hashKey = sync.OnceValue(func() []byte { return deps.Vault.Key("push.tokens") })
	for _, c := range o.Categories {
		r.byName[c.Name] = c
	}
	return r
}

// maxBody is far more than any registration or set of preferences has, in bytes.
const maxBody = 32 << 10

// Routes adds the routes to the group /api/v1/push.
func (r *Registry) Routes(g *router.RouterGroup[*core.RequestEvent]) {
	limit := apis.BodyLimit(maxBody)
	g.PUT("/devices/current", r.handleRegister).Bind(limit)
	g.DELETE("/devices/current", r.handleUnregister).Bind(limit)
	g.GET("/devices", r.handleList)
	g.PUT("/topics/{topic}", r.handleJoin).Bind(limit)
	g.DELETE("/topics/{topic}", r.handleLeave).Bind(limit)
	g.GET("/preferences", r.handlePreferences)
	g.PATCH("/preferences", r.handleChange).Bind(limit)
	g.GET("/webpush", r.handleKey)
}

// sweepEvery is how often old rows are deleted.
const sweepEvery = time.Hour

// Start begins the regular work.
func (r *Registry) Start(_ context.Context, h *extensions.Host) error {
	ctx, stop := context.WithCancel(context.Background())
	r.stop, r.done = stop, make(chan struct{})
	go func() {
		defer close(r.done)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			if err := r.Sweep(ctx, h.App); err != nil && ctx.Err() == nil {
				h.Logger.Warn("old devices could not be deleted", slog.Any("error", err))
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return nil
}

// Stop ends it.
func (r *Registry) Stop(ctx context.Context) error {
	if r.stop == nil {
		return nil
	}
	r.stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Metrics are those of the registry.
func (r *Registry) Metrics() []extensions.Metric {
	counter := func(n *atomic.Uint64) func() float64 { return func() float64 { return float64(n.Load()) } }
	var kept tally.Kept[[]platform]
	living := func() []platform {
		if r.app == nil || !r.app.IsBootstrapped() {
			return nil
		}
		return kept.Get(func() ([]platform, error) { return platforms(r.app) })
	}
	return []extensions.Metric{
		{Name: "satchel_push_devices_count", Help: "Devices that can be sent to.", Read: func() float64 {
			n := 0
			for _, p := range living() {
				n += p.Count
			}
			return float64(n)
		}},
		{Name: "satchel_push_platform_devices_count", Help: "Devices that can be sent to, by platform.", Labels: []string{"platform"}, Series: func(add func(extensions.Sample)) {
			for _, p := range living() {
				add(extensions.Sample{Labels: []string{string(p.Platform)}, Value: float64(p.Count)})
			}
		}},
		{Name: "satchel_push_registrations_total", Help: "Times that a device has registered.", Counter: true, Read: counter(&r.registered)},
		{Name: "satchel_push_moves_total", Help: "Tokens that have moved to another account.", Counter: true, Read: counter(&r.moved)},
		{Name: "satchel_push_dead_devices_total", Help: "Devices whose token is not good any more, as providers say.", Counter: true, Read: counter(&r.dead)},
	}
}

// Check tells of devices that wait for credentials.
func (r *Registry) Check(_ context.Context, h *extensions.Host) extensions.Result {
	waiting, err := r.waiting(h.App)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Fail, Message: "the devices cannot be read: " + err.Error(), Next: "see the log"}
	case len(waiting) > 0:
		w := waiting[0]
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("%d devices of %s cannot be reached: the platform has no credentials", w.Count, w.Platform),
			Next: "satchel push connect " + string(w.credentials()),
		}
	}
	return extensions.Result{Level: extensions.OK, Message: "every platform that devices have is connected"}
}
