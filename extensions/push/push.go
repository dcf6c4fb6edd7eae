// Package push sends notifications to devices. This part of it keeps the credentials of the providers and lends their
// senders; package sender is the interface to them, package device knows whom they can reach, package outbox sends messages and
// keeps account of what became of it, and package trigger does so when records change.
//
// Settings: SATCHEL_PUSH_*. Tables: push_credentials and those of packages device, outbox and wording. Collection: the inbox, if
// SATCHEL_PUSH_INBOX names one. Commands: satchel push. Operations: push.send and others. Without credentials and messages
// it does nothing and costs nothing. A provider that is down costs its own pushes alone: calls have deadlines and breakers.
package push

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/console"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/hint"
	"github.com/satchelbase/satchel/extensions/push/inbox"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/trigger"
	"github.com/satchelbase/satchel/extensions/push/wording"
)

// Config is read from SATCHEL_PUSH_*. Credentials are none of it: satchel push connect takes them.
type Config struct {
	Concurrency int `env:"CONCURRENCY" default:"200" help:"pushes under way at once, for each platform"`

	Devices      int      `env:"DEVICES" default:"20" help:"devices of one account; beyond, the one that was seen least recently goes"`
	DeviceTopics int      `env:"DEVICE_TOPICS" default:"100" help:"topics of one device"`
	Topics       []string `env:"TOPICS" default:"" help:"topics that devices can join, as pattern=join rule; * lets everybody who is signed in; a pattern such as team:{id} gives the rule @request.query.id"`
	Categories   []string `env:"CATEGORIES" default:"" help:"what people can switch on and off, as name=words: defer (without a word), drop, collapse or always say what becomes of a message in quiet hours or beyond a cap, off makes it silent until it is switched on, and 3/24h is a cap"`
	Cap          string   `env:"CAP" default:"" help:"how many messages an account gets of all categories together, such as 30/24h; nothing is no cap"`

	Keep         time.Duration `env:"KEEP" default:"14d" help:"how long texts and deliveries of a message are kept once it is sent; totals stay"`
	KeepMessages time.Duration `env:"KEEP_MESSAGES" default:"400d" help:"how long the totals of a message are kept"`
	Inbox        string        `env:"INBOX" default:"" help:"name of the collection that keeps notifications for users to read again, such as inbox; nothing is none"`
	InboxKeep    time.Duration `env:"INBOX_KEEP" default:"90d" help:"how long entries of the inbox are kept, read or not; 0 is for ever"`
	InboxEntries int           `env:"INBOX_ENTRIES" default:"500" help:"entries of one account; beyond, the oldest go; 0 is no limit"`
	InboxHooks   bool          `env:"INBOX_HOOKS" help:"call the app's record hooks for entries of the inbox, which makes a message to many accounts slower"`

	APNsEndpoint        string `env:"APNS_ENDPOINT" default:"" help:"development only: address instead of Apple's, such as that of satchel dev stubs"`
	APNsSandboxEndpoint string `env:"APNS_SANDBOX_ENDPOINT" default:"" help:"development only: the same for apps under development"`
	FCMEndpoint         string `env:"FCM_ENDPOINT" default:"" help:"development only: address instead of Google's"`
	ExpoEndpoint        string `env:"EXPO_ENDPOINT" default:"" help:"development only: address instead of Expo's"`
	CAFile              string `env:"CA_FILE" help:"development only: a certificate authority in PEM to trust besides the system's"`
	AllowLoopback       bool   `env:"ALLOW_LOOPBACK" help:"development only: let providers be on loopback"`
}

// Validate reports everything that cannot work, at once.
func (c Config) Validate() error {
	var problems []error
	if c.Concurrency < 1 || c.Concurrency > 5000 {
		problems = append(problems, errors.New("CONCURRENCY: must be between 1 and 5000"))
	}
	if c.Devices < 1 || c.Devices > 1000 {
		problems = append(problems, errors.New("DEVICES: must be between 1 and 1000"))
	}
	if c.DeviceTopics < 0 || c.DeviceTopics > 10_000 {
		problems = append(problems, errors.New("DEVICE_TOPICS: must be between 0 and 10000"))
	}
	if c.Keep < time.Hour || c.KeepMessages < c.Keep {
		problems = append(problems, errors.New("KEEP: must be at least 1h, and KEEP_MESSAGES not shorter"))
	}
	if c.Inbox != "" && !regexp.MustCompile(`^[a-z][a-z0-9_]{0,49}$`).MatchString(c.Inbox) {
		problems = append(problems, errors.New("INBOX: must be a name of small letters, digits and underscores"))
	}
	if c.InboxKeep < 0 || c.InboxKeep > 0 && c.InboxKeep < time.Hour || c.InboxEntries < 0 {
		problems = append(problems, errors.New("INBOX_KEEP: must be 0 or at least 1h, and INBOX_ENTRIES not negative"))
	}
	if _, err := c.registry(); err != nil {
		problems = append(problems, err)
	}
	for key, address := range map[string]string{
		"APNS_ENDPOINT": c.APNsEndpoint, "APNS_SANDBOX_ENDPOINT": c.APNsSandboxEndpoint, "FCM_ENDPOINT": c.FCMEndpoint, "EXPO_ENDPOINT": c.ExpoEndpoint,
	} {
		if address != "" && (!strings.HasPrefix(address, "https://") || strings.HasSuffix(address, "/")) {
			problems = append(problems, fmt.Errorf("%s: must be https and host, such as https://127.0.0.1:9411", key))
		}
	}
	return errors.Join(problems...)
}

