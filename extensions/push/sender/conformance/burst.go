package conformance

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// What Burst does: so many pushes, given to the sender in chunks by so many callers, to a provider that takes so long.
const (
	burst   = 10_000
	chunk   = 500
	callers = 4
	latency = 50 * time.Millisecond

	// BurstSize is how many calls at once the benchmark's senders are made for.
	BurstSize = 500
)

// Burst measures 10,000 pushes to a provider that needs 50 ms, which runs in the same process. It reports pushes a second
// and the most memory in use above that at the start, in MB.
func Burst(b *testing.B, p Provider) {
	s, err := p.New(outbound.NewBreakers(0))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	p.Server.SetLatency(latency)
	pushes := make([]sender.Push, burst)
	n := Full()
	for i := range pushes {
		pushes[i] = sender.Push{Target: sender.Target{Token: p.Token("")}, Notification: n, Data: map[string]string{"delivery": "d"}}
	}
	runtime.GC()
	idle := used()
	var most atomic.Uint64
	stop := make(chan struct{})
	go func() {
		for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
			select {
			case <-stop:
				return
			default:
				most.Store(max(most.Load(), used()))
			}
		}
	}()
	b.ResetTimer()
	for b.Loop() {
		send(b, s, pushes)
	}
	close(stop)
	b.ReportMetric(float64(b.N*burst)/b.Elapsed().Seconds(), "pushes/s")
	b.ReportMetric(float64(max(most.Load(), idle)-idle)/1e6, "MB")
	b.ReportMetric(float64(p.Server.Conns()), "connections")
	b.ReportMetric(float64(p.Server.MaxInFlight()), "in-flight")
}

func used() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func send(b *testing.B, s sender.Sender, pushes []sender.Push) {
	b.Helper()
	chunks := make(chan []sender.Push)
	failed := make(chan sender.Result, burst)
	done := make(chan struct{}, callers)
	for range callers {
		go func() {
			for c := range chunks {
				for _, r := range s.Send(b.Context(), c) {
					if r.Outcome != sender.Accepted {
						failed <- r
					}
				}
			}
			done <- struct{}{}
		}()
	}
	for from := 0; from < len(pushes); from += chunk {
		chunks <- pushes[from:min(from+chunk, len(pushes))]
	}
	close(chunks)
	for range callers {
		<-done
	}
	if len(failed) > 0 {
		b.Fatalf("%d pushes were not accepted, the first: %+v", len(failed), <-failed)
	}
}
