package idempotency

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

func plainPost() *core.RequestEvent {
	e := &core.RequestEvent{}
	e.Request = &http.Request{Method: http.MethodPost, Pattern: "POST /api/collections/{collection}/records", Header: http.Header{"Accept": {"*/*"}}}
	return e
}

// A request without a key must not pay for those with one: no allocation, and so no query.
func TestNoKeyCostsNothing(t *testing.T) {
	for _, deps := range []Deps{{}, {Route: func(string, string) Policy { return Policy{} }}} {
		k := newKeeper(Config{}, deps)
		e := plainPost()
		if n := testing.AllocsPerRun(100, func() {
			if err := k.serve(e); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkNoKey(b *testing.B) {
	k := newKeeper(Config{}, Deps{Route: func(string, string) Policy { return Policy{} }})
	e := plainPost()
	b.ReportAllocs()
	for b.Loop() {
		if err := k.serve(e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreate is a create over HTTP, without a key, with one, and its repeat. Clients are parallelism times processors.
func BenchmarkCreate(b *testing.B) {
	var n atomic.Int64
	run := n.Add(1)
	for _, kind := range []string{"plain", "keyed", "repeated"} {
		for _, clients := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/parallelism=%d", kind, clients), func(b *testing.B) {
				f := start(b, setup{})
				client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
				defer client.CloseIdleConnections()
				b.SetParallelism(clients)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					mine := n.Add(1)
					for i := 0; pb.Next(); i++ {
						req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, f.URL+notesPath, strings.NewReader(`{"title":"of the benchmark"}`))
						if err != nil {
							b.Error(err)
							return
						}
						req.Header.Set("Content-Type", "application/json")
						req.Header.Set("Authorization", f.ada)
						switch kind {
						case "keyed":
							req.Header.Set(Header, fmt.Sprintf("key-of-the-benchmark-%d-%d-%d", run, mine, i))
						case "repeated":
							req.Header.Set(Header, fmt.Sprintf("key-of-the-benchmark-%d-%d", run, mine))
						}
						resp, err := client.Do(req)
						if err != nil {
							b.Error(err)
							return
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
						if resp.StatusCode != http.StatusOK {
							b.Errorf("status %d", resp.StatusCode)
							return
						}
					}
				})
			})
		}
	}
}
