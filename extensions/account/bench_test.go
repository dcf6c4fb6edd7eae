package account

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// amount is how many records the measured account has.
func amount() int {
	if n, err := strconv.Atoi(os.Getenv("ACCOUNT_BENCH_RECORDS")); err == nil {
		return n
	}
	return 100_000
}

// BenchmarkDelete deletes an account with many records while others write, and reports how long these waited for a write
// and how long they do without the deletion. Run it with -benchtime=1x.
func BenchmarkDelete(b *testing.B) {
	for b.Loop() {
		f := start(b, atOnce)
		n := amount()
		f.insert(b, "notes", n, func(i int) dbx.Params {
			return dbx.Params{"id": fmt.Sprintf("note%011d", i*7919%1_000_000_007), "owner": f.ada.Id, "title": "title", "file": "[]"}
		})
		writes := func(until func() bool) []time.Duration {
			var mu sync.Mutex
			var waits []time.Duration
			var stop atomic.Bool
			var group sync.WaitGroup
			for range 4 {
				group.Go(func() {
					for !stop.Load() {
						begun := time.Now()
						record := core.NewRecord(f.collection(b, "posts"))
						record.Set("author", f.bob.Id)
						if err := f.Save(record); err != nil {
							b.Error(err)
							return
						}
						mu.Lock()
						waits = append(waits, time.Since(begun))
						mu.Unlock()
						time.Sleep(5 * time.Millisecond)
					}
				})
			}
			for !until() {
				time.Sleep(10 * time.Millisecond)
			}
			stop.Store(true)
			group.Wait()
			slices.Sort(waits)
			return waits
		}
		at := func(waits []time.Duration, q float64) float64 {
			return float64(waits[int(q*float64(len(waits)-1))].Microseconds()) / 1000
		}
		end := time.Now().Add(5 * time.Second)
		alone := writes(func() bool { return time.Now().After(end) })

		var most uint64
		begun := time.Now()
		answer[Status](b, f.call(b, f.signIn(b, "ada@example.test"), "account.delete"))
		during := writes(func() bool {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
			return f.count(b, "users WHERE id = '"+f.ada.Id+"'") == 0
		})
		took := time.Since(begun)
		b.ReportMetric(float64(n)/took.Seconds(), "records/s")
		b.ReportMetric(float64(most)/(1<<20), "heap-MiB")
		for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99, "max": 1} {
			b.ReportMetric(at(during, q), name+"-ms")
			b.ReportMetric(at(alone, q), name+"-alone-ms")
		}
	}
}
