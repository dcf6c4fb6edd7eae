package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	phones = 12

	// leastKills is how often the server is killed, mostKills how often at most until a kill has hit what it is meant to: a
	// refresh that was committed and not answered.
	leastKills, mostKills = 15, 45
)

// phone is an app that refreshes all the time. It holds the tokens of the last answer that it got.
type phone struct {
	server          *server
	client          *http.Client
	session         string
	access, refresh string

	sent       time.Time // when the request that got no answer went out; zero if there is none
	successors map[string]string
	answers    int
}

// TestKillWhileRefreshing kills the server in a storm of refreshes. A phone knows nothing of what was committed: it
// repeats with the token it holds, and must never find itself signed out.
func TestKillWhileRefreshing(t *testing.T) {
	t.Parallel()
	s := start(t, relaxed()...)
	id, _ := s.user(t, "storm@example.com")
	all := make([]*phone, phones)
	for i := range all {
		all[i] = newPhone(t, s)
	}
	var lost atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var storm sync.WaitGroup
	problems := make(chan error, phones)
	for _, p := range all {
		storm.Go(func() {
			if err := p.run(ctx, &lost); err != nil {
				problems <- err
			}
		})
	}
	kills := 0
	for ; (kills < leastKills || lost.Load() == 0) && kills < mostKills && len(problems) == 0; kills++ {
		time.Sleep(time.Duration(50+rand.IntN(350)) * time.Millisecond) // where it strikes is the test's only dice
		s.kill()
		s.up(t)
	}
	time.Sleep(500 * time.Millisecond) // those that lost an answer repeat
	cancel()
	storm.Wait()
	close(problems)
	for err := range problems {
		t.Error(err)
	}

	answers := 0
	for _, p := range all {
		answers += p.answers
		if err := p.refreshOnce(t.Context()); err != nil {
			t.Errorf("after the storm: %v", err)
		}
		got := s.do(t, request{Path: "/api/v1/collections/users/records/" + id, Token: p.access})
		got.assertStatus(t, http.StatusOK)
	}
	list, _ := s.do(t, request{Path: "/api/v1/auth/sessions", Token: all[0].access}).json(t)["data"].([]any)
	if len(list) != phones+1 { // and the one of the sign-up
		t.Errorf("%d sessions are left of %d", len(list), phones+1)
	}
	if lost.Load() == 0 {
		t.Errorf("no kill of %d came between a commit and its answer", kills)
	}
	t.Logf("%d kills, %d answers, %d commits whose answer was lost", kills, answers, lost.Load())
}

func newPhone(t *testing.T, s *server) *phone {
	t.Helper()
	auth := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-password", JSON: map[string]any{
		"identity": "storm@example.com", "password": "a long password",
	}})
	auth.assertStatus(t, http.StatusOK)
	meta, _ := auth.json(t)["meta"].(map[string]any)
	session, _ := meta["session"].(map[string]any)
	p := &phone{server: s, client: &http.Client{Transport: &http.Transport{}}, successors: map[string]string{}}
	p.session, _ = session["sessionId"].(string)
	p.access, _ = session["accessToken"].(string)
	p.refresh, _ = session["refreshToken"].(string)
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// run refreshes until ctx ends. After half of the answers the new access token is used, which confirms it. An error
// means that the app would have signed its user out.
func (p *phone) run(ctx context.Context, lost *atomic.Int64) error {
	for ctx.Err() == nil {
		if !p.sent.IsZero() {
			committed, err := p.committed(ctx)
			if errors.Is(err, errNoAnswer) {
				pause()
				continue
			}
			if err != nil {
				return err
			}
			if committed {
				lost.Add(1)
			}
		}
		// The storm ends, the refresh does not: what is answered must be known.
		err := p.refreshOnce(context.WithoutCancel(ctx))
		switch {
		case errors.Is(err, errNoAnswer):
			pause()
			continue
		case err != nil:
			return err
		}
		if rand.IntN(2) == 0 {
			if _, err := p.call(ctx, request{Path: "/api/v1/auth/sessions", Token: p.access}); err != nil && !errors.Is(err, errNoAnswer) {
				return err
			}
		}
	}
	return nil
}

