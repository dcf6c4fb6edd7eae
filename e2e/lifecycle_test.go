package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowHook answers after four seconds, longer than the one second that PocketBase's own shutdown waits.
const slowHook = `
routerAdd("GET", "/api/slow", (e) => {
    sleep(4000)
    return e.json(200, { done: true })
})
`

// Not parallel: it measures what a newcomer waits for after the build.
func TestStartsQuickly(t *testing.T) {
	began := time.Now()
	s := start(t)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the first start took %v, want at most 2 s", took)
	}
	began = time.Now()
	if err := s.restart(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("stop and second start took %v, want at most 2 s", took)
	}
}

// stream is one connection of the realtime API.
type stream struct {
	resp  *http.Response
	lines chan string // closed when the stream ends
}

func (s *server) stream(t testing.TB, path string) *stream {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("connect stream: %v", err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("connect stream: %s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	out := &stream{resp: resp, lines: make(chan string, 100)}
	go func() {
		defer close(out.lines)
		for scanner := bufio.NewScanner(resp.Body); scanner.Scan(); {
			out.lines <- scanner.Text()
		}
	}()
	return out
}

// until waits for a line that contains a text; "" waits for the end of the stream.
func (st *stream) until(t testing.TB, text string, limit time.Duration) {
	t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case line, open := <-st.lines:
			switch {
			case !open && text == "":
				return
			case !open:
				t.Fatalf("the stream ended before %q", text)
			case text != "" && strings.Contains(line, text):
				return
			}
		case <-timeout:
			t.Fatalf("the stream did not bring %q within %v", text, limit)
		}
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/slow.pb.js", slowHook)
	s := startIn(t, dir)
	streams := []*stream{s.stream(t, "/api/realtime"), s.stream(t, "/api/v1/realtime")}
	for _, st := range streams {
		st.until(t, "PB_CONNECT", 5*time.Second)
	}

	type outcome struct {
		response
		err error
	}
	slow := make(chan outcome, 1)
	began := time.Now()
	go func() {
		// A connection of its own: the drain must finish a request, not spare a pool.
		client := &http.Client{Transport: &http.Transport{}}
		answer, err := s.try(context.WithoutCancel(t.Context()), client, request{Path: "/api/slow"})
		slow <- outcome{answer, err}
	}()
	time.Sleep(500 * time.Millisecond) // the request must be in its handler
	s.terminate(t)
	stopped := time.Now()

	for _, st := range streams {
		st.until(t, "", 2*time.Second)
	}
	eventually(t, "new connections are refused", 2*time.Second, func() bool {
		conn, err := net.Dial("tcp", s.Addr)
		if err == nil {
			conn.Close()
		}
		return isRefused(err)
	})
	if !s.running() {
		t.Fatalf("the server ended %v after the signal, before the request in flight", time.Since(stopped))
	}
	got := <-slow
	if got.err != nil || got.Status != http.StatusOK || !strings.Contains(string(got.Body), `"done":true`) {
		t.Errorf("the request in flight: %d %s %v", got.Status, got.Body, got.err)
	}
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("the slow request took %v: it did not test the drain", took)
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}

	s.up(t)
	s.stream(t, "/api/realtime").until(t, "PB_CONNECT", 5*time.Second)
}

// The drain has an end: a request that takes longer is cut.
func TestDrainEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/slow.pb.js", strings.ReplaceAll(slowHook, "4000", "20000"))
	s := startIn(t, dir, "SATCHEL_API_DRAIN=1s")
	failed := make(chan error, 1)
	go func() {
		_, err := s.try(context.WithoutCancel(t.Context()), &http.Client{Transport: &http.Transport{}}, request{Path: "/api/slow"})
		failed <- err
	}()
	time.Sleep(500 * time.Millisecond)
	stopped := time.Now()
	s.stop(t)
	if took := time.Since(stopped); took > 8*time.Second {
		t.Errorf("the server took %v to end, with one second to drain", took)
	}
	if err := <-failed; err == nil {
		t.Error("a request of 20 s was answered by a server that drains for 1 s")
	}
}

