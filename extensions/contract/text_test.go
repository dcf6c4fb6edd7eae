package contract_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// registryHost is an address that belongs into a machine's settings: a lock file that names one cannot be installed
	// from another.
	registryHost = regexp.MustCompile(`\b(registry\.[a-z0-9.-]+\.[a-z]+|proxy\.golang\.org|sum\.golang\.org|deb\.debian\.org|pypi\.org)\b`)

	// machinePath is a folder of one machine or one person.
	machinePath = regexp.MustCompile(`(/roo[t]/|/wor[k]/(main|shared|\.library)|/home/[a-z][a-z0-9]*/|/Users/[A-Za-z]+/|[A-Z]:\\Users\\)`)
)

// tracked lists the files that Git has or would take.
func tracked(t *testing.T, root string) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		if _, missing := os.Stat(filepath.Join(root, ".git")); missing != nil {
			t.Skip("this is not a Git work tree")
		}
		t.Fatalf("git ls-files: %v", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
}

func leaks(t *testing.T, root string) []string {
	t.Helper()
	var findings []string
	for _, name := range tracked(t, root) {
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // deleted in the work tree
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(text, 0) >= 0 {
			continue
		}
		number := 0
		for line := range bytes.Lines(text) {
			number++
			if m := registryHost.Find(line); m != nil {
				findings = append(findings, fmt.Sprintf("%s:%d names a registry: %s", name, number, m))
			}
			if m := machinePath.Find(line); m != nil {
				findings = append(findings, fmt.Sprintf("%s:%d names a machine's folder: %s", name, number, m))
			}
		}
	}
	return findings
}

func TestNoMachine(t *testing.T) { none(t, leaks(t, here(t))) }

func TestNoMachineCanFail(t *testing.T) {
	root := plant(t, map[string]string{
		".gitignore":        "ignored\n",
		"ignored":           "https://registry." + "example.test/\n",
		"package-lock.json": "{\n  \"resolved\": \"https://registry." + "example.test/a.tgz\"\n}\n",
		"a.md":              "See https://pkg.go.dev and /root and /home/.\n",
		"b.md":              "cd /wor" + "k/main\n",
		"c.sh":              "ls /roo" + "t/go\n",
		"d.bin":             "\x00/roo" + "t/go\n",
		"folder/e.txt":      "one\ntwo\n/home/" + "ann/x\n",
	})
	if out, err := exec.Command("git", "-C", root, "init", "-q").CombinedOutput(); err != nil {
		t.Fatalf("git init: %v\n%s", err, out)
	}
	exactly(t, leaks(t, root), "package-lock.json:2 names a registry", "b.md:1 names", "c.sh:1 names", "folder/e.txt:3 names")
}
