package pushes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // makes the system tables

	"github.com/satchelbase/satchel/bench/internal/machine"
	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/secrets"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// bench is an open application.
type bench struct {
	app  core.App
	push *push.Push
	seal func(aad string, plain []byte) (string, error)
}

// measure sends one message to n devices of a new database in dir.
func measure(ctx context.Context, dir string, p *provider, n int) (out outcome, err error) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: slices.Concat(changes.Tables(), jobs.Tables(), device.Tables(), outbox.Tables())})
	if err != nil {
		return out, fmt.Errorf("open store: %w", err)
	}
	vault, queue := secrets.NewVault(), jobs.New(settings.Defaults[jobs.Config]())
	log := changes.New(settings.Defaults[changes.Config](), db)
	cfg := settings.Defaults[push.Config]()
	cfg.APNsEndpoint, cfg.CAFile, cfg.AllowLoopback = p.url, p.ca, true
	b := &bench{app: core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect}), seal: vault.Seal}
	b.push = push.New(cfg, push.Deps{Vault: vault, Jobs: queue, Log: log})
	list := []extensions.Extension{store.New(db), log.Extension(), secrets.New(secrets.Config{}, vault), queue.Extension(jobs.Deps{Vault: vault}), b.push.Extension()}
	h := &extensions.Host{App: b.app, Logger: slog.New(slog.DiscardHandler)}
	if err := extensions.Install(h, list); err != nil {
		return out, fmt.Errorf("install: %w", err)
	}
	if err := b.app.Bootstrap(); err != nil {
		return out, fmt.Errorf("open application: %w", err)
	}
	defer func() { err = errors.Join(err, b.app.ClearBootstrap()) }()
	if err := b.app.RunAllMigrations(); err != nil {
		return out, fmt.Errorf("migrate: %w", err)
	}
	for _, x := range list { // what a server does
		if x.Serve != nil {
			if err := x.Serve(h, &core.ServeEvent{App: b.app}); err != nil {
				return out, fmt.Errorf("open %s: %w", x.Name, err)
			}
		}
		if x.Start != nil {
			if err := x.Start(ctx, h); err != nil {
				return out, fmt.Errorf("start %s: %w", x.Name, err)
			}
		}
		if x.Stop != nil {
			defer func() { err = errors.Join(err, x.Stop(context.WithoutCancel(ctx))) }()
		}
	}
	key, err := os.ReadFile(p.key)
	if err != nil {
		return out, fmt.Errorf("read key: %w", err)
	}
	set := credentials.Set{APNs: &apns.Credentials{Key: string(key), KeyID: p.keyID, TeamID: p.teamID, Topic: p.topic}}
	if _, err := credentials.New(vault, credentials.Options{Size: 1}).Save(b.app, set); err != nil {
		return out, fmt.Errorf("connect: %w", err)
	}
	if err := b.register(n); err != nil {
		return out, err
	}
	return b.run(ctx)
}

// register makes devices that have been there for a while, each of another account.
func (b *bench) register(n int) error {
	users, err := b.app.FindCollectionByNameOrId("users")
	if err != nil {
		return fmt.Errorf("find users: %w", err)
	}
	then := time.Now().Add(-24 * time.Hour).UnixMilli()
	return b.app.RunInTransaction(func(tx core.App) error {
		for i := range n {
			id := fmt.Sprintf("device-%05d", i)
			sealed, err := b.seal("push_devices|token|"+id, []byte(token(i)))
			if err != nil {
				return fmt.Errorf("seal token: %w", err)
			}
			_, err = tx.NonconcurrentDB().Insert("push_devices", dbx.Params{
				"id": id, "collection": users.Id, "record": fmt.Sprintf("user-%05d", i), "session": fmt.Sprintf("session-%05d", i), "platform": "apns",
				"environment": "", "hash": id, "token": sealed, "app": "", "locale": "", "time_zone": "", "app_version": "", "registered_at": then, "seen_at": then,
			}).Execute()
			if err != nil {
				return fmt.Errorf("make device: %w", err)
			}
		}
		return nil
	})
}

// token is one of APNs. The stand-in knows dead ones by how they begin.
func token(i int) string {
	if i%deadEvery == 0 {
		return fmt.Sprintf("dead00%058x", i)
	}
	return fmt.Sprintf("%064x", i)
}

// run sends the message and waits for its end.
func (b *bench) run(ctx context.Context) (out outcome, err error) {
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(&core.TextField{Name: "title"})
	if err := b.app.Save(notes); err != nil {
		return out, fmt.Errorf("make collection: %w", err)
	}
	self := machine.Process{PID: os.Getpid()}
	debug.FreeOSMemory()
	idle, cpu, begun := self.Memory(), self.CPU(), time.Now()
	most := idle
	writer := b.write(ctx, notes)
	sent, err := b.push.Outbox().Send(b.app, message.Message{To: message.To{All: true}, Title: "Hello", Body: "This is a notification."})
	if err != nil {
		return out, fmt.Errorf("send: %w", err)
	}
	for left := true; left; {
		select {
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		most = max(most, self.Memory())
		if err := b.app.ConcurrentDB().NewQuery("SELECT EXISTS (SELECT 1 FROM push_messages WHERE state < 2)").Row(&left); err != nil {
			return out, fmt.Errorf("look for the end of message %s: %w", sent.ID, err)
		}
	}
	out.Seconds, out.CPU, out.Growth = time.Since(begun).Seconds(), (self.CPU() - cpu).Seconds(), float64(most-idle)/(1<<20)
	if out.Writer, err = writer(); err != nil {
		return out, err
	}
	for state, n := range map[int]*int{1: &out.Accepted, 2: &out.Dead} {
		if err := b.app.ConcurrentDB().NewQuery(fmt.Sprintf("SELECT count(*) FROM push_deliveries WHERE state = %d", state)).Row(n); err != nil {
			return out, fmt.Errorf("count deliveries: %w", err)
		}
	}
	return out, nil
}

// write saves a record every few milliseconds until the function that it returns is called, which tells how long the
// slowest hundredth took.
func (b *bench) write(ctx context.Context, notes *core.Collection) func() (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	var took []time.Duration
	ended := make(chan error, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case <-time.After(writeEvery):
			}
			note := core.NewRecord(notes)
			note.Set("title", "beside the pushes")
			begun := time.Now()
			if err := b.app.Save(note); err != nil {
				ended <- fmt.Errorf("write beside the pushes: %w", err)
				return
			}
			took = append(took, time.Since(begun))
		}
	}()
	return func() (float64, error) {
		cancel()
		err := <-ended
		return p99(took), err
	}
}
