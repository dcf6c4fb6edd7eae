package feed_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/subscriptions"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/live/feed"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// counted is a client that takes everything at once.
type counted struct{ n *atomic.Int64 }

func (c counted) Events(_ context.Context, items []feed.Item) error {
	c.n.Add(int64(len(items)))
	return nil
}
func (counted) Send(context.Context, feed.Message) error { return nil }
func (counted) Ping(context.Context) error               { return nil }
func (counted) Close(int, string)                        {}
func (counted) Cut()                                     {}

// BenchmarkSubscribers compares the hub with PocketBase's broadcast: users subscribe to a collection under one rule, and a
// record is updated. The time is that of the write; beside it stand the CPU time of the process for one event, and the time
// until the last one was sent. Under the rule of an owner one subscriber in users gets the event, under that of a
// membership all do.
func BenchmarkSubscribers(b *testing.B) {
	for _, users := range []int{0, 1000} {
		for _, rule := range []string{"owner", "member"} {
			for _, kind := range []string{"stock", "hub"} {
				b.Run(fmt.Sprintf("%s/%s/%d", rule, kind, users), func(b *testing.B) { benchmark(b, users, rule == "owner", kind == "hub") })
			}
		}
	}
}

func benchmark(b *testing.B, users int, owner, hub bool) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: changes.Tables()})
	if err != nil {
		b.Fatal(err)
	}
	clog := changes.New(settings.Defaults[changes.Config](), db)
	app := apptest.Open(b, db.Connect, store.New(db), clog.Extension())
	record, viewers := audience(b, app, max(users, 1), owner)
	viewers = viewers[:users]
	var got atomic.Int64
	each := int64(min(users, 1))
	if !owner {
		each = int64(users)
	}
	if hub {
		serve(b, app, clog, viewers, &got)
	} else {
		broadcast(b, app, viewers, &got)
	}
	if err := app.Save(record); err != nil { // warms up
		b.Fatal(err)
	}
	await(b, &got, each)
	b.ResetTimer()
	start, cpu := time.Now(), processTime(b)
	var writing time.Duration
	for n := range b.N {
		at := time.Now()
		record.Set("title", fmt.Sprint(n))
		if err := app.Save(record); err != nil {
			b.Fatal(err)
		}
		writing += time.Since(at)
		await(b, &got, each*int64(n+2))
	}
	b.StopTimer()
	b.ReportMetric(float64(writing.Microseconds())/float64(b.N), "write-µs/op")
	b.ReportMetric(float64(time.Since(start).Microseconds())/float64(b.N), "all-µs/op")
	b.ReportMetric(float64((processTime(b)-cpu).Microseconds())/float64(b.N)/float64(max(each, 1)), "cpu-µs/event")
}

// audience makes users, and a record that the first of them, or all of them, may see.
func audience(b *testing.B, app *apptest.App, n int, owner bool) (*core.Record, []*core.Record) {
	b.Helper()
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		b.Fatal(err)
	}
	save := func(m core.Model) {
		if err := app.Save(m); err != nil {
			b.Fatal(err)
		}
	}
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 100_000})
	save(teams)
	c := core.NewBaseCollection("things")
	c.Fields.Add(&core.TextField{Name: "title"}, &core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1},
		&core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1})
	rule := "team.members.id ?= @request.auth.id"
	if owner {
		rule = "owner = @request.auth.id"
	}
	c.ListRule, c.ViewRule = &rule, &rule
	save(c)
	viewers := make([]*core.Record, n)
	ids := make([]string, n)
	err = app.RunInTransaction(func(tx core.App) error {
		for i := range viewers {
			u := core.NewRecord(users)
			u.SetEmail(fmt.Sprintf("u%d@example.test", i))
			u.SetRaw("password", &core.PasswordFieldValue{Hash: "$2a$04$" + "abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzABCDE"})
			u.RefreshTokenKey()
			if err := tx.SaveNoValidate(u); err != nil {
				return err
			}
			viewers[i], ids[i] = u, u.Id
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	team := core.NewRecord(teams)
	team.Set("members", ids)
	save(team)
	record := core.NewRecord(c)
	record.Set("owner", ids[0])
	record.Set("team", team.Id)
	save(record)
	return record, viewers
}

func serve(b *testing.B, app *apptest.App, clog *changes.Log, viewers []*core.Record, got *atomic.Int64) {
	b.Helper()
	hub := feed.New(feed.Config{Queue: 256 << 10, Remember: 200, PingEvery: time.Minute}, clog)
	hub.Bind(app, slog.New(slog.DiscardHandler))
	now, err := hub.Now(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	things, err := app.FindCollectionByNameOrId("things")
	if err != nil {
		b.Fatal(err)
	}
	go hub.Run(b.Context())
	for _, v := range viewers {
		c, ctx := hub.NewConn(b.Context(), nil, "", false, counted{got})
		c.Who.Store(&feed.Identity{Auth: v})
		hub.Enter(c)
		c.Add(&feed.Sub{Name: "s", Collection: things.Id, At: now.Seq})
		go c.Talk(ctx)
	}
	time.Sleep(2 * time.Second) // until all are live
}

func broadcast(b *testing.B, app *apptest.App, viewers []*core.Record, got *atomic.Int64) {
	b.Helper()
	options, err := json.Marshal(map[string]any{"query": map[string]string{}})
	if err != nil {
		b.Fatal(err)
	}
	for _, v := range viewers {
		c := subscriptions.NewDefaultClient()
		c.Set("auth", v)
		c.Subscribe("things/*?options=" + url.QueryEscape(string(options)))
		app.SubscriptionsBroker().Register(c)
		go func() {
			for range c.Channel() {
				got.Add(1)
			}
		}()
	}
}

func await(b *testing.B, got *atomic.Int64, n int64) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); got.Load() < n; {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d events", got.Load(), n)
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// processTime is the CPU time of the process.
func processTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
