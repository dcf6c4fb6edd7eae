package sessions_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/refresh"
)

func TestParallelRefreshesGetOneSuccessor(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	var mu sync.Mutex
	successors := map[string]int{}
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			next, r := f.refresh(t, g.RefreshToken)
			mu.Lock()
			defer mu.Unlock()
			successors[next.RefreshToken]++
			if r.Status != http.StatusOK {
				t.Errorf("%d %s", r.Status, r.Body)
			}
		})
	}
	group.Wait()
	if len(successors) != 1 {
		t.Errorf("successors %v", successors)
	}
}

// aged makes the last rotation lie outside of the grace.
func (f *fixture) aged(t testing.TB, id string) {
	t.Helper()
	f.exec(t, "UPDATE sessions_logins SET rotated_at = rotated_at - {:ms} WHERE id = {:id}", dbx.Params{"ms": (refresh.Grace + time.Second).Milliseconds(), "id": id})
}

func TestLostAnswerCanBeAskedForAgainAtAnyTime(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	lost, _ := f.refresh(t, g.RefreshToken)
	for range 3 {
		f.aged(t, g.SessionID)
		again, r := f.refresh(t, g.RefreshToken)
		if r.Status != http.StatusOK || again.RefreshToken != lost.RefreshToken {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}
	// Once the successor has been used, its parent in other hands is a theft.
	f.works(t, "the successor", lost.AccessToken, "")
	f.aged(t, g.SessionID)
	if _, r := f.refresh(t, g.RefreshToken); r.Code() != sessions.ErrRefreshReused.Name {
		t.Fatalf("the parent after use of the successor: %d %s", r.Status, r.Body)
	}
	if _, r := f.refresh(t, lost.RefreshToken); r.Status != http.StatusUnauthorized {
		t.Errorf("the family lives: %d", r.Status)
	}
	f.works(t, "access token of the family", lost.AccessToken, sessions.ErrTokenRevoked.Name)
	if n := f.audited(t, "sessions.refresh_reused"); n != 1 {
		t.Errorf("%d audit entries", n)
	}
}

func TestForgedRefreshTokensHarmNobody(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	other := f.signIn(t, nil)
	parts := strings.Split(g.RefreshToken, ".")
	otherParts := strings.Split(other.RefreshToken, ".")
	for _, forged := range []string{
		"", "x", "rt1", "rt1.." + "1.AAAA", "rt2." + strings.Join(parts[1:], "."),
		"rt1." + g.SessionID + ".1.AAAA", "rt1." + g.SessionID + ".2." + parts[3], "rt1." + g.SessionID + ".0." + parts[3],
		"rt1." + g.SessionID + ".01." + parts[3], "rt1." + g.SessionID + ".-1." + parts[3], "rt1." + g.SessionID + ".1." + otherParts[3],
		g.RefreshToken + "=", g.RefreshToken + "\n", "rt1.nosuchsession00.1." + parts[3], "rt1." + g.SessionID + ".99999999999999999999." + parts[3],
		"rt1." + strings.Repeat("x", 200) + ".1." + parts[3], g.AccessToken,
	} {
		if _, r := f.refresh(t, forged); r.Code() != sessions.ErrRefreshInvalid.Name {
			t.Errorf("%q: %d %s", forged, r.Status, r.Body)
		}
	}
	if _, r := f.refresh(t, g.RefreshToken); r.Status != http.StatusOK {
		t.Errorf("the real one: %d %s", r.Status, r.Body)
	}
}

// A database that was restored from an older backup knows less than the phones do; they stay signed in.
func TestRestoredStateGoesOnFromTheTokens(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	newest := g
	for range 3 {
		newest, _ = f.refresh(t, newest.RefreshToken)
	}
	f.exec(t, "UPDATE sessions_logins SET generation = 1, confirmed = 0 WHERE id = {:id}", dbx.Params{"id": g.SessionID})
	next, r := f.refresh(t, newest.RefreshToken)
	if r.Status != http.StatusOK || !strings.HasPrefix(next.RefreshToken, "rt1."+g.SessionID+".5.") {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
}

// TestJudge walks random histories of a client that loses answers and of a thief who has copied a token, and holds the
// rule against what was promised.
func TestJudge(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		if err := history(random, 60); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// holder is somebody with a refresh token, by its generation.
type holder struct{ generation int64 }

// history lets a client and, from some moment on, a thief act. Promises: the client alone is never refused, whatever
// answers it loses and however late it repeats.
func history(random *rand.Rand, steps int) error {
	state := refresh.State{Generation: 1}
	now := time.Unix(1_800_000_000, 0)
	state.RotatedAt = now
	client, thief := &holder{1}, (*holder)(nil)
	theft := random.IntN(2 * steps) // in half of the histories there is none
	for step := range steps {
		now = now.Add(time.Duration(random.IntN(120)) * time.Second)
		if step == theft {
			thief = &holder{client.generation}
		}
		who := client
		if thief != nil && random.IntN(2) == 0 {
			who = thief
		}
		if random.IntN(3) == 0 { // uses the access token that came with the refresh token
			state.Confirmed = max(state.Confirmed, who.generation)
			continue
		}
		switch refresh.Judge(state, who.generation, now) {
		case refresh.Rotate:
			state.Confirmed = max(state.Confirmed, who.generation)
			state.Generation, state.RotatedAt = who.generation+1, now
		case refresh.Resend:
		case refresh.Reuse:
			if thief == nil {
				return fmt.Errorf("step %d: the only holder, of generation %d, is refused in %+v", step, who.generation, state)
			}
			return nil // the session has ended for both
		}
		if random.IntN(3) != 0 { // else the answer is lost
			who.generation = state.Generation
		}
	}
	return nil
}

// The same over HTTP: a phone that loses every other answer and repeats late stays signed in; a thief who goes on with a
// stolen token ends the session for both.
func TestThiefAndClientCannotBothGoOn(t *testing.T) {
	f := start(t)
	f.User(t, email)
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 2))
		g := f.signIn(t, nil)
		client := g.RefreshToken
		for range 6 { // alone: never refused
			next, r := f.refresh(t, client)
			if r.Status != http.StatusOK {
				t.Fatalf("seed %d: %d %s", seed, r.Status, r.Body)
			}
			if random.IntN(2) == 0 { // the answer arrives
				client = next.RefreshToken
				f.works(t, "access", next.AccessToken, "")
			}
			f.aged(t, g.SessionID)
		}
		holders, ended := []string{client, client}, false
		for range 40 {
			i := random.IntN(2)
			next, r := f.refresh(t, holders[i])
			if r.Status != http.StatusOK {
				ended = true
				break
			}
			holders[i] = next.RefreshToken
			f.status(t, next.AccessToken)
			f.aged(t, g.SessionID)
		}
		if !ended {
			t.Errorf("seed %d: two holders went on", seed)
		}
	}
}

