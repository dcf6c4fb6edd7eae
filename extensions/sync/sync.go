// Package sync keeps the records that a user may see on the user's devices, also while these are offline, at
//
//	POST /api/v1/sync                            what the device has changed, and what it must change
//	GET  /api/v1/changes                         what has changed, for apps that ask now and then
//	GET  /api/v1/records/{collection}/changes    the same for one collection
//
// A device is told of rows that become visible or invisible to it for whatever reason: they were written, deleted, moved
// out of sight, or another row, a rule or a field has changed. See docs/sync.md for the protocol and what is promised;
// the parts are in the packages view (what every device holds), sight (what a caller sees) and push (what becomes of the
// changes of devices).
//
// A device is a session, or what X-Device-Id names for a token that no session is behind. Superusers cannot sync: their
// view is everything. Views and PocketBase's own collections cannot be synced.
//
// Settings: SATCHEL_SYNC_*. Table: sync_applied. Outside the database: sync_views.db in the data folder, a cache. Failure
// modes: without that file devices start over; when it cannot be written, sync answers 500 and changes that were pushed
// in the same request are applied and will be recognised when they are repeated.
package sync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/sync/cabinet"
	"github.com/satchelbase/satchel/extensions/sync/push"
	"github.com/satchelbase/satchel/extensions/sync/sight"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// Config is read from SATCHEL_SYNC_*.
