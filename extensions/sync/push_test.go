package sync_test

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sync/push"
)

func with(change map[string]any, key string, value any) map[string]any {
	out := maps.Clone(change)
	out[key] = value
	return out
}

func remove(cid, id string) map[string]any {
	return map[string]any{"cid": cid, "collection": "notes", "op": "delete", "id": id}
}

func TestPush(t *testing.T) {
	f := start(t, options{})
	ann, annToken := f.User(t, "ann@example.test")
	bob, _ := f.User(t, "bob@example.test")
	team := f.record("teams", map[string]any{"name": "one"})
	f.record("members", map[string]any{"user": ann.Id, "team": team.Id})
	theirs := f.record("notes", map[string]any{"title": "theirs", "owner": bob.Id})
	shared := f.record("notes", map[string]any{"title": "shared", "owner": bob.Id, "team": team.Id})
	gone := f.record("notes", map[string]any{"title": "gone", "owner": ann.Id})
	f.delete(gone)
	mine, other := id("mine"), id("other")
	d := f.device(annToken, "ann")
	d.sync()

	steps := []struct {
		name   string
		change map[string]any
		status string
		reason string
		record bool // the result has the present record
	}{
		{"create", create("1", mine, map[string]any{"title": "a", "owner": ann.Id}), push.Applied, "", false},
		{"the same again", create("1", mine, map[string]any{"title": "b", "owner": ann.Id}), push.Duplicate, "", true},
		{"create for another", create("2", other, map[string]any{"title": "a", "owner": bob.Id}), push.Denied, "sync.denied", false},
		{"create what there is", create("3", mine, map[string]any{"title": "b", "owner": ann.Id}), push.Conflict, "sync.exists", true},
		{"create what there is for others", create("4", theirs.Id, map[string]any{"title": "b", "owner": ann.Id}), push.Denied, "sync.denied", false},
		{"create what was deleted", create("5", gone.Id, map[string]any{"title": "b", "owner": ann.Id}), push.Gone, "sync.gone", false},
		{"bad id", create("6", "Not An Id", map[string]any{"title": "b", "owner": ann.Id}), push.Invalid, "api.validation_failed", false},
		{"update", update("7", mine, map[string]any{"title": "b"}), push.Applied, "", false},
		{"too long", update("8", mine, map[string]any{"title": fmt.Sprintf("%060d", 1)}), push.Invalid, "api.validation_failed", true},
		{"wrong type", update("9", mine, map[string]any{"likes": "three"}), push.Invalid, "api.validation_failed", true},
		{"unknown field", update("10", mine, map[string]any{"nothing": 1}), push.Invalid, "api.validation_failed", true},
		{"hidden field", update("11", mine, map[string]any{"secret": "x"}), push.Invalid, "api.validation_failed", true},
		{"another id", update("12", mine, map[string]any{"id": other}), push.Invalid, "api.validation_failed", true},
		{"modifier in set", update("13", mine, map[string]any{"likes+": 1}), push.Invalid, "api.validation_failed", true},
		{"counter", with(update("14", mine, nil), "apply", map[string]any{"likes+": 2, "tags+": []string{"a"}}), push.Applied, "", false},
		{"counter again", with(update("14", mine, nil), "apply", map[string]any{"likes+": 2}), push.Duplicate, "", true},
		{"set in apply", with(update("15", mine, nil), "apply", map[string]any{"likes": 2}), push.Invalid, "api.validation_failed", true},
		{"theirs", update("16", theirs.Id, map[string]any{"title": "x"}), push.Gone, "sync.gone", false},
		{"theirs, with a mistake", update("16b", theirs.Id, map[string]any{"nonsense": "x"}), push.Gone, "sync.gone", false},
		{"the mistake again", update("16b", theirs.Id, map[string]any{"nonsense": "x"}), push.Duplicate, "sync.gone", false},
		{"shared", update("17", shared.Id, map[string]any{"title": "by ann"}), push.Applied, "", false},
		{"delete what is shared", remove("18", shared.Id), push.Denied, "sync.denied", true},
		{"update what was deleted", update("19", gone.Id, map[string]any{"title": "x"}), push.Gone, "sync.gone", false},
		{"update what never was", update("20", id("never"), map[string]any{"title": "x"}), push.Gone, "sync.gone", false},
		{"unknown collection", map[string]any{"cid": "21", "collection": "x", "op": "delete", "id": "x"}, push.Gone, "sync.gone", false},
		{"no op", map[string]any{"cid": "22", "collection": "notes", "id": "x"}, push.Invalid, "sync.change_invalid", false},
		{"nothing known of it", map[string]any{"cid": "23", "whatever": 1}, push.Invalid, "sync.change_invalid", false},
		{"own account", map[string]any{"cid": "24", "collection": "users", "op": "update", "id": ann.Id, "set": map[string]any{"name": "Ann"}}, push.Applied, "", false},
		{"own address", map[string]any{"cid": "25", "collection": "users", "op": "update", "id": ann.Id, "set": map[string]any{"email": "x@example.test"}}, push.Invalid, "api.validation_failed", true},
		{"own password", map[string]any{"cid": "26", "collection": "users", "op": "update", "id": ann.Id, "set": map[string]any{"password": "12345678", "passwordConfirm": "12345678", "oldPassword": apptest.Password}}, push.Invalid, "api.validation_failed", true},
		{"a new account", map[string]any{"cid": "27", "collection": "users", "op": "create", "id": id("user"), "set": map[string]any{"name": "x"}}, push.Denied, "sync.denied", false},
		{"delete", remove("28", mine), push.Applied, "", false},
		{"delete again", remove("29", mine), push.Gone, "sync.gone", false},
	}
	for _, s := range steps {
		results, _, _ := d.sync(s.change)
		if len(results) != 1 || results[0].Status != s.status || (results[0].Record != nil) != s.record {
			t.Errorf("%s: %+v", s.name, results)
			continue
		}
		if r := results[0].Reason; (r == nil) != (s.reason == "") || r != nil && r.Code != s.reason {
			t.Errorf("%s: reason %+v, want %s", s.name, r, s.reason)
		}
		d.equalsList()
	}
	counted, err := f.FindRecordById("notes", shared.Id)
	if err != nil || counted.GetString("title") != "by ann" {
		t.Errorf("shared: %v %v", counted, err)
	}
}

