package judge_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/live/judge"
)

// office is folders in folders, files in them, teams and grants, with random relations.
type office struct {
	*apptest.App
	rnd                           *rand.Rand
	files, folders, teams, grants *core.Collection
	users                         []*core.Record
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{App: apptest.New(t), rnd: rand.New(rand.NewPCG(1, 2))}
	for i := range 3 {
		u, _ := o.User(t, fmt.Sprintf("u%d@example.test", i))
		o.users = append(o.users, u)
	}
	users, err := o.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	made := func(name string, fields ...core.Field) *core.Collection {
		c := core.NewBaseCollection(name)
		c.Fields.Add(fields...)
		save(t, o, c)
		return c
	}
	relation := func(name string, to *core.Collection, max int) core.Field {
		return &core.RelationField{Name: name, CollectionId: to.Id, MaxSelect: max}
	}
	o.teams = made("teams", relation("members", users, 9), &core.TextField{Name: "name"})
	o.folders = made("folders", relation("team", o.teams, 1))
	o.folders.Fields.Add(relation("parent", o.folders, 1))
	save(t, o, o.folders)
	o.grants = made("grants", relation("folder", o.folders, 1), relation("who", users, 1))
	o.files = made("files", relation("folder", o.folders, 1), relation("owner", users, 1))
	o.files.Fields.Add(relation("origin", o.files, 1))
	save(t, o, o.files)
	for _, c := range []*core.Collection{o.teams, o.folders, o.grants, o.files} {
		for range 5 {
			r := core.NewRecord(c)
			o.fill(t, r)
			save(t, o, r)
		}
	}
	return o
}

// fill sets every relation of a record anew, to records that are there or to nothing.
func (o *office) fill(t *testing.T, r *core.Record) {
	t.Helper()
	for _, f := range r.Collection().Fields {
		field, ok := f.(*core.RelationField)
		if !ok {
			continue
		}
		all, err := o.FindAllRecords(field.CollectionId)
		if err != nil {
			t.Fatal(err)
		}
		var chosen []string
		for range min(field.MaxSelect, 2) {
			if len(all) > 0 && o.rnd.IntN(4) > 0 {
				chosen = append(chosen, all[o.rnd.IntN(len(all))].Id)
			}
		}
		r.Set(field.Name, chosen)
	}
}

// seen is which files each user may see, by PocketBase.
func (o *office) seen(t *testing.T, rule string) []map[string]bool {
	t.Helper()
	files, err := o.FindAllRecords(o.files)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]map[string]bool, len(o.users))
	for i, u := range o.users {
		out[i] = map[string]bool{}
		for _, f := range files {
			ok, err := o.CanAccessRecord(f, &core.RequestInfo{Context: core.RequestInfoContextRealtime, Method: "GET", Auth: u, Body: map[string]any{}}, &rule)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				out[i][f.Id] = true
			}
		}
	}
	return out
}

// change alters, adds or removes one record of a collection and notes how it was.
func (o *office) change(t *testing.T, c *core.Collection, was map[string]map[string]*core.Record) {
	t.Helper()
	all, err := o.FindAllRecords(c)
	if err != nil {
		t.Fatal(err)
	}
	if was[c.Id] == nil {
		was[c.Id] = map[string]*core.Record{}
	}
	note := func(r *core.Record, image *core.Record) {
		if _, known := was[c.Id][r.Id]; !known {
			was[c.Id][r.Id] = image
		}
	}
	r := core.NewRecord(c)
	switch {
	case len(all) > 7:
		r = all[o.rnd.IntN(len(all))]
		note(r, r.Original())
		if _, err := o.NonconcurrentDB().NewQuery("DELETE FROM {{" + c.Name + "}} WHERE [[id]] = '" + r.Id + "'").Execute(); err != nil {
			t.Fatal(err)
		}
	case len(all) > 3 && o.rnd.IntN(3) > 0:
		r = all[o.rnd.IntN(len(all))]
		note(r, r.Original())
		o.fill(t, r)
		save(t, o, r)
	default:
		o.fill(t, r)
		save(t, o, r)
		note(r, nil)
	}
}

