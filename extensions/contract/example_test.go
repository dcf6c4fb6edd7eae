package contract

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// exampleTest runs the documented extension as its reader would see it.
const exampleTest = `package ping_test

import (
	"testing"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/ping"
	"github.com/satchelbase/satchel/extensions/settings"
)

func TestPing(t *testing.T) {
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), ping.New(settings.Defaults[ping.Config]()))
	r := app.Do(t, apptest.Request{Path: "/api/v1/ping/ada"})
	if r.Status != 200 || r.JSON(t)["data"] != "hello, ada" || r.Header.Get("ETag") == "" {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
}
`

// The smallest extension of docs/extensions.md compiles, answers, and is as small as the page says. It is laid over the
// tree for one run of the compiler.
func TestDocumentedExtension(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "extensions.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)<!-- code: ping.go -->\n```go\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/extensions.md has no block ping.go")
	}
	source := string(block[1])
	if n := strings.Count(source, "\n"); n > 30 {
		t.Errorf("the smallest extension has %d lines", n)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for name, text := range map[string]string{"ping.go": source, "ping_test.go": exampleTest} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, "extensions", "ping", name)] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "ping.test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-overlay", file, "-o", program, "./extensions/ping")
	build.Dir = root
	run := exec.Command(program) // not by go test: the folder of the package does not exist
	run.Dir = dir
	for _, cmd := range []*exec.Cmd{build, run} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}
