package judge_test

import (
	"fmt"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

// world is a collection with records whose values are the hard ones.
func world(t *testing.T) (*apptest.App, *core.Collection, []*core.Record, []*core.Record) {
	t.Helper()
	app := apptest.New(t)
	ada, _ := app.User(t, "ada@example.test")
	eve, _ := app.User(t, "eve@example.test")
	root, _ := app.Superuser(t)
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.TextField{Name: "name"}, &core.RelationField{Name: "members", CollectionId: users.Id, MaxSelect: 99})
	save(t, app, teams)
	things := core.NewBaseCollection("things")
	things.Fields.Add(
		&core.TextField{Name: "title"}, &core.TextField{Name: "other"}, &core.TextField{Name: "secret", Hidden: true},
		&core.BoolField{Name: "flag"}, &core.NumberField{Name: "n"}, &core.JSONField{Name: "data"},
		&core.SelectField{Name: "status", Values: []string{"open", "done"}, MaxSelect: 1},
		&core.SelectField{Name: "tags", Values: []string{"a", "b"}, MaxSelect: 2},
		&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1},
		&core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1},
	)
	save(t, app, things)
	team := core.NewRecord(teams)
	team.Set("members", []string{ada.Id, eve.Id})
	save(t, app, team)
	var records []*core.Record
	for i, values := range []map[string]any{
		{},
		{"title": "a", "other": "a"},
		{"title": "A", "other": "a", "flag": true},
		{"owner": ada.Id, "status": "open", "n": 5},
		{"owner": eve.Id, "status": "done", "flag": true, "tags": []string{"a", "b"}},
		{"owner": ada.Id, "team": team.Id, "title": `quo"te`},
		{"team": team.Id, "data": map[string]any{"x": 1}, "secret": "s", "n": -1.5},
	} {
		r := core.NewRecord(things)
		r.Id = fmt.Sprintf("thing%010d", i)
		r.Load(values)
		save(t, app, r)
		records = append(records, r)
	}
	return app, things, records, []*core.Record{nil, ada, eve, root}
}

func save(t testing.TB, app core.App, m core.Model) {
	t.Helper()
	if err := app.Save(m); err != nil {
		t.Fatal(err)
	}
}

// conditions are rules, and whether they can be decided in memory.
func conditions() map[string]bool {
	return map[string]bool{
		"": true, "@request.auth.id != ''": true, "@request.auth.id = ''": true, "owner = @request.auth.id": true, "@request.auth.id = owner": true,
		"owner != @request.auth.id": true, "owner ?= @request.auth.id": true, "title = other": true, "title != other": true, "title = 'a'": true,
		"title = ''": true, "title != ''": true, "flag = true": true, "flag = false": true, "flag != true": true, "status = 'open'": true,
		"@request.auth.id != '' && (owner = @request.auth.id || flag = true)": true,
		"owner = @request.auth.id || flag = true && status = 'done'":          true,
		"flag = true && status = 'done' || owner = @request.auth.id":          true,
		"(flag = true || status = 'open') && title = '' || title = 'a'":       true,
		"@request.auth.collectionName = 'users'":                              true,
		"@request.auth.collectionId != ''":                                    true,
		`title = 'quo"te'`:                                                    true,
		"secret = 's'":                                                        true,
		"team.members.id ?= @request.auth.id":                                 false,
		"team.members ?= @request.auth.id && flag = false":                    false,
		"n = 5":                         false,
		"n > 0":                         false,
		"title ~ 'a'":                   false,
		"tags ?= 'a'":                   false,
		"@request.auth.verified = true": false,
		"@request.auth.email ~ 'ada'":   false,
		"@request.auth.email = title":   false,
		"@request.auth.name = 'ada' || owner.email = @request.auth.email":                              false,
		"@request.auth.teams_via_members.id ?= team":                                                   false,
		"@collection.teams.members ?= @request.auth.id":                                                false,
		"title = 'a' || @collection.teams.id ?= team && @collection.teams.members ?= @request.auth.id": false,
		"data.x = 1":             false,
		"title = null":           false,
		"@request.query.x = '1'": false,
		"owner.id = @request.auth.id || owner.verified = true && owner != ''": false,
		"// a comment\n owner = @request.auth.id":                             true,
		"@request.context = 'realtime'":                                       false,
		"created = updated || id != ''":                                       false,
		"team.members.id != @request.auth.id":                                 false,
		"owner:isset = true || title = 'a'":                                   false,
		"@now > '2020-01-01 00:00:00.000Z' && owner = @request.auth.id":       false,
		"@request.auth.id ~ 'a'":                                              false,
	}
}

