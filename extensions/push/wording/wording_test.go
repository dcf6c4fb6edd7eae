package wording_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/template"
	"github.com/satchelbase/satchel/extensions/push/wording"
	"github.com/satchelbase/satchel/extensions/settings"
)

type m = map[string]any

type fixture struct {
	*apptest.App

	wording *wording.Wording
	root    string
	rootID  string
	audited []string
}

func start(t *testing.T, declared ...message.Template) *fixture {
	t.Helper()
	f := &fixture{wording: wording.New(declared)}
	ops := operations.New()
	ops.Add(f.wording.Operations())
	f.App = apptest.New(t, api.New(settings.Defaults[api.Config]()),
		ops.Extension(operations.Deps{Audit: func(_ core.App, e audit.Entry) error {
			text, err := json.Marshal(e.Details)
			f.audited = append(f.audited, e.Action+" "+e.Outcome+" "+string(text))
			return err
		}}),
		extensions.Extension{Name: "push", Codes: wording.Codes(), Tables: wording.Tables(), Migrations: wording.Migrations(), Bind: f.wording.Bind})
	record, token := f.Superuser(t)
	f.root, f.rootID = token, record.Id
	return f
}

// call calls an operation and expects a code; empty is success.
func (f *fixture) call(t *testing.T, name string, in m, code string) wording.Template {
	t.Helper()
	var out struct{ Data wording.Template }
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/" + name, Token: f.root, Body: in})
	if r.Code() != code {
		t.Fatalf("%s %v: %d %s, want %q", name, in, r.Status, r.Body, code)
	}
	if code == "" {
		if err := json.Unmarshal(r.Body, &out); err != nil {
			t.Fatal(err)
		}
	}
	return out.Data
}

func (f *fixture) show(t *testing.T, query string) (out wording.Template, status int) {
	t.Helper()
	r := f.Do(t, apptest.Request{Path: "/api/v1/operations/push.template?" + query, Token: f.root})
	if r.Status == http.StatusOK {
		if err := json.Unmarshal(r.Body, &struct{ Data any }{&out}); err != nil {
			t.Fatal(err)
		}
	}
	return out, r.Status
}

func (f *fixture) title(t *testing.T, name string) (string, int) {
	t.Helper()
	texts, version, err := f.wording.Texts(f.App.App, name)
	if err != nil {
		t.Fatal(err)
	}
	return texts[template.Default].Title, version
}

func texts(title string) m { return m{"default": m{"title": title}} }

var posts = message.Template{Name: "posts", Texts: template.Texts{
	"default": {Title: "{n, number} new in {room}"}, "de": {Title: "Neu in {room}", Body: "{who, select, me{Du} other{Jemand}}"},
}}

