package load_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/satchelbase/satchel/bench/internal/load"
)

// broker is a small server of PocketBase's realtime protocol.
type broker struct {
	mu      sync.Mutex
	streams map[string]chan string
	ready   map[string]bool
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		var body struct {
			ClientID      string
			Subscriptions []string
		}
		if json.NewDecoder(r.Body).Decode(&body) != nil || r.Header.Get("Authorization") != "token" || !slices.Equal(body.Subscriptions, []string{"message/*"}) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		b.mu.Lock()
		b.ready[body.ClientID] = true
		b.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
		return
	}
	b.mu.Lock()
	id, messages := fmt.Sprint(len(b.streams)), make(chan string, 10)
	b.streams[id] = messages
	b.mu.Unlock()
	fmt.Fprintf(w, "id:%s\nevent:PB_CONNECT\ndata:{\"clientId\":%q}\n\n", id, id)
	for {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case m := <-messages:
			fmt.Fprint(w, m)
		}
	}
}

// send delivers to all subscribers but the first skip.
func (b *broker) send(event string, skip int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.ready {
		if skip--; skip < 0 {
			b.streams[id] <- "id:" + id + "\nevent:" + event + "\ndata:{\"text\":\"" + strings.Repeat("a", 5000) + "\"}\n\n"
		}
	}
}

func TestAudience(t *testing.T) {
	b := &broker{streams: map[string]chan string{}, ready: map[string]bool{}}
	addr := serve(t, b.ServeHTTP)
	a := load.NewAudience(addr, "message/*")
	defer a.Close()
	if err := a.Join(t.Context(), load.Header{Name: "Authorization", Value: "wrong"}); err == nil {
		t.Fatal("a refused subscription is no error")
	}
	a.Close()

	const n = 20
	a = load.NewAudience(addr, "message/*")
	defer a.Close()
	for range n {
		if err := a.Join(t.Context(), load.Header{Name: "Authorization", Value: "token"}); err != nil {
			t.Fatal(err)
		}
	}
	done := a.Expect(n)
	b.send("message/*", 0)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the message did not reach everybody")
	}
	if h := a.Latency(); h.Count() != n {
		t.Errorf("%d deliveries, want %d", h.Count(), n)
	}
	a.Forget()
	done = a.Expect(n)
	b.send("other/*", 0)
	b.send("message/*", 1)
	select {
	case <-done:
		t.Error("one has not got the message")
	case <-time.After(100 * time.Millisecond):
	}
	if h := a.Latency(); h.Count() != n-1 {
		t.Errorf("%d deliveries, want %d", h.Count(), n-1)
	}
}
