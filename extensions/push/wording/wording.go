// Package wording keeps the texts that messages name: those that the program declares, and those that admins save in their
// place or beside them. What is saved has a number that grows with every change, and earlier ones can be read again.
//
// A saved template takes the place of the declared one of its name, and need not be given more values than that: what
// messages give is decided by the program. A message reads its texts once, when it is asked for, in the transaction of
// whoever asks; nothing is remembered in between, so that a change holds at once in every process, also one by SQL.
package wording

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// Codes of what is refused.
var (
	ErrChanged = &extensions.Code{Name: "push.template_changed", Status: http.StatusConflict, Title: "The template has been changed meanwhile"}
	ErrFull    = &extensions.Code{Name: "push.templates_full", Status: http.StatusConflict, Title: "There are too many templates"}
)

// Codes lists them.
func Codes() []*extensions.Code { return []*extensions.Code{ErrChanged, ErrFull} }

// Limits of what is kept.
const (
	maxNames    = 1000
	maxVersions = 50       // of one template, the removals included
	maxTexts    = 64 << 10 // bytes of JSON, half of what a message may have

	// keepRemoved is how long what was removed can be read.
	keepRemoved = 90 * 24 * time.Hour
)

// Wording is the set of templates. It is safe for concurrent use.
type Wording struct {
	declared map[string]declared
	err      error // of declarations
	now      func() time.Time
}

// declared is a template of the program.
type declared struct {
	texts template.Texts
	needs template.Needs
}

// New returns the templates that a program declares.
func New(list []message.Template) *Wording {
	w := &Wording{declared: map[string]declared{}, now: time.Now}
	for _, t := range list {
		needs, err := needsOf(t)
		if _, twice := w.declared[t.Name]; twice || t.Name == "" {
			err = errors.New("the name is missing, or there twice")
		}
		if err != nil {
			w.err = errors.Join(w.err, fmt.Errorf("template %q of notifications: %w", t.Name, err))
		}
		w.declared[t.Name] = declared{t.Texts, needs}
	}
	return w
}

// needsOf is what all languages of a declared template need.
func needsOf(t message.Template) (template.Needs, error) {
	set, err := template.Compile(t.Texts)
	if err != nil {
		return nil, err
	}
	all, err := set.Needs()
	return template.Union(all), err
}

// Bind stops the program if something is wrong with what it declares.
func (w *Wording) Bind(*extensions.Host) error { return w.err }

// Texts are those in force of a template, and their version: 0 is what the program declares. Without such a template they
// are nil.
func (w *Wording) Texts(app core.App, name string) (template.Texts, int, error) {
	r, err := newest(app, name)
	if err != nil || !r.inForce() {
		return w.declared[name].texts, 0, err
	}
	texts, err := r.read()
	return texts, r.Version, err
}

// check tells what keeps texts from being saved, and otherwise what messages must give.
func (w *Wording) check(name string, texts template.Texts) (template.Needs, []error) {
	if raw, err := json.Marshal(texts); err != nil || len(raw) > maxTexts {
		return nil, []error{fmt.Errorf("texts: must be at most %d bytes of JSON", maxTexts)}
	}
	set, err := template.Compile(texts)
	if err != nil {
		return nil, split(err)
	}
	all, err := set.Needs()
	if err != nil {
		return nil, split(err)
	}
	var problems []error
	given := all[template.Default]
	own, overrides := w.declared[name]
	if overrides {
		given = own.needs
	}
	for _, language := range slices.Sorted(maps.Keys(all)) {
		if texts[language] == (template.Text{}) {
			problems = append(problems, fmt.Errorf("texts.%s: needs a title or a body", language))
		}
		lacks := all[language].Lacks(given)
		if !overrides { // what default takes as it is, others may count or choose by
			lacks = unknown(all[language], given)
		}
		for _, err := range lacks {
			problems = append(problems, fmt.Errorf("texts.%s: %w", language, err))
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if overrides {
		return own.needs, nil
	}
	union := template.Union(all)
	for _, language := range slices.Sorted(maps.Keys(all)) {
		for _, err := range all[language].Lacks(union) {
			problems = append(problems, fmt.Errorf("texts.%s: %w", language, err))
		}
	}
	return union, problems
}

// unknown tells which values a language needs that are not given, in whatever form.
func unknown(needs, given template.Needs) []error {
	named := template.Needs{}
	for name := range needs {
		named[name] = template.Any
	}
	return named.Lacks(given)
}

// split takes joined errors apart.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// invalid is an answer with an entry for each problem, under the member that it names.
func invalid(problems []error) error {
	var fields []api.FieldError
	for _, p := range problems {
		field, text, named := strings.Cut(p.Error(), ": ")
		if !named || !strings.HasPrefix(field, "texts") {
			field, text = "texts", p.Error()
		}
		fields = append(fields, api.FieldError{Field: field, Code: api.ErrValidation.Name, Message: text})
	}
	return api.InvalidBody(fields...)
}

// Check tells of saved templates that do not fit those that the program declares any more: messages that name them may lack
// values, and are refused then.
func (w *Wording) Check(_ context.Context, h *extensions.Host) extensions.Result {
	list, err := inForce(h.App)
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: "the templates cannot be read: " + err.Error(), Next: "see the log"}
	}
	for _, r := range list {
		texts, err := r.read()
		if err == nil {
			_, problems := w.check(r.Name, texts)
			err = errors.Join(problems...)
		}
		if err != nil {
			return extensions.Result{
				Level: extensions.Warn, Message: fmt.Sprintf("the saved template %s: %s", r.Name, strings.ReplaceAll(err.Error(), "\n", "; ")),
				Next: "save it anew by push.template.save, or remove it",
			}
		}
	}
	return extensions.Result{Level: extensions.OK, Message: fmt.Sprintf("%d declared, %d saved", len(w.declared), len(list))}
}
