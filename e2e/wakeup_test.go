package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

// TestLiveWakesSync listens as docs/sync.md says, and syncs when it is told that there is something.
func TestLiveWakesSync(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	admin := s.superuser(t)
	s.sharing(t, admin)
	owner, _ := s.user(t, "ann@example.com")
	writer, sleeper := s.device(t, "0", "ann@example.com", owner), s.device(t, "1", "ann@example.com", owner)
	sleeper.drain(t)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, strings.Replace(s.URL, "http", "ws", 1)+"/api/v1/live", &websocket.DialOptions{Subprotocols: []string{"satchel.rt.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	send := func(frame map[string]any) {
		t.Helper()
		if err := wsjson.Write(ctx, conn, frame); err != nil {
			t.Fatal(err)
		}
	}
	// until reads frames up to one of the type, and returns all of them.
	until := func(kind string) (frames []map[string]any) {
		t.Helper()
		for {
			var f map[string]any
			if err := wsjson.Read(ctx, conn, &f); err != nil {
				t.Fatalf("no %s: %v, after %v", kind, err, frames)
			}
			if frames = append(frames, f); f["type"] == kind {
				return frames
			}
		}
	}
	send(map[string]any{"type": "auth", "id": "1", "token": sleeper.token})
	until("ready")
	send(map[string]any{"type": "sub", "id": "2", "sub": "items", "collection": "items", "fields": "id"})
	until("subbed")

	const id = "wakeup000000000"
	writer.change("create", id, map[string]any{"set": map[string]any{"owner": owner, "title": "secret of the row"}})
	writer.drain(t)
	for _, f := range until("event") {
		if record, ok := f["record"].(map[string]any); ok && len(record) != 1 {
			t.Errorf("the hint has more than an id: %v", f)
		}
	}
	until("cursor") // whatever else happened has been told
	sleeper.drain(t)
	if row := sleeper.rows[id]; row == nil || row["title"] != "secret of the row" {
		t.Errorf("the device that was woken has %v", sleeper.rows)
	}
	s.do(t, request{Method: http.MethodDelete, Path: "/api/collections/items/records/" + id, Token: admin}).assertStatus(t, http.StatusNoContent)
	until("cursor")
	sleeper.drain(t)
	if sleeper.rows[id] != nil {
		t.Error("the device was not told of the deletion")
	}
}