// registry is what the settings say of devices.
func (c Config) registry() (device.Options, error) {
	o := device.Options{Devices: c.Devices, Topics: c.DeviceTopics}
	var problems []error
	for _, text := range c.Topics {
		family, err := device.ParseTopic(text)
		if err != nil {
			problems = append(problems, fmt.Errorf("TOPICS: %w", err))
		}
		o.Families = append(o.Families, family)
	}
	for _, text := range c.Categories {
		category, err := device.ParseCategory(text)
		if err != nil {
			problems = append(problems, fmt.Errorf("CATEGORIES: %w", err))
		}
		o.Categories = append(o.Categories, category)
	}
	if c.Cap != "" {
		limit, err := device.ParseCap(c.Cap)
		if err != nil {
			problems = append(problems, fmt.Errorf("CAP: %w", err))
		}
		o.Cap = limit
	}
	if err := o.Check(); err != nil && len(problems) == 0 {
		problems = append(problems, fmt.Errorf("CATEGORIES: %w", err))
	}
	return o, errors.Join(problems...)
}

// forDevelopment reports whether anything is set that production must not have.
func (c Config) forDevelopment() bool {
	return c.APNsEndpoint+c.APNsSandboxEndpoint+c.FCMEndpoint+c.ExpoEndpoint+c.CAFile != "" || c.AllowLoopback
}

// outbound is how providers are reached.
func (c Config) outbound(production bool) (outbound.Options, error) {
	if production && c.forDevelopment() {
		return outbound.Options{}, errors.New("the settings SATCHEL_PUSH_*_ENDPOINT, SATCHEL_PUSH_CA_FILE and SATCHEL_PUSH_ALLOW_LOOPBACK are for development and refused in production")
	}
	o := outbound.Options{AllowLoopback: c.AllowLoopback}
	if c.CAFile != "" {
		root, err := outbound.ReadCA(c.CAFile)
		if err != nil {
			return o, fmt.Errorf("SATCHEL_PUSH_CA_FILE: %w", err)
		}
		o.Root = root
	}
	return o, nil
}

