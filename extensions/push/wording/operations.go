package wording

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// View is a template as it is listed. Version is that of the texts in force, 0 if these are what the program declares.
type View struct {
	Name      string     `json:"name"`
	Version   int        `json:"version"`
	Declared  bool       `json:"declared"` // by the program, which then sends it
	Languages []string   `json:"languages"`
	SavedAt   *time.Time `json:"savedAt"`
	By        string     `json:"by"` // id of the admin's account; empty if it was an API key or the program
}

// Template is one with all that is known of it.
type Template struct {
	View

	// Texts are those in force, or of the version that was asked for; null if it was removed then.
	Texts template.Texts `json:"texts"`

	// DeclaredTexts are what comes back when the saved ones are removed.
	DeclaredTexts template.Texts `json:"declaredTexts"`

	// Values are what a message must give, by name: a number, a choice (a text or a boolean), or any.
	Values template.Needs `json:"values"`

	// Needs are the values that each language uses.
	Needs map[string][]string `json:"needs"`

	History []Revision `json:"history"`
}

// Revision is a version of a template, the newest first in lists.
type Revision struct {
	Version int       `json:"version"`
	SavedAt time.Time `json:"savedAt"`
	By      string    `json:"by"`
	Removed bool      `json:"removed"`
}

type none struct{}

type naming struct {
	Name    string `json:"name" minLength:"1" maxLength:"100"`
	Version int    `json:"version,omitempty" minimum:"1" description:"to see the texts of an earlier version"`
}

type saving struct {
	Name    string         `json:"name" maxLength:"100" pattern:"^[A-Za-z0-9_.:-]+$"`
	Version int            `json:"version" minimum:"0" description:"the version that this one replaces; 0 if none was saved"`
	Texts   template.Texts `json:"texts"`
}

type removing struct {
	Name    string `json:"name" minLength:"1" maxLength:"100"`
	Version int    `json:"version" minimum:"1" description:"the version that is removed"`
}

// Operations are for admins, and for API keys with their scopes.
func (w *Wording) Operations() []operations.Operation {
	writers := operations.Callers{Collections: []string{}, Role: "operator", Scope: true}
	readers := operations.Callers{Collections: []string{}, Role: "viewer", Scope: true}
	return []operations.Operation{
		operations.Define(operations.Spec[none, []View]{
			Name: "push.templates", Summary: "List the texts that messages may name, declared and saved ones", Read: true, Callers: readers,
			Do: func(c *operations.Call, _ none) ([]View, error) { return w.views(c.App) },
		}),
		operations.Define(operations.Spec[naming, Template]{
			Name: "push.template", Summary: "Show a template with its texts, what they need, and its history", Read: true, Callers: readers,
			Codes: []*extensions.Code{api.ErrNotFound},
			Do:    func(c *operations.Call, in naming) (Template, error) { return w.show(c.App, in) },
		}),
		operations.Define(operations.Spec[saving, Template]{
			Name: "push.template.save", Summary: "Save texts under a name, in place of those that are declared or were saved before", KeyOptional: true,
			Callers: writers, Audit: []string{"name"}, Codes: []*extensions.Code{ErrChanged, ErrFull}, Do: w.save,
		}),
		operations.Define(operations.Spec[removing, Template]{
			Name: "push.template.remove", Summary: "Remove saved texts, which brings declared ones of the name back", KeyOptional: true,
			Callers: writers, Audit: []string{"name"}, Codes: []*extensions.Code{api.ErrNotFound, ErrChanged}, Do: w.remove,
		}),
	}
}

func (w *Wording) views(app core.App) ([]View, error) {
	saved, err := inForce(app)
	if err != nil {
		return nil, err
	}
	byName := map[string]View{}
	for name, d := range w.declared {
		byName[name] = View{Name: name, Declared: true, Languages: slices.Sorted(maps.Keys(d.texts))}
	}
	for _, r := range saved {
		texts, err := r.read()
		if err != nil {
			return nil, err
		}
		byName[r.Name] = w.view(r, texts)
	}
	list := []View{}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		list = append(list, byName[name])
	}
	return list, nil
}

func (w *Wording) view(r row, texts template.Texts) View {
	_, isDeclared := w.declared[r.Name]
	return View{Name: r.Name, Version: r.version(), Declared: isDeclared, Languages: slices.Sorted(maps.Keys(texts)), SavedAt: new(moment(r.SavedAt)), By: r.Author}
}

