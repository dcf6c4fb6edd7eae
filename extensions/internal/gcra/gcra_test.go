package gcra

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a hand-driven clock.
type clock struct{ now time.Duration }

func (c *clock) read() time.Duration { return c.now }

func newTestTable(slots int) (*Table, *clock) {
	c := &clock{now: time.Hour}
	return NewTableWithClock(slots, c.read), c
}

func numbered(n int) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(n))
}

// bucket is the exact model: a leaky bucket whose level is kept in nanoseconds, without a table and without forgetting.
type bucket struct {
	level time.Duration
	last  time.Duration
}

func (b *bucket) take(now, unit time.Duration, limit, burst, cost int) Decision {
	b.level = max(b.level-(now-b.last), 0)
	b.last = now
	d := Decision{Allowed: true, Limit: limit}
	if over := b.level + time.Duration(min(cost, burst))*unit - time.Duration(burst)*unit; over > 0 {
		d.Allowed, d.RetryAfter = false, over
	} else {
		b.level += time.Duration(min(cost, limit)) * unit
	}
	d.Reset = b.level
	d.Remaining = int(max(time.Duration(burst)*unit-b.level, 0) / unit)
	return d
}

func TestTakeMatchesExactModel(t *testing.T) {
	policies := []Policy{
		{Name: "ip", Limit: 600, Window: time.Minute},
		{Name: "user", Limit: 300, Window: time.Minute, Burst: 60},
		{Name: "auth", Limit: 10, Window: 15 * time.Minute},
		{Name: "odd", Limit: 7, Window: time.Minute, Burst: 3},
		{Name: "one", Limit: 1, Window: time.Second},
	}
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		table, clock := newTestTable(1 << 12)
		models := map[[2]int]*bucket{}
		for step := range 20_000 {
			clock.now += time.Duration(random.Int64N(int64(time.Second)))
			if random.IntN(50) == 0 {
				clock.now += time.Duration(random.Int64N(int64(5 * time.Minute)))
			}
			p, key := random.IntN(len(policies)), random.IntN(8)
			model := models[[2]int{p, key}]
			if model == nil {
				model = &bucket{last: clock.now}
				models[[2]int{p, key}] = model
			}
			policy := policies[p]
			cost := 1 + random.IntN(2*policy.Limit)
			if random.IntN(2) == 0 {
				cost = 1
			}
			peeked := table.Peek(numbered(key), policy, cost)
			got := table.Take(numbered(key), policy, cost)
			want := model.take(clock.now, policy.Window/time.Duration(policy.Limit), policy.Limit, policy.AtOnce(), cost)
			if got != want {
				t.Fatalf("seed %d step %d: %s cost %d: got %+v, want %+v", seed, step, policy.Name, cost, got, want)
			}
			if peeked.Allowed != got.Allowed || peeked.RetryAfter != got.RetryAfter {
				t.Fatalf("seed %d step %d: peek said %+v, take %+v", seed, step, peeked, got)
			}
		}
	}
}

// In any stretch of time no more passes than the burst and what grew back meanwhile.
func TestTakeBoundsEveryInterval(t *testing.T) {
	policy := Policy{Name: "user", Limit: 300, Window: time.Minute, Burst: 60}
	table, clock := newTestTable(64)
	random := rand.New(rand.NewPCG(7, 7))
	type passed struct {
		at   time.Duration
		cost int
	}
	var log []passed
	for range 3000 {
		clock.now += time.Duration(random.Int64N(int64(200 * time.Millisecond)))
		cost := 1 + random.IntN(10)
		if table.Take([]byte("k"), policy, cost).Allowed {
			log = append(log, passed{clock.now, cost})
		}
	}
	for i := range log {
		sum := 0
		for j := i; j < len(log); j++ {
			sum += log[j].cost
			most := policy.Burst + int((log[j].at-log[i].at)/policy.unit()) + 1
			if sum > most {
				t.Fatalf("%d units passed within %s, at most %d may", sum, log[j].at-log[i].at, most)
			}
		}
	}
}

