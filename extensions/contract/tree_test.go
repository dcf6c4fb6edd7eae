package contract_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the path of the module whose rules these are; planted trees carry it too.
const module = "github.com/satchelbase/satchel"

// pkg is one package of the module, as the go command sees it.
type pkg struct {
	ImportPath, Name, Dir                    string
	GoFiles, CgoFiles, IgnoredGoFiles        []string
	TestGoFiles, XTestGoFiles                []string
	Imports, TestImports, XTestImports, Deps []string
	Standard                                 bool
	Module                                   *struct{ Path string }
}

// path is the package's place below the module's root; "." is the root.
func (p pkg) path() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

// source lists the files that are not tests, those of other platforms included.
func (p pkg) source() []string { return slices.Concat(p.GoFiles, p.CgoFiles, p.IgnoredGoFiles) }

func (p pkg) tests() []string { return slices.Concat(p.TestGoFiles, p.XTestGoFiles) }

// tree is a module on disk.
type tree struct {
	root     string
	packages []pkg
}

// load reads the packages of the module in root.
func load(t *testing.T, root string) tree {
	t.Helper()
	return tree{root, list(t, root, "./...")}
}

// list runs go list for one fixed platform, so that its answer is the same on every machine.
func list(t *testing.T, root string, args ...string) []pkg {
	t.Helper()
	fields := "ImportPath,Name,Dir,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Deps,Standard,Module"
	cmd := exec.Command("go", slices.Concat([]string{"list", "-e", "-json=" + fields}, args)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("go list found no packages")
	}
	return packages
}

// file is one parsed Go file.
type file struct {
	name  string // from the module's root
	fset  *token.FileSet
	ast   *ast.File
	lines int
}

func (f file) at(n ast.Node) int { return f.fset.Position(n.Pos()).Line }

func parse(t *testing.T, root string, p pkg, names []string) []file {
	t.Helper()
	var files []file
	for _, name := range names {
		full := filepath.Join(p.Dir, name)
		text, err := os.ReadFile(full)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, full, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(resolved(t, root), resolved(t, full))
		if err != nil {
			t.Fatal(err)
		}
		if !ast.IsGenerated(parsed) {
			files = append(files, file{filepath.ToSlash(rel), fset, parsed, bytes.Count(text, []byte("\n"))})
		}
	}
	return files
}

// resolved follows symbolic links: temporary folders are links on some systems.
func resolved(t *testing.T, path string) string {
	t.Helper()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return real
}

// here is the root of this module. Its folders are read, because the go command repeats a test's old result unless a
// file or folder has changed that the test itself opened; it does not see what go list reads.
func here(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another package's test has just removed it
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// plant writes a module with the given files and returns its root.
func plant(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if _, ok := files["go.mod"]; !ok {
		files["go.mod"] = "module " + module + "\n\ngo 1.27.0\n"
	}
	for name, text := range files {
		full := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// none fails the test for every finding in this module.
func none(t *testing.T, findings []string) {
	t.Helper()
	for _, f := range findings {
		t.Error(f)
	}
}

// exactly compares the findings in a planted tree with what was planted; each want is a part of one finding.
func exactly(t *testing.T, findings []string, wants ...string) {
	t.Helper()
	left := slices.Clone(findings)
	for _, want := range wants {
		i := slices.IndexFunc(left, func(f string) bool { return strings.Contains(f, want) })
		if i < 0 {
			t.Errorf("not found: %s", want)
			continue
		}
		left = slices.Delete(left, i, i+1)
	}
	for _, f := range left {
		t.Errorf("found what is allowed: %s", f)
	}
}
