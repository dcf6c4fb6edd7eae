package template

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// node is a part of a pattern.
type node interface {
	write(w *writer)
	needs(add func(name string, need Need))
}

// list is parts one after the other.
type list []node

// literal is text as it stands.
type literal string

// argument is {name} or {name, number}.
type argument struct {
	name   string
	number bool
}

// hash is # within a plural.
type hash struct{}

// choice is a plural or a select.
type choice struct {
	name   string
	kind   kind
	offset float64
	exact  map[float64]node // =0{…}
	cases  map[string]node
}

type kind int

const (
	choose kind = iota
	cardinal
	ordinal
)

// parser reads a pattern from its beginning to its end.
type parser struct {
	text  string
	at    int
	depth int
}

func parse(pattern string) (node, error) {
	if len(pattern) > MaxPattern || !utf8.ValidString(pattern) {
		return nil, fmt.Errorf("must be UTF-8 of at most %d bytes", MaxPattern)
	}
	p := &parser{text: pattern}
	n, err := p.message(false)
	if err != nil {
		return nil, fmt.Errorf("at byte %d: %w", p.at, err)
	}
	return n, nil
}

// message reads up to the end, or to the brace that closes it. plural says that # is a number.
func (p *parser) message(plural bool) (node, error) {
	var out list
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			out = append(out, literal(text.String()))
			text.Reset()
		}
	}
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == '\'':
			p.quoted(&text, plural)
		case c == '{':
			flush()
			n, err := p.braces()
			if err != nil {
				return nil, err
			}
			out = append(out, n)
		case c == '}':
			if p.depth == 0 {
				return nil, errors.New("a brace is closed that was not opened")
			}
			flush()
			return out, nil
		case c == '#' && plural:
			flush()
			out = append(out, hash{})
			p.at++
		default:
			text.WriteByte(c)
			p.at++
		}
	}
	if p.depth > 0 {
		return nil, errors.New("a brace is not closed")
	}
	flush()
	return out, nil
}

// quoted reads an apostrophe: two are one, one before a brace quotes up to the next one, any other is itself.
func (p *parser) quoted(text *strings.Builder, plural bool) {
	p.at++
	rest := p.text[p.at:]
	switch {
	case strings.HasPrefix(rest, "'"):
		text.WriteByte('\'')
		p.at++
		return
	case rest == "" || (rest[0] != '{' && rest[0] != '}' && (rest[0] != '#' || !plural)):
		text.WriteByte('\'')
		return
	}
	for p.at < len(p.text) {
		if p.text[p.at] != '\'' {
			text.WriteByte(p.text[p.at])
			p.at++
			continue
		}
		p.at++
		if p.at >= len(p.text) || p.text[p.at] != '\'' {
			return
		}
		text.WriteByte('\'')
		p.at++
	}
}

// braces reads an argument.
func (p *parser) braces() (node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("braces are in each other more than %d times", maxDepth)
	}
	defer func() { p.depth-- }()
	p.at++
	name := p.word()
	if name == "" {
		return nil, errors.New("a brace needs a name of letters, digits and _ behind it")
	}
	if p.take('}') {
		return argument{name: name}, nil
	}
	if !p.take(',') {
		return nil, fmt.Errorf("behind the name %s belongs a comma or a closing brace", name)
	}
	word := p.word()
	if word == "number" {
		if !p.take('}') {
			return nil, errors.New("behind number belongs a closing brace")
		}
		return argument{name, true}, nil
	}
	kinds := map[string]kind{"select": choose, "plural": cardinal, "selectordinal": ordinal}
	k, ok := kinds[word]
	if !ok || !p.take(',') {
		return nil, fmt.Errorf("%.20q is not number, plural, selectordinal or select with a comma behind it", word)
	}
	return p.choice(name, k)
}

// choice reads the cases of a plural or a select, and the brace that closes it.
func (p *parser) choice(name string, k kind) (node, error) {
	c := choice{name: name, kind: k, exact: map[float64]node{}, cases: map[string]node{}}
	if k != choose && p.skip("offset:") {
		n, err := strconv.ParseUint(p.word(), 10, 16)
		if err != nil {
			return nil, errors.New("an offset is a whole number")
		}
		c.offset = float64(n)
	}
	for !p.take('}') {
		if len(c.cases)+len(c.exact) >= maxCases {
			return nil, fmt.Errorf("more than %d cases", maxCases)
		}
		exact := k != choose && p.skip("=")
		word := p.word()
		if word == "" || !p.take('{') {
			return nil, errors.New("a case is a word and a text in braces, such as other{…}")
		}
		n, err := p.message(k != choose)
		if err != nil {
			return nil, err
		}
		if !p.take('}') {
			return nil, errors.New("a brace is not closed")
		}
		if err := c.add(word, exact, n); err != nil {
			return nil, err
		}
	}
	if c.cases["other"] == nil {
		return nil, errors.New("the case other is missing")
	}
	return c, nil
}

func (c *choice) add(word string, exact bool, n node) error {
	if exact {
		number, err := strconv.ParseUint(word, 10, 32)
		if err != nil || c.exact[float64(number)] != nil {
			return fmt.Errorf("=%.20s is no number, or there twice", word)
		}
		c.exact[float64(number)] = n
		return nil
	}
	known := c.kind == choose
	for _, form := range forms() {
		known = known || form == word
	}
	if !known || c.cases[word] != nil {
		return fmt.Errorf("the case %.20q is none of zero, one, two, few, many, other and =1, or there twice", word)
	}
	c.cases[word] = n
	return nil
}

func (p *parser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// skip reads a text if it comes next.
func (p *parser) skip(text string) bool {
	p.space()
	if !strings.HasPrefix(p.text[p.at:], text) {
		return false
	}
	p.at += len(text)
	return true
}

func (p *parser) take(c byte) bool { return p.skip(string(c)) }

func (p *parser) word() string {
	p.space()
	from := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.at++
	}
	return p.text[from:p.at]
}
