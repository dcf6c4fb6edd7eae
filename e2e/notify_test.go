package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/demo"
)

const (
	// pushKills is how often the server is killed in the middle of a message; PUSH_KILLS says another number.
	pushKills = 5

	// pushDevices is how many devices each message is for, which is some slices of pushes. The stand-in remembers 500 arrivals.
	pushDevices = 120

	// pushAgain is how many pushes a worker may have sent without their results being written. All devices are in one chunk.
	pushAgain = 100
)

// standIns are the providers of `satchel dev stubs`.
type standIns struct {
	page     string
	settings []string
	connect  [][]string
}

// startStubs runs the command until the test ends.
func startStubs(t *testing.T) *standIns {
	t.Helper()
	settings, connect, found := stubs(t)
	return &standIns{page: strings.TrimSuffix(found["page"], "/"), settings: settings, connect: connect}
}

// arrival is what arrived at a stand-in.
type arrival struct{ Provider, To, Title, Text, Body string }

func (s *standIns) arrivals(t *testing.T) (list []arrival) {
	t.Helper()
	r, err := http.Get(s.page + "/arrivals?provider=apns")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	return list
}

func (s *standIns) clear(t *testing.T) {
	t.Helper()
	request, err := http.NewRequest(http.MethodDelete, s.page+"/arrivals", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
}

// connectTo keeps the credentials of Apple's stand-in.
func (s *server) connectTo(t *testing.T, stubs *standIns) {
	t.Helper()
	for _, args := range stubs.connect {
		if args[2] == "apns" {
			if got := command(t, s.Dir, s.settings, append(args, "--dir", filepath.Join(s.Dir, "pb_data"))...); got.exit != 0 {
				t.Fatalf("connect: %s%s", got.stdout, got.stderr)
			}
		}
	}
}

func (s *server) register(t *testing.T, token, device string, n int) {
	t.Helper()
	s.do(t, request{
		Method: http.MethodPut, Path: "/api/v1/push/devices/current", Token: token, Header: map[string]string{"X-Device-Id": device},
		JSON: map[string]any{"platform": "apns", "token": fmt.Sprintf("%064x", n)},
	}).assertStatus(t, http.StatusOK)
}

// A message to a room of the demo reaches the other members of its team, and not the author; a hook in JavaScript sends,
// too.
func TestDemoNotifies(t *testing.T) {
	t.Parallel()
	stubs := startStubs(t)
	dir := t.TempDir()
	settings := relaxed(stubs.settings...)
	if got := command(t, dir, settings, "demo", "--dir", filepath.Join(dir, "pb_data")); got.exit != 0 {
		t.Fatalf("demo: %s%s", got.stdout, got.stderr)
	}
	write(t, dir, "pb_hooks/main.pb.js", `
routerAdd("POST", "/notify", (e) => {
    const body = e.requestInfo().body
    return e.json(200, $operations.call(e.app, "push.send", { to: { users: body.users }, title: "{n, plural, one{# note} other{# notes}}", values: { n: 2 } }))
})
`)
	s := startIn(t, dir, settings...)
	s.connectTo(t, stubs)
	root := s.superuser(t)
	find := func(collection, filter string) []map[string]any {
		t.Helper()
		answer := s.do(t, request{Path: "/api/collections/" + collection + "/records?perPage=200&filter=" + filter, Token: root})
		answer.assertStatus(t, http.StatusOK)
		var list struct{ Items []map[string]any }
		if err := json.Unmarshal(answer.Body, &list); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	room := find("demo_rooms", "")[0]
	members := find("team_members", fmt.Sprintf("team='%s'", room["team"]))
	tokens := map[string]string{}
	for i, m := range members {
		id := fmt.Sprint(m["user"])
		email := fmt.Sprint(find("users", fmt.Sprintf("id='%s'", id))[0]["email"])
		tokens[id] = s.signIn(t, "users", email, demo.DevelopmentPassword)
		s.register(t, tokens[id], "phone-"+id, i+1)
	}
	author := fmt.Sprint(members[0]["user"])
	stubs.clear(t)
	s.do(t, request{
		Method: http.MethodPost, Path: "/api/collections/demo_messages/records", Token: tokens[author],
		JSON: map[string]any{"room": room["id"], "author": author, "text": "Hello {all}"},
	}).assertStatus(t, http.StatusOK)
	eventually(t, "a push to each of the others", 30*time.Second, func() bool { return len(stubs.arrivals(t)) >= len(members)-1 })
	for _, a := range stubs.arrivals(t) {
		if a.Title != room["name"] || !strings.HasSuffix(a.Text, ": Hello {all}") || a.To == fmt.Sprintf("%064x", 1) {
			t.Errorf("arrived: %+v", a)
		}
	}
	if n := len(stubs.arrivals(t)); n != len(members)-1 || n == 0 {
		t.Errorf("%d pushes for %d members", n, len(members))
	}
	stubs.clear(t)
	s.do(t, request{Method: http.MethodPost, Path: "/notify", JSON: map[string]any{"users": []string{author}}}).assertStatus(t, http.StatusOK)
	eventually(t, "a push that JavaScript asks for", 30*time.Second, func() bool { return len(stubs.arrivals(t)) == 1 })
	if a := stubs.arrivals(t)[0]; a.Title != "2 notes" || a.To != fmt.Sprintf("%064x", 1) {
		t.Errorf("arrived: %+v", a)
	}
}

// TestKillWhilePushing kills the server in the middle of messages at moments that nobody has chosen: each device gets each
// message, the deliveries say so, and a hundred at most get it once again.
func TestKillWhilePushing(t *testing.T) {
	t.Parallel()
	kills := pushKills
	if n, err := strconv.Atoi(os.Getenv("PUSH_KILLS")); err == nil {
		kills = n
	}
	stubs := startStubs(t)
	s := startIn(t, t.TempDir(), relaxed(append(stubs.settings, "SATCHEL_PUSH_CONCURRENCY=1")...)...)
	s.connectTo(t, stubs)
	root := s.superuser(t)
	for i := range pushDevices { // a session for each, and ten for each user
		email := fmt.Sprintf("user-%d@example.com", i/10)
		var token string
		if i%10 == 0 {
			_, token = s.user(t, email)
		} else {
			token = s.signIn(t, "users", email, "a long password")
		}
		s.register(t, token, fmt.Sprintf("device-%04d", i), i+1)
	}
	twice := 0
	for k := range kills {
		stubs.clear(t)
		message := map[string]any{"to": map[string]any{"all": true}, "title": "Hello", "key": fmt.Sprintf("kill-%d", k)}
		sent := s.do(t, request{Method: http.MethodPost, Path: "/api/v1/operations/push.send", Token: root, JSON: message})
		sent.assertStatus(t, http.StatusOK)
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond) // where it strikes is the test's only dice
		s.kill()
		s.up(t)
		data, _ := sent.json(t)["data"].(map[string]any)
		var totals map[string]any
		eventually(t, "the end of the message", time.Minute, func() bool {
			got, _ := s.do(t, request{Path: "/api/v1/operations/push.message?id=" + fmt.Sprint(data["id"]), Token: root}).json(t)["data"].(map[string]any)
			totals, _ = got["totals"].(map[string]any)
			return got["state"] == "done"
		})
		if totals["devices"] != float64(pushDevices) || totals["accepted"] != float64(pushDevices) || totals["queued"] != float64(0) {
			t.Errorf("kill %d: %v", k, totals)
		}
		reached := map[string]int{}
		for _, a := range stubs.arrivals(t) {
			reached[a.To]++
		}
		again := 0
		for to, n := range reached {
			if again += n - 1; n > 2 {
				t.Errorf("kill %d: %s got the message %d times", k, to, n)
			}
		}
		if again > pushAgain {
			t.Errorf("kill %d: %d pushes were sent twice", k, again)
		}
		if len(reached) != pushDevices {
			t.Errorf("kill %d: %d devices were reached", k, len(reached))
		}
		twice += again
	}
	t.Logf("%d kills, %d pushes, %d of them twice", kills, kills*pushDevices, twice)
}
