package logs

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
)

// escaper writes log lines. The handlers of slog quote line breaks, but let through other characters that a terminal
// obeys or that make text look like other text: DEL, the C1 controls and the marks of direction. Each becomes \uXXXX,
// which both JSON and the quoted form of text lines understand.
type escaper struct{ w io.Writer }

// Write expects one whole line.
func (e escaper) Write(line []byte) (int, error) {
	if isPrintable(bytes.TrimSuffix(line, []byte("\n"))) {
		return e.w.Write(line)
	}
	body, end := string(line), ""
	if strings.HasSuffix(body, "\n") {
		body, end = body[:len(body)-1], "\n"
	}
	clean := escapeControl(body)
	if clean == body {
		return e.w.Write(line)
	}
	if _, err := io.WriteString(e.w, clean+end); err != nil {
		return 0, err
	}
	return len(line), nil
}

// isPrintable reports ASCII without controls, which nearly every line is.
func isPrintable(s []byte) bool {
	for _, c := range s {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// escapeControl replaces every character that is not for display by \uXXXX.
func escapeControl(s string) string {
	if strings.IndexFunc(s, isUnsafe) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isUnsafe(r) {
			for _, unit := range utf16.AppendRune(nil, r) {
				_, _ = fmt.Fprintf(&b, `\u%04x`, unit)
			}
			continue
		}
		_, _ = b.WriteRune(r)
	}
	return b.String()
}

// isUnsafe reports controls, marks of direction and other invisible characters, and the separators of lines.
func isUnsafe(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }
