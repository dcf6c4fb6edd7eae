package migrations_test

import (
	"path/filepath"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/rules"
)

// The example in the documentation is the test of the notes' row rules.
func TestNoteRules(t *testing.T) {
	open := func(dir string) (core.App, error) { return core.NewBaseApp(core.BaseAppConfig{DataDir: dir}), nil }
	table := filepath.Join("..", "docs", "examples", "notes.rules")
	report, err := rules.Test(t.Context(), filepath.Join(t.TempDir(), "none"), table, open)
	if err != nil {
		t.Fatal(err)
	}
	if report.Passed != 18 {
		t.Errorf("%d checks hold, want 18", report.Passed)
	}
	for _, c := range report.Checks {
		if !c.OK {
			t.Errorf("%s:%d: %s: %s", table, c.Line, c.Check, c.Reason)
		}
	}
}