type Config struct {
	Policies  []string      `env:"POLICIES" default:"" help:"how conflicts are settled, by collection: notes=reject, tasks=server-wins; merge if nothing is said"`
	Limit     int           `env:"LIMIT" default:"500" help:"records in a page when the client does not ask for a number"`
	LimitMax  int           `env:"LIMIT_MAX" default:"1000" help:"most records that a client may ask for in one page"`
	Retention time.Duration `env:"RETENTION" default:"60d" help:"how long a device may stay away without starting over, and how long a repeated change is recognised"`
	Poll      time.Duration `env:"POLL_INTERVAL" default:"30s" help:"when to ask for changes again, as clients are told"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	var problems []error
	if _, err := c.policies(); err != nil {
		problems = append(problems, err)
	}
	if c.Limit < 1 || c.LimitMax < c.Limit || c.LimitMax > 10_000 {
		problems = append(problems, errors.New("LIMIT: must be at least 1 and at most LIMIT_MAX, which is at most 10000"))
	}
	if c.Retention < time.Hour {
		problems = append(problems, errors.New("RETENTION: must be at least 1h"))
	}
	if c.Poll < time.Second {
		problems = append(problems, errors.New("POLL_INTERVAL: must be at least 1s"))
	}
	return errors.Join(problems...)
}

func (c Config) policies() (map[string]string, error) {
	out := map[string]string{}
	for _, entry := range c.Policies {
		name, policy, _ := strings.Cut(entry, "=")
		switch policy {
		case push.PolicyMerge, push.PolicyServerWins, push.PolicyReject:
			out[strings.TrimSpace(name)] = policy
		default:
			return nil, fmt.Errorf("POLICIES: %q must be a collection and merge, server-wins or reject, with = between them", entry)
		}
	}
	return out, nil
}

// Codes of the answers; those of single changes are in package push.
var (
	ErrDevice     = &extensions.Code{Name: "sync.device_required", Status: http.StatusBadRequest, Title: "The device is not known: sign in for a session, or send X-Device-Id"}
	ErrSuperuser  = &extensions.Code{Name: "sync.superuser_unsupported", Status: http.StatusForbidden, Title: "Superusers cannot sync"}
	ErrCollection = &extensions.Code{Name: "sync.collection_unsupported", Status: http.StatusBadRequest, Title: "The collection cannot be synced"}
)

// Deps are what the feature takes from others.
type Deps struct {
	Log *changes.Log

	// Durable returns when everything committed before the call is on disk: a device must not hold what may be lost.
	Durable func() error

	// Resolvers settle conflicts of collections, by name, instead of a policy.
	Resolvers map[string]push.Resolver
}

// Sync is the feature. It is safe for concurrent use.
type Sync struct {
	cfg    Config
	deps   Deps
	views  *cabinet.Cabinet
	engine *view.Engine
	sights *sight.Sights
	pusher *push.Pusher
	stop   context.CancelFunc
	done   chan struct{}
}

// New makes the feature. cfg must be valid.
func New(cfg Config, deps Deps) *Sync {
	policies, _ := cfg.policies()
	views := cabinet.New()
	return &Sync{
		cfg: cfg, deps: deps, views: views, engine: view.New(views), sights: sight.New(deps.Log),
		pusher: push.New(deps.Log, policies, deps.Resolvers),
	}
}

// Tables are the tables that nobody's answers depend on. They are quiet in the store's options.
func Tables() []string { return []string{push.Table} }

// Extension is the feature's value.
func (s *Sync) Extension() extensions.Extension {
	return extensions.Extension{
		Name: "sync", Settings: s.cfg,
		Codes:      append([]*extensions.Code{ErrDevice, ErrSuperuser, ErrCollection}, push.Codes()...),
		Tables:     Tables(),
		Migrations: []extensions.Migration{push.Migration(1795495000)},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.POST("", s.sync).Bind(apis.BodyLimit(maxBody))
		},
		Serve:    s.serve,
		Start:    s.start,
		Stop:     s.end,
		Checks:   []extensions.Check{{Name: "sync rules", Run: s.check}},
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{s.command(h)} },
		Metrics: []extensions.Metric{{Name: "satchel_sync_devices_count", Help: "Devices whose view is kept.", Read: func() float64 {
			n, _ := s.views.Devices(context.Background()) // a metric cannot report an error
			return float64(n)
		}}},
	}
}

func (s *Sync) serve(_ *extensions.Host, e *core.ServeEvent) error {
	e.Router.GET("/api/v1/records/{collection}/changes", s.pollOne)
	return s.views.Open(e.App.DataDir())
}

// sweepEvery is how often old views and notes are forgotten.
const sweepEvery = time.Hour

func (s *Sync) start(_ context.Context, h *extensions.Host) error {
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.done = stop, make(chan struct{})
	go func() {
		defer close(s.done)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			before := time.Now().Add(-s.cfg.Retention)
			if err := errors.Join(s.views.Sweep(ctx, before), push.Purge(ctx, h.App, before)); err != nil && ctx.Err() == nil {
				h.Logger.Warn("old views and changes could not be forgotten", slog.Any("error", err))
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

func (s *Sync) end(ctx context.Context) error {
	if s.stop == nil {
		return nil
	}
	s.stop()
	select {
	case <-s.done:
		return s.views.Close(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check names the collections whose every pull looks at all rows that the user sees.
func (s *Sync) check(_ context.Context, h *extensions.Host) extensions.Result {
	all, err := h.App.FindAllCollections()
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: err.Error()}
	}
	var slow []string
	for _, c := range all {
		if c.ListRule == nil || Unsupported(c) != "" {
			continue
		}
		_, volatile, err := s.sights.Depends(h.App, c)
		if err != nil || volatile {
			slow = append(slow, c.Name)
		}
	}
	if len(slow) == 0 {
		return extensions.Result{Level: extensions.OK, Message: "pulls look at changed rows only"}
	}
	return extensions.Result{
		Level: extensions.Info, Message: "each pull of " + strings.Join(slow, ", ") + " looks at all rows that the user sees",
		Next: "take the time, headers and PocketBase's own collections out of the list rules, if devices sync them",
	}
}

// Unsupported says why a collection cannot be synced, empty if it can.
func Unsupported(c *core.Collection) string {
	switch {
	case c.IsView():
		return c.Name + " is a view: nobody knows when its rows change"
	case strings.HasPrefix(c.Name, "_"):
		return c.Name + " is one of PocketBase's own"
	case c.Fields.GetByName(versionField) != nil:
		return c.Name + " has a field " + versionField + ", the name of the version"
	}
	return ""
}

// Caller is who syncs, on which device.
type Caller struct {
	Device string // names user and device; nobody can guess it
	owner  string // names the user
}

// Key names the view of the device for one way of syncing. Those of different ways are independent.
func (c Caller) Key(channel string) string { return c.owner + "/" + c.Device + "/" + channel }

// sessionKey is where the id of the session of a request stands.
const sessionKey = "satchelSession"

// Caller identifies the caller of a request, or returns the problem with it.
func (s *Sync) Caller(e *core.RequestEvent) (Caller, error) {
	if e.Auth == nil {
		return Caller{}, api.Fail(api.ErrUnauthorized, "only users can sync")
	}
	if e.Auth.IsSuperuser() {
		return Caller{}, api.Fail(ErrSuperuser, "")
	}
	device, _ := e.Get(sessionKey).(string)
	if device != "" {
		device = "session/" + device
	} else if id := api.DeviceID(e.Request); id != "" {
		device = "device/" + id
	}
	if device == "" {
		return Caller{}, api.Fail(ErrDevice, "")
	}
	return CallerOf(e.Auth, device), nil
}

// CallerOf is the caller with a device by name.
func CallerOf(auth *core.Record, device string) Caller {
	name := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:16])
	}
	account := auth.Collection().Id + "/" + auth.Id
	return Caller{Device: name(account + "/" + device), owner: name(account)}
}

// Engine makes the pages.
func (s *Sync) Engine() *view.Engine { return s.engine }

// Nonce is the part of cursors that names the file of the views, for clients that can only keep a number.
func (s *Sync) Nonce() string { return s.views.Nonce() }

// Source is what the caller of the request sees.
func (s *Sync) Source(e *core.RequestEvent) (*sight.Sight, error) { return s.sights.For(e) }

// Supported refuses collections that cannot be synced at all. Those that are not there are not its business.
func (s *Sync) Supported(e *core.RequestEvent, names ...string) error {
	for _, name := range names {
		c, err := e.App.FindCachedCollectionByNameOrId(name)
		if err != nil {
			continue
		}
		if reason := Unsupported(c); reason != "" {
			return api.Fail(ErrCollection, reason)
		}
	}
	return nil
}

// Push notes that the device has changed the records, and executes the changes. Refused ones are noted as settled, so that
// the next page is the same whether there is a record that the caller does not see, or none.
func (s *Sync) Push(e *core.RequestEvent, c Caller, d *view.Device, src *sight.Sight, list []push.Change) ([]push.Result, error) {
	ctx := e.Request.Context()
	byName, known := map[string][]string{}, map[string]view.Collection{}
	for _, change := range list {
		byName[change.Collection] = append(byName[change.Collection], change.ID)
	}
	for name, ids := range byName {
		vc, err := src.Collection(ctx, name)
		if errors.Is(err, view.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := d.Mark(ctx, vc, ids...); err != nil {
			return nil, err
		}
		if _, err := s.deps.Log.HeadsOf(ctx, name, []string{}); err != nil { // completes the heads, outside of transactions
			return nil, err
		}
		known[name] = vc
	}
	results := s.pusher.Push(e, c.Device, src, list)
	refused := map[string][]string{}
	for i, r := range results {
		if r.Status != push.Applied && r.Status != push.Merged && r.Status != push.Retry {
			refused[list[i].Collection] = append(refused[list[i].Collection], list[i].ID)
		}
	}
	for name, ids := range refused {
		if vc, ok := known[name]; ok {
			if err := d.Settled(ctx, vc, ids...); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// Pull makes the next page, which holds nothing that a power failure could take back.
func (s *Sync) Pull(e *core.RequestEvent, d *view.Device, src view.Source, q view.Request) (*view.Page, error) {
	page, err := d.Pull(e.Request.Context(), src, q)
	if err != nil {
		return nil, err
	}
	if s.deps.Durable != nil {
		if err := s.deps.Durable(); err != nil {
			return nil, err
		}
	}
	return page, nil
}
