// Package template renders the texts of notifications. A pattern is a subset of ICU's MessageFormat, which translators and
// their tools know: {name}, {n, number}, {n, plural, …}, {n, selectordinal, …} and {who, select, …}, with # for the number
// within a plural and apostrophes that quote braces. Which plural a number has in a language is Unicode's.
//
// Patterns are checked when they are compiled, and what they may cost is bounded. It knows no files and no database.
package template

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/text/language"
)

// Default is the name of the text that everybody gets for whose language there is none.
const Default = "default"

// Limits, in bytes but for the numbers of things.
const (
	MaxPattern = 4096 // nothing longer fits into a notification
	maxOutput  = 4096
	maxDepth   = 8
	maxCases   = 32
	maxLocales = 100
)

// Text is what a notification says in one language. Each is a pattern.
type Text struct {
	Title string `json:"title,omitempty" maxLength:"4096"`
	Body  string `json:"body,omitempty" maxLength:"4096"`
}

// Texts are the texts of one notification by BCP 47 tags of languages, such as pt-BR, and [Default].
type Texts map[string]Text

// Set is compiled texts. It is safe for concurrent use.
type Set struct{ byTag map[string]compiled }

type compiled struct {
	name        string // as the texts have it
	tag         language.Tag
	title, body node
}

// Compile checks the texts and tells everything that is wrong with them.
func Compile(texts Texts) (*Set, error) {
	if len(texts) > maxLocales {
		return nil, fmt.Errorf("texts: must be at most %d languages", maxLocales)
	}
	s := &Set{byTag: make(map[string]compiled, len(texts))}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		c := compiled{name: name, tag: language.English}
		key := Default
		var err error
		if name != Default {
			if c.tag, err = language.Parse(name); err != nil {
				problems = append(problems, fmt.Errorf("texts: %.40q is no tag of a language, such as pt-BR", name))
				continue
			}
			key = strings.ToLower(c.tag.String())
		}
		if c.title, err = parse(texts[name].Title); err != nil {
			problems = append(problems, fmt.Errorf("texts.%s.title: %w", name, err))
		}
		if c.body, err = parse(texts[name].Body); err != nil {
			problems = append(problems, fmt.Errorf("texts.%s.body: %w", name, err))
		}
		if twin, twice := s.byTag[key]; twice {
			problems = append(problems, fmt.Errorf("texts.%s: it is the language of %s", name, twin.name))
		}
		s.byTag[key] = c
	}
	if _, ok := s.byTag[Default]; !ok {
		problems = append(problems, errors.New("texts: the text "+Default+" is missing, which everybody else gets"))
	}
	return s, errors.Join(problems...)
}

// Locale is the name of the text that somebody with the locale gets: its own, that of the language without the region, and
// so on, or [Default].
func (s *Set) Locale(locale string) string {
	tag := strings.ToLower(strings.ReplaceAll(locale, "_", "-"))
	if parsed, err := language.Parse(tag); err == nil {
		tag = strings.ToLower(parsed.String())
	}
	for tag != "" {
		if _, ok := s.byTag[tag]; ok {
			return tag
		}
		cut := strings.LastIndexByte(tag, '-')
		tag = tag[:max(cut, 0)]
	}
	return Default
}

// Render fills the text for the locale in. Values are texts, numbers and booleans. An error names what is missing, or a
// value that does not fit.
func (s *Set) Render(locale string, values map[string]any) (Text, error) {
	c := s.byTag[s.Locale(locale)]
	var out Text
	var err error
	if out.Title, err = render(c.title, c.tag, values); err != nil {
		return Text{}, fmt.Errorf("title: %w", err)
	}
	if out.Body, err = render(c.body, c.tag, values); err != nil {
		return Text{}, fmt.Errorf("body: %w", err)
	}
	return out, nil
}

// Check renders the text of every language, so that a missing value, or one of which nothing is left, is found before
// anything is sent.
func (s *Set) Check(values map[string]any) error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(s.byTag)) {
		switch text, err := s.Render(name, values); {
		case err != nil:
			problems = append(problems, fmt.Errorf("texts.%s.%w", name, err))
		case text == Text{}:
			problems = append(problems, fmt.Errorf("texts.%s: says nothing", name))
		}
	}
	return errors.Join(problems...)
}
