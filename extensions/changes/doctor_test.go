package changes

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// run runs "satchel changes ...".
func (f *fixture) run(args ...string) (string, error) {
	f.t.Helper()
	cmd := f.command()
	cmd.PersistentFlags().Bool("json", false, "")
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(f.t.Context())
	return out.String(), err
}

func TestDoctor(t *testing.T) {
	f := start(t, defaults())
	f.notes.ListRule = new("title = 'x'")
	f.save(f.notes)
	f.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO notes (id) SELECT printf('%015d', i) FROM n`)
	out, err := f.run("doctor", "--deep")
	if err != nil || !strings.Contains(out, "notes") || !strings.Contains(out, "note: notes: the list rule reads notes from end to end: an index on its column title helps") {
		t.Fatalf("%v: %s", err, out)
	}

	// Somebody deletes and adds as many without the triggers.
	k, err := f.Collection(t.Context(), "notes")
	f.must(err)
	var drop, insert string
	f.must(f.ConcurrentDB().NewQuery("SELECT sql FROM sqlite_schema WHERE name = 'changes_" + number(k.C) + "_delete'").Row(&drop))
	f.must(f.ConcurrentDB().NewQuery("SELECT sql FROM sqlite_schema WHERE name = 'changes_" + number(k.C) + "_insert'").Row(&insert))
	f.exec("DROP TRIGGER changes_"+number(k.C)+"_delete", "DROP TRIGGER changes_"+number(k.C)+"_insert",
		"DELETE FROM notes WHERE id = '000000000000003'", "INSERT INTO notes (id) VALUES ('000000000000abc')", drop, insert)
	if out, err := f.run("doctor"); err != nil {
		t.Errorf("the numbers agree: %v: %s", err, out)
	}
	_, err = f.run("doctor", "--deep")
	failure, _ := errors.AsType[*cli.Failure](err)
	if failure == nil || failure.Exit != cli.ExitChecks || !strings.Contains(failure.Why, "000000000000003") || !strings.Contains(failure.Why, "000000000000abc") {
		t.Fatalf("%v", err)
	}
	if out, err := f.run("doctor", "--deep", "--mend"); err != nil {
		t.Errorf("mend: %v: %s", err, out)
	}
	f.sound("notes")
	if out, err := f.run("doctor", "--deep", "--json"); err != nil || !json.Valid([]byte(out)) {
		t.Errorf("%v: %s", err, out)
	}

	before := f.at()
	if out, err := f.run("epoch"); err != nil || strings.Contains(out, before.Epoch) || f.at().Epoch == before.Epoch {
		t.Errorf("epoch: %v: %s", err, out)
	}
}

// The doctor wants recursive_triggers, which PocketBase's own connections lack.
func TestConnectionIsExamined(t *testing.T) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := New(defaults(), db)
	f := &fixture{App: apptest.New(t, api.New(settings.Defaults[api.Config]()), l.Extension()), Log: l, t: t}
	_, err = f.run("doctor")
	if failure, _ := errors.AsType[*cli.Failure](err); failure == nil || !strings.Contains(failure.Why, "recursive_triggers") {
		t.Errorf("%v", err)
	}
}

func TestCheckWithoutDatabase(t *testing.T) {
	f := start(t, defaults())
	f.quiet()
	f.exec("DROP TABLE changes_state")
	if result := f.check(t.Context(), f.Host); result.Level != extensions.Skip {
		t.Errorf("%+v", result)
	}
	if _, err := f.run("doctor"); err == nil {
		t.Error("the doctor found nothing to examine and says nothing")
	}
}

// A rule edit of a collection that others' rules read is a change of that collection.
func TestDependenciesAndLastChange(t *testing.T) {
	f := start(t, defaults())
	others := f.collection("others")
	d, err := RuleDependencies(f.App, f.notes, "@collection.others.title ?= title", nil)
	f.must(err)
	before, err := f.LastChange(t.Context(), d.Collections...)
	f.must(err)
	r := core.NewRecord(others)
	f.save(r)
	if after, err := f.LastChange(t.Context(), d.Collections...); err != nil || after <= before {
		t.Errorf("%d, then %d: %v", before, after, err)
	}
}
