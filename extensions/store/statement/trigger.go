package statement

import (
	"regexp"
	"strings"
)

// beginning is the word before the body of a trigger.
var beginning = regexp.MustCompile(`(?i)\bBEGIN\b`)

// Contained reports whether a trigger writes to quiet tables at most. Each statement of its body begins behind a
// semicolon or the BEGIN, so looking at what follows every one of these, whatever it is, misses none; what is not
// understood does not count as contained.
func Contained(trigger string, quiet func(table string) bool) bool {
	at := beginning.FindAllStringIndex(trigger, -1)
	if len(at) != 1 {
		return false
	}
	parts := strings.Split(strings.TrimRight(trigger[at[0][1]:], "; \t\r\n"), ";")
	last := len(parts) - 1
	if !strings.EqualFold(strings.TrimSpace(parts[last]), "END") {
		return false
	}
	for _, text := range parts[:last] {
		st := Parse(text)
		if st.Verb != Read && (st.Verb != Write || !quiet(st.Table)) {
			return false
		}
	}
	return true
}