// What is saved takes the place of what is declared, with a version for each change, and what is declared comes back.
func TestOverride(t *testing.T) {
	f := start(t, posts)
	if title, version := f.title(t, "posts"); title != "{n, number} new in {room}" || version != 0 {
		t.Errorf("declared: %q %d", title, version)
	}
	first := f.call(t, "push.template.save", m{"name": "posts", "version": 0, "texts": texts("{n, plural, one{# post} other{# posts}}")}, "")
	if first.Version != 1 || !first.Declared || first.By != f.rootID || first.SavedAt == nil || len(first.DeclaredTexts) != 2 {
		t.Errorf("%+v", first)
	}
	if want := (template.Needs{"n": template.Number, "room": template.Any, "who": template.Choice}); !maps.Equal(first.Values, want) {
		t.Errorf("messages give %v", first.Values)
	}
	if title, version := f.title(t, "posts"); !strings.HasPrefix(title, "{n, plural") || version != 1 {
		t.Errorf("saved: %q %d", title, version)
	}
	// The same again is no change; from two admins who have read the same version, the second one is told.
	if again := f.call(t, "push.template.save", m{"name": "posts", "version": 0, "texts": texts("{n, plural, one{# post} other{# posts}}")}, ""); again.Version != 1 {
		t.Errorf("%+v", again)
	}
	f.call(t, "push.template.save", m{"name": "posts", "version": 1, "texts": m{"default": m{"title": "{room}"}, "fr": m{"title": "{room} !"}}}, "")
	f.call(t, "push.template.save", m{"name": "posts", "version": 1, "texts": texts("{who}")}, wording.ErrChanged.Name)
	f.call(t, "push.template.remove", m{"name": "posts", "version": 1}, wording.ErrChanged.Name)

	got, _ := f.show(t, "name=posts")
	if got.Version != 2 || !slices.Equal(got.Languages, []string{"default", "fr"}) || !slices.Equal(got.Needs["fr"], []string{"room"}) {
		t.Errorf("%+v", got)
	}
	if old, _ := f.show(t, "name=posts&version=1"); !strings.HasPrefix(old.Texts["default"].Title, "{n, plural") || old.Version != 2 {
		t.Errorf("the first version: %+v", old)
	}
	gone := f.call(t, "push.template.remove", m{"name": "posts", "version": 2}, "")
	if gone.Version != 0 || len(gone.History) != 3 || !gone.History[0].Removed || gone.Texts["de"].Title != "Neu in {room}" {
		t.Errorf("%+v", gone)
	}
	if title, version := f.title(t, "posts"); title != "{n, number} new in {room}" || version != 0 {
		t.Errorf("back: %q %d", title, version)
	}
	f.call(t, "push.template.remove", m{"name": "posts", "version": 3}, api.ErrNotFound.Name)
	if next := f.call(t, "push.template.save", m{"name": "posts", "version": 0, "texts": texts("{room}")}, ""); next.Version != 4 {
		t.Errorf("a version was used twice: %+v", next)
	}
	want := []string{
		`push.template.save success {"after":1,"before":0,"languages":["de","default"],"name":"posts"}`,
		`push.template.save success {"after":1,"before":1,"name":"posts"}`,
		`push.template.save success {"after":2,"before":1,"languages":["default","fr"],"name":"posts"}`,
		`push.template.save failure {"before":2,"error":"push.template_changed","name":"posts"}`,
		`push.template.remove failure {"error":"push.template_changed","name":"posts"}`,
		`push.template.remove success {"after":0,"before":2,"name":"posts"}`,
		`push.template.remove failure {"error":"api.not_found","name":"posts"}`,
		`push.template.save success {"after":4,"before":0,"languages":["de","default"],"name":"posts"}`,
	}
	if !slices.Equal(f.audited, want) {
		t.Errorf("audited:\n%s", strings.Join(f.audited, "\n"))
	}
}

// Every language is checked before anything is sent with it.
func TestRefused(t *testing.T) {
	f := start(t, posts)
	for _, c := range []struct {
		name  string
		texts m
		field string
		why   string
	}{
		{"own", m{"de": m{"title": "a"}}, "texts", "default is missing"},
		{"own", m{"default": m{"title": "a"}, "de": m{"body": "{n, plural, one{a}}"}}, "texts.de.body", "other is missing"},
		{"own", m{"default": m{"title": "{name}"}, "de": m{"title": "{nome}"}}, "texts.de", "{nome} is no value that messages give; these are [name]"},
		{"own", m{"default": m{"title": "{n}"}, "de": m{"title": "{n, number}"}, "fr": m{"title": "{n, select, other{}}"}}, "texts.fr", "wanted as choice"},
		{"own", m{"default": m{"title": "{n, number}", "body": "{n, select, other{}}"}}, "texts.default", "a number at one place"},
		{"own", m{"default": m{"title": "a"}, "de": m{}}, "texts.de", "needs a title or a body"},
		{"own", m{"default": m{"title": "a"}, "pt-BR": m{"title": "a"}, "pt-br": m{"title": "b"}}, "texts.pt-br", "language of pt-BR"},
		{"own", m{"default": m{"title": "a"}, "not a tag": m{"title": "a"}}, "texts", "no tag of a language"},
		{"own", m{"default": m{"title": "a"}, "de": m{"title": strings.Repeat("x", 4000)}, "fr": m{"title": strings.Repeat("'", 4097)}}, "texts.fr.title", ""},
		{"posts", texts("{n} in {team}"), "texts.default", "{team} is no value that messages give; these are [n room who]"},
		{"posts", texts("{room, plural, other{a}}"), "texts.default", "{room} is wanted as number, and messages may give any"},
		{"a name", texts("a"), "name", ""},
	} {
		r := f.Do(t, apptest.Request{
			Method: http.MethodPost, Path: "/api/v1/operations/push.template.save", Token: f.root, Body: m{"name": c.name, "version": 0, "texts": c.texts},
		})
		var problem struct{ Errors []api.FieldError }
		if err := json.Unmarshal(r.Body, &problem); err != nil {
			t.Fatal(err)
		}
		found := slices.ContainsFunc(problem.Errors, func(e api.FieldError) bool { return e.Field == c.field && strings.Contains(e.Message, c.why) })
		if r.Code() != api.ErrValidation.Name || !found {
			t.Errorf("%v: %d %s", c.texts, r.Status, r.Body)
		}
	}
	big := m{"default": m{"title": "a"}}
	for language := range strings.FieldsSeq("de fr it es pt nl sv da fi pl cs sk hu ro bg el tr") {
		big[language] = m{"title": strings.Repeat("x", 4000)}
	}
	f.call(t, "push.template.save", m{"name": "own", "version": 0, "texts": big}, api.ErrValidation.Name)
	if list := f.list(t); len(list) != 1 || len(f.audited) != 0 {
		t.Errorf("%+v, %v", list, f.audited)
	}
}

