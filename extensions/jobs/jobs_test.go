package jobs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

func TestJob(t *testing.T) {
	f := start(t, work(func(_ context.Context, job *Job, n int) error {
		job.Progress(int64(n), 9)
		return job.SetResult(map[string]int{"twice": 2 * n})
	}))
	ada, token := f.User(t, "ada@example.test")
	_, other := f.User(t, "bob@example.test")

	var id string
	no := errors.New("no")
	for _, failure := range []error{no, nil} {
		err := f.RunInTransaction(func(tx core.App) (err error) {
			if id, err = f.jobs.Enqueue(tx, kind, 4, Options{Owner: OwnerOf(ada), Request: "req-1"}); err != nil {
				return err
			}
			return failure
		})
		if !errors.Is(err, failure) {
			t.Fatal(err)
		}
		if failure != nil {
			if _, err := f.jobs.Get(f.App.App, id); !errors.Is(err, ErrNotFound) {
				t.Fatalf("a job of a transaction that was rolled back: %v", err)
			}
		}
	}
	s := f.await(t, id, Succeeded)
	if string(s.Result) != `{"twice":8}` || s.Done != 4 || s.Total != 9 || s.Attempts != 1 || s.StartedAt == nil || s.FinishedAt == nil {
		t.Errorf("status: %+v", s)
	}
	get := func(id, token string) apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodGet, Path: "/api/v1/jobs/" + id, Token: token})
	}
	if got := get(id, token); got.Status != http.StatusOK || !strings.Contains(string(got.Body), `"state":"succeeded"`) {
		t.Errorf("to its owner: %d %s", got.Status, got.Body)
	}
	for _, who := range [][2]string{{id, other}, {"nonsense", token}, {strings.ToUpper(id), token}} {
		if got := get(who[0], who[1]); got.Status != http.StatusNotFound {
			t.Errorf("to another: %d %s", got.Status, got.Body)
		}
	}
	if got := get(id, ""); got.Status != http.StatusUnauthorized {
		t.Errorf("to a guest: %d %s", got.Status, got.Body)
	}
	if err := f.jobs.Forget(f.App.App, OwnerOf(ada)); err != nil || f.count(t, table.History) != 0 {
		t.Errorf("not forgotten: %v", err)
	}
}

func TestEnqueueRefuses(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }),
		Define(Spec[struct{ User string }]{Kind: "test.struct", Work: func(context.Context, *Job, struct{ User string }) error { return nil }}))
	for name, c := range map[string]struct {
		kind  string
		input any
		o     Options
	}{
		"unknown kind":   {"test.unknown", 1, Options{}},
		"wrong type":     {kind, "one", Options{}},
		"unknown member": {"test.struct", map[string]any{"User": "a", "other": 1}, Options{}},
		"too large":      {"test.struct", map[string]any{"User": strings.Repeat("x", maxPayload)}, Options{}},
		"no JSON":        {kind, func() {}, Options{}},
		"priority":       {kind, 1, Options{Priority: 10}},
		"period":         {kind, 1, Options{KeyFor: time.Hour}},
	} {
		if id, err := f.jobs.Enqueue(f.App.App, c.kind, c.input, c.o); err == nil {
			t.Errorf("%s: enqueued as %s", name, id)
		}
	}
	if f.count(t, table.Queue) != 0 {
		t.Error("something was written")
	}
}