func TestConflicts(t *testing.T) {
	seen := func(v any) map[string]any { return map[string]any{"v": v, "set": map[string]any{"title": "first"}} }
	tests := []struct {
		policy       string
		change       func(c map[string]any, v int64) map[string]any
		status       string
		title        string
		fields, body string
	}{
		{"merge", func(c map[string]any, v int64) map[string]any { return with(c, "base", seen(v)) }, push.Merged, "mine", "[title]", "others"},
		{"merge", func(c map[string]any, _ int64) map[string]any { return c }, push.Applied, "mine", "[]", "others"},
		{"server-wins", func(c map[string]any, v int64) map[string]any { return with(c, "base", seen(v)) }, push.Merged, "others", "[title]", "others"},
		{"server-wins", func(c map[string]any, v int64) map[string]any { return with(c, "base", map[string]any{"v": v}) }, push.Merged, "others", "[title]", "others"},
		{"reject", func(c map[string]any, v int64) map[string]any { return with(c, "base", seen(v)) }, push.Conflict, "others", "[]", "others"},
		{"reject", func(c map[string]any, _ int64) map[string]any { return c }, push.Conflict, "others", "[]", "others"},
		{"reject", func(c map[string]any, _ int64) map[string]any {
			return with(with(c, "set", nil), "apply", map[string]any{"likes+": 1})
		}, push.Applied, "others", "[]", "others"},
		{"custom", func(c map[string]any, v int64) map[string]any { return with(c, "base", seen(v)) }, push.Merged, "others+mine", "[]", "others"},
	}
	for i, test := range tests {
		t.Run(fmt.Sprint(i, test.policy), func(t *testing.T) {
			o := options{}
			if test.policy == "custom" {
				o.resolvers = map[string]push.Resolver{"notes": func(d push.Dispute) (map[string]any, error) {
					if d.Base["title"] != "first" {
						return nil, errors.New("no base")
					}
					return map[string]any{"title": d.Current.GetString("title") + "+" + fmt.Sprint(d.Incoming["title"])}, nil
				}}
			} else {
				o.policies = []string{"notes=" + test.policy}
			}
			f := start(t, o)
			ann, token := f.User(t, "ann@example.test")
			note := f.record("notes", map[string]any{"title": "first", "owner": ann.Id})
			d := f.device(token, "ann")
			d.sync()
			version, _ := d.rows[note.Id]["v"].(float64)
			f.edit(note, map[string]any{"title": "others", "body": "others"})
			results, _, _ := d.sync(test.change(update("1", note.Id, map[string]any{"title": "mine"}), int64(version)))
			r := results[0]
			if r.Status != test.status || fmt.Sprint(r.Fields) != test.fields {
				t.Errorf("result %+v", r)
			}
			if d.rows[note.Id]["title"] != test.title || d.rows[note.Id]["body"] != test.body {
				t.Errorf("row %v", d.rows[note.Id])
			}
			d.equalsList()
			if r.Status != push.Conflict && float64(r.V) != d.rows[note.Id]["v"] {
				t.Errorf("version %d, then %v", r.V, d.rows[note.Id]["v"])
			}
			// With the present version nothing is in the way.
			now, _ := d.rows[note.Id]["v"].(float64)
			base := map[string]any{"v": int64(now), "set": map[string]any{"title": d.rows[note.Id]["title"]}}
			if test.policy == "custom" {
				return
			}
			results, _, _ = d.sync(with(update("2", note.Id, map[string]any{"title": "last"}), "base", base))
			if results[0].Status != push.Applied || d.rows[note.Id]["title"] != "last" {
				t.Errorf("with the present version: %+v, %v", results[0], d.rows[note.Id])
			}
			f.edit(note, map[string]any{"body": "again"})
			results, _, _ = d.sync(with(remove("3", note.Id), "base", map[string]any{"v": results[0].V}))
			want := push.Applied
			if test.policy == "reject" {
				want = push.Conflict
			}
			if results[0].Status != want {
				t.Errorf("deletion: %+v", results[0])
			}
		})
	}
}