func pause() { time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) }

// errNoAnswer says that the network failed, or the server for a moment.
var errNoAnswer = errors.New("no answer")

// call takes every answer that is no success for the end of the session, but for those that ask to come again.
func (p *phone) call(ctx context.Context, r request) (response, error) {
	got, err := p.server.try(ctx, p.client, r)
	if err != nil || got.Status == http.StatusServiceUnavailable || got.Status == http.StatusTooManyRequests {
		return got, errNoAnswer
	}
	if got.Status != http.StatusOK {
		return got, fmt.Errorf("session %s: %s: %d %s", p.session, r.Path, got.Status, got.Body)
	}
	return got, nil
}

// refreshOnce presents the token that the phone holds, and takes the answer if one comes. Twice at the same time, now
// and then, as two parts of an app do.
func (p *phone) refreshOnce(ctx context.Context) error {
	tries := 1 + rand.IntN(4)/3
	answers := make([]grantJSON, tries)
	errs := make([]error, tries)
	p.sent = time.Now()
	var wg sync.WaitGroup
	for i := range tries {
		wg.Go(func() { answers[i], errs[i] = p.present(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, err := range errs {
			if err != nil && !errors.Is(err, errNoAnswer) {
				return err
			}
		}
		if tries == 1 || errs[0] != nil && errs[1] != nil {
			return errNoAnswer
		}
	}
	for i, a := range answers {
		if errs[i] != nil {
			continue
		}
		if earlier, ok := p.successors[p.refresh]; ok && earlier != a.RefreshToken {
			return fmt.Errorf("session %s has two successors of one token", p.session)
		}
		p.successors[p.refresh] = a.RefreshToken
	}
	before, next := p.refresh, p.successors[p.refresh]
	if generation(next) != generation(before)+1 || p.session != strings.Split(next, ".")[1] {
		return fmt.Errorf("session %s went from generation %d to %d", p.session, generation(before), generation(next))
	}
	for i, a := range answers {
		if errs[i] == nil {
			p.refresh, p.access = a.RefreshToken, a.AccessToken
		}
	}
	p.sent = time.Time{}
	p.answers++
	return nil
}

type grantJSON struct{ AccessToken, RefreshToken string }

func (p *phone) present(ctx context.Context) (grantJSON, error) {
	got, err := p.call(ctx, request{Method: http.MethodPost, Path: "/api/v1/auth/refresh", JSON: map[string]any{"refreshToken": p.refresh}})
	if err != nil {
		return grantJSON{}, err
	}
	var body struct{ Data grantJSON }
	if err := json.Unmarshal(got.Body, &body); err != nil {
		return grantJSON{}, err
	}
	return body.Data, nil
}

// generation is the third part of "rt1.<session>.<generation>.<mac>".
func generation(token string) int {
	n, _ := strconv.Atoi(strings.Split(token, ".")[2])
	return n
}

// committed asks whether the refresh that got no answer was done all the same: the session was used after it was sent.
func (p *phone) committed(ctx context.Context) (bool, error) {
	got, err := p.call(ctx, request{Path: "/api/v1/auth/sessions", Token: p.access})
	if err != nil {
		return false, err
	}
	var body struct {
		Data []struct {
			ID         string
			LastUsedAt time.Time
		}
	}
	if err := json.Unmarshal(got.Body, &body); err != nil {
		return false, err
	}
	for _, s := range body.Data {
		if s.ID == p.session {
			return !s.LastUsedAt.Before(p.sent.Truncate(time.Millisecond)), nil
		}
	}
	return false, fmt.Errorf("session %s is not in the list", p.session)
}
