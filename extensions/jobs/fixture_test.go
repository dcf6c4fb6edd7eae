package jobs

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const kind = "test.job"

type fixture struct {
	*apptest.App
	jobs *Jobs
	db *store.Store
}

// start returns an application that does jobs of the kinds. Mails go through the queue.
func start(t testing.TB, kinds ...Kind) *fixture { return startWith(t, nil, kinds...) }

func startWith(t testing.TB, change func(*Config), kinds ...Kind) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: Tables()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := settings.Defaults[Config]()
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	j := New(cfg)
	j.Add(kinds...)
	ops := operations.New()
	ops.Add(j.Operations())
	f := &fixture{jobs: j, db: db}
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db),
		j.Extension(Deps{Vault: secret.Fixed([]byte("root key of the tests"))}), ops.Extension(operations.Deps{}))
	return f
}

// work is a kind whose jobs do fn and are tried again at once.
func work(fn func(ctx context.Context, job *Job, n int) error) Kind {
	return Define(Spec[int]{Kind: kind, FirstWait: time.Millisecond, LongestWait: 2 * time.Millisecond, Attempts: 3, Work: fn})
}

func (f *fixture) enqueue(t testing.TB, input any, o Options) string {
	t.Helper()
	id, err := f.jobs.Enqueue(f.App.App, kind, input, o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: has not come", what)
}

// await waits for the job to be in the state.
func (f *fixture) await(t testing.TB, id string, want State) Status {
	t.Helper()
	var s Status
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var err error
		if s, err = f.jobs.Get(f.App.App, id); err != nil {
			t.Fatal(err)
		}
		if s.State == want {
			return s
		}
	}
	t.Fatalf("the job is %s (%s), not %s", s.State, s.Err, want)
	return s
}

func (f *fixture) count(t testing.TB, from string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM " + from).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// gate holds jobs until it is opened, and counts how many are in it.
type gate struct {
	open     chan struct{}
	in, most atomic.Int64
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) pass(ctx context.Context) error {
	n := g.in.Add(1)
	defer g.in.Add(-1)
	for {
		most := g.most.Load()
		if n <= most || g.most.CompareAndSwap(most, n) {
			break
		}
	}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
