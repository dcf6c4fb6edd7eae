package settings_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/settings"
)

// readText writes text to a file in dir and reads it; the folder is removed from the error.
func readText(t testing.TB, dir, text string) ([]string, string) {
	t.Helper()
	path := filepath.Join(dir, ".env")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pairs, err := settings.ReadFile(path)
	if err == nil {
		return pairs, ""
	}
	return pairs, strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), "")
}

func TestReadFile(t *testing.T) {
	cases := []struct {
		name, text string
		want       []string
		problem    string
	}{
		{"empty", "", nil, ""},
		{"comments and blank lines", "# a\n\n  # b=c\nA=1\n", []string{"A=1"}, ""},
		{"no last line end, CRLF, BOM", "\ufeffA=1\r\nB=2", []string{"A=1", "B=2"}, ""},
		{"bare", "A=a b=c\nB=\nC= x \nD=it's\nE={\"a\":1}\nF=a#b\nG=5$", []string{"A=a b=c", "B=", "C=x", "D=it's", `E={"a":1}`, "F=a#b", "G=5$"}, ""},
		{"export", "export A=1\nexport\tB=2\nexportC=3\nexport=4", []string{"A=1", "B=2", "exportC=3", "export=4"}, ""},
		{"single quotes are literal", `A=' $x "\n" # '`, []string{`A= $x "\n" # `}, ""},
		{"double quotes", `A=" a # b 'c' \"\\\$\` + "`" + `é$ "`, []string{`A= a # b 'c' "\$` + "`" + `é$ `}, ""},
		{"empty quotes", "A=\"\"\nB=''", []string{"A=", "B="}, ""},
		{"no equals sign", "\nhunter2", nil, ".env:2: expected KEY=value"},
		{"export alone", "export A", nil, ".env:1: expected KEY=value"},
		{"space before =", "A =1", nil, ".env:1: remove the space before ="},
		{"bad key", "my-secret=1", nil, ".env:1: a key consists of letters, digits and _ and does not start with a digit"},
		{"no key", "=1", nil, ".env:1: a key consists of letters, digits and _ and does not start with a digit"},
		{"repeated key", "A=1\n\nA=1", nil, ".env:3: A is already set on line 1"},
		{"comment after a value", "A=1 # one", nil, ".env:1: A: put the comment on its own line, or the value in single quotes"},
		{"comment as a value", "A= # one", nil, ".env:1: A: put the comment on its own line, or the value in single quotes"},
		{"backslash", `A=C:\x`, nil, ".env:1: A: put a value with a backslash in single quotes"},
		{"expansion", "A=a$B", nil, ".env:1: A: variables are not expanded; put a value with $ in single quotes"},
		{"expansion in quotes", `A="a${B}"`, nil, `.env:1: A: variables are not expanded; write \$ or use single quotes`},
		{"escape", `A="a\nb"`, nil, ".env:1: A: only \\\" \\\\ \\$ and \\` are escapes in double quotes; use single quotes for a literal backslash"},
		{"open quote", "A='a\nB=\"b", nil, ".env:1: A: the quote is not closed on its line\n.env:2: B: the quote is not closed on its line"},
		{"open after an escape", `A="\"`, nil, ".env:1: A: the quote is not closed on its line"},
		{"backslash at the end", `A="\`, nil, ".env:1: A: the quote is not closed on its line"},
		{"text after a quote", "A='a'b", nil, ".env:1: A: text follows the closing quote"},
		{"NUL", "A=a\x00b", nil, ".env:1: the line is not UTF-8 text"},
		{"not UTF-8", "A=\xff", nil, ".env:1: the line is not UTF-8 text"},
		{"every problem", "A\nB=1\nC =1", nil, ".env:1: expected KEY=value\n.env:3: remove the space before ="},
		{"too large", "A=" + strings.Repeat("x", 1<<20), nil, "read settings .env: the file is larger than 1 MiB"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pairs, problem := readText(t, t.TempDir(), c.text)
			if !slices.Equal(pairs, c.want) || problem != c.problem {
				t.Errorf("got %q, %s\nwant %q, %s", pairs, problem, c.want, c.problem)
			}
		})
	}
}

func TestReadFileWithoutFile(t *testing.T) {
	dir := t.TempDir()
	if pairs, err := settings.ReadFile(filepath.Join(dir, "none")); pairs != nil || err != nil {
		t.Errorf("missing file: %q, %v", pairs, err)
	}
	if _, err := settings.ReadFile(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("folder: %v", err)
	}
}

func TestFileThenEnvironment(t *testing.T) {
	pairs, _ := readText(t, t.TempDir(), "SATCHEL_DEMO_NAME=file\nSATCHEL_DEMO_WORKERS='7'\n")
	got, s := read(append(pairs, "SATCHEL_DEMO_NAME=environment")...)
	if got.Name != "environment" || got.Workers != 7 || s.Err() != nil {
		t.Errorf("got %+v, %v", got, s.Err())
	}
}
