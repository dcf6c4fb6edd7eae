package template

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Need is what patterns want of a value.
type Need string

// What they want. A number can be written as it is, so Any holds where the others do not.
const (
	Any    Need = "any"    // a text, a number or a boolean
	Number Need = "number" // of a plural, or {n, number}
	Choice Need = "choice" // of a select: a text or a boolean
)

// Needs are what patterns want, by the names of the values.
type Needs map[string]Need

// Needs is what each language needs, by its name in the texts. An error names a value that no message can give, because
// it must be a number at one place and a text at another.
func (s *Set) Needs() (map[string]Needs, error) {
	out := make(map[string]Needs, len(s.byTag))
	var problems []error
	for _, key := range slices.Sorted(maps.Keys(s.byTag)) {
		c, needs := s.byTag[key], Needs{}
		for _, n := range []node{c.title, c.body} {
			n.needs(func(name string, need Need) {
				if !needs.add(name, need) {
					problems = append(problems, fmt.Errorf("texts.%s: {%s} must be a number at one place and a text at another", c.name, name))
				}
			})
		}
		out[c.name] = needs
	}
	return out, errors.Join(problems...)
}

// Union is what all languages need. They do not contradict each other, or one is chosen.
func Union(all map[string]Needs) Needs {
	out := Needs{}
	for _, language := range slices.Sorted(maps.Keys(all)) {
		for name, need := range all[language] {
			out.add(name, need)
		}
	}
	return out
}

// add notes a need, and reports false if it contradicts another one.
func (n Needs) add(name string, need Need) bool {
	old, known := n[name]
	switch {
	case !known || old == Any:
		n[name] = need
	case need != Any && need != old:
		return false
	}
	return true
}

// Lacks tells what is missing in given for a text that needs n: values that nobody gives, and those that may be given in
// another form.
func (n Needs) Lacks(given Needs) []error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(n)) {
		has, known := given[name]
		switch {
		case !known:
			problems = append(problems, fmt.Errorf("{%s} is no value that messages give; these are %v", name, slices.Sorted(maps.Keys(given))))
		case n[name] != Any && has != n[name]:
			problems = append(problems, fmt.Errorf("{%s} is wanted as %s, and messages may give %s", name, n[name], has))
		}
	}
	return problems
}

func (l list) needs(add func(name string, need Need)) {
	for _, n := range l {
		n.needs(add)
	}
}

func (literal) needs(func(name string, need Need)) {}

func (hash) needs(func(name string, need Need)) {}

func (a argument) needs(add func(name string, need Need)) {
	if a.number {
		add(a.name, Number)
		return
	}
	add(a.name, Any)
}

func (c choice) needs(add func(name string, need Need)) {
	if c.kind == choose {
		add(c.name, Choice)
	} else {
		add(c.name, Number)
	}
	for _, n := range c.exact {
		n.needs(add)
	}
	for _, n := range c.cases {
		n.needs(add)
	}
}