// Whoever sees other files because other records have changed is found, whatever way the rule reads these.
func TestTurned(t *testing.T) {
	o := newOffice(t)
	var cases []*watched
	for rule, exact := range map[string]bool{
		"folder.team.members.id ?= @request.auth.id":                                            true,
		"folder.team.members ?~ @request.auth.id":                                               false, // an own question for each
		"owner = @request.auth.id || folder.team.members.id ?= @request.auth.id":                false,
		"folder.parent.team.members.id ?= @request.auth.id":                                     true,
		"@collection.grants.folder ?= folder && @collection.grants.who ?= @request.auth.id":     false,
		"folder.grants_via_folder.who ?= @request.auth.id":                                      false,
		"origin.owner = @request.auth.id":                                                       true,
		"folder.team.members.id != @request.auth.id":                                            false,
		"@request.auth.teams_via_members.id ?= folder.team":                                     false,
		"@collection.grants:a.folder ?= folder && @collection.grants:b.who ?= @request.auth.id": false,
		"@request.auth.id != '' && folder.parent.grants_via_folder.who ?= @request.auth.id":     false,
		"folder.team.members.id ?= @request.auth.id && folder.parent.team.id != ''":             false,
	} {
		w := &watched{rule: rule, exact: exact, seen: o.seen(t, rule)}
		for _, u := range o.users {
			info := &core.RequestInfo{Context: core.RequestInfoContextRealtime, Method: "GET", Auth: u, Body: map[string]any{}}
			q, err := judge.NewQuestion(o, o.files, &rule, "", info, judge.Shareable(o.files, u, &rule, ""))
			if err != nil {
				t.Fatal(err)
			}
			w.questions = append(w.questions, q)
		}
		cases = append(cases, w)
	}
	for step := range 25 {
		was := map[string]map[string]*core.Record{}
		for range 1 + step%3 {
			o.change(t, []*core.Collection{o.teams, o.folders, o.grants, o.files}[o.rnd.IntN(4)], was)
		}
		for _, w := range cases {
			w.compare(t, o, was, step)
		}
	}
	for _, w := range cases {
		if w.hits == 0 {
			t.Errorf("%s: nothing was gained or lost", w.rule)
		}
	}
}

// watched is a rule, and what each user saw by it last.
type watched struct {
	rule      string
	exact     bool // there is only one way to a file
	questions []*judge.Question
	seen      []map[string]bool
	hits      int
}

func (w *watched) compare(t *testing.T, o *office, was map[string]map[string]*core.Record, step int) {
	t.Helper()
	before, after, own := w.seen, o.seen(t, w.rule), was[o.files.Id]
	w.seen = after
	for i, u := range o.users {
		turn := ask1(t, o, w.questions[i], u.Id, was)
		gained, lost := false, false
		for id := range after[i] {
			_, changed := own[id]
			gained = gained || !changed && !before[i][id]
		}
		for id := range before[i] {
			if _, changed := own[id]; changed || after[i][id] {
				continue
			}
			lost = true
			if !turn.Many && !slices.Contains(turn.Lost, id) {
				t.Errorf("%s: step %d, user %d: the loss of %s was not found", w.rule, step, i, id)
			}
		}
		if gained && !turn.Gained {
			t.Errorf("%s: step %d, user %d: what was gained was not found", w.rule, step, i)
		}
		if gained || lost {
			w.hits++
		}
		if w.exact && step%3 == 0 && (turn.Gained && !gained || len(turn.Lost) > 0 && !lost) {
			t.Errorf("%s: step %d, user %d: %+v, but nothing has changed", w.rule, step, i, turn)
		}
	}
}

// ask1 asks about one viewer. What cannot be told counts as everything.
func ask1(t *testing.T, o *office, q *judge.Question, viewer string, was map[string]map[string]*core.Record) judge.Turn {
	t.Helper()
	var shifts []judge.Shift
	for id, rows := range was {
		c, err := o.FindCachedCollectionByNameOrId(id)
		if err != nil {
			t.Fatal(err)
		}
		if q.Reads(c) {
			shifts = append(shifts, judge.Shift{Collection: c, Was: rows})
		}
	}
	turns, err := q.Turned(t.Context(), []string{viewer}, shifts, false)
	if errors.Is(err, judge.ErrUntold) {
		return judge.Turn{Gained: true, Many: true}
	}
	if err != nil {
		t.Fatal(err)
	}
	return turns[0]
}