func TestRefreshNotesTheDevice(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, map[string]string{"X-App-Version": "1.0.0", "X-Device-Name": "Phone"})
	r := f.Do(t, apptest.Request{
		Method: http.MethodPost, Path: "/api/v1/auth/refresh", Body: map[string]string{"refreshToken": g.RefreshToken},
		Header: map[string]string{"X-App-Version": "2.0.0"},
	})
	if r.Status != http.StatusOK || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", r.Status, r.Header)
	}
	var version, name string
	if err := f.ConcurrentDB().NewQuery("SELECT app_version, device_name FROM sessions_logins").Row(&version, &name); err != nil || version != "2.0.0" || name != "Phone" {
		t.Errorf("version %q, name %q, %v", version, name, err)
	}
}

func FuzzParse(f *testing.F) {
	key, salt := []byte("key"), []byte("salt")
	f.Add(refresh.Mint(key, salt, "abcdefghijklmno", 1))
	f.Add("rt1.a.1.")
	f.Add("rt1.a.9223372036854775808.AA")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := refresh.Parse(text)
		if err != nil {
			return
		}
		if token.Authentic(key, salt) && refresh.Mint(key, salt, token.Session, token.Generation) != text {
			t.Errorf("%q is taken for another token", text)
		}
	})
}
