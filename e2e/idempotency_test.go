package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"
)

// idempotencyKills is how often the server is killed, each time at a moment that nobody has chosen.
const idempotencyKills = 100

// writer is an app that writes notes, each under a key, and repeats what got no answer.
type writer struct {
	server *server
	client *http.Client
	id     string
	owner  string
	token  string

	notes    int // that were answered
	repeats  int // attempts after the first one
	replayed int // answers that had been kept
}

// TestKillWhileWriting kills the server in a storm of writes with keys. Whatever was committed and not answered, every
// write has one effect, and its answer stays the same.
func TestKillWhileWriting(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	owner, token := s.user(t, "writer@example.com")
	all := make([]*writer, 6)
	for i := range all {
		all[i] = &writer{server: s, client: &http.Client{Transport: &http.Transport{}}, id: fmt.Sprintf("w%d", i), owner: owner, token: token}
		t.Cleanup(all[i].client.CloseIdleConnections)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	problems := make(chan error, len(all))
	var storm sync.WaitGroup
	for _, w := range all {
		storm.Go(func() {
			if err := w.run(ctx); err != nil {
				problems <- err
			}
		})
	}
	for kills := 0; kills < idempotencyKills && len(problems) == 0; kills++ {
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond) // where it strikes is the test's only dice
		s.kill()
		s.up(t)
	}
	cancel()
	storm.Wait()
	close(problems)
	for err := range problems {
		t.Error(err)
	}

	sum, repeats, replayed := 0, 0, 0
	for _, w := range all {
		sum, repeats, replayed = sum+w.notes, repeats+w.repeats, replayed+w.replayed
	}
	titles := map[string]int{}
	for page := 1; ; page++ {
		got := s.do(t, request{Token: token, Path: "/api/collections/notes/records?skipTotal=1&perPage=500&sort=id&fields=title&page=" + fmt.Sprint(page)})
		got.assertStatus(t, http.StatusOK)
		items, _ := got.json(t)["items"].([]any)
		for _, item := range items {
			note, _ := item.(map[string]any)
			titles[fmt.Sprint(note["title"])]++
		}
		if len(items) < 500 {
			break
		}
	}
	if len(titles) != sum {
		t.Errorf("%d notes, %d were answered", len(titles), sum)
	}
	for title, n := range titles {
		if n != 1 {
			t.Errorf("%s was written %d times", title, n)
		}
	}
	if repeats == 0 {
		t.Error("no kill has hit a write")
	}
	t.Logf("%d notes, %d repeated attempts, %d of them got a kept answer", sum, repeats, replayed)
}

// The hooks of every feature take part in the transaction of a request with a key: none writes past it.
func TestKeysForAdmins(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	root := s.superuser(t)
	id, token := s.user(t, "keys@example.com")
	const password = "another long password"
	user := "/api/collections/users/records"
	for i, step := range []struct {
		method, path, token string
		body                map[string]any
	}{
		{http.MethodPost, user, root, map[string]any{"id": "keyskeyskeys001", "email": "made@example.com", "password": password, "passwordConfirm": password}},
		{http.MethodPatch, user + "/keyskeyskeys001", root, map[string]any{"password": password + "2", "passwordConfirm": password + "2", "verified": true}},
		{http.MethodDelete, user + "/keyskeyskeys001", root, nil},
		{http.MethodPost, "/api/collections/_superusers/records", root, map[string]any{"id": "keyskeyskeys002", "email": "root2@example.com", "password": password, "passwordConfirm": password}},
		{http.MethodDelete, "/api/collections/_superusers/records/keyskeyskeys002", root, nil},
		{http.MethodPatch, user + "/" + id, token, map[string]any{"name": "Ada"}},
		{http.MethodPost, "/api/batch", token, map[string]any{"requests": []any{map[string]any{
			"method": "POST", "url": "/api/v1/collections/notes/records", "body": map[string]any{"title": "b", "owner": id},
		}}}},
		{http.MethodDelete, user + "/" + id, token, nil},
	} {
		r := request{Method: step.method, Path: step.path, Token: step.token, Header: map[string]string{"Idempotency-Key": fmt.Sprintf("key-of-the-step-%d", i)}}
		if step.body != nil {
			r.JSON = step.body
		}
		first := s.do(t, r)
		if first.Status >= 300 {
			t.Fatalf("%s %s: %d %s", step.method, step.path, first.Status, first.Body)
		}
		if step.method == http.MethodDelete && step.token == token {
			continue // who has deleted the account cannot repeat
		}
		if again := s.do(t, r); again.Status != first.Status || !bytes.Equal(again.Body, first.Body) || again.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%s %s: repeated %d %s, first %d %s", step.method, step.path, again.Status, again.Body, first.Status, first.Body)
		}
	}
	// Changes of collections write migration files, which no transaction holds: they ignore keys.
	things := request{Method: http.MethodPost, Path: "/api/collections", Token: root, Header: map[string]string{"Idempotency-Key": "key-of-a-collection"}, JSON: map[string]any{
		"name": "things", "type": "base", "fields": []any{map[string]any{"name": "title", "type": "text"}},
	}}
	s.do(t, things).assertStatus(t, http.StatusOK)
	s.do(t, things).assertStatus(t, http.StatusBadRequest)
}

// run writes until ctx ends. What was begun is finished.
func (w *writer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		title := fmt.Sprintf("%s-%d", w.id, w.notes)
		first, err := w.write(context.WithoutCancel(ctx), title)
		if err != nil {
			return err
		}
		if rand.IntN(4) == 0 {
			again, err := w.write(context.WithoutCancel(ctx), title)
			if err != nil {
				return err
			}
			if !bytes.Equal(first.Body, again.Body) || again.Header.Get("Idempotency-Replayed") != "true" {
				return fmt.Errorf("%s: repeated %s, first %s", title, again.Body, first.Body)
			}
		}
		w.notes++
	}
	return nil
}

// write repeats one write until it is answered.
func (w *writer) write(ctx context.Context, title string) (response, error) {
	r := request{
		Method: http.MethodPost, Path: "/api/v1/collections/notes/records", Token: w.token, Header: map[string]string{"Idempotency-Key": "key-of-the-note-" + title},
		JSON: map[string]any{"title": title, "owner": w.owner},
	}
	end := time.Now().Add(time.Minute)
	for attempt := 0; ; attempt++ {
		got, err := w.server.try(ctx, w.client, r)
		switch {
		case err == nil && got.Status == http.StatusOK:
			if got.Header.Get("Idempotency-Replayed") == "true" && attempt > 0 {
				w.replayed++
			}
			return got, nil
		case err == nil && got.Status != http.StatusConflict && got.Status != http.StatusServiceUnavailable:
			return got, fmt.Errorf("%s: %d %s", title, got.Status, got.Body)
		case time.Now().After(end):
			return got, fmt.Errorf("%s: no answer within a minute: %w", title, err)
		}
		w.repeats++
		pause()
	}
}