func moment(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func (w *Wording) show(app core.App, in naming) (Template, error) {
	rows, err := history(app, in.Name, maxVersions)
	if err != nil {
		return Template{}, err
	}
	own, isDeclared := w.declared[in.Name]
	if len(rows) == 0 && !isDeclared {
		return Template{}, api.ErrNotFound
	}
	out := Template{
		Name: in.Name, Declared: isDeclared, Languages: slices.Sorted(maps.Keys(own.texts)), Texts: own.texts, DeclaredTexts: own.texts,
		Needs: map[string][]string{}, History: []Revision{},
	}
	if len(rows) > 0 && rows[0].inForce() {
		if out.Texts, err = rows[0].read(); err != nil {
			return out, err
		}
		out.View = w.view(rows[0], out.Texts)
	}
	for _, r := range rows {
		out.History = append(out.History, Revision{r.Version, moment(r.SavedAt), r.Author, !r.inForce()})
	}
	if in.Version > 0 {
		at := slices.IndexFunc(rows, func(r row) bool { return r.Version == in.Version })
		if at < 0 {
			return Template{}, api.ErrNotFound
		}
		out.Texts = nil
		if rows[at].inForce() {
			if out.Texts, err = rows[at].read(); err != nil {
				return out, err
			}
		}
	}
	return out, out.explain(own.needs)
}

// explain tells what the texts need; messages that the program sends give what it has declared.
func (t *Template) explain(given template.Needs) error {
	if t.Values = given; given == nil {
		t.Values = template.Needs{}
	}
	if t.Texts == nil {
		return nil
	}
	set, err := template.Compile(t.Texts)
	if err != nil {
		return fmt.Errorf("read template %s: %w", t.Name, err)
	}
	all, err := set.Needs()
	if err != nil {
		return fmt.Errorf("read template %s: %w", t.Name, err)
	}
	if !t.Declared {
		t.Values = template.Union(all)
	}
	for language, needs := range all {
		t.Needs[language] = slices.AppendSeq([]string{}, maps.Keys(needs))
		slices.Sort(t.Needs[language])
	}
	return nil
}

// save writes a version. What is there already is left as it is, so that a request can be repeated.
func (w *Wording) save(c *operations.Call, in saving) (Template, error) {
	if _, problems := w.check(in.Name, in.Texts); len(problems) > 0 {
		return Template{}, invalid(problems)
	}
	last, err := newest(c.App, in.Name)
	if err != nil {
		return Template{}, err
	}
	raw, err := json.Marshal(in.Texts)
	if err != nil {
		return Template{}, fmt.Errorf("encode texts: %w", err)
	}
	c.Detail("before", last.version())
	if last.Texts == string(raw) {
		c.Detail("after", last.version())
		return w.show(c.App, naming{Name: in.Name})
	}
	if last.version() != in.Version {
		return Template{}, changed(last.version())
	}
	before := w.declared[in.Name].texts
	if last.inForce() {
		if before, err = last.read(); err != nil {
			return Template{}, err
		}
	}
	if err := w.write(c, row{Name: in.Name, Version: last.Version + 1, Texts: string(raw)}); err != nil {
		return Template{}, err
	}
	c.Detail("after", last.Version+1)
	c.Detail("languages", differing(before, in.Texts))
	return w.show(c.App, naming{Name: in.Name})
}

func (w *Wording) remove(c *operations.Call, in removing) (Template, error) {
	last, err := newest(c.App, in.Name)
	if err != nil {
		return Template{}, err
	}
	switch {
	case !last.inForce():
		return Template{}, api.ErrNotFound
	case last.Version != in.Version:
		return Template{}, changed(last.Version)
	}
	if err := w.write(c, row{Name: in.Name, Version: last.Version + 1}); err != nil {
		return Template{}, err
	}
	c.Detail("before", last.Version)
	c.Detail("after", 0)
	return w.show(c.App, naming{Name: in.Name})
}

func (w *Wording) write(c *operations.Call, r row) error {
	now := w.now()
	r.SavedAt = now.UnixMilli()
	if c.Auth != nil {
		r.Author = c.Auth.Id
	}
	return add(c.App, r, now)
}

func changed(version int) error {
	return api.Fail(ErrChanged, fmt.Sprintf("it is version %d now; read it again before you change it", version))
}

// differing lists the languages whose texts are not the same.
func differing(before, after template.Texts) []string {
	list := []string{}
	for _, texts := range []template.Texts{before, after} {
		for language := range texts {
			old, was := before[language]
			text, is := after[language]
			if (was != is || old != text) && !slices.Contains(list, language) {
				list = append(list, language)
			}
		}
	}
	slices.Sort(list)
	return list
}
