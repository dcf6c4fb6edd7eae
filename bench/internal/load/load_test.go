package load_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
)

// serve answers in each of the ways that a client must understand.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestLoopCountsEveryAnswer(t *testing.T) {
	var served atomic.Int64
	seen := make(chan string, 1)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		switch r.URL.Path {
		case "/length":
			fmt.Fprint(w, strings.Repeat("a", 10))
		case "/chunked":
			for range 3 {
				fmt.Fprint(w, strings.Repeat("b", 10))
				w.(http.Flusher).Flush()
			}
		case "/unchanged":
			w.WriteHeader(http.StatusNotModified)
		case "/echo":
			body, _ := io.ReadAll(r.Body)
			select {
			case seen <- r.Header.Get("Authorization") + " " + r.Header.Get("Content-Type") + " " + string(body):
			default:
			}
		}
	})
	pool := []load.Request{
		load.NewRequest("GET", addr, "/length", nil),
		load.NewRequest("GET", addr, "/chunked", nil),
		load.NewRequest("GET", addr, "/unchanged", nil),
		load.NewRequest("POST", addr, "/echo", []byte(`{"a":1}`), load.Header{Name: "Authorization", Value: "token"}),
	}
	l, err := load.NewLoop(t.Context(), addr, 4, pool, http.StatusOK, http.StatusNotModified)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Run(t.Context(), 20*time.Millisecond)
	before := served.Load()
	l.Forget()
	l.Run(t.Context(), 50*time.Millisecond)
	got := l.Tally()
	if got.Failures != 0 || got.Ops == 0 || int64(got.Ops) != served.Load()-before || got.Latency.Count() != got.Ops {
		t.Errorf("%d operations, %d failures (%s), %d latencies; the server saw %d", got.Ops, got.Failures, got.Failure, got.Latency.Count(), served.Load()-before)
	}
	// One in four answers has 10 bytes, one 30, two none; clients may stop in the middle of a turn.
	if low, high := int64(got.Ops-16)*10, int64(got.Ops+16)*10; got.Bytes < low || got.Bytes > high {
		t.Errorf("%d bytes in %d answers", got.Bytes, got.Ops)
	}
	if text := <-seen; text != `token application/json {"a":1}` {
		t.Errorf("the server saw %q", text)
	}
}

func TestLoopReportsFailures(t *testing.T) {
	var n atomic.Int64
	addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) % 3 {
		case 0:
			http.Error(w, "refused", http.StatusTooManyRequests)
		case 1:
			panic(http.ErrAbortHandler) // ends the connection without an answer
		}
	})
	l, err := load.NewLoop(t.Context(), addr, 1, []load.Request{load.NewRequest("GET", addr, "/", nil)}, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Run(t.Context(), 50*time.Millisecond)
	got := l.Tally()
	if want := got.Ops * 2 / 3; got.Failures < want-1 || got.Failures > want+1 || got.Ops < 3 {
		t.Errorf("%d failures in %d operations, want two of three", got.Failures, got.Ops)
	}
	if got.Failure == "" {
		t.Error("no failure is explained")
	}
}

// Each client of a chain presents what it was given last; a refusal and a broken connection do not lose the place.
func TestChains(t *testing.T) {
	var n atomic.Int64
	at := []int{0, 0, 0}
	var mu sync.Mutex
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var client, place int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d/%d", &client, &place); err != nil || at[client] != place {
			t.Errorf("%s, but client %d is at %d", r.URL.Path, client, at[client])
		}
		switch n.Add(1) % 5 {
		case 0:
			http.Error(w, "refused", http.StatusServiceUnavailable)
			return
		case 1:
			panic(http.ErrAbortHandler) // ends the connection without an answer
		}
		at[client]++
		fmt.Fprintf(w, "/%d/%d", client, at[client])
	})
	get := func(path string) load.Request { return load.NewRequest("GET", addr, path, nil) }
	follow := func(body []byte) (load.Request, error) { return get(string(body)), nil }
	l, err := load.NewChains(t.Context(), addr, []load.Request{get("/0/0"), get("/1/0"), get("/2/0")}, follow, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		l.Run(t.Context(), 30*time.Millisecond)
	}
	got := l.Tally()
	if sum := at[0] + at[1] + at[2]; sum == 0 || got.Ops-got.Failures != sum {
		t.Errorf("%d operations, %d failures, but the chains have %d links: %s", got.Ops, got.Failures, sum, got.Failure)
	}
}

func TestFetch(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"1"`)
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "short and stout")
	})
	got, err := load.Fetch(t.Context(), addr, load.NewRequest("GET", addr, "/", nil))
	if err != nil || got.Status != http.StatusTeapot || got.Header.Get("ETag") != `"1"` || string(got.Body) != "short and stout" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHistogram(t *testing.T) {
	var all []time.Duration
	var parts [3]load.Histogram
	for i := range 20_000 {
		d := time.Duration(i*i) * 7 // 0 to 2.8 s
		all = append(all, d)
		parts[i%3].Record(d)
	}
	slices.Sort(all)
	var h load.Histogram
	for _, p := range parts {
		h.Merge(p)
	}
	if h.Count() != len(all) {
		t.Fatalf("%d durations, want %d", h.Count(), len(all))
	}
	for _, q := range []float64{0, 0.01, 0.5, 0.95, 0.99, 1} {
		want := all[int(q*float64(len(all)-1))]
		got := h.Quantile(q)
		if got > want || got < want-want/64-1 {
			t.Errorf("quantile %v is %v, want %v to 1/64", q, got, want)
		}
	}
	var none load.Histogram
	if none.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
}