func TestDefineRefuses(t *testing.T) {
	idle := func(context.Context, *Job, int) error { return nil }
	for name, s := range map[string]Spec[int]{
		"name":     {Kind: "a b", Work: idle},
		"work":     {Kind: "a"},
		"priority": {Kind: "a", Priority: 10, Work: idle},
		"wait":     {Kind: "a", FirstWait: 2 * time.Hour, Work: idle},
		"schedule": {Kind: "a", Cron: "every day", Work: idle},
		"never":    {Kind: "a", Cron: "0 0 31 2 *", Work: idle},
	} {
		if k := Define(s); k.err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	j := New(Config{})
	j.Add(Define(Spec[int]{Kind: "a", Work: idle}), Define(Spec[int]{Kind: "a", Work: idle}))
	if j.err == nil {
		t.Error("two kinds have the same name")
	}
}

// Jobs that are ready are begun by priority, then in the order in which they came.
func TestOrder(t *testing.T) {
	var mu sync.Mutex
	var order []int
	f := startWith(t, func(c *Config) { c.Workers = 1 }, work(func(_ context.Context, _ *Job, n int) error {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, n)
		return nil
	}))
	if err := f.jobs.Pause(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	var last string
	for n, priority := range []int{5, 9, 1, 5, 1} {
		id := f.enqueue(t, n, Options{Priority: priority})
		if priority == 9 {
			last = id
		}
	}
	if s, err := f.jobs.Get(f.App.App, last); err != nil || s.State != Ready {
		t.Fatalf("paused: %+v, %v", s, err)
	}
	if err := f.jobs.Resume(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	f.await(t, last, Succeeded)
	mu.Lock()
	defer mu.Unlock()
	if want := []int{2, 4, 0, 3, 1}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// A stream of urgent jobs that never ends leaves room for the others.
func TestNobodyStarves(t *testing.T) {
	var f *fixture
	var urgent atomic.Int64
	done := make(chan struct{})
	const most = 20_000
	f = startWith(t, func(c *Config) { c.Workers = 2 }, work(func(_ context.Context, job *Job, n int) error {
		if n == 0 {
			close(done)
			return nil
		}
		select {
		case <-done:
			return nil
		default:
		}
		if urgent.Add(1) > most {
			return nil
		}
		_, err := job.jobs.Enqueue(job.jobs.app, kind, n, Options{Priority: 1})
		return err
	}))
	if err := f.jobs.Pause(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	// More than are claimed at once, so that there is always an urgent one left.
	if _, err := f.jobs.EnqueueAll(f.App.App, kind, slices.Repeat([]any{1}, 2*maxAhead), Options{Priority: 1}); err != nil {
		t.Fatal(err)
	}
	id := f.enqueue(t, 0, Options{Priority: 9})
	if err := f.jobs.Resume(f.App.App, defaultQueue); err != nil {
		t.Fatal(err)
	}
	f.await(t, id, Succeeded)
	if n := urgent.Load(); n > most/2 {
		t.Errorf("%d urgent jobs were begun before", n)
	}
}

// The oldest are found by the index: what the claim reads does not grow with what waits.
func TestOldestByIndex(t *testing.T) {
	f := start(t)
	ids, priorities := []int64{}, []int{}
	err := f.RunInTransaction(func(tx core.App) error {
		for i, p := range []int{5, 1, 9, 1, 3, 1} {
			b := table.Batch{Queue: "q", Kind: kind, Priority: p, Attempts: 1, At: time.UnixMilli(int64(10 - i)), Now: time.UnixMilli(1)}
			if _, err := table.Insert(tx, b, []table.Fresh{{ID: int64(i + 1), Payload: "1"}}); err != nil {
				return err
			}
		}
		for _, oldest := range []bool{true, false} {
			list, err := table.Take(tx, table.Claim{Queue: "q", Epoch: "e", N: 2, Oldest: oldest, Now: time.UnixMilli(20)})
			if err != nil {
				return err
			}
			for _, r := range list {
				ids, priorities = append(ids, r.ID), append(priorities, r.Priority)
			}
		}
		return nil
	})
	// The last ones are the oldest; by priority, of those that are left, the fourth and the second.
	if err != nil || !slices.Equal(ids, []int64{6, 5, 4, 2}) || !slices.Equal(priorities, []int{1, 3, 1, 1}) {
		t.Errorf("%v %v, %v", ids, priorities, err)
	}
	var plan []struct{ Detail string }
	query := `EXPLAIN QUERY PLAN ` + table.Oldest(`state = 0 AND queue = {:queue}`)
	if err := f.DB().NewQuery(query).Bind(dbx.Params{"queue": "q", "n": 2}).All(&plan); err != nil {
		t.Fatal(err)
	}
	searches := 0
	for _, line := range plan {
		if strings.Contains(line.Detail, table.Queue) {
			searches++
			if !strings.Contains(line.Detail, "SEARCH "+table.Queue+" USING COVERING INDEX "+table.Queue+"_ready (queue=? AND priority=?)") {
				t.Errorf("plan: %s", line.Detail)
			}
		}
	}
	if searches != 9 {
		t.Errorf("%d searches: %v", searches, plan)
	}
}

func TestKeys(t *testing.T) {
	g := newGate()
	f := start(t, work(func(ctx context.Context, _ *Job, _ int) error { return g.pass(ctx) }))
	first := f.enqueue(t, 1, Options{Key: "a"})
	if again := f.enqueue(t, 2, Options{Key: "a"}); again != first {
		t.Error("two jobs have a key")
	}
	byInput := f.enqueue(t, 7, Options{KeyByInput: true})
	if f.enqueue(t, 7, Options{KeyByInput: true}) != byInput || f.enqueue(t, 8, Options{KeyByInput: true}) == byInput {
		t.Error("the key is not that of the input")
	}
	long := f.enqueue(t, 1, Options{Key: "b", KeyFor: time.Hour})
	close(g.open)
	for _, id := range []string{first, byInput, long} {
		f.await(t, id, Succeeded)
	}
	if f.enqueue(t, 1, Options{Key: "a"}) == first {
		t.Error("the key of a job that has ended is still taken")
	}
	if f.enqueue(t, 1, Options{Key: "b", KeyFor: time.Hour}) != long {
		t.Error("the key is free before its time")
	}
	if _, err := f.NonconcurrentDB().Update(table.Keys, dbx.Params{"until": 1}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	if f.enqueue(t, 1, Options{Key: "b", KeyFor: time.Hour}) == long {
		t.Error("the key is taken after its time")
	}
	ids, err := f.jobs.EnqueueAll(f.App.App, kind, []any{1, 2, 1}, Options{KeyByInput: true})
	if err != nil || ids[0] != ids[2] || ids[0] == ids[1] {
		t.Errorf("in one batch: %v %v", ids, err)
	}
}

func TestLater(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }))
	far := f.enqueue(t, 1, Options{Delay: time.Hour})
	soon := f.enqueue(t, 1, Options{Delay: 30 * time.Millisecond})
	f.await(t, soon, Succeeded)
	if s, err := f.jobs.Get(f.App.App, far); err != nil || s.State != Scheduled {
		t.Fatalf("%+v %v", s, err)
	}
	if cancelled, err := f.jobs.Cancel(f.App.App, far); err != nil || !cancelled {
		t.Fatalf("%v %v", cancelled, err)
	}
	if cancelled, err := f.jobs.Cancel(f.App.App, far); err != nil || cancelled {
		t.Fatalf("a second time: %v %v", cancelled, err)
	}
	f.await(t, far, Cancelled)
}

// The jobs of a lane are done one after the other, and do not keep others from being done.
func TestLanes(t *testing.T) {
	g := newGate()
	f := start(t, Define(Spec[int]{Kind: kind, PerLane: 2, Work: func(ctx context.Context, job *Job, n int) error {
		if n == 0 {
			return nil
		}
		return g.pass(ctx)
	}}))
	var slow []string
	for range 30 {
		slow = append(slow, f.enqueue(t, 1, Options{Lane: "user"}))
	}
	await(t, "two of the lane", func() bool { return g.in.Load() == 2 })
	f.await(t, f.enqueue(t, 0, Options{}), Succeeded)
	f.await(t, f.enqueue(t, 0, Options{Lane: "another"}), Succeeded)
	await(t, "the others to be held", func() bool { return f.count(t, table.Queue+" WHERE state = 4") == 28 })
	close(g.open)
	for _, id := range slow {
		f.await(t, id, Succeeded)
	}
	if most := g.most.Load(); most != 2 {
		t.Errorf("%d jobs of the lane at a time", most)
	}
}

func TestFailures(t *testing.T) {
	var napped sync.Map
	f := start(t, work(func(ctx context.Context, job *Job, n int) error {
		switch n {
		case 1:
			return fmt.Errorf("attempt %d", job.Attempt)
		case 2:
			return Permanent(errors.New("never"))
		case 3:
			if job.Attempt < 3 {
				panic("again")
			}
		case 4:
			if _, again := napped.LoadOrStore(job.ID, true); !again {
				return Snooze(time.Millisecond)
			}
		case 5:
			return RetryAfter(time.Hour, errors.New("busy"))
		}
		return nil
	}))
	for n, want := range map[int]struct {
		state    State
		attempts int
		err      string
	}{
		1: {Dead, 3, "attempt 3"},
		2: {Dead, 1, "never"},
		3: {Succeeded, 3, ""},
		4: {Succeeded, 1, ""},
		5: {Scheduled, 1, "busy"},
	} {
		s := f.await(t, f.enqueue(t, n, Options{}), want.state)
		if s.Attempts != want.attempts || s.Err != want.err {
			t.Errorf("%d: %+v", n, s)
		}
		if n == 5 && time.Until(s.DueAt) < 50*time.Minute {
			t.Errorf("due at %s", s.DueAt)
		}
	}
}

func TestTimeoutAndExpiry(t *testing.T) {
	f := start(t, Define(Spec[int]{Kind: kind, Timeout: 20 * time.Millisecond, Attempts: 1, Work: func(ctx context.Context, _ *Job, _ int) error {
		<-ctx.Done()
		return ctx.Err()
	}}))
	f.await(t, f.enqueue(t, 1, Options{}), Dead)
	f.await(t, f.enqueue(t, 1, Options{Expires: time.Now().Add(-time.Second)}), Expired)
	if f.count(t, table.Queue+" WHERE state <> 3") != 0 {
		t.Error("what the job was given is still there")
	}
}

func TestInterrupt(t *testing.T) {
	g := newGate()
	f := start(t, work(func(ctx context.Context, _ *Job, _ int) error { return g.pass(ctx) }))
	id := f.enqueue(t, 1, Options{})
	f.await(t, id, Running)
	if cancelled, err := f.jobs.Cancel(f.App.App, id); err != nil || cancelled {
		t.Fatalf("a running job: %v %v", cancelled, err)
	}
	if err := f.jobs.Interrupt(f.App.App, id); err != nil {
		t.Fatal(err)
	}
	f.await(t, id, Cancelled)
	if err := f.jobs.Interrupt(f.App.App, id); !errors.Is(err, ErrNotWaiting) {
		t.Errorf("one that has ended: %v", err)
	}
	if err := f.jobs.Retry(f.App.App, id, nil); !errors.Is(err, ErrNotWaiting) {
		t.Errorf("retry of one that has ended: %v", err)
	}
}

// A step that is done is not done again in the next attempt.
func TestOnce(t *testing.T) {
	f := start(t, work(func(_ context.Context, job *Job, _ int) error {
		for _, step := range []string{"a", "b"} {
			err := job.Once(job.jobs.app, step, func(tx core.App) error {
				_, err := tx.NonconcurrentDB().NewQuery("INSERT INTO effects VALUES ({:step})").Bind(dbx.Params{"step": step}).Execute()
				return err
			})
			if err != nil {
				return err
			}
			if job.Attempt == 1 {
				return errors.New("after the first step")
			}
		}
		return nil
	}))
	if _, err := f.NonconcurrentDB().NewQuery("CREATE TABLE effects (step TEXT)").Execute(); err != nil {
		t.Fatal(err)
	}
	f.await(t, f.enqueue(t, 1, Options{}), Succeeded)
	if f.count(t, "effects") != 2 {
		t.Errorf("%d effects", f.count(t, "effects"))
	}
}

// Writes of jobs leave the remembered answers of reads good.
func TestQuiet(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }))
	version := func() (v string) { // while somebody writes, nobody knows it
		for exact := false; !exact; {
			v, exact = f.db.Version()
		}
		return v
	}
	before := version()
	f.await(t, f.enqueue(t, 1, Options{}), Succeeded)
	if after := version(); after != before {
		t.Errorf("%s, then %s", before, after)
	}
}