func TestGroups(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	d := f.device(token, "ann")
	group := func(c map[string]any, g string) map[string]any { return with(c, "group", g) }
	mine := func(title string) map[string]any { return map[string]any{"title": title, "owner": ann.Id} }
	results, _, _ := d.sync(
		group(create("1", id("a"), mine("a")), "g"), create("2", id("b"), mine("b")), group(create("3", id("c"), mine("c")), "g"),
		group(create("4", id("d"), mine("d")), "h"), group(create("5", id("e"), mine(fmt.Sprintf("%060d", 1))), "h"),
		group(create("6", id("f"), mine("f")), "i"), group(map[string]any{"cid": "7"}, "i"),
	)
	var statuses []string
	for _, r := range results {
		statuses = append(statuses, r.Status)
	}
	want := []string{push.Applied, push.Applied, push.Applied, push.Invalid, push.Invalid, push.Invalid, push.Invalid}
	if !slices.Equal(statuses, want) {
		t.Errorf("statuses %v, want %v", statuses, want)
	}
	if results[3].Reason.Code != "sync.group_refused" || results[4].Reason.Code != "api.validation_failed" || len(d.rows) != 3 {
		t.Errorf("reasons %+v %+v, rows %v", results[3].Reason, results[4].Reason, d.rows)
	}
	again, _, _ := d.sync(group(create("4", id("d"), mine("d")), "h"))
	if again[0].Status != push.Duplicate || again[0].Original != push.Invalid {
		t.Errorf("again: %+v", again[0])
	}
}

