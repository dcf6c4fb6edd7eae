package outbound_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// peer is a host of its own that behaves as a test says.
type peer struct {
	*httptest.Server

	calls  atomic.Int64
	behave atomic.Pointer[http.HandlerFunc]
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	p := &peer{}
	p.set(fine)
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.calls.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // the server sees that a caller has gone once it has read what came
		(*p.behave.Load())(w, r)
	}))
	t.Cleanup(p.CloseClientConnections)
	t.Cleanup(p.Close)
	return p
}

func (p *peer) set(h http.HandlerFunc) { p.behave.Store(&h) }

func fine(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") }

// reset ends the connection as a crashed peer does.
func reset(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 ends the stream
	}
	_ = conn.Close()
}

// slow answers nothing in the time that the caller has.
func slow(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// slowBody answers at once, and then never ends.
func slowBody(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "begun")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// cut promises more than it sends.
func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, "begun")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func broken(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }

const (
	brief = 100 * time.Millisecond // for a peer that does not answer
	ample = 10 * time.Second       // for one that does, also on a busy machine
)

// ask makes a call as callers do, to the end of the body.
func ask(t *testing.T, client *http.Client, url string, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = outbound.Read(resp.Body, 1<<10)
	return err
}

// A host that resets, does not answer, does not end its answer or fails is left alone after ten calls; others are not; and
// one call after the pause shows that it is well again.
func TestBreakerOfAPeer(t *testing.T) {
	const pause = 300 * time.Millisecond
	for name, behave := range map[string]http.HandlerFunc{"reset": reset, "slow": slow, "slow body": slowBody, "cut": cut, "broken": broken} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, good := newPeer(t), newPeer(t)
			client := outbound.NewClient(outbound.Options{AllowLoopback: true, Root: bad.Certificate(), Breakers: outbound.NewBreakers(pause)})
			t.Cleanup(client.CloseIdleConnections)
			bad.set(behave)
			opened := 0
			for i := range 40 {
				var open *outbound.OpenError
				if err := ask(t, client, bad.URL, brief); errors.As(err, &open) {
					if opened = i; open.Wait <= 0 || "https://"+open.Host != bad.URL {
						t.Errorf("%+v", open)
					}
					break
				}
			}
			if opened < 10 || opened > 20 {
				t.Fatalf("the breaker has opened after %d calls", opened)
			}
			before := bad.calls.Load()
			var open *outbound.OpenError
			if err := ask(t, client, bad.URL, brief); !errors.As(err, &open) || bad.calls.Load() != before {
				t.Errorf("a host that does not work is called: %v", err)
			}
			if err := ask(t, client, good.URL, ample); err != nil {
				t.Errorf("another host: %v", err)
			}
			bad.set(fine)
			for end := time.Now().Add(10 * time.Second); ask(t, client, bad.URL, ample) != nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the breaker does not close")
				}
			}
			for range 5 {
				if err := ask(t, client, bad.URL, ample); err != nil {
					t.Fatalf("closed: %v", err)
				}
			}
		})
	}
}

// What the caller itself ends, and answers that blame the caller, are nothing against a host.
func TestBreakerBlamesThePeer(t *testing.T) {
	p := newPeer(t)
	client := outbound.NewClient(outbound.Options{AllowLoopback: true, Root: p.Certificate(), Breakers: outbound.NewBreakers(time.Hour)})
	t.Cleanup(client.CloseIdleConnections)
	p.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	for range 30 {
		if err := ask(t, client, p.URL, ample); err != nil {
			t.Fatal(err)
		}
	}
	p.set(slow)
	for range 30 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		before := p.calls.Load()
		go func() {
			for p.calls.Load() == before && t.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if err != nil && !errors.Is(err, context.Canceled) { // the peer may answer as the connection ends
			t.Fatal(err)
		}
	}
	p.set(fine)
	if err := ask(t, client, p.URL, ample); err != nil {
		t.Error(err)
	}
}

// The operator's own address may be inside, and still no metadata service.
func TestPrivate(t *testing.T) {
	p := newPeer(t)
	client := outbound.NewClient(outbound.Options{AllowPrivate: true, Root: p.Certificate()})
	t.Cleanup(client.CloseIdleConnections)
	if err := ask(t, client, p.URL, ample); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"https://169.254.169.254/latest", "https://[fe80::1]/", "https://100.100.100.200/", "https://0.0.0.0/"} {
		if err := ask(t, client, url, ample); !errors.Is(err, outbound.ErrAddress) {
			t.Errorf("%s: %v", url, err)
		}
	}
	// A private address is dialled, whatever is or is not there.
	if err := ask(t, client, "https://10.255.255.1:9/", brief); errors.Is(err, outbound.ErrAddress) || errors.Is(err, outbound.ErrPort) {
		t.Errorf("private: %v", err)
	}
}
