package teams

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// seed replays a storm: TEAMS_SEED=7 go test -run TestStorm. What each goroutine tries follows from it; how their tries
// meet does not.
func seed(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv("TEAMS_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return uint64(time.Now().UnixNano())
}

const (
	stormWorkers = 8
	stormSteps   = 250 // of each worker
	stormTeams   = 3
	stormPeople  = 12
)

// storm is what the workers share. changes is written inside of the transactions, of which there is one at a time.
type storm struct {
	*world
	root  string
	teams []string

	mu      sync.Mutex
	links   []string
	refused map[string]int
	done    map[string]int
}

// Eight clients do everything at once, to the same teams: join, leave, raise and throw out each other, and write as
// superusers. Whatever comes of it, after every single write no team is without an owner, nobody was raised
// by somebody who may not, and in the end the audit explains every membership.
func TestStorm(t *testing.T) {
	n := seed(t)
	t.Logf("TEAMS_SEED=%d", n)
	w := open(t, func(cfg *Config, _ *Deps) { cfg.MaxPending = 10_000 })
	s := &storm{world: w, refused: map[string]int{}, done: map[string]int{}}
	_, s.root = w.Superuser(t)
	for i := range stormPeople {
		w.people(t, "p"+strconv.Itoa(i))
	}
	for i := range stormTeams {
		team := w.found(t, "p"+strconv.Itoa(i), nil)
		s.teams = append(s.teams, team)
		for j := range stormPeople {
			if j != i && j%2 == 0 {
				w.add(t, team, "p"+strconv.Itoa(j), []string{Member, Admin, Owner}[j/2%3])
			}
		}
	}
	watch(t, w)
	var all sync.WaitGroup
	for i := range stormWorkers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(n, uint64(i)))
			for range stormSteps {
				s.step(t, random)
			}
		})
	}
	all.Wait()
	t.Logf("done %v\nrefused %v", s.done, s.refused)
	if s.done["changeRole"] == 0 || s.done["acceptInvitation"] == 0 || s.refused["changeRole"] == 0 || s.done["superuser"] == 0 {
		t.Error("the storm was a calm")
	}
	if got := w.unowned(t); got != 0 {
		t.Errorf("%d teams have no owner", got)
	}
	explained(t, w)
}

// watch looks after every write of a membership, in its transaction, whether it left a team without an owner. Writes that
// PocketBase follows up with others in the same transaction are seen at their end.
func watch(t *testing.T, w *world) {
	t.Helper()
	look := func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		var n int
		err := e.App.DB().NewQuery(`SELECT count(*) FROM teams t WHERE t.id = {:team}
			AND NOT EXISTS (SELECT 1 FROM team_members m WHERE m.team = t.id AND m.role = 'owner')`).
			Bind(dbx.Params{"team": e.Record.GetString("team")}).Row(&n)
		if err != nil {
			return fmt.Errorf("count owners: %w", err)
		}
		if n != 0 {
			t.Errorf("team %s lost its owner by a write of %s", e.Record.GetString("team"), e.Record.Id)
		}
		return nil
	}
	w.OnRecordAfterUpdateSuccess(membersCollection).BindFunc(look)
	w.OnRecordAfterDeleteSuccess(membersCollection).BindFunc(look)
}

func (s *storm) step(t *testing.T, random *rand.Rand) {
	t.Helper()
	slot := random.IntN(stormTeams)
	s.mu.Lock()
	team := s.teams[slot]
	s.mu.Unlock()
	who := "p" + strconv.Itoa(random.IntN(stormPeople))
	members := s.members(t, team)
	if len(members) == 0 {
		if id, ok := s.try(t, who, "create", map[string]any{"name": "New"})["id"].(string); ok {
			s.mu.Lock()
			s.teams[slot] = id
			s.mu.Unlock()
		}
		return
	}
	member := members[random.IntN(len(members))].ID
	if random.IntN(3) > 0 { // mostly somebody who is in there
		user := members[random.IntN(len(members))].User
		for name, id := range s.ids {
			if id == user {
				who = name
			}
		}
	}
	role := []string{Owner, Admin, Member, "viewer"}[random.IntN(4)]
	switch kind := random.IntN(24); {
	case kind < 6:
		s.try(t, who, "changeRole", map[string]any{"member": member, "role": role})
	case kind < 8:
		s.try(t, who, "removeMember", map[string]any{"member": member})
	case kind < 9:
		s.try(t, who, "leave", map[string]any{"team": team})
	case kind < 10:
		s.try(t, who, "transferOwnership", map[string]any{"member": member})
	case kind < 15:
		if token, ok := s.try(t, who, "invite", map[string]any{"team": team, "role": role})["token"].(string); ok {
			s.mu.Lock()
			s.links = append(s.links, token)
			s.mu.Unlock()
		}
	case kind < 21:
		if token := s.link(random); token != "" {
			s.try(t, "p"+strconv.Itoa(random.IntN(stormPeople)), "acceptInvitation", map[string]any{"token": token})
		}
	case kind < 23:
		s.superuser(t, http.MethodPatch, member, map[string]any{"role": role})
	default:
		s.superuser(t, http.MethodDelete, member, nil)
	}
}