// What was acknowledged before kill -9 is there afterwards.
func TestKill(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	id, token := s.user(t, "kill@example.com")
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				answer, err := s.try(context.WithoutCancel(t.Context()), http.DefaultClient, request{
					Method: http.MethodPost, Path: "/api/v1/collections/notes/records", Token: token,
					JSON: map[string]any{"owner": id, "title": fmt.Sprint("note ", i)},
				})
				if err != nil {
					return // the server is dead
				}
				if answer.Status != http.StatusOK {
					t.Errorf("create note: %d %s", answer.Status, answer.Body)
					return
				}
				mu.Lock()
				acknowledged[answer.text(t, "id")] = true
				mu.Unlock()
			}
		})
	}
	time.Sleep(time.Second)
	s.kill()
	writers.Wait()
	if len(acknowledged) == 0 {
		t.Fatal("nothing was written before the kill")
	}

	s.up(t)
	found := map[string]bool{}
	for cursor := ""; ; {
		page := s.do(t, request{Path: "/api/v1/records/notes?limit=100&fields=id&cursor=" + cursor, Token: token})
		page.assertStatus(t, http.StatusOK)
		body := page.json(t)
		for _, item := range body["data"].([]any) {
			found[item.(map[string]any)["id"].(string)] = true
		}
		pagination := body["pagination"].(map[string]any)
		if pagination["hasNext"] != true {
			break
		}
		cursor = pagination["nextCursor"].(string)
	}
	for id := range acknowledged {
		if !found[id] {
			t.Errorf("note %s was acknowledged and is lost", id)
		}
	}
	t.Logf("%d acknowledged, %d found", len(acknowledged), len(found))
}

func TestJavaScriptHooks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/main.pb.js", `
routerAdd("GET", "/hello/{name}", (e) => e.json(200, { message: "Hello " + e.request.pathValue("name") }))
onRecordCreate((e) => {
    e.record.set("title", e.record.get("title") + "!")
    e.next()
}, "things")
`)
	write(t, dir, "pb_migrations/1700000000_things.js", `
migrate((app) => {
    app.save(new Collection({
        name: "things", type: "base", listRule: "", viewRule: "", createRule: "",
        fields: [{ name: "title", type: "text", required: true }],
    }))
}, (app) => app.delete(app.findCollectionByNameOrId("things")))
`)
	s := startIn(t, dir, relaxed()...)
	hello := s.do(t, request{Path: "/hello/Ada"})
	if hello.Status != http.StatusOK || hello.text(t, "message") != "Hello Ada" {
		t.Errorf("route of a hook: %d %s", hello.Status, hello.Body)
	}
	for _, base := range []string{"/api/collections", "/api/v1/collections"} {
		made := s.do(t, request{Method: http.MethodPost, Path: base + "/things/records", JSON: map[string]any{"title": "hooked"}})
		if made.Status != http.StatusOK || made.text(t, "title") != "hooked!" {
			t.Errorf("%s: %d %s", base, made.Status, made.Body)
		}
	}
	if page := s.do(t, request{Path: "/api/v1/records/things"}); page.Status != http.StatusOK || len(page.json(t)["data"].([]any)) != 2 {
		t.Errorf("cursor list of a migrated collection: %d %s", page.Status, page.Body)
	}
}

// Static files are served from pb_public in the folder the server runs in.
func TestPublicFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_public/.well-known/assetlinks.json", `[{"relation":[]}]`)
	write(t, dir, "pb_public/index.html", "<title>mine</title>")
	s := startIn(t, dir)
	for path, want := range map[string]string{"/": "<title>mine</title>", "/.well-known/assetlinks.json": `[{"relation":[]}]`, "/some/page": "<title>mine</title>"} {
		if answer := s.do(t, request{Path: path}); answer.Status != http.StatusOK || string(answer.Body) != want {
			t.Errorf("%s: %d %s", path, answer.Status, answer.Body)
		}
	}
	bare := start(t)
	if answer := bare.do(t, request{Path: "/"}); answer.Status != http.StatusOK || !strings.Contains(string(answer.Body), "<html") {
		t.Errorf("/ without a folder: %d %s", answer.Status, answer.Body)
	}
}