func (f *fixture) list(t *testing.T) []wording.View {
	t.Helper()
	var out struct{ Data []wording.View }
	r := f.Do(t, apptest.Request{Path: "/api/v1/operations/push.templates", Token: f.root})
	if err := json.Unmarshal(r.Body, &out); err != nil || r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	return out.Data
}

// Templates that the program does not know are the admins' own; removed ones can be read for a while.
func TestOwn(t *testing.T) {
	f := start(t, posts)
	saved := f.call(t, "push.template.save", m{"name": "own", "version": 0, "texts": m{"default": m{"title": "{n} new"}, "pl": m{"title": "{n, plural, one{wpis} other{wpisu}}"}}}, "")
	if saved.Version != 1 || saved.Declared || saved.Values["n"] != template.Number || saved.DeclaredTexts != nil {
		t.Errorf("%+v", saved)
	}
	if list := f.list(t); len(list) != 2 || list[0].Name != "own" || list[0].Version != 1 || list[1].Version != 0 || !list[1].Declared {
		t.Errorf("%+v", list)
	}
	f.call(t, "push.template.remove", m{"name": "own", "version": 1}, "")
	if got, _ := f.show(t, "name=own&version=1"); got.Texts["default"].Title != "{n} new" || got.Version != 0 {
		t.Errorf("%+v", got)
	}
	if list := f.list(t); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	if title, version := f.title(t, "own"); title != "" || version != 0 {
		t.Errorf("%q %d", title, version)
	}
	for _, query := range []string{"name=other", "name=own&version=9"} {
		if _, status := f.show(t, query); status != http.StatusNotFound {
			t.Errorf("%s: %d", query, status)
		}
	}
	// What was removed long ago makes room for other names, and gives them back.
	f.exec(t, "UPDATE push_templates SET saved_at = 1 WHERE texts = ''")
	f.call(t, "push.template.save", m{"name": "other", "version": 0, "texts": texts("a")}, "")
	if _, status := f.show(t, "name=own"); status != http.StatusNotFound {
		t.Errorf("still there: %d", status)
	}
}

func (f *fixture) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := f.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
		t.Fatal(err)
	}
}

func TestBounds(t *testing.T) {
	f := start(t)
	f.exec(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO push_templates SELECT 'old', i, '{"default":{"title":"' || i || '"}}', 1, '' FROM n`)
	if got := f.call(t, "push.template.save", m{"name": "old", "version": 60, "texts": texts("new")}, ""); len(got.History) != 50 || got.History[49].Version != 12 {
		t.Errorf("%d versions are kept", len(got.History))
	}
	f.exec(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999) INSERT INTO push_templates SELECT 'name' || i, 1, '{"default":{"title":"a"}}', 1, '' FROM n`)
	f.call(t, "push.template.save", m{"name": "one more", "version": 0, "texts": texts("a")}, api.ErrValidation.Name)
	f.call(t, "push.template.save", m{"name": "more", "version": 0, "texts": texts("a")}, wording.ErrFull.Name)
	f.call(t, "push.template.save", m{"name": "name1", "version": 1, "texts": texts("b")}, "")
}

// A program that declares other values than before tells of the saved texts that want the old ones.
func TestCheck(t *testing.T) {
	f := start(t, posts)
	if r := f.wording.Check(t.Context(), f.Host); r.Level != extensions.OK || r.Message != "1 declared, 0 saved" {
		t.Errorf("%+v", r)
	}
	if _, err := f.NonconcurrentDB().Insert("push_templates", dbx.Params{
		"name": "posts", "version": 1, "texts": `{"default":{"title":"{author}"}}`, "saved_at": 1, "author": "",
	}).Execute(); err != nil {
		t.Fatal(err)
	}
	if r := f.wording.Check(t.Context(), f.Host); r.Level != extensions.Warn || !strings.Contains(r.Message, "posts: texts.default: {author} is no value") {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][]message.Template{
		{posts, posts}, {{Texts: posts.Texts}}, {{Name: "a"}}, {{Name: "a", Texts: template.Texts{"default": {Title: "{n, number}{n, select, other{}}"}}}},
	} {
		if wording.New(bad).Bind(f.Host) == nil {
			t.Errorf("accepted: %+v", bad)
		}
	}
}