func TestRetryAfterAndResetAreExact(t *testing.T) {
	policy := Policy{Name: "user", Limit: 300, Window: time.Minute, Burst: 60}
	table, clock := newTestTable(64)
	key := []byte("k")
	if d := table.Take(key, policy, 58); !d.Allowed || d.Remaining != 2 || d.Reset != 58*200*time.Millisecond {
		t.Fatalf("first request: %+v", d)
	}
	d := table.Take(key, policy, 5)
	if d.Allowed || d.RetryAfter != 3*200*time.Millisecond {
		t.Fatalf("second request: %+v", d)
	}
	clock.now += d.RetryAfter - 1
	if table.Take(key, policy, 5).Allowed {
		t.Fatal("passed a nanosecond before RetryAfter")
	}
	clock.now++
	d = table.Take(key, policy, 5)
	if !d.Allowed || d.Remaining != 0 {
		t.Fatalf("at RetryAfter: %+v", d)
	}
	clock.now += d.Reset
	if d := table.Peek(key, policy, 60); !d.Allowed || d.Remaining != 60 {
		t.Fatalf("after Reset: %+v", d)
	}
}

func TestCostAboveBurst(t *testing.T) {
	policy := Policy{Name: "user", Limit: 300, Window: time.Minute, Burst: 60}
	table, clock := newTestTable(64)
	key := []byte("k")
	table.Take(key, policy, 1)
	if table.Take(key, policy, 250).Allowed {
		t.Fatal("a large cost passed although some of the quota was used")
	}
	clock.now += time.Second
	if d := table.Take(key, policy, 250); !d.Allowed || d.Reset != 50*time.Second {
		t.Fatalf("large cost on a whole quota: %+v", d)
	}
	if d := table.Take(key, policy, 1); d.Allowed || d.RetryAfter != 38200*time.Millisecond {
		t.Fatalf("request after the large one: %+v", d)
	}
	if d := table.Take([]byte("other"), policy, 1_000_000); !d.Allowed || d.Reset != time.Minute {
		t.Fatalf("a cost is at most the limit: %+v", d)
	}
}

func TestGive(t *testing.T) {
	policy := Policy{Name: "ip", Limit: 2, Window: time.Minute}
	table, _ := newTestTable(64)
	key := []byte("k")
	table.Give(key, policy, 1)
	for range 10 {
		if !table.Take(key, policy, 1).Allowed {
			t.Fatal("refused although every unit was given back")
		}
		table.Give(key, policy, 1)
	}
	table.Take(key, policy, 2)
	if table.Take(key, policy, 1).Allowed {
		t.Fatal("giving back added to the quota")
	}
}

func TestPoliciesAreApart(t *testing.T) {
	table, _ := newTestTable(64)
	key := []byte("k")
	one := Policy{Name: "a", Limit: 1, Window: time.Minute}
	if !table.Take(key, one, 1).Allowed || table.Take(key, one, 1).Allowed {
		t.Fatal("limit 1 does not hold")
	}
	one.Name = "b"
	if !table.Take(key, one, 1).Allowed {
		t.Fatal("two policies share a key")
	}
}

// With one set, the table holds exactly eight keys.
func TestVictim(t *testing.T) {
	short := Policy{Name: "short", Limit: 10, Window: 10 * time.Second}
	long := Policy{Name: "long", Limit: 10, Window: 15 * time.Minute}

	t.Run("an expired key goes first", func(t *testing.T) {
		table, clock := newTestTable(ways)
		table.Take(numbered(0), short, 10)
		clock.now += 10 * time.Second
		for i := 1; i < ways; i++ {
			table.Take(numbered(i), short, 1)
		}
		table.Take([]byte("new"), long, 1)
		for i := 1; i < ways; i++ {
			if d := table.Peek(numbered(i), short, 1); d.Remaining != 9 {
				t.Fatalf("key %d was replaced: %+v", i, d)
			}
		}
	})
	t.Run("else the smallest share, not the nearest time", func(t *testing.T) {
		table, _ := newTestTable(ways)
		table.Take(numbered(0), long, 1) // a tenth used, whole again in 90 s
		for i := 1; i < ways; i++ {
			table.Take(numbered(i), short, 10) // all used, whole again in 10 s
		}
		table.Take([]byte("new"), short, 1)
		if d := table.Peek(numbered(0), long, 1); d.Remaining != 10 {
			t.Fatalf("the key with the smallest share stayed: %+v", d)
		}
		for i := 1; i < ways; i++ {
			if table.Peek(numbered(i), short, 1).Allowed {
				t.Fatalf("key %d, which was held back, was replaced", i)
			}
		}
	})
}