// An idle queue writes and reads nothing.
func TestIdle(t *testing.T) {
	f := start(t, work(func(context.Context, *Job, int) error { return nil }))
	f.await(t, f.enqueue(t, 1, Options{}), Succeeded)
	// The pump is at rest when nothing is due for as long as it listens.
	await(t, "rest", func() bool {
		return f.jobs.nextDue.Load() > time.Now().Add(time.Hour).UnixMilli() && len(f.jobs.wake) == 0
	})
	if err := f.jobs.stop(t.Context()); err != nil { // so that this test may look at what is the pump's
		t.Fatal(err)
	}
	if wait := f.jobs.pause(); wait != listenEvery {
		t.Errorf("the pump waits %s only", wait)
	}
}

func TestConfig(t *testing.T) {
	var q table.Workers
	if err := q.UnmarshalText([]byte(" mail=4, slow = 1 ,")); err != nil || q["mail"] != 4 || q["slow"] != 1 {
		t.Errorf("%v %v", q, err)
	}
	for _, text := range []string{"mail", "mail=0", "mail=x", "a b=1", "=3"} {
		if q.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is accepted", text)
		}
	}
	for name, c := range map[string]Config{
		"workers": {Keep: time.Hour, KeepDead: time.Hour}, "keep": {Workers: 1}, "drain": {Workers: 1, Keep: time.Hour, KeepDead: time.Hour, Drain: time.Hour},
	} {
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
