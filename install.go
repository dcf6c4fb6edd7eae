package main

import (
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"github.com/dop251/goja"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/account"
	"github.com/satchelbase/satchel/extensions/admins"
	"github.com/satchelbase/satchel/extensions/anonymous"
	"github.com/satchelbase/satchel/extensions/apikeys"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/doctor"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/console"
	"github.com/satchelbase/satchel/extensions/jobs/mail"
	"github.com/satchelbase/satchel/extensions/jobs/script"
	"github.com/satchelbase/satchel/extensions/leader"
	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/passkeys"
	"github.com/satchelbase/satchel/extensions/program"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/personal"
	"github.com/satchelbase/satchel/extensions/push/trigger"
	"github.com/satchelbase/satchel/extensions/push/wording"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/sync"
	"github.com/satchelbase/satchel/extensions/teams"
	"github.com/satchelbase/satchel/hooks"
)

// site is the static site that the program brings.
func site() fs.FS {
	files, err := fs.Sub(public, "pb_public")
	if err != nil { // not with a constant that is a valid path
		panic(err)
	}
	return files
}

// quietTables are those whose writes change nothing that is remembered of other tables.
func quietTables() []string {
	return slices.Concat(changes.Tables(), sync.Tables(), jobs.Tables(), device.Tables(), outbox.Tables(), wording.Tables(), []string{apikeys.Uses, idempotency.Table})
}

func newSync(cfg sync.Config, log *changes.Log, db *store.Store) *sync.Sync {
	return sync.New(cfg, sync.Deps{Log: log, Durable: db.Durable})
}

// shared is what features and hooks, those in JavaScript too, add their own to.
type shared struct {
	ops      *operations.Operations
	queue    *jobs.Jobs
	scripted *trigger.Script
}

func newShared(cfg config) shared {
	queue := jobs.New(cfg.jobs)
	return shared{operations.New(), queue, trigger.NewScript(queue)}
}

// about is what the program says of itself.
func about(cfg config, db *store.Store, s shared) program.Info {
	return program.Info{
		Version: version, DataDir: cfg.general.DataDir, HTTP: cfg.general.HTTP, Queries: cfg.general.Queries,
		Public: site(), DBConnect: db.Connect, Scripts: scripts(s),
	}
}

// scripts is what JavaScript hooks may use besides what PocketBase gives them.
func scripts(s shared) program.Scripts {
	background := script.New(s.queue)
	return program.Scripts{
		Globals: []func(*goja.Runtime) error{s.ops.Script, background.Globals, s.scripted.Globals},
		Host:    func(app core.App) core.App { return background.Host(app) },
	}
}

// newMails sends mails through the queue.
func newMails(cfg jobs.Config, queue *jobs.Jobs) *mail.Mails { return mail.New(queue, cfg.Mail) }

// background is the queue with what belongs to it.
func background(queue *jobs.Jobs, mails *mail.Mails, deps jobs.Deps) extensions.Extension {
	deps.Leader = leader.Alone().Is
	return console.Extend(mails.Extend(queue.Extension(deps)), queue)
}

// queueOperations let admins look after jobs.
func queueOperations(queue *jobs.Jobs) []operations.Operation { return console.Operations(queue) }

// addCommands puts the commands of the program and of its features on the command line.
func addCommands(pb *pocketbase.PocketBase, h *extensions.Host, list []extensions.Extension, cfg config, info program.Info) {
	pb.RootCmd.AddCommand(program.Commands(h, info)...)
	pb.RootCmd.AddCommand(cli.Settings(cfg.settings.Command()))
	for _, x := range list {
		if x.Commands != nil {
			pb.RootCmd.AddCommand(x.Commands(h.For(x))...)
		}
	}
}

// install binds the features and the app's own hooks to an application that is not open yet.
func install(cfg config, pb *pocketbase.PocketBase, app core.App, db *store.Store, s shared) (*extensions.Host, []extensions.Extension, *sessions.Sessions, error) {
	h := &extensions.Host{
		App: app, Version: version, Production: cfg.general.production(), Logger: slog.New(logs.Handler(os.Stderr, cfg.logs)),
	}
	list, sess := features(cfg, pb, db, s)
	if err := extensions.Install(h, list); err != nil {
		return nil, nil, nil, err
	}
	hooks.Bind(app, hooks.Deps{})
	return h, list, sess, nil
}

