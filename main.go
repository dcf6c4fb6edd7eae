// Satchel is the backend of a mobile app in one program. This file is its table of contents: the settings, the
// features, the app's own hooks, and the command line.
package main

import (
	"embed"
	"os"

	"github.com/pocketbase/pocketbase"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/admins"
	"github.com/satchelbase/satchel/extensions/anonymous"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/apikeys"
	"github.com/satchelbase/satchel/extensions/attestation"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/demo"
	"github.com/satchelbase/satchel/extensions/deploy"
	"github.com/satchelbase/satchel/extensions/dev"
	"github.com/satchelbase/satchel/extensions/doctor"
	"github.com/satchelbase/satchel/extensions/guard"
	"github.com/satchelbase/satchel/extensions/health"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/impersonation"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/memory"
	"github.com/satchelbase/satchel/extensions/metrics"
	"github.com/satchelbase/satchel/extensions/oauth"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/passkeys"
	"github.com/satchelbase/satchel/extensions/passwords"
	"github.com/satchelbase/satchel/extensions/program"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/ratelimit"
	"github.com/satchelbase/satchel/extensions/records"
	"github.com/satchelbase/satchel/extensions/rules"
	"github.com/satchelbase/satchel/extensions/secrets"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/sync/doors"
	"github.com/satchelbase/satchel/extensions/teams"
	"github.com/satchelbase/satchel/extensions/totp"
	"github.com/satchelbase/satchel/hooks"
	_ "github.com/satchelbase/satchel/migrations"
)

//go:embed all:pb_public
var public embed.FS

// version is set by the build.
var version = "dev"

// features lists what this program can do. The order is that of start-up; the first is outermost around a request.
func features(cfg config, pb *pocketbase.PocketBase, db *store.Store, s shared) ([]extensions.Extension, *sessions.Sessions) {
	var list []extensions.Extension
	ops, queue := s.ops, s.queue
	vault, hasher, gate := secrets.NewVault(), passwords.NewHasher(cfg.passwords), attestation.NewGate(cfg.attestation)
	log := audit.NewLog(vault)
	clog := changes.New(cfg.changes, db)
	syncer := newSync(cfg.sync, clog, db)
	sess := sessions.New(cfg.sessions, sessions.Deps{
		Vault: vault, Audit: log.Append, Version: db.TableVersion, PublicURL: cfg.general.PublicURL, Password: hasher.Verify, SecondFactor: totp.Enabled,
	})
	mails := newMails(cfg.jobs, queue)
	all := func() []extensions.Extension { return list }
	groups := teams.New(cfg.teams, teams.Deps{PublicURL: cfg.general.PublicURL, Audit: log.Note, Mail: mails.Send})
	hub := newHub(cfg.live, pb, db, clog)
	pushes := newPush(cfg.push, clog, s, push.Deps{Vault: vault, Audit: log.Note, Live: hub.Sessions})
	accounts := newAccounts(cfg.account, queue, sess, db, log, vault.Key, pushes.Outbox().Clear)
	ops.Add(hooks.Operations(), groups.Operations(), accounts.Operations(), queueOperations(queue), pushes.Operations())
	list = []extensions.Extension{
		api.New(cfg.api),
		logs.New(cfg.logs),
		memory.New(cfg.memory),
		metrics.New(cfg.metrics, len(cfg.api.TrustedProxies) > 0, all),
		store.New(db),
		syncer.Polling(clog.Extension()),
		secrets.New(cfg.secrets, vault),
		ratelimit.New(cfg.ratelimit, guard.Familiar(sess.KnownDevice), ops.Cost),
		authcache.New(cfg.authcache, authcache.NewCache(cfg.authcache, db.TableVersion, sess.Verify)),
		audit.New(cfg.audit, log, admins.May),
		admins.New(admins.Deps{Recent: sess.RequireRecent(), Audit: log.Append}),
		newKeys(cfg.apikeys, db, log, sess),
		sess.Extension(),
		oauth.New(sess, apikeys.Allow(apikeys.ScopeIntrospect)),
		impersonation.New(sess, impersonation.Deps{May: admins.May, Privileged: admins.Privileged}),
		anonymous.New(cfg.anonymous, sess, log.Append),
		guard.New(cfg.guard, guard.Deps{KnownDevice: sess.KnownDevice, Audit: log.NoteFailure, EmailTaken: sessions.ErrEmailTaken}),
		passwords.New(hasher),
		totp.New(cfg.totp, totp.Deps{Vault: vault, Recent: sess.RequireRecent(), Audit: log.Note, Exempt: []string{passkeys.Method}}),
		newPasskeys(cfg, pb, sess, log),
		gate.Extension(),
		identities.New(cfg.identities, identities.Deps{
			SignIn: sess.SignIn, Recent: sess.RequireRecent(), RevokeSessions: sess.EndAll, Audit: log.Note, Seal: vault.Seal, Open: vault.Open,
			Passkeys: passkeys.Has, Upgraded: anonymous.Upgraded,
		}),
		ops.Extension(operations.Deps{
			Role: admins.May, Staff: []string{admins.Collection}, Key: apikeys.Presented, Recent: sess.Recent, Attested: gate.Require, Audit: log.Append,
		}),
		groups.Extension(),
		background(queue, mails, jobs.Deps{Vault: vault}),
		accounts.Extension(),
		records.New(cfg.records, db),
		idempotency.New(cfg.idempotency, idempotency.Deps{
			Route: ops.Policy, Before: ops.Prepare, Key: apikeys.KeyID,
			SuspectWaits: db.SuspectWaits, Healthy: db.Healthy, Unavailable: store.IsUnavailable,
		}),
		health.New(cfg.health, all, admins.May),
		hub.Extension(),
		doors.Open(syncer),
		pushes.Extension(),
		demo.New(),
		rules.New(sandbox(cfg, pb)),
		deploy.New(),
		dev.New(),
		doctor.New(all, installation(cfg, pb)),
	}
	return list, sess
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	file, err := settings.ReadFile(".env")
	if err != nil {
		return cli.Report(os.Stderr, cli.Fail(cli.ExitUsage, "the file .env cannot be read", err.Error(), "mend it or move it away"), false)
	}
	cfg := read(settings.Load(append(file, os.Environ()...)))
	db, err := store.Open(cfg.store, storeOptions())
	if err != nil {
		return cli.Report(os.Stderr, err, false)
	}
	s := newShared(cfg)
	info := about(cfg, db, s)
	pb := program.New(info, args)
	h, list, sess, err := install(cfg, pb, pb, db, s)
	if err != nil {
		return cli.Report(os.Stderr, err, false)
	}
	info.Harden = sess.Harden
	addCommands(pb, h, list, cfg, info)
	return cli.Run(pb, args, cfg.settings.Err())
}