func TestAbuserStaysLimitedUnderSpray(t *testing.T) {
	ip := Policy{Name: "ip", Limit: 600, Window: time.Minute}
	user := Policy{Name: "user", Limit: 300, Window: time.Minute, Burst: 60}
	spray := []Policy{ip, user, {Name: "auth", Limit: 10, Window: 15 * time.Minute}}
	for _, slots := range []int{1 << 14, 1 << 18} {
		table, clock := newTestTable(slots)
		table.Take([]byte("abuser"), ip, 600)
		table.Take([]byte("abuser"), user, 60)
		for i := range 2_000_000 {
			clock.now += 100 * time.Nanosecond // the whole spray takes 200 ms
			table.Take(numbered(i), spray[i%len(spray)], 1)
		}
		// A fifth of a second gives two units of 600 a minute back, and one of 300.
		if d := table.Peek([]byte("abuser"), ip, 3); d.Allowed {
			t.Errorf("%d slots: the address was forgotten: %+v", slots, d)
		}
		if d := table.Peek([]byte("abuser"), user, 2); d.Allowed {
			t.Errorf("%d slots: the user was forgotten: %+v", slots, d)
		}
	}
}

func TestConcurrentTakesAreExact(t *testing.T) {
	const workers, each, limit = 8, 2000, 5000
	policy := Policy{Name: "p", Limit: limit, Window: time.Hour}
	table, _ := newTestTable(1 << 10)
	var allowed [4]atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each * len(allowed) {
				key := i % len(allowed)
				if table.Take(numbered(key), policy, 1).Allowed {
					allowed[key].Add(1)
				}
				table.Peek(numbered(key), policy, 1)
			}
		})
	}
	wg.Go(func() { table.Keys() })
	wg.Wait()
	for key := range allowed {
		if got := allowed[key].Load(); got != limit {
			t.Errorf("key %d: %d of %d passed, want %d", key, got, workers*each, limit)
		}
	}
}

func TestMemoryIsFixed(t *testing.T) {
	const most = 8 << 20
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	table := NewTable(1 << 18)
	policy := Policy{Name: "ip", Limit: 600, Window: time.Hour}
	for i := range 1_000_000 {
		table.Take(numbered(i), policy, 1)
	}
	after := heap()
	if used := int64(after) - int64(before); used > most {
		t.Errorf("a million keys take %d bytes", used)
	}
	if table.Bytes() > 5<<20 {
		t.Errorf("the table takes %d bytes", table.Bytes())
	}
	if keys := table.Keys(); keys < 250_000 || keys > 1<<18 {
		t.Errorf("%d keys after a flood, want a full table", keys)
	}
	runtime.KeepAlive(table)
}

func TestTakeDoesNotAllocate(t *testing.T) {
	table := NewTable(1 << 10)
	policy := Policy{Name: "ip", Limit: 600, Window: time.Minute}
	key := numbered(0)
	if n := testing.AllocsPerRun(1000, func() {
		key[0]++
		table.Take(key, policy, 1)
	}); n != 0 {
		t.Errorf("%v allocations per take", n)
	}
}

func TestKeysCountsLiveKeys(t *testing.T) {
	table, clock := newTestTable(1 << 10)
	policy := Policy{Name: "ip", Limit: 60, Window: time.Minute}
	for i := range 10 {
		table.Take(numbered(i), policy, 1+i)
	}
	if n := table.Keys(); n != 10 {
		t.Errorf("%d keys, want 10", n)
	}
	clock.now += 5 * time.Second
	if n := table.Keys(); n != 5 {
		t.Errorf("%d keys after 5 s, want 5", n)
	}
}

func BenchmarkTake(b *testing.B) {
	table := NewTable(1 << 18)
	policy := Policy{Name: "ip", Limit: 600, Window: time.Minute}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		key := numbered(0)
		for pb.Next() {
			key[7]++
			table.Take(key, policy, 1)
		}
	})
}