// Deps are what the extension takes from others.
type Deps struct {
	// Vault seals the credentials.
	Vault *secret.Vault

	// Audit records who did what. Nil: nobody does.
	Audit func(app core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

	// Jobs do the work, and Log tells what has changed.
	Jobs *jobs.Jobs
	Log  *changes.Log

	// Live returns the sessions with which an account is connected, and whether it is at all. Nil: none is.
	Live func(collection, id string) (sessions []string, connected bool)

	// Leader reports whether this process follows changes. Nil is yes.
	Leader func() bool

	// Templates are texts that messages may name, unless admins save others in their place, Triggers what happens when records change, Hints who is told to sync then.
	Templates []message.Template
	Triggers  func(o *outbox.Outbox) []trigger.Trigger
	Hints     []hint.Hint

	// Ended, Over, Endings and Acting tell of sessions; see [device.Deps].
	Ended   func(db dbx.Builder, session string) (bool, error)
	Over    func(db dbx.Builder, sessions []string, now time.Time) ([]string, error)
	Endings string
	Acting  func(e *core.RequestEvent) bool

	// Topics and Categories are declared beside those of the settings.
	Topics     []channel.Channel
	Categories []device.Category
}

// Push is the feature at work. It is safe for concurrent use once the server listens.
type Push struct {
	cfg    Config
	deps   Deps
	keeper *credentials.Keeper

	devices  *device.Registry
	wording  *wording.Wording
	outbox   *outbox.Outbox
	triggers *trigger.Triggers
}

// New returns the feature. cfg must be valid.
func New(cfg Config, deps Deps) *Push {
	if deps.Audit == nil {
		deps.Audit = func(core.App, *core.RequestEvent, string, string, *core.Record, map[string]any) error { return nil }
	}
	o, _ := cfg.registry() // it was validated
	o.Families, o.Categories = slices.Concat(deps.Topics, o.Families), slices.Concat(deps.Categories, o.Categories)
	devices := device.New(o, device.Deps{Vault: deps.Vault, Connected: connected, Ended: deps.Ended, Over: deps.Over, Endings: deps.Endings, Acting: deps.Acting})
	p := &Push{cfg: cfg, deps: deps, devices: devices, wording: wording.New(deps.Templates), keeper: credentials.New(deps.Vault, credentials.Options{
		Size: cfg.Concurrency, APNs: cfg.APNsEndpoint, APNsSandbox: cfg.APNsSandboxEndpoint, FCM: cfg.FCMEndpoint, Expo: cfg.ExpoEndpoint,
	})}
	p.outbox = outbox.New(outbox.Config{Keep: cfg.Keep, KeepSums: cfg.KeepMessages, Inbox: inbox.Options{
		Name: cfg.Inbox, Keep: cfg.InboxKeep, Entries: cfg.InboxEntries, Hooks: cfg.InboxHooks,
	}}, outbox.Deps{
		Jobs: deps.Jobs, Devices: devices, Vault: deps.Vault, Sender: p.Sender, Live: deps.Live, Template: p.wording.Texts,
	})
	var list []trigger.Trigger
	if deps.Triggers != nil {
		list = deps.Triggers(p.outbox)
	}
	for _, h := range deps.Hints {
		list = append(list, h.Trigger(p.outbox))
	}
	p.triggers = trigger.New(trigger.Deps{Jobs: deps.Jobs, Log: deps.Log, Leader: deps.Leader}, list)
	return p
}

// Sender returns the sender of a platform, or [credentials.ErrNotConnected]. It must not be called inside a transaction.
func (p *Push) Sender(ctx context.Context, platform sender.Platform) (sender.Sender, error) {
	return p.keeper.Sender(ctx, platform)
}

// Devices is the registry of devices.
func (p *Push) Devices() *device.Registry { return p.devices }

// Outbox sends messages.
func (p *Push) Outbox() *outbox.Outbox { return p.outbox }

// Operations are those of messages, of their templates, and of credentials.
func (p *Push) Operations() []operations.Operation {
	return slices.Concat(console.Operations(p.outbox), p.wording.Operations(), p.connections())
}

// Extension is the feature for the list in main.go. It must come behind that of the jobs.
func (p *Push) Extension() extensions.Extension {
	return extensions.Extension{
		Name:       "push",
		Settings:   p.cfg,
		Codes:      slices.Concat(device.Codes(), outbox.Codes(), wording.Codes(), []*extensions.Code{ErrRefused}),
		Tables:     slices.Concat([]string{credentials.Table, trigger.Table}, device.Tables(), outbox.Tables(), wording.Tables()),
		Migrations: slices.Concat([]extensions.Migration{extensions.Tables(1795504000, "create_credentials", credentials.Statements(), credentials.Table)}, device.Migrations(1795505000), outbox.Migrations(), wording.Migrations(), []extensions.Migration{trigger.Migration(1795512000)}),
		Bind: func(h *extensions.Host) error {
			p.outbox.Bind(h)
			return errors.Join(p.devices.Bind(h), p.wording.Bind(h), p.triggers.Bind(h))
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			p.devices.Routes(g)
			p.outbox.Routes(g)
		},
		Serve: func(h *extensions.Host, _ *core.ServeEvent) error {
			return errors.Join(p.open(h), p.devices.Serve(h), p.outbox.PrepareInbox(h.App))
		},
		Start: func(ctx context.Context, h *extensions.Host) error {
			return errors.Join(p.devices.Start(ctx, h), p.triggers.Start(ctx, h))
		},
		Stop: func(ctx context.Context) error {
			err := p.triggers.Stop(ctx)
			p.keeper.Close()
			return errors.Join(err, p.devices.Stop(ctx))
		},
		Checks: []extensions.Check{
			{Name: "push", Run: check},
			{Name: "push devices", Run: p.devices.Check},
			{Name: "push triggers", Run: p.triggers.Check},
			{Name: "push templates", Run: p.wording.Check},
		},
		Metrics:  slices.Concat(p.devices.Metrics(), p.outbox.Metrics()),
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{p.command(h)} },
	}
}

// open is for the server and for the commands, when the database is open.
func (p *Push) open(h *extensions.Host) error {
	o, err := p.cfg.outbound(h.Production)
	if err != nil {
		return err
	}
	p.keeper.Open(h.App, o)
	return nil
}

// connected lists the platforms that have credentials, and the key of Web Push.
func connected(app core.App) (map[sender.Platform]string, error) {
	list, err := credentials.List(app)
	out := make(map[sender.Platform]string, len(list))
	for _, e := range list {
		out[e.Platform] = e.Facts.PublicKey
	}
	return out, err
}

// check shows what is connected.
func check(_ context.Context, h *extensions.Host) extensions.Result {
	list, err := credentials.List(h.App)
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: "the credentials cannot be read: " + err.Error(), Next: "see the log"}
	}
	if len(list) == 0 {
		return extensions.Result{Level: extensions.Skip, Message: "no provider is connected", Next: "satchel push connect --help"}
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = string(e.Platform)
	}
	return extensions.Result{Level: extensions.OK, Message: strings.Join(names, ", ")}
}