// newAccounts tells the deletion and the export of accounts what the other features hold of them.
func newAccounts(cfg account.Config, queue *jobs.Jobs, sess *sessions.Sessions, db *store.Store, log *audit.Log, key func(purpose string) []byte, clear account.Clear) *account.Accounts {
	return account.New(cfg, account.Deps{
		Jobs: queue, Key: key, Map: hooks.Accounts(), Recent: sess.Recent, Anonymous: anonymous.Is, EndSessions: sess.EndAll,
		Audit: log.Note, Forget: log.Forget, Version: db.TableVersion, Blockers: teamsWithoutOwner,
		// These delete what they hold with the account's record, and messages may be too many for that.
		Sections: []account.Section{
			{Name: "sessions", Export: login.Export},
			{Name: "identities", Export: identities.Export},
			{Name: "passkeys", Export: passkeys.Export},
			{Name: "push", Export: device.Export},
			{Name: "notifications", Export: personal.Export, Clear: clear},
			{Name: "audit", Export: audit.ExportAccount},
		},
	})
}

// teamsWithoutOwner is what a deletion of the account would leave without the one who decides.
func teamsWithoutOwner(app core.App, user *core.Record) ([]account.Blocker, error) {
	list, err := teams.LastOwner(app, user.Id)
	if err != nil {
		return nil, err
	}
	blockers := make([]account.Blocker, len(list))
	for i, team := range list {
		blockers[i] = account.Blocker{Kind: "teams", ID: team.ID, Message: "make another member of " + team.Name + " an owner, or delete the team"}
	}
	return blockers, nil
}

// installation is what the doctor looks at besides the features.
func installation(cfg config, pb *pocketbase.PocketBase) doctor.Info {
	return doctor.Info{
		Settings: cfg.settings, Production: cfg.general.production(), DataDir: pb.DataDir, Addr: func() string { return cfg.general.HTTP },
		PublicURL: cfg.general.PublicURL, TrustedProxies: len(cfg.api.TrustedProxies),
	}
}

// newKeys lets API keys call operations.
func newKeys(cfg apikeys.Config, db *store.Store, log *audit.Log, sess *sessions.Sessions) extensions.Extension {
	return apikeys.New(cfg, apikeys.Deps{
		Scopes: []string{"operations:*"}, Routes: []string{"/api/v1/operations/"}, Version: db.TableVersion,
		Audit: log.Append, May: admins.May, Recent: sess.RequireRecent(),
	})
}

// newPasskeys serves the files that phones and browsers look for, besides.
func newPasskeys(cfg config, pb *pocketbase.PocketBase, sess *sessions.Sessions, log *audit.Log) extensions.Extension {
	return passkeys.New(cfg.passkeys, passkeys.Deps{
		PublicURL: cfg.general.PublicURL, Recent: sess.RequireRecent(), Audit: log.Note, Public: program.Files(pb, site()),
		LastWayIn: identities.LastWayIn(cfg.identities),
	})
}

// newHub closes the connections of sessions that have ended.
func newHub(cfg live.Config, pb *pocketbase.PocketBase, db *store.Store, clog *changes.Log) *live.Hub {
	return live.New(cfg, clog, live.Deps{Sessions: login.Endings{DB: pb.ConcurrentDB, Table: db.TableVersion}, Channels: hooks.Channels(), ReadOnly: readOnly})
}

// readOnly reports that a request comes from somebody who looks at what a user sees, and may only do that.
func readOnly(e *core.RequestEvent) bool {
	c := sessions.Current(e)
	return c != nil && c.ReadOnly
}

// newPush ties devices to the sessions that they have registered in.
func newPush(cfg push.Config, clog *changes.Log, s shared, deps push.Deps) *push.Push {
	deps.Jobs, deps.Log, deps.Leader = s.queue, clog, leader.Alone().Is
	deps.Topics, deps.Categories = hooks.Topics(), hooks.Categories()
	deps.Templates, deps.Hints = hooks.Templates(), hooks.Hints()
	deps.Triggers = func(out *outbox.Outbox) []trigger.Trigger {
		return append(hooks.Triggers(hooks.Effects{Outbox: out, Jobs: s.queue, Operations: s.ops}), s.scripted.Triggers()...)
	}
	deps.Ended, deps.Over, deps.Endings = login.HasEnded, login.Over, login.Ended
	deps.Acting = func(e *core.RequestEvent) bool {
		c := sessions.Current(e)
		return c != nil && c.Actor != nil
	}
	return push.New(cfg, deps)
}

// sandbox returns a function that opens the program on a copy of the data.
func sandbox(cfg config, pb *pocketbase.PocketBase) func(dataDir string) (core.App, error) {
	return func(dataDir string) (core.App, error) {
		db, err := store.Open(cfg.store, store.Options{})
		if err != nil {
			return nil, err
		}
		s := newShared(cfg)
		app, err := program.Sandbox(pb, dataDir, db.Connect, scripts(s))
		if err != nil {
			return nil, err
		}
		copied := cfg
		copied.secrets, copied.audit = cfg.secrets.Sandbox(pb.DataDir()), cfg.audit.Sandbox()
		_, _, _, err = install(copied, pb, app, db, s)
		return app, err
	}
}
