package sender_test

import (
	"context"
	"fmt"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

func TestCheck(t *testing.T) {
	badge := -1
	for want, n := range map[string]sender.Notification{
		"":          {Title: "Hello", Data: map[string]string{"a": "b"}},
		"title: a":  {},
		"title: m":  {Title: strings.Repeat("x", 4097)},
		"body: m":   {Body: "\xff"},
		"image:":    {Title: "t", Image: "http://example.com/a.png"},
		"badge:":    {Title: "t", Badge: &badge},
		"priority:": {Title: "t", Priority: 9},
		"actions:":  {Title: "t", Actions: []sender.Action{{ID: "a"}}},
		"silent:":   {Title: "t", Silent: true},
		`"aps"`:     {Title: "t", Data: map[string]string{"aps": "x"}},
		`"gcm.n"`:   {Title: "t", Data: map[string]string{"gcm.n": "x"}},
		"sound:":    {Title: "t", Sound: strings.Repeat("x", 129)},
	} {
		err := n.Check()
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", want, err)
		}
	}
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	if sender.CheckData(many) == nil || sender.CheckData(map[string]string{"": "x"}) == nil {
		t.Error("too much data, and a key that is empty, are taken")
	}
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		n       sender.Notification
		life    time.Duration
		urgency sender.Priority
		apns    int
	}{
		{sender.Notification{}, 28 * 24 * time.Hour, sender.PriorityHigh, 10},
		{sender.Notification{Silent: true, TTL: time.Minute}, time.Minute, sender.PriorityNormal, 5},
		{sender.Notification{Silent: true, Priority: sender.PriorityHigh, TTL: sender.NowOrNever}, 0, sender.PriorityHigh, 5},
		{sender.Notification{Priority: sender.PriorityLow, TTL: 1000 * time.Hour}, 28 * 24 * time.Hour, sender.PriorityLow, 1},
	} {
		if c.n.Lifetime() != c.life || c.n.Urgency() != c.urgency || sender.APNsPriority(&c.n) != c.apns {
			t.Errorf("%+v: %v %v %v", c.n, c.n.Lifetime(), c.n.Urgency(), sender.APNsPriority(&c.n))
		}
	}
	p := sender.Push{Notification: &sender.Notification{Data: map[string]string{"a": "1", "b": "1"}}, Data: map[string]string{"b": "2"}}
	if got := p.Payload(); got["a"] != "1" || got["b"] != "2" || p.Notification.Data["b"] != "1" {
		t.Errorf("data %v", got)
	}
}

func same(int) string { return "host" }

func good(context.Context, int) sender.Result { return sender.Result{Outcome: sender.Accepted} }

// away says what a client says when the request is on its way.
func away(ctx context.Context) {
	httptrace.ContextClientTrace(ctx).WroteRequest(httptrace.WroteRequestInfo{})
}

// The first call goes alone, so that the others find a connection; after a quiet time again.
func TestWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := sender.NewPool(50, 50, outbound.NewBreakers(0))
		var inFlight, alone, most atomic.Int64
		call := func(ctx context.Context, _ int) sender.Result {
			away(ctx)
			now := inFlight.Add(1)
			most.Store(max(most.Load(), now))
			time.Sleep(time.Second)
			if inFlight.Add(-1) == 0 && now == 1 {
				alone.Add(1)
			}
			return sender.Result{Outcome: sender.Accepted}
		}
		for round, want := range []int64{1, 1, 2} {
			begin := time.Now()
			pool.Each(t.Context(), 50, same, call)
			seconds := int(time.Since(begin).Seconds())
			if alone.Load() != want || seconds > 2 || most.Load() > 50 {
				t.Errorf("round %d: %d calls were alone, %d s", round, alone.Load(), seconds)
			}
			if round == 1 {
				time.Sleep(2 * time.Minute)
			}
		}
	})
}

// While calls are made, there are few of them; those that wait for an answer are no matter, and one that cannot be made
// keeps the others for a moment only.
func TestFewStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := sender.NewPool(100, 100, outbound.NewBreakers(0))
		pool.Each(t.Context(), 1, same, good) // the connection is there
		var starting, most atomic.Int64
		begin := time.Now()
		pool.Each(t.Context(), 100, same, func(ctx context.Context, i int) sender.Result {
			most.Store(max(most.Load(), starting.Add(1)))
			if i == 0 {
				time.Sleep(5 * time.Second) // it does not even connect
			} else {
				time.Sleep(time.Millisecond)
			}
			starting.Add(-1)
			away(ctx)
			time.Sleep(time.Second)
			return sender.Result{Outcome: sender.Accepted}
		})
		if took := time.Since(begin); most.Load() > int64(runtime.GOMAXPROCS(0))+1 || took != 6*time.Second {
			t.Errorf("%d calls were made at once; all took %v", most.Load(), took)
		}
	})
}

// A provider that does not answer keeps a call no longer than 12 s, and all who call it no longer than two rounds of that.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := sender.NewPool(10, 10, outbound.NewBreakers(0))
		var calls atomic.Int64
		hang := func(ctx context.Context, _ int) sender.Result {
			calls.Add(1)
			<-ctx.Done()
			return sender.Unanswered(ctx.Err())
		}
		begin := time.Now()
		results := pool.Each(t.Context(), 500, same, hang)
		if took := time.Since(begin); took > 25*time.Second || calls.Load() > 20 {
			t.Errorf("%v, %d calls", took, calls.Load())
		}
		if first, last := results[0], results[499]; first.Code != sender.CodeTimeout || last.Code != sender.CodeBreaker || last.After <= 0 {
			t.Errorf("%+v, %+v", first, last)
		}
		if r := pool.Each(t.Context(), 1, func(int) string { return "other" }, good)[0]; r.Outcome != sender.Accepted {
			t.Errorf("another host: %+v", r)
		}
	})
}

// One slow host does not take the calls of all.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := sender.NewPool(10, 4, outbound.NewBreakers(0))
		var wait sync.WaitGroup
		wait.Go(func() {
			pool.Each(t.Context(), 100, same, func(ctx context.Context, _ int) sender.Result {
				<-ctx.Done()
				return sender.Result{Outcome: sender.Rejected} // slow, but not down
			})
		})
		time.Sleep(3 * time.Second)
		begin := time.Now()
		pool.Each(t.Context(), 100, func(int) string { return "quick" }, good)
		if took := time.Since(begin); took > 0 {
			t.Errorf("the quick host waited %v", took)
		}
		wait.Wait()
	})
}

// Hosts that clients make up do not fill the memory.
func TestHostsAreBounded(t *testing.T) {
	pool := sender.NewPool(10, 4, outbound.NewBreakers(0))
	pool.Each(t.Context(), 20_000, func(i int) string { return fmt.Sprint(i) }, good)
	if n := sender.Hosts(pool); n > 4096 {
		t.Errorf("%d hosts are kept", n)
	}
}
