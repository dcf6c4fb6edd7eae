package webpush_test

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/sender/conformance"
)

// hostile is a push service of somebody who has registered it.
func hostile(t *testing.T, handler http.HandlerFunc) (f fixture, token string) {
	f = start(t)
	server, err := loopback.Serve("127.0.0.1:0", f.root, handler, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return f, strings.Replace(f.subscription(t, "", ""), f.URL, server.URL, 1)
}

func (f fixture) push(t *testing.T, token string) sender.Result {
	return f.sender(t, 4, outbound.NewBreakers(0)).Send(t.Context(), []sender.Push{{Target: sender.Target{Token: token}, Notification: conformance.Full()}})[0]
}

// What a push service calls the message is kept for each, so that it must be short.
func TestLongLocation(t *testing.T) {
	f, token := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", strings.Repeat("x", 50_000))
		w.WriteHeader(http.StatusCreated)
	})
	if r := f.push(t, token); r.Outcome != sender.Accepted || len(r.ID) > 2048 {
		t.Errorf("%v with %d bytes of id", r.Outcome, len(r.ID))
	}
}

// Nothing is done with the body of an answer, and so it costs nothing.
func TestLongAnswer(t *testing.T) {
	f, token := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, strings.Repeat("x", 500_000))
	})
	f.push(t, token) // what is made once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := f.push(t, token)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; r.Outcome != sender.Accepted || n > 2<<20 {
		t.Errorf("%v, with %d bytes of memory", r.Outcome, n)
	}
}
