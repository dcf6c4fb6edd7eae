package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// liveFrame is what a client of satchel.rt.v1 needs of a frame.
type liveFrame struct {
	Type, ID, Sub, Action, Cursor, Code, Reason string

	Version int64
	Record  struct{ N float64 }
}

// listener is such a client.
type listener struct {
	ws     *websocket.Conn
	cursor string
}

// listen signs in and subscribes to a collection, from a cursor on if there is one.
func (s *server) listen(t *testing.T, token, collection, cursor string, known []string) *listener {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), strings.Replace(s.URL, "http", "ws", 1)+"/api/v1/live", &websocket.DialOptions{Subprotocols: []string{"satchel.rt.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(1 << 20)
	l := &listener{ws: ws, cursor: cursor}
	sub := map[string]any{"type": "sub", "sub": "s", "collection": collection}
	if cursor != "" {
		sub["cursor"], sub["known"] = cursor, known
	}
	for _, f := range []map[string]any{{"type": "auth", "token": token}, sub} {
		raw, err := json.Marshal(f)
		if err == nil {
			err = ws.Write(t.Context(), websocket.MessageText, raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for {
		f, err := l.next(t.Context())
		if err != nil || f.Type == "error" {
			t.Fatalf("%+v %v", f, err)
		}
		if f.Type == "subbed" {
			l.cursor = f.Cursor
			return l
		}
	}
}

func (l *listener) next(ctx context.Context) (liveFrame, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var f liveFrame
	_, raw, err := l.ws.Read(ctx)
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if f.Type == "cursor" {
		l.cursor = f.Cursor
	}
	return f, err
}

// TestLiveResumes lets a client sleep through a thousand changes and a restart of the server. It misses none, sees none
// twice, and takes back what it held and may not see any more.
func TestLiveResumes(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	admin := s.superuser(t)
	owner := `owner = @request.auth.id`
	s.do(t, request{Method: http.MethodPost, Path: "/api/collections", Token: admin, JSON: map[string]any{
		"name": "ticks", "type": "base", "listRule": owner, "viewRule": owner,
		"fields": []map[string]any{{"name": "owner", "type": "text"}, {"name": "n", "type": "number"}},
	}}).assertStatus(t, http.StatusOK)
	s.do(t, request{Method: http.MethodPatch, Path: "/api/settings", Token: admin, JSON: map[string]any{
		"batch": map[string]any{"enabled": true, "maxRequests": 50, "timeout": 10},
	}}).assertStatus(t, http.StatusOK)
	id, token := s.user(t, "sleeper@example.com")
	write := func(requests ...map[string]any) {
		t.Helper()
		s.do(t, request{Method: http.MethodPost, Path: "/api/batch", Token: admin, JSON: map[string]any{"requests": requests}}).assertStatus(t, http.StatusOK)
	}
	one := func(method, record string, body map[string]any) map[string]any {
		path := "/api/collections/ticks/records"
		if method != http.MethodPost {
			path += "/" + record
		}
		return map[string]any{"method": method, "url": path, "body": body}
	}
	tick := func(n int) string { return fmt.Sprintf("tick%011d", n) }
	first := s.listen(t, token, "ticks", "", nil)
	for n := range 3 {
		write(one(http.MethodPost, "", map[string]any{"id": tick(n), "owner": id, "n": n}))
	}
	versions := map[string]int64{}
	for last := ""; len(versions) < 3 || last != "cursor"; {
		f, err := first.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if last = f.Type; f.Type == "event" {
			versions[f.ID] = f.Version
		}
	}
	cursor := first.cursor
	_ = first.ws.CloseNow()

	want := map[string]float64{tick(0): 1000}
	sleepThrough := func(from, to int) {
		for ; from < to; from += 25 {
			var requests []map[string]any
			for n := from; n < from+25; n++ { // 50 changes; another's are among them
				requests = append(requests, one(http.MethodPost, "", map[string]any{"id": tick(n), "owner": id, "n": n}))
				if n%5 == 0 {
					requests = append(requests, one(http.MethodPost, "", map[string]any{"id": fmt.Sprintf("else%011d", n), "owner": "another", "n": n}))
				} else {
					requests = append(requests, one(http.MethodPatch, tick(n), map[string]any{"n": n + 1}))
				}
				want[tick(n)] = float64(n)
				if n%5 != 0 {
					want[tick(n)]++
				}
			}
			write(requests...)
		}
	}
	sleepThrough(10, 260)
	write(one(http.MethodPatch, tick(0), map[string]any{"n": 1000}), one(http.MethodPatch, tick(1), map[string]any{"owner": "another"}), one(http.MethodDelete, tick(2), nil))
	if err := s.restart(); err != nil {
		t.Fatal(err)
	}
	sleepThrough(300, 550)

	again := s.listen(t, token, "ticks", cursor, []string{tick(0), tick(1), tick(2)})
	defer func() { _ = again.ws.CloseNow() }()
	got, left := map[string]float64{}, map[string]bool{}
	// The last change is an event behind all others.
	const end = "tick99999999999"
	write(one(http.MethodPost, "", map[string]any{"id": end, "owner": id, "n": -1}))
	for got[end] != -1 {
		f, err := again.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case f.Type == "leave", f.Type == "event" && f.Action == "delete":
			left[f.ID] = true
		case f.Type == "event":
			if f.Version <= versions[f.ID] {
				t.Errorf("%+v came again after version %d", f, versions[f.ID])
			}
			got[f.ID], versions[f.ID] = f.Record.N, f.Version
		case f.Type != "cursor":
			t.Errorf("%+v", f)
		}
	}
	delete(got, end)
	if !maps.Equal(got, want) {
		t.Errorf("%d records came, want %d", len(got), len(want))
	}
	if !left[tick(1)] || !left[tick(2)] || len(left) != 2 {
		t.Errorf("left: %v", left)
	}
	_ = again.ws.Close(websocket.StatusNormalClosure, "")

	// At a restart clients are told to come back.
	waits := s.listen(t, token, "ticks", again.cursor, nil)
	s.terminate(t)
	for {
		if _, err := waits.next(t.Context()); err != nil {
			if code := websocket.CloseStatus(err); code != 1012 {
				t.Errorf("%v", err)
			}
			break
		}
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}
