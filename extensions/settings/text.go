package settings

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// shownRunes bounds how much of a wrong value a message repeats.
const shownRunes = 64

// quote shows a value inside a message.
func quote(text string) string {
	if utf8.RuneCountInString(text) > shownRunes {
		text = string([]rune(text)[:shownRunes]) + "…"
	}
	return strconv.Quote(text)
}

// oneLine makes text safe to print as a part of a line: what cannot be printed is escaped.
func oneLine(text string) string {
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// redact masks secrets in a message that somebody else wrote. Secrets of less than four bytes stay: masking them would
// tear words apart and so reveal them.
func redact(text string, secrets []string) string {
	for _, secret := range secrets {
		if len(secret) < 4 {
			continue
		}
		quoted := strconv.Quote(secret)
		text = strings.ReplaceAll(text, secret, mask)
		text = strings.ReplaceAll(text, quoted[1:len(quoted)-1], mask)
	}
	return text
}

// nearest is the candidate that takes the fewest edits to reach from key, or "" if none is close: at most a third of the
// name may differ, a common limit for suggestions. The first of equals wins.
func nearest(key string, candidates []string) string {
	key = strings.TrimPrefix(key, Prefix)
	best, found := len(key)/3+1, ""
	for _, candidate := range candidates {
		if d := distance(key, strings.TrimPrefix(candidate, Prefix), best); d < best {
			best, found = d, candidate
		}
	}
	return found
}

// distance counts the insertions, deletions, substitutions and swaps of neighbours between a and b (optimal string
// alignment). It answers limit without counting when the lengths alone differ by that much.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
