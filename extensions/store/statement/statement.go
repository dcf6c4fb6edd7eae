// Package statement reads out of a SQL text the little that the store's driver must know before SQLite sees it: whether
// it may write, to which table, and whether it controls a transaction. It reads the beginning of the text only and is
// conservative: what it does not recognise is taken for a write of an unknown table. It has no settings, tables or
// routes and cannot fail.
package statement

import "strings"

// Verb is what a statement does.
type Verb uint8

// The verbs.
const (
	Other     Verb = iota // schema changes, VACUUM, ATTACH and whatever is not recognised
	Read                  // SELECT, VALUES, EXPLAIN
	Write                 // INSERT, UPDATE, DELETE, REPLACE
	Pragma                // PRAGMA, which may do anything
	Begin                 // BEGIN
	Commit                // COMMIT, END
	Rollback              // ROLLBACK of the transaction
	Savepoint             // SAVEPOINT, RELEASE, ROLLBACK TO
)

// Statement is what was read.
type Statement struct {
	Verb   Verb
	Table  string // lower-case target of a plain write, empty when it was not recognised
	Script bool   // holds, or may hold, more than one statement
}

// Writes reports whether the statement may take SQLite's write lock.
func (s Statement) Writes() bool {
	return s.Script || s.Verb == Other || s.Verb == Write
}

// Cacheable reports whether the statement can be kept prepared.
func (s Statement) Cacheable() bool {
	return !s.Script && (s.Verb == Read || s.Verb == Write)
}

// Parse looks at the beginning of the text. A semicolon inside makes it a script, also one in a literal: that costs
// speed and is never wrong.
func Parse(text string) Statement {
	t := tokens{text: text}
	st := Statement{Script: strings.Contains(strings.TrimRight(text, "; \t\r\n"), ";")}
	word := t.keyword()
	switch word {
	case "SELECT", "VALUES", "EXPLAIN":
		st.Verb = Read
	case "WITH":
		word = t.mainVerb()
		if word == "SELECT" || word == "VALUES" {
			st.Verb = Read
		}
	case "PRAGMA":
		st.Verb = Pragma
	case "BEGIN":
		st.Verb = Begin
	case "COMMIT", "END":
		st.Verb = Commit
	case "ROLLBACK":
		st.Verb = Rollback
		if next := t.keyword(); next == "TO" || next == "TRANSACTION" && t.keyword() == "TO" {
			st.Verb = Savepoint
		}
	case "SAVEPOINT", "RELEASE":
		st.Verb = Savepoint
	}
	switch word {
	case "INSERT", "REPLACE", "UPDATE", "DELETE":
		st.Verb = Write
		st.Table = t.target(word)
	}
	return st
}

// tokens reads words from the start of a SQL text.
type tokens struct {
	text string
	buf  [16]byte
}

// skip drops white space and comments.
func (t *tokens) skip() {
	for {
		t.text = strings.TrimLeft(t.text, " \t\r\n\f\v\ufeff")
		var end string
		switch {
		case strings.HasPrefix(t.text, "--"):
			end = "\n"
		case strings.HasPrefix(t.text, "/*"):
			end = "*/"
		default:
			return
		}
		_, rest, found := strings.Cut(t.text[2:], end)
		if !found {
			rest = ""
		}
		t.text = rest
	}
}

// keyword reads a bare word and returns it in upper case; longer ones than any keyword are cut.
func (t *tokens) keyword() string {
	t.skip()
	n := 0
	for n < len(t.text) && isWord(t.text[n]) {
		if n < len(t.buf) {
			t.buf[n] = upper(t.text[n])
		}
		n++
	}
	t.text = t.text[n:]
	return string(t.buf[:min(n, len(t.buf))])
}

// mainVerb finds the statement behind the common table expressions of a WITH.
func (t *tokens) mainVerb() string {
	depth := 0
	for {
		t.skip()
		if t.text == "" {
			return ""
		}
		switch c := t.text[0]; {
		case c == '(':
			depth++
			t.text = t.text[1:]
		case c == ')':
			depth--
			t.text = t.text[1:]
		case isQuote(c):
			t.quoted()
		case isWord(c):
			switch word := t.keyword(); word {
			case "SELECT", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE":
				if depth == 0 {
					return word
				}
			}
		default:
			t.text = t.text[1:]
		}
	}
}

// target reads the table of a write whose verb was just read.
func (t *tokens) target(word string) string {
	rest := *t
	if rest.keyword() == "OR" {
		rest.keyword()
		*t = rest
	}
	switch word {
	case "INSERT", "REPLACE":
		if t.keyword() != "INTO" {
			return ""
		}
	case "DELETE":
		if t.keyword() != "FROM" {
			return ""
		}
	}
	name := t.name()
	t.skip()
	if strings.HasPrefix(t.text, ".") { // a schema came first; tables of other files are not told apart
		return ""
	}
	return strings.ToLower(name)
}

// name reads an identifier, quoted or not.
func (t *tokens) name() string {
	t.skip()
	if t.text == "" {
		return ""
	}
	if isQuote(t.text[0]) {
		return t.quoted()
	}
	n := 0
	for n < len(t.text) && isWord(t.text[n]) {
		n++
	}
	name := t.text[:n]
	t.text = t.text[n:]
	return name
}

// quoted reads a quoted identifier or a literal. A doubled quote inside ends it early, which only makes a name unknown.
func (t *tokens) quoted() string {
	end := t.text[:1]
	if end == "[" {
		end = "]"
	}
	content, rest, found := strings.Cut(t.text[1:], end)
	if !found {
		rest = ""
	}
	t.text = rest
	return content
}

func isQuote(c byte) bool { return c == '"' || c == '`' || c == '\'' || c == '[' }

func isWord(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - ('a' - 'A')
	}
	return c
}

// IsCheckpoint recognises PRAGMA wal_checkpoint in any of its forms.
func IsCheckpoint(text string) bool {
	return strings.Contains(strings.ToLower(text), "wal_checkpoint")
}