func TestHooksOfRequests(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	d := f.device(token, "ann")
	var seen []string
	f.OnRecordCreateRequest("notes").BindFunc(func(e *core.RecordRequestEvent) error {
		info, err := e.RequestInfo()
		if err != nil {
			return err
		}
		seen = append(seen, e.Request.Method+" "+e.Request.URL.Path+" "+fmt.Sprint(info.Body["title"], e.App.IsTransactional(), e.Auth.Id == ann.Id))
		switch e.Record.GetString("title") {
		case "forbidden":
			return e.ForbiddenError("no", nil)
		case "panic":
			panic("a hook")
		case "internal":
			return e.InternalServerError("", errors.New("boom"))
		case "silent":
			return nil
		}
		e.Record.Set("body", "set by a hook")
		if err := e.Next(); err != nil {
			return err
		}
		if e.Record.GetString("title") == "late" {
			return e.BadRequestError("too late", nil)
		}
		return nil
	})
	mine := func(title string) map[string]any { return map[string]any{"title": title, "owner": ann.Id} }
	results, _, _ := d.sync(
		create("1", id("a"), mine("a")), create("2", id("b"), mine("forbidden")), create("3", id("c"), mine("panic")), update("4", id("c"), mine("x")),
		create("5", id("d"), mine("late")), create("6", id("e"), mine("internal")), create("7", id("f"), mine("f")),
	)
	want := []string{push.Applied, push.Denied, push.Retry, push.Retry, push.Invalid, push.Retry, push.Applied}
	for i, r := range results {
		if r.Status != want[i] {
			t.Errorf("result %d: %+v, want %s", i, r, want[i])
		}
	}
	if len(d.rows) != 2 || d.rows[id("a")]["body"] != "set by a hook" {
		t.Errorf("rows %v", d.rows)
	}
	if seen[0] != "POST /api/collections/notes/records atrue true" {
		t.Errorf("the hook saw %s", seen[0])
	}
	d.equalsList()
}

// What a change may do is what the record API lets the same user do.
func TestRulesEqualTheRecordAPI(t *testing.T) {
	rules := []string{
		"", `@request.auth.id != ""`, ownerRule, teamRule, `title != "x"`, `@request.body.title != "x"`, `@request.body.title:isset = true`,
		`@request.method = "PATCH"`, `likes > 1`, `tags:length < 2`, `@request.body.likes > likes`, `owner.name = ""`, `@collection.members.user ?= @request.auth.id`,
		`@request.body.owner:isset = false`, `team = "" && title ~ "a"`, `@request.auth.verified = false`,
	}
	bodies := []map[string]any{
		{"title": "a"},
		{"title": "x"},
		{"likes": 3},
		{"body": "b", "likes": 1},
		{"title": "a", "tags": []string{"a", "b"}},
		{"team": ""},
		{"title": fmt.Sprintf("%060d", 1)},
		{"tags": []string{"nothing"}},
		{"owner": "nobody"},
	}
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	team := f.record("teams", map[string]any{"name": "one"})
	f.record("members", map[string]any{"user": ann.Id, "team": team.Id})
	d := f.device(token, "ann")
	n := 0
	for _, rule := range rules {
		f.notes.CreateRule, f.notes.UpdateRule, f.notes.DeleteRule = new(rule), new(rule), new(rule)
		f.save(f.notes)
		for _, body := range bodies {
			for _, op := range []string{push.Create, push.Update, push.Delete} {
				n++
				stock, own := id(fmt.Sprintf("s%dx", n)), id(fmt.Sprintf("o%dx", n))
				set := maps.Clone(body)
				path, method := "/api/collections/notes/records/"+stock, http.MethodPatch
				sent := any(set)
				switch op {
				case push.Create:
					path, method = "/api/collections/notes/records", http.MethodPost
					if _, given := set["owner"]; !given {
						set["owner"] = ann.Id
					}
					sent = with(set, "id", stock)
				default:
					for _, id := range []string{stock, own} {
						f.record("notes", map[string]any{"id": id, "title": "first", "owner": ann.Id, "team": team.Id, "likes": 2, "tags": []string{"c"}})
					}
					if op == push.Delete {
						method, sent, set = http.MethodDelete, nil, nil
					}
				}
				resp := f.Do(t, apptest.Request{Method: method, Path: path, Token: token, Body: sent})
				change := map[string]any{"cid": fmt.Sprint(n), "collection": "notes", "op": op, "id": own}
				if set != nil {
					change["set"] = set
				}
				r := d.ask(nil, nil, change).Results[0]
				if ok := resp.Status < 300; ok != (r.Status == push.Applied) {
					t.Errorf("rule %q, %s %v: the API says %d %s, sync %+v", rule, op, body, resp.Status, resp.Body, r)
				}
				a, errA := f.FindRecordById("notes", stock)
				b, errB := f.FindRecordById("notes", own)
				if (errA == nil) != (errB == nil) {
					t.Errorf("rule %q, %s %v: the API left %v, sync %v", rule, op, body, errA, errB)
				} else if errA == nil {
					b.Id = a.Id
					if x, y := fmt.Sprint(a.PublicExport()), fmt.Sprint(b.PublicExport()); x != y {
						t.Errorf("rule %q, %s %v: the API left %s, sync %s", rule, op, body, x, y)
					}
				}
			}
		}
	}
}

