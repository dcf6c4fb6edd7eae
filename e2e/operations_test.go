package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// The demo app's own operations, as its clients call them and as JavaScript hooks do.
func TestOperations(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/main.pb.js", `
routerAdd("POST", "/tidy", (e) => {
    const answer = $operations.call(e.app, "notes.clearDone", { before: e.requestInfo().body.before }, e.auth)
    return e.json(200, { deleted: answer.deleted })
}, $apis.requireAuth())
`)
	s := startIn(t, dir, relaxed()...)
	id, token := s.user(t, "ops@example.com")
	other, otherToken := s.user(t, "other@example.com")
	add := func(owner, token string, titles ...string) {
		t.Helper()
		for _, title := range titles {
			s.do(t, request{
				Method: http.MethodPost, Path: "/api/v1/collections/notes/records", Token: token,
				JSON: map[string]any{"owner": owner, "title": title, "done": strings.HasPrefix(title, "done")},
			}).assertStatus(t, http.StatusOK)
		}
	}
	add(id, token, "done 1", "done 2", "open 1")
	add(other, otherToken, "done of another")

	overview := request{Path: "/api/v1/operations/notes.overview", Token: token}
	first := s.do(t, overview)
	first.assertStatus(t, http.StatusOK)
	data, _ := first.json(t)["data"].(map[string]any)
	if data["open"] != 1.0 || data["done"] != 2.0 || len(data["latest"].([]any)) != 3 {
		t.Fatalf("overview: %s", first.Body)
	}
	overview.Header = map[string]string{"If-None-Match": first.Header.Get("ETag")}
	s.do(t, overview).assertStatus(t, http.StatusNotModified)

	clear := request{
		Method: http.MethodPost, Path: "/api/v1/operations/notes.clearDone", Token: token,
		Header: map[string]string{"Idempotency-Key": "tidy-up-after-lunch"}, JSON: map[string]any{"before": "2999-01-01T00:00:00Z"},
	}
	early := clear
	early.JSON, early.Header = map[string]any{"before": "2020-01-01T00:00:00Z"}, map[string]string{"Idempotency-Key": "tidy-up-before-lunch"}
	if got := s.do(t, early); !strings.Contains(string(got.Body), `"deleted":0`) {
		t.Errorf("notes that changed later: %s", got.Body)
	}
	cleared := s.do(t, clear)
	cleared.assertStatus(t, http.StatusOK)
	if !strings.Contains(string(cleared.Body), `"deleted":2`) {
		t.Errorf("cleared: %s", cleared.Body)
	}
	wrong := clear
	wrong.JSON, wrong.Header = map[string]any{"before": "yesterday", "force": true}, map[string]string{"Idempotency-Key": "tidy-up-after-dinner"}
	refused := s.do(t, wrong)
	refused.assertProblem(t, http.StatusBadRequest, "api.validation_failed")
	for _, want := range []string{`"field":"before"`, `"field":"force"`} {
		if !strings.Contains(string(refused.Body), want) {
			t.Errorf("%s is not in %s", want, refused.Body)
		}
	}

	add(id, token, "done 3")
	script := s.do(t, request{Method: http.MethodPost, Path: "/tidy", Token: token, JSON: map[string]any{"before": "2999-01-01T00:00:00Z"}})
	script.assertStatus(t, http.StatusOK)
	if !strings.Contains(string(script.Body), `"deleted":1`) {
		t.Errorf("script: %s", script.Body)
	}
	s.do(t, request{Method: http.MethodPost, Path: "/tidy", Token: token, JSON: map[string]any{"before": "soon"}}).assertStatus(t, http.StatusBadRequest)
	if left := s.do(t, request{Path: "/api/v1/operations/notes.overview", Token: otherToken}); !strings.Contains(string(left.Body), `"done":1`) {
		t.Errorf("the other user's notes: %s", left.Body)
	}
}
