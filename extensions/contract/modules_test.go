package contract_test

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the list of modules anew")

// modules lists, for each extension, the third-party modules that it adds to what PocketBase's core needs. The text is
// checked in, so that a heavy import is seen as a line in a review.
func modules(t *testing.T, root, core string) string {
	t.Helper()
	packages := list(t, root, "-deps", "./...", core)
	owner := map[string]string{}
	var given []string
	for _, p := range packages {
		if !p.Standard && p.Module != nil && p.Module.Path != module {
			owner[p.ImportPath] = p.Module.Path
		}
	}
	owners := func(p pkg) []string {
		var names []string
		for _, path := range append(p.Deps, p.ImportPath) {
			if name := owner[path]; name != "" && !slices.Contains(given, name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	for _, p := range packages {
		if p.ImportPath == core {
			given = owners(p)
		}
	}
	var b strings.Builder
	b.WriteString("# Modules that each extension adds to PocketBase's core, directly or through others.\n# Written by: go test ./extensions/contract -update\n")
	slices.SortFunc(packages, func(a, b pkg) int { return strings.Compare(a.ImportPath, b.ImportPath) })
	for _, p := range packages {
		if strings.HasPrefix(p.path(), "extensions/") && len(p.GoFiles) > 0 && p.Module != nil && p.Module.Path == module {
			b.WriteString(strings.TrimSpace(strings.TrimPrefix(p.path(), "extensions/")+": "+strings.Join(owners(p), " ")) + "\n")
		}
	}
	return b.String()
}

func TestModules(t *testing.T) {
	got := modules(t, here(t), "github.com/pocketbase/pocketbase/core")
	golden := filepath.Join("testdata", "modules.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the modules of the extensions have changed; if that is meant: go test ./extensions/contract -update\n--- now\n%s--- %s\n%s", got, golden, want)
	}
}

func TestModulesCanFail(t *testing.T) {
	root := plant(t, map[string]string{
		"go.mod": "module " + module + "\n\ngo 1.27.0\n\nrequire (\n\texample.test/core v0.0.0\n\texample.test/heavy v0.0.0\n\texample.test/light v0.0.0\n)\n\n" +
			"replace (\n\texample.test/core => ./third/core\n\texample.test/heavy => ./third/heavy\n\texample.test/light => ./third/light\n)\n",
		"third/core/go.mod":        "module example.test/core\n",
		"third/core/c.go":          "package core\n",
		"third/heavy/go.mod":       "module example.test/heavy\n",
		"third/heavy/sub/h.go":     "package sub\n\nimport _ \"example.test/light\"\n",
		"third/light/go.mod":       "module example.test/light\n",
		"third/light/l.go":         "package light\n",
		"extensions/extensions.go": "package extensions\n\nimport _ \"example.test/core\"\n",
		"extensions/a/a.go":        "package a\n\nimport (\n\t_ \"fmt\"\n\n\t_ \"example.test/core\"\n)\n",
		"extensions/b/b.go":        "package b\n\nimport (\n\t_ \"example.test/heavy/sub\"\n\n\t_ \"" + module + "/extensions/a\"\n)\n",
	})
	got := modules(t, root, "example.test/core")
	_, lines, _ := strings.Cut(got, "-update\n")
	if want := "a:\nb: example.test/heavy example.test/light\n"; lines != want {
		t.Errorf("got\n%s\nwant\n%s", lines, want)
	}
}
