package settings

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxFileSize bounds files with settings and secrets. The largest honest ones are service account keys of a few KiB.
const maxFileSize = 1 << 20

var (
	fileKeyPattern   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	expansionPattern = regexp.MustCompile(`\$[A-Za-z_{(]`)
)

// ReadFile reads KEY=value lines as systemd's EnvironmentFile, Docker's env_file and .env files understand them alike:
// blank lines, comment lines that start with #, an optional "export " before the key, values bare, in single quotes
// (literal) or in double quotes (with \" \\ \$ and \` as escapes). What those three read differently is an error that
// names the line, as are repeated keys. Messages never repeat a value. A file that does not exist has no pairs.
func ReadFile(path string) ([]string, error) {
	text, err := readLimited(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read settings %s: %w", path, err)
	}
	var pairs []string
	var problems []error
	seen := map[string]int{}
	number := 0
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "\ufeff"), "\n") {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, err := parseLine(line)
		if err == nil && seen[key] > 0 {
			err = fmt.Errorf("%s is already set on line %d", key, seen[key])
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %w", path, number, err))
			continue
		}
		seen[key] = number
		pairs = append(pairs, key+"="+value)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return pairs, nil
}

// parseLine reads one KEY=value.
func parseLine(line string) (key, value string, err error) {
	if !utf8.ValidString(line) || strings.ContainsRune(line, 0) {
		return "", "", errors.New("the line is not UTF-8 text")
	}
	if rest, ok := strings.CutPrefix(line, "export"); ok && rest != strings.TrimLeft(rest, " \t") {
		line = strings.TrimLeft(rest, " \t")
	}
	key, value, ok := strings.Cut(line, "=")
	switch {
	case !ok:
		return "", "", errors.New("expected KEY=value")
	case key != strings.TrimRight(key, " \t"):
		return "", "", errors.New("remove the space before =")
	case !fileKeyPattern.MatchString(key):
		return "", "", errors.New("a key consists of letters, digits and _ and does not start with a digit")
	}
	value, err = parseValue(strings.TrimSpace(value))
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", key, err)
	}
	return key, value, nil
}

// parseValue removes the quotes of a value.
func parseValue(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	switch text[0] {
	case '\'':
		value, rest, closed := strings.Cut(text[1:], "'")
		return value, afterQuote(closed, rest)
	case '"':
		return parseDoubleQuoted(text[1:])
	}
	switch {
	case text[0] == '#' || strings.Contains(text, " #") || strings.Contains(text, "\t#"):
		return "", errors.New("put the comment on its own line, or the value in single quotes")
	case strings.Contains(text, `\`):
		return "", errors.New("put a value with a backslash in single quotes")
	case expansionPattern.MatchString(text):
		return "", errors.New("variables are not expanded; put a value with $ in single quotes")
	}
	return text, nil
}

// parseDoubleQuoted reads what follows an opening double quote.
func parseDoubleQuoted(text string) (string, error) {
	var value strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return value.String(), afterQuote(true, text[i+1:])
		case c == '\\' && i+1 < len(text):
			if i++; !strings.ContainsRune("\"\\$`", rune(text[i])) {
				return "", errors.New("only \\\" \\\\ \\$ and \\` are escapes in double quotes; use single quotes for a literal backslash")
			}
			value.WriteByte(text[i])
		case c == '$' && expansionPattern.MatchString(text[i:min(i+2, len(text))]):
			return "", errors.New("variables are not expanded; write \\$ or use single quotes")
		default:
			value.WriteByte(c)
		}
	}
	return "", afterQuote(false, "")
}

// afterQuote judges the end of a quoted value.
func afterQuote(closed bool, rest string) error {
	if !closed {
		return errors.New("the quote is not closed on its line")
	}
	if rest != "" {
		return errors.New("text follows the closing quote")
	}
	return nil
}

// readSecret reads a file without its last line end. Its errors do not contain the path.
func readSecret(path string) (string, error) {
	if path == "" {
		return "", errors.New("the name is empty")
	}
	text, err := readLimited(path)
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	return strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r"), err
}

// readLimited reads a file of at most maxFileSize bytes.
func readLimited(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = errors.New("the file is larger than 1 MiB")
	}
	if err != nil {
		return "", err
	}
	return string(data), nil
}
