package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// syncing is a device that counts in a record of its own, offline and on.
type syncing struct {
	server *server
	client *http.Client
	token  string
	id     string // of its record
	cursor any
	sent   int
	acked  int
	again  int // changes that were already done when they were repeated
	rows   map[string]float64
}

// TestKillWhileSyncing kills the server in a storm of syncs. Whatever was not answered is repeated, and every increment
// must count once.
func TestKillWhileSyncing(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	admin := s.superuser(t)
	s.do(t, request{Method: http.MethodPost, Path: "/api/collections", Token: admin, JSON: map[string]any{
		"name": "counters", "type": "base", "listRule": `owner = @request.auth.id`, "createRule": `owner = @request.auth.id`,
		"updateRule": `owner = @request.auth.id`, "fields": []map[string]any{{"name": "owner", "type": "text"}, {"name": "n", "type": "number"}},
	}}).assertStatus(t, http.StatusOK)
	owner, _ := s.user(t, "counter@example.com")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var storm sync.WaitGroup
	devices := make([]*syncing, 6)
	for i := range devices {
		token := s.signIn(t, "users", "counter@example.com", "a long password") // a session is a device
		d := &syncing{server: s, client: &http.Client{Transport: &http.Transport{}}, token: token, id: fmt.Sprintf("counter%08d", i), rows: map[string]float64{}}
		t.Cleanup(d.client.CloseIdleConnections)
		devices[i] = d
		d.push(ctx, map[string]any{"cid": "0", "collection": "counters", "op": "create", "id": d.id, "set": map[string]any{"owner": owner}})
		storm.Go(func() { d.run(ctx) })
	}
	for range 6 {
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond) // where it strikes is the test's only dice
		s.kill()
		s.up(t)
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	storm.Wait()
	again := 0
	for i, d := range devices {
		for d.acked < d.sent { // the last one is still to be answered
			d.push(t.Context(), d.increment(d.sent))
		}
		d.push(t.Context(), nil)
		if int(d.rows[d.id]) != d.acked {
			t.Errorf("device %d has counted to %v, %d were acknowledged", i, d.rows[d.id], d.acked)
		}
		again += d.again
	}
	if again == 0 {
		t.Log("no kill came between a commit and its answer")
	}
	t.Logf("%d changes were done and not answered", again)
}

func (d *syncing) increment(n int) map[string]any {
	return map[string]any{"cid": strconv.Itoa(n), "collection": "counters", "op": "update", "id": d.id, "apply": map[string]any{"n+": 1}}
}

func (d *syncing) run(ctx context.Context) {
	for ctx.Err() == nil {
		if d.acked == d.sent {
			d.sent++
		}
		d.push(ctx, d.increment(d.sent))
	}
}

// push sends one change and takes in the answer, if there is one.
func (d *syncing) push(ctx context.Context, change map[string]any) {
	body := map[string]any{"cursor": d.cursor, "collections": []string{"counters"}}
	if change != nil {
		body["changes"] = []any{change}
	}
	resp, err := d.server.try(ctx, d.client, request{
		Method: http.MethodPost, Path: "/api/v1/sync", Token: d.token, JSON: body,
	})
	if err != nil || resp.Status != http.StatusOK {
		return
	}
	var answer struct {
		Data struct {
			Results     []struct{ CID, Status, Original string }
			Collections map[string]struct{ Upserts []map[string]any }
			Cursor      string
		}
	}
	if json.Unmarshal(resp.Body, &answer) != nil {
		return
	}
	for _, r := range answer.Data.Results {
		if r.Status == "duplicate" {
			d.again++
		}
		if n, err := strconv.Atoi(r.CID); err == nil && (r.Status == "applied" || r.Original == "applied") {
			d.acked = max(d.acked, n)
		}
	}
	for _, row := range answer.Data.Collections["counters"].Upserts {
		id, _ := row["id"].(string)
		d.rows[id], _ = row["n"].(float64)
	}
	d.cursor = answer.Data.Cursor
}