type stormMember struct{ ID, User string }

func (s *storm) members(t *testing.T, team string) []stormMember {
	t.Helper()
	var list []stormMember
	if err := s.DB().Select("id", "user").From(membersCollection).Where(dbx.HashExp{"team": team}).OrderBy("user").All(&list); err != nil {
		t.Error(err)
	}
	return list
}

// link takes one of the latest that were made, used or not.
func (s *storm) link(random *rand.Rand) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.links) == 0 {
		return ""
	}
	return s.links[len(s.links)-1-random.IntN(min(len(s.links), 5))]
}

// try calls the operation; the limit of calls an hour is none of the storm's business, so it goes past the route.
func (s *storm) try(t *testing.T, who, operation string, in map[string]any) map[string]any {
	t.Helper()
	auth, err := s.FindRecordById("users", s.ids[who])
	if err != nil {
		t.Error(err)
		return nil
	}
	out, err := s.ops.Call(t.Context(), s.App, "teams."+operation, in, auth)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.refused[operation]++
		return nil
	}
	s.done[operation]++
	var data map[string]any
	if err := json.Unmarshal([]byte(jsonOf(t, out)), &data); err != nil {
		t.Error(err)
	}
	return data
}

func (s *storm) superuser(t *testing.T, method, member string, body map[string]any) {
	t.Helper()
	if member == "" {
		return
	}
	got := s.Do(t, apptest.Request{Method: method, Path: "/api/collections/" + membersCollection + "/records/" + member, Token: s.root, Body: body})
	s.mu.Lock()
	defer s.mu.Unlock()
	if got.Status >= http.StatusInternalServerError {
		t.Errorf("%s: %d %s", method, got.Status, got.Body)
	}
	if got.Status < http.StatusBadRequest {
		s.done["superuser"]++
	}
}

// explained replays the audit from the first entry: it must give the memberships that there are, and no step of it may be
// one that its actor had no right to.
func explained(t *testing.T, w *world) {
	t.Helper()
	var rows []struct{ Action, Outcome, Details, Actor string }
	if err := w.DB().Select("action", "outcome", "details", "(CASE act_as WHEN '' THEN actor_id ELSE act_as END) AS actor").From("audit_entries").OrderBy("id").All(&rows); err != nil {
		t.Fatal(err)
	}
	state := map[[2]string]string{} // team and user -> role
	for _, r := range rows {
		if r.Outcome != "success" {
			continue
		}
		var c change
		if err := json.Unmarshal([]byte(r.Details), &c); err != nil {
			t.Fatal(err)
		}
		c.Account = r.Actor
		c.replay(t, state, r.Action)
	}
	var members []struct{ Team, User, Role string }
	if err := w.DB().Select("team", "user", "role").From(membersCollection).All(&members); err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		key := [2]string{m.Team, m.User}
		if state[key] != m.Role {
			t.Errorf("%v is %s, by the audit %q", key, m.Role, state[key])
		}
		delete(state, key)
	}
	for key, role := range state {
		t.Errorf("%v is gone, by the audit it is %s", key, role)
	}
}

// change is the details of an entry.
type change struct{ Team, User, Account, Role, From, To string }

// replay applies one entry to the memberships.
func (c change) replay(t *testing.T, state map[[2]string]string, action string) {
	t.Helper()
	key, own := [2]string{c.Team, c.User}, [2]string{c.Team, c.Account}
	switch action {
	case "teams.create":
		state[own] = Owner
	case "teams.acceptInvitation":
		state[own] = c.Role
	case "teams.member_added":
		state[key] = c.Role
	case "teams.role_changed", "teams.owner_succeeded", "teams.changeRole", "teams.transferOwnership":
		if state[key] != c.From {
			t.Errorf("%s of %v from %s, but it was %q", action, key, c.From, state[key])
		}
		asked := action == "teams.changeRole" || action == "teams.transferOwnership"
		if asked && rank(c.To) > rank(c.From) && state[own] != Owner {
			t.Errorf("%s of %v from %s to %s by a %q", action, key, c.From, c.To, state[own])
		}
		state[key] = c.To
		if action == "teams.transferOwnership" {
			state[own] = Admin
		}
	case "teams.member_removed", "teams.removeMember", "teams.leave":
		if key != own && action == "teams.removeMember" && !mayManage(state[own], state[key]) {
			t.Errorf("a %q threw a %q out", state[own], state[key])
		}
		delete(state, key)
	case "teams.deleted":
		for k := range state {
			if k[0] == c.Team {
				delete(state, k)
			}
		}
	}
}
