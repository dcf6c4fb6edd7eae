package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// documentedAddr is the address that the documents use; a test's server has another port.
var documentedAddr = regexp.MustCompile(`(127\.0\.0\.1|localhost):8090`)

var (
	fencePattern  = regexp.MustCompile("^(\\s*)```\\s*(\\w*)")
	testComment   = regexp.MustCompile(`^\s*<!-- test: (.+?) -->$`)
	expectComment = regexp.MustCompile(`^\s*<!-- expect: (.+?) -->$`)
	notRunComment = regexp.MustCompile(`^\s*<!-- not run: (.+?) -->$`)
)

// block is a fenced piece of shell in a document. Comments on the lines above it say what to do with it:
//
//	<!-- test: name -->        run it; blocks of one document share a shell, in order
//	<!-- expect: regex -->     and find this in its output; any number of them
//	<!-- not run: reason -->   leave it alone
type block struct {
	line   int
	name   string
	reason string
	script string
	expect []*regexp.Regexp
}

// blocks finds the shell blocks of a document.
func blocks(t *testing.T, text string) []block {
	t.Helper()
	var out []block
	var pending block // what the comments above say
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimRight(lines[i], " \r")
		if m := testComment.FindStringSubmatch(line); m != nil {
			pending.name = m[1]
			continue
		}
		if m := expectComment.FindStringSubmatch(line); m != nil {
			pattern, err := regexp.Compile("(?m)" + m[1])
			if err != nil {
				t.Fatalf("line %d: %v", i+1, err)
			}
			pending.expect = append(pending.expect, pattern)
			continue
		}
		if m := notRunComment.FindStringSubmatch(line); m != nil {
			pending.reason = m[1]
			continue
		}
		fence := fencePattern.FindStringSubmatch(line)
		if fence == nil {
			if pending.name != "" || pending.reason != "" || pending.expect != nil {
				t.Errorf("line %d: a marker must stand right above a block", i+1)
			}
			pending = block{}
			continue
		}
		pending.line = i + 1
		var body []string
		for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "```"; i++ {
			body = append(body, strings.TrimPrefix(lines[i], fence[1]))
		}
		switch fence[2] {
		case "sh", "bash", "shell", "console":
			pending.script = strings.Join(body, "\n") + "\n"
			out = append(out, pending)
		default:
			if pending.name != "" || pending.reason != "" {
				t.Errorf("line %d: only sh blocks are run", pending.line)
			}
		}
		pending = block{}
	}
	return out
}

// TestDocuments runs what README.md and docs/ tell people to type, each document in a fresh folder with a fresh server.
func TestDocuments(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append([]string{"../README.md"}, documents...) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			runDocument(t, path, blocks(t, string(text)))
		})
	}
}

func runDocument(t *testing.T, path string, all []block) {
	var tested []block
	names := map[string]bool{}
	for _, b := range all {
		switch {
		case b.name != "":
			if names[b.name] {
				t.Errorf("%s:%d: the name %q is used twice", path, b.line, b.name)
			}
			names[b.name] = true
			tested = append(tested, b)
		case b.reason == "" && filepath.Base(path) == "README.md":
			t.Errorf("%s:%d: a shell block without a test: add <!-- test: name --> or <!-- not run: reason --> above it", path, b.line)
		}
	}
	if len(tested) == 0 {
		if filepath.Base(path) == "README.md" {
			t.Errorf("%s has no tested block", path)
		}
		return
	}

	s := start(t) // with the default settings, as a newcomer has them
	docs, err := filepath.Abs("../docs")
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"satchel": binary, "docs": docs} { // as in a clone after the build
		if err := os.Symlink(target, filepath.Join(s.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	outputs := t.TempDir()
	var script strings.Builder
	for i, b := range tested {
		write(t, outputs, fmt.Sprintf("%02d.sh", i), documentedAddr.ReplaceAllString(b.script, s.Addr))
		fmt.Fprintf(&script, "exec >%[1]s/%02[2]d.out 2>&1\n. %[1]s/%02[2]d.sh\n", outputs, i)
	}
	shell := exec.CommandContext(t.Context(), "sh", "-e", "-c", script.String())
	shell.Dir = s.Dir
	shell.Env = environment(s.Dir)
	shell.Env[0] = "PATH=" + s.Dir + string(os.PathListSeparator) + os.Getenv("PATH")
	shell.WaitDelay = 5 * time.Second
	shellErr := shell.Run()

	for i, b := range tested {
		out, err := os.ReadFile(fmt.Sprintf("%s/%02d.out", outputs, i))
		if err != nil {
			t.Errorf("%s:%d %s: not reached", path, b.line, b.name)
			continue
		}
		for _, pattern := range b.expect {
			if !pattern.Match(out) {
				t.Errorf("%s:%d %s: no match for %s in:\n%s", path, b.line, b.name, pattern, out)
			}
		}
		if _, err := os.Stat(fmt.Sprintf("%s/%02d.out", outputs, i+1)); err != nil && shellErr != nil {
			t.Errorf("%s:%d %s: %v\n%s", path, b.line, b.name, shellErr, out)
		}
	}
}
