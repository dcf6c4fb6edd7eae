package live_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/live/frame"
)

// within is how soon a connection must be gone when its session is. The promise is a second; the rest is for a loaded machine.
const within = 3 * time.Second

// gone waits until a connection has ended.
func gone(t testing.TB, what string, closed <-chan struct{}) {
	t.Helper()
	began := time.Now()
	select {
	case <-closed:
		t.Logf("%s: dropped after %v", what, time.Since(began))
	case <-time.After(within):
		t.Errorf("%s is still open after %v", what, within)
	}
}

// However a credential ends, all that it opened is dropped: a socket, a stream, and the stock contract over a socket.
func TestEveryWayToLoseASession(t *testing.T) {
	s := start(t)
	fresh := func(id string) *core.Record {
		t.Helper()
		r, err := s.FindRecordById("users", id)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, end := range map[string]func(id, session, access string){
		"signed out": func(_, session, access string) {
			if status, body := s.do(http.MethodDelete, "/api/v1/auth/sessions/"+session, access, nil); status != http.StatusNoContent {
				t.Fatalf("%d %s", status, body)
			}
		},
		"ended by SQL": func(_, session, _ string) {
			s.exec("INSERT INTO sessions_ended (id, ended_at, reason) VALUES ('" + session + "', 1, 'revoked')")
		},
		"banned: the key of all tokens changes": func(id, _, _ string) {
			r := fresh(id)
			r.RefreshTokenKey()
			s.save(r)
		},
		"deleted": func(id, _, _ string) { s.remove(fresh(id)) },
	} {
		t.Run(name, func(t *testing.T) {
			user := strings.Fields(strings.NewReplacer(":", "", " ", "-").Replace(name))[0]
			account, _ := s.user(user)
			access, stock, session := s.signIn(user)
			socket, stream, ofStock := s.connect(access), s.stream("/api/realtime"), s.stream("/api/realtime")
			s.subscribe(stream, access, "notes/*")
			s.subscribe(ofStock, stock, "notes/*")
			end(account.Id, session, access)
			gone(t, "socket", socket.closed)
			socket.ends(frame.CloseAuth)
			gone(t, "stream", stream.closed)
			gone(t, "stream of a stock token", ofStock.closed)
		})
	}
}

// A stream outlives its token by the moment that its client needs to subscribe with a newer one, and no longer.
func TestStreamEndsWithItsToken(t *testing.T) {
	s := start(t, func(_ *live.Config, d *live.Deps) { d.Patience.Renew = time.Second })
	ada, _ := s.user("ada")
	short := func() string {
		t.Helper()
		token, err := ada.NewStaticAuthToken(2 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	ends, renews := s.stream("/api/realtime"), s.stream("/api/realtime")
	began := time.Now()
	s.subscribe(ends, short(), "notes/*")
	s.subscribe(renews, short(), "notes/*")
	s.subscribe(renews, s.token(ada), "notes/*")
	select {
	case <-ends.closed:
		if lived := time.Since(began); lived < 2*time.Second {
			t.Errorf("the stream ended after %v", lived)
		}
	case <-time.After(patience):
		t.Error("the stream outlives its token")
	}
	s.record("notes", map[string]any{"owner": ada.Id})
	renews.told(t, "notes/*")
}

// Whoever does not say who it is, says it too late, or says nothing that can be understood, is not kept.
func TestFirstFrameIsDue(t *testing.T) {
	s := start(t, func(_ *live.Config, d *live.Deps) { d.Patience.Auth = 300 * time.Millisecond })
	silent := s.dial()
	silent.ends(frame.CloseAuth)
	signed := s.connect("")
	time.Sleep(500 * time.Millisecond) // the limit is for the first frame only
	signed.send(map[string]any{"type": "ping", "id": "1"})
	signed.next("pong")
}

// Clients of the stock contract that do not read are closed, too, and cost no more than others.
func TestPausedStreamIsClosed(t *testing.T) {
	s := start(t, func(c *live.Config, d *live.Deps) { c.Queue, d.Patience.Write = 64<<10, time.Second })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.addr+"/api/realtime", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := narrow().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 4096)
	n, err := resp.Body.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(string(buf[:n]), `"clientId":"`)
	id, _, _ = strings.Cut(id, `"`)
	s.subscribe(&stream{id: id}, "", "posts/*")
	s.flood(t, 3000)
	s.empty(t)
}

// flood makes events of some 5 KB each.
func (s *server) flood(t *testing.T, n int) {
	t.Helper()
	s.exec(fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
		INSERT INTO posts (id, title) SELECT printf('flood%%010d', i), hex(randomblob(2450)) FROM n`, n))
}

// empty waits until nobody is connected.
func (s *server) empty(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); s.metric(t, "satchel_live_connections_count") > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a client that does not read is still connected")
		}
	}
}

// A client that answers no ping is closed with the code that says so.
func TestSilentClientIsClosedWithItsCode(t *testing.T) {
	s := start(t, func(_ *live.Config, d *live.Deps) {
		d.Patience.Ping, d.Patience.Write = 200*time.Millisecond, 300*time.Millisecond
	})
	ws, _, err := websocket.Dial(t.Context(), s.addr+"/api/v1/live", &websocket.DialOptions{
		Subprotocols:   []string{frame.Subprotocol},
		OnPingReceived: func(context.Context, []byte) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte(`{"type":"auth"}`)); err != nil {
		t.Fatal(err)
	}
	for {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, _, err := ws.Read(ctx)
		cancel()
		if err == nil {
			continue
		}
		if code := websocket.CloseStatus(err); code != frame.CloseSlow {
			t.Errorf("%v", err)
		}
		return
	}
}

// flaky are sessions that cannot be read once.
type flaky struct {
	live.Sessions
	failed *atomic.Bool
}

func (f flaky) Ended(ids []string) ([]string, error) {
	if !f.failed.Swap(true) {
		return nil, errors.New("the database is busy")
	}
	return f.Sessions.Ended(ids)
}

// A database that does not answer for a moment keeps no connection of an ended session open.
func TestEndedSessionsAreLookedForAgain(t *testing.T) {
	failed := &atomic.Bool{}
	s := start(t, func(_ *live.Config, d *live.Deps) { d.Sessions = flaky{d.Sessions, failed} })
	s.user("ada")
	access, _, session := s.signIn("ada")
	socket := s.connect(access)
	failed.Store(false)
	s.exec("INSERT INTO sessions_ended (id, ended_at, reason) VALUES ('" + session + "', 1, 'revoked')")
	gone(t, "socket", socket.closed)
	if !failed.Load() {
		t.Error("nothing has failed")
	}
}

// counted are sessions that tell how often they were looked at.
type counted struct {
	live.Sessions
	looks *atomic.Int64
}

func (c counted) Version() uint64 {
	c.looks.Add(1)
	return c.Sessions.Version()
}

// A session that ends while a connection is being opened with it does not stay on it.
func TestSessionEndsWhileItIsVerified(t *testing.T) {
	looks := &atomic.Int64{}
	s := start(t, func(_ *live.Config, d *live.Deps) { d.Sessions = counted{d.Sessions, looks} })
	s.user("ada")
	access, _, session := s.signIn("ada")
	end := sync.OnceFunc(func() {
		s.exec("INSERT INTO sessions_ended (id, ended_at, reason) VALUES ('" + session + "', 1, 'revoked')")
		for seen := looks.Load(); looks.Load() < seen+3; {
			time.Sleep(10 * time.Millisecond)
		}
	})
	s.verified.Store(&end)
	socket := s.dial()
	socket.send(map[string]any{"type": "auth", "token": access})
	gone(t, "socket", socket.closed)
	socket.ends(frame.CloseAuth)
}

// zeros are a body without an end, which counts what is taken of it.
type zeros struct{ taken atomic.Int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.taken.Add(int64(len(p))) > 64<<20 {
		return 0, io.EOF
	}
	clear(p)
	return len(p), nil
}

// Whoever sets subscriptions, and anybody may, cannot make the server hold more than a few megabytes.
func TestSubscriptionsAreBounded(t *testing.T) {
	s := start(t)
	for _, kind := range []string{"multipart/form-data; boundary=x", "application/json"} {
		body := &zeros{}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.addr+"/api/realtime", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		if resp, err := http.DefaultClient.Do(req); err == nil { // or the connection is cut
			_ = resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Errorf("%s: %s", kind, resp.Status)
			}
		}
		if taken := body.taken.Load(); taken > 32<<20 {
			t.Errorf("%s: %d bytes were taken", kind, taken)
		}
	}
}

// An IPv6 network is one guest, whatever address of it he takes, as for the rate limits.
func TestGuestsAreCountedByNetwork(t *testing.T) {
	s := start(t, func(c *live.Config, _ *live.Deps) { c.GuestConnections = 2 })
	handler, n := s.http.Config.Handler, &atomic.Int64{}
	s.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = fmt.Sprintf("[2001:db8::%d]:1", n.Add(1))
		handler.ServeHTTP(w, r)
	})
	s.connect("")
	s.connect("")
	third := s.dial()
	third.send(map[string]any{"type": "auth"})
	third.ends(frame.CloseLimit)
}
