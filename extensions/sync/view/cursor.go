package view

import (
	"strconv"
	"strings"
)

// Cursor is a position in a run. The zero value is no cursor.
type Cursor struct {
	Epoch string // of the data
	Nonce string // of the store
	Run   int64  // within the device; higher for later runs
	At    int
}

// maxCursor bounds what is looked at.
const maxCursor = 128

// String is the form for clients, empty for no cursor.
func (c Cursor) String() string {
	if c.Run == 0 {
		return ""
	}
	return c.Epoch + "." + c.Nonce + "." + strconv.FormatInt(c.Run, 36) + "." + strconv.Itoa(c.At)
}

// ParseCursor reads what String wrote. Anything else is no cursor, and ok is false unless the text is empty: a client that
// presents an unknown one starts over.
func ParseCursor(text string) (c Cursor, ok bool) {
	if text == "" {
		return Cursor{}, true
	}
	parts := strings.Split(text, ".")
	if len(text) > maxCursor || len(parts) != 4 {
		return Cursor{}, false
	}
	run, err := strconv.ParseInt(parts[2], 36, 64)
	if err != nil || run <= 0 {
		return Cursor{}, false
	}
	at, err := strconv.Atoi(parts[3])
	if err != nil || at < 0 {
		return Cursor{}, false
	}
	c = Cursor{Epoch: parts[0], Nonce: parts[1], Run: run, At: at}
	return c, c.String() == text
}