// Whatever way a rule is evaluated, the answer is PocketBase's.
func TestAnswersEqualPocketBase(t *testing.T) {
	app, things, records, viewers := world(t)
	for rule, inMemory := range conditions() {
		t.Run(rule, func(t *testing.T) {
			for _, auth := range viewers {
				info := &core.RequestInfo{Context: core.RequestInfoContextRealtime, Method: "GET", Auth: auth, Query: map[string]string{"x": "1"}, Body: map[string]any{}}
				want := make([]bool, len(records))
				for i, r := range records {
					ok, err := app.CanAccessRecord(r, info, new(rule))
					if err != nil {
						t.Skip(err)
					}
					want[i] = ok
				}
				test, ok := judge.InMemory(things, &rule, "", auth)
				if super := auth != nil && auth.IsSuperuser(); ok != (inMemory || super) {
					t.Errorf("in memory: %v", ok)
				}
				if ok {
					for i, r := range records {
						if got := test.Match(r); got != want[i] {
							t.Errorf("viewer %v, record %d: in memory %v, PocketBase %v (%s)", auth, i, got, want[i], test.Key)
						}
					}
				}
				for _, shared := range []bool{false, judge.Shareable(things, auth, &rule, "")} {
					q, err := judge.NewQuestion(app, things, &rule, "", info, shared)
					if err != nil {
						t.Fatal(err)
					}
					ask(t, q, auth, records, want)
				}
			}
		})
	}
}

func ask(t *testing.T, q *judge.Question, auth *core.Record, records []*core.Record, want []bool) {
	t.Helper()
	id := ""
	if auth != nil {
		id = auth.Id
	}
	pairs := make([]judge.Pair, len(records))
	for i, r := range records {
		pairs[i] = judge.Pair{id, r.Id}
	}
	seen, err := q.Ask(t.Context(), pairs)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := q.AskGone(t.Context(), records, pairs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if seen[i] != want[i] || gone[i] != want[i] {
			t.Errorf("viewer %q, record %d: the question says %v, of a deleted record %v, PocketBase %v", id, i, seen[i], gone[i], want[i])
		}
	}
}

// One question answers for viewers of whom it was not made.
func TestQuestionIsShared(t *testing.T) {
	app, things, records, viewers := world(t)
	for _, rule := range []string{
		"team.members.id ?= @request.auth.id || owner = @request.auth.id",
		"@request.auth.teams_via_members.id ?= team && @request.auth.verified = false",
		"@request.auth.name != '' || owner.id = @request.auth.id",
		"owner.created = @request.auth.created || @request.auth.email = 'eve@example.test'",
	} {
		info := &core.RequestInfo{Context: core.RequestInfoContextRealtime, Method: "GET", Auth: viewers[1], Body: map[string]any{}}
		q, err := judge.NewQuestion(app, things, &rule, "", info, judge.Shareable(things, viewers[1], &rule, ""))
		if err != nil {
			t.Fatal(err)
		}
		if !q.Shared() {
			t.Fatalf("%s: the question is not shared", rule)
		}
		var pairs []judge.Pair
		var want []bool
		for _, auth := range viewers[1:3] {
			for _, r := range records {
				own := *info
				own.Auth = auth
				ok, err := app.CanAccessRecord(r, &own, &rule)
				if err != nil {
					t.Fatal(err)
				}
				pairs, want = append(pairs, judge.Pair{auth.Id, r.Id}), append(want, ok)
			}
		}
		got, err := q.Ask(t.Context(), pairs)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", rule, got, want)
		}
	}
}

// A client's filter reads no hidden field, in memory as little as in the database.
func TestFilterReadsNothingHidden(t *testing.T) {
	_, things, _, viewers := world(t)
	for _, filter := range []string{"secret = 's'", "@request.auth.id = 'x'", "@collection.teams.id = 'x'"} {
		if _, ok := judge.InMemory(things, nil, filter, viewers[1]); ok {
			t.Errorf("%s is evaluated in memory", filter)
		}
	}
	for _, filter := range []string{"email = 'eve@example.test'", "email != ''"} { // addresses are hidden one by one
		if _, ok := judge.InMemory(viewers[1].Collection(), nil, filter, viewers[1]); ok {
			t.Errorf("%s is evaluated in memory", filter)
		}
	}
	if _, ok := judge.InMemory(viewers[1].Collection(), new("email != ''"), "", viewers[1]); !ok {
		t.Error("a rule may read addresses")
	}
	if _, ok := judge.InMemory(things, nil, "secret = 's'", viewers[3]); !ok {
		t.Error("a superuser may read hidden fields")
	}
}
