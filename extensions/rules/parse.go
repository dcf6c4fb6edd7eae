package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

var (
	namePattern       = regexp.MustCompile(`^[a-z][a-z0-9_-]*$`)
	collectionPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// recordPattern is what a record's id may look like: PocketBase makes ids of 15 such characters, and lets apps choose others.
	recordPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// guest is the caller without a login.
const guest = "guest"

// Mistake is a line that cannot be used.
type Mistake struct {
	File   string
	Line   int
	Reason string
}

// Error is file:line: reason, as editors understand it.
func (m *Mistake) Error() string { return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Reason) }

// table is a parsed file. Names are in the order of their lines.
type table struct {
	file   string
	names  []declared
	checks []check
}

// declared is a line that makes a name: a person when email is set, else a record.
type declared struct {
	line              int
	name              string
	collection, email string
	data              map[string]any
}

// check is a line that asks a question.
type check struct {
	line       int
	text       string
	who        string
	can        bool
	verb       string
	collection string
	id         string         // a name or the id of a record; for view, update and delete
	data       map[string]any // the body of create and update, the query of list
	only       []string       // for list; nil = any records
}

// find looks a declared name up.
func (t *table) find(name string) (declared, bool) {
	i := slices.IndexFunc(t.names, func(d declared) bool { return d.name == name })
	if i < 0 {
		return declared{}, false
	}
	return t.names[i], true
}

// parse reads a table. Its errors are mistakes.
func parse(file, text string) (*table, error) {
	t := &table{file: file}
	for i, raw := range strings.Split(text, "\n") {
		line := strings.TrimSpace(raw)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := t.add(i+1, line); err != nil {
			return nil, &Mistake{File: file, Line: i + 1, Reason: err.Error()}
		}
	}
	if len(t.checks) == 0 {
		return nil, &Mistake{File: file, Line: 1, Reason: "there is no check in this file"}
	}
	return t, nil
}

func (t *table) add(number int, line string) error {
	words, data, after, err := split(line)
	if err != nil {
		return err
	}
	if err := t.known(data); err != nil {
		return err
	}
	switch words[0] {
	case "as", "given":
		if len(after) > 0 {
			return fmt.Errorf("unexpected %q after the JSON", after[0])
		}
		return t.declare(number, words, data)
	default:
		return t.ask(number, line, words, data, after)
	}
}

// split cuts a line into the words before the JSON, the JSON (nil without one) and the words after it.
func split(line string) (words []string, data map[string]any, after []string, err error) {
	start := strings.IndexByte(line, '{')
	if start < 0 {
		return strings.Fields(line), nil, nil, nil
	}
	words = strings.Fields(line[:start])
	if len(words) == 0 {
		return nil, nil, nil, errors.New("a line starts with as, given or the name of a person")
	}
	decoder := json.NewDecoder(strings.NewReader(line[start:]))
	decoder.UseNumber()
	if err := decoder.Decode(&data); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it does not end on this line")
		}
		return nil, nil, nil, fmt.Errorf("the JSON is not an object: %w", err)
	}
	return words, data, strings.Fields(line[start+int(decoder.InputOffset()):]), nil
}

func (t *table) declare(number int, words []string, data map[string]any) error {
	d := declared{line: number, data: data}
	if words[0] == "as" {
		if len(words) != 3 {
			return errors.New("write: as NAME COLLECTION/EMAIL [JSON]")
		}
		collection, email, ok := strings.Cut(words[2], "/")
		if !ok || !strings.Contains(email, "@") {
			return fmt.Errorf("%q is not COLLECTION/EMAIL", words[2])
		}
		d.name, d.collection, d.email = words[1], collection, email
	} else {
		if len(words) != 2 {
			return errors.New("write: given COLLECTION/NAME [JSON]")
		}
		collection, name, ok := strings.Cut(words[1], "/")
		if !ok {
			return fmt.Errorf("%q is not COLLECTION/NAME", words[1])
		}
		d.collection, d.name = collection, name
	}
	if !collectionPattern.MatchString(d.collection) {
		return fmt.Errorf("%q cannot be the name of a collection", d.collection)
	}
	if !namePattern.MatchString(d.name) {
		return fmt.Errorf("%q cannot be a name: use lower-case letters, digits, - and _", d.name)
	}
	if slices.Contains([]string{guest, "as", "given", "only"}, d.name) {
		return fmt.Errorf("%q is a word of the table and cannot be a name", d.name)
	}
	if have, ok := t.find(d.name); ok {
		return fmt.Errorf("%q is a name already, from line %d", d.name, have.line)
	}
	t.names = append(t.names, d)
	return nil
}

