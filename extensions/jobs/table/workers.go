package table

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9_.:-]{1,100}$`)

// IsName reports whether a kind or a queue may have the name.
func IsName(text string) bool { return namePattern.MatchString(text) }

// IsText reports whether a key or a lane is a text that the table holds as it is: another form would be found by nobody.
func IsText(text string) bool { return len(text) <= 500 && utf8.ValidString(text) }

// Workers are numbers of workers by the name of the queue.
type Workers map[string]int

// UnmarshalText reads "mail=4,slow=1".
func (w *Workers) UnmarshalText(text []byte) error {
	out := Workers{}
	for pair := range strings.SplitSeq(string(text), ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, number, ok := strings.Cut(pair, "=")
		n, err := strconv.Atoi(strings.TrimSpace(number))
		if name = strings.TrimSpace(name); !ok || err != nil || n < 1 || n > 1000 || !IsName(name) {
			return fmt.Errorf("%q is not like mail=4, with 1 to 1000 workers", pair)
		}
		out[name] = n
	}
	*w = out
	return nil
}