// Whoever may not see a record does not learn of it by what becomes of other changes, or by what the next page removes.
func TestPushTellsNothingOfOthersRecords(t *testing.T) {
	f := start(t, options{policies: []string{"notes=reject"}})
	ann, token := f.User(t, "ann@example.test")
	bob, _ := f.User(t, "bob@example.test")
	theirs := f.record("notes", map[string]any{"id": id("z1"), "title": "theirs", "owner": bob.Id})
	deleted := f.record("notes", map[string]any{"id": id("z2"), "title": "theirs", "owner": bob.Id})
	f.delete(deleted)
	closed := core.NewBaseCollection("closed")
	closed.Fields.Add(&core.TextField{Name: "title"})
	closed.ListRule = new("title = 'open'")
	f.save(closed)
	hidden := f.record("closed", map[string]any{"title": "secret"})
	told := map[string]string{}
	for i, target := range []string{id("zzz"), theirs.Id, deleted.Id} {
		d := f.device(token, fmt.Sprint("ann", i))
		d.sync()
		group := func(c map[string]any) map[string]any { return with(c, "group", "g") }
		results, _, removes := d.sync(
			group(update("1", target, map[string]any{"title": "x"})), group(create("2", id("a"), map[string]any{"title": "x", "owner": ann.Id})),
			update("3", target, map[string]any{"title": "x"}), remove("4", target), update("5", target, map[string]any{"nonsense": 1}),
		)
		text := fmt.Sprint(removes)
		for _, r := range results {
			text += fmt.Sprintf(" %s %d %+v;", r.Status, r.V, *r.Reason)
		}
		told[strings.ReplaceAll(text, target, "ID")] = target
	}
	if len(told) != 1 {
		t.Errorf("answers differ:\n%v", slices.Sorted(maps.Keys(told)))
	}
	d := f.device(token, "ann9")
	for _, set := range []map[string]any{{"title": "x"}, {"nonsense": 1}} {
		var answers []string
		for i, target := range []string{id("never"), hidden.Id} {
			change := create(fmt.Sprint(i, set), target, set)
			change["collection"] = "closed"
			r := d.ask(nil, nil, change).Results[0]
			answers = append(answers, fmt.Sprintf("%s %+v", r.Status, *r.Reason))
		}
		if answers[0] != answers[1] {
			t.Errorf("nobody may create these: %v", answers)
		}
	}
}

// What is wrong with a change is told, and kept, in a few lines, however much of it is wrong.
func TestMistakesAreBounded(t *testing.T) {
	f := start(t, options{})
	ann, token := f.User(t, "ann@example.test")
	note := f.record("notes", map[string]any{"title": "a", "owner": ann.Id})
	d := f.device(token, "ann")
	set := map[string]any{}
	for i := range 5000 {
		set[fmt.Sprint("f", i)] = 0
	}
	results, _, _ := d.sync(update("1", note.Id, set))
	if r := results[0]; r.Status != push.Invalid || r.Reason == nil || len(r.Reason.Errors) == 0 || len(r.Reason.Errors) > 100 {
		t.Errorf("%s with %d mistakes", r.Status, len(r.Reason.Errors))
	}
	var size int
	if err := f.DB().NewQuery("SELECT length(result) FROM " + push.Table).Row(&size); err != nil || size > 20_000 {
		t.Errorf("%d bytes are kept of it, %v", size, err)
	}
}