func (t *table) ask(number int, line string, words []string, data map[string]any, after []string) error {
	if len(words) < 4 || words[1] != "can" && words[1] != "cannot" {
		return errors.New("write: WHO can|cannot list|view|create|update|delete COLLECTION[/ID]")
	}
	c := check{line: number, text: strings.Join(strings.Fields(line), " "), who: words[0], can: words[1] == "can", verb: words[2], data: data}
	if who, ok := t.find(c.who); c.who != guest && (!ok || who.email == "") {
		return fmt.Errorf("nobody is called %q: introduce people first: as %s users/EMAIL", c.who, c.who)
	}
	var hasID bool
	c.collection, c.id, hasID = strings.Cut(words[3], "/")
	if !collectionPattern.MatchString(c.collection) {
		return fmt.Errorf("%q cannot be the name of a collection", c.collection)
	}
	rest := slices.Concat(words[4:], after)
	var needsID, needsData bool
	switch c.verb {
	case "list":
		if len(rest) > 0 && rest[0] == "only" {
			c.only, rest = rest[1:], nil
			if len(c.only) == 0 || !c.can {
				return errors.New("only belongs to can list and names the records: only ID ID")
			}
		}
	case "create":
		needsData = true
	case "update":
		needsID, needsData = true, true
	case "view", "delete":
		needsID = true
		if data != nil {
			return fmt.Errorf("%s takes no JSON", c.verb)
		}
	default:
		return fmt.Errorf("%q is not a verb: use list, view, create, update or delete", c.verb)
	}
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected %q at the end", rest[0])
	case needsID != hasID, hasID && c.id == "":
		return fmt.Errorf("%s needs %s", c.verb, map[bool]string{true: "COLLECTION/ID", false: "a collection alone"}[needsID])
	case needsData && data == nil:
		return fmt.Errorf("%s needs a JSON object with the fields", c.verb)
	}
	for _, id := range append(slices.Clone(c.only), c.id) {
		if err := t.belongs(id, c.collection); err != nil {
			return err
		}
	}
	t.checks = append(t.checks, c)
	return nil
}

// belongs refuses a name of a record in another collection.
func (t *table) belongs(id, collection string) error {
	d, ok := t.find(id)
	switch {
	case ok && d.collection != collection:
		return fmt.Errorf("%q is a record of %s, not of %s", id, d.collection, collection)
	case !ok && id != "" && !recordPattern.MatchString(id):
		return fmt.Errorf("%q cannot be the id of a record", id)
	default:
		return nil
	}
}

// known refuses "@name" for names that are not declared on an earlier line.
func (t *table) known(v any) error {
	switch v := v.(type) {
	case map[string]any:
		for _, item := range v {
			if err := t.known(item); err != nil {
				return err
			}
		}
	case []any:
		for _, item := range v {
			if err := t.known(item); err != nil {
				return err
			}
		}
	case string:
		name, isName := strings.CutPrefix(v, "@")
		if _, ok := t.find(name); isName && !ok && !strings.HasPrefix(name, "@") {
			return fmt.Errorf("%q stands for no person or record of an earlier line; a text that starts with @ is written @@", v)
		}
	}
	return nil
}
