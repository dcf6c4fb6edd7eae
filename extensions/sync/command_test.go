package sync_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/cli"
)

// doctor runs "satchel sync doctor".
func (f *fixture) doctor(args ...string) (string, error) {
	f.t.Helper()
	cmd := f.feat.Extension().Commands(f.Host)[0]
	cmd.PersistentFlags().Bool("json", false, "")
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{"doctor"}, args...))
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(f.t.Context())
	return out.String(), err
}

func TestDoctor(t *testing.T) {
	f := start(t, options{})
	exec := func(text string) {
		t.Helper()
		if _, err := f.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO notes (id) SELECT printf('%015d', i) FROM n`)
	line := func(out, name string) string {
		for l := range strings.Lines(out) {
			if strings.HasPrefix(l, name) {
				return strings.Join(strings.Fields(l), " ")
			}
		}
		return ""
	}
	for _, c := range []struct{ rule, looks, note string }{
		{ownerRule, "notes 1000 1000 0 changed rows", ""},
		{teamRule, "notes 1000 1000 0 changed rows; all visible ones after a change of members, teams", "notes from end to end: no index on a column of it helps"},
		{`title = "x"`, "notes 1000 1000 0 changed rows", "notes from end to end: an index on its column title helps"},
		{`@now > "2020-01-01"`, "notes 1000 1000 0 all visible rows", "depends on time"},
	} {
		f.notes.ListRule = new(c.rule)
		f.save(f.notes)
		out, err := f.doctor("--deep")
		if err != nil || line(out, "notes") != c.looks || !strings.Contains(out, c.note) || c.note == "" && strings.Contains(out, "note: ") {
			t.Errorf("%s: %v\n%s", c.rule, err, out)
		}
		if got := line(out, "members"); !strings.HasSuffix(got, "members has no list rule: only superusers see it") {
			t.Errorf("members: %s", got)
		}
	}
	if out, err := f.doctor("--json"); err != nil || !json.Valid([]byte(out)) || !strings.Contains(out, `"always":true`) {
		t.Errorf("%v: %s", err, out)
	}

	k, err := f.log.Collection(t.Context(), "notes")
	if err != nil {
		t.Fatal(err)
	}
	exec(`DELETE FROM changes_heads WHERE rec = '000000000000007'`)
	_, err = f.doctor()
	failure, _ := errors.AsType[*cli.Failure](err)
	if failure == nil || failure.Exit != cli.ExitChecks || !strings.Contains(failure.Why, "notes: 1000 records have 999 heads") {
		t.Errorf("a head that is missing: %v", err)
	}
	exec(`DROP TRIGGER changes_` + strconv.FormatInt(k.C, 10) + `_insert`)
	_, err = f.doctor()
	failure, _ = errors.AsType[*cli.Failure](err)
	if failure == nil || failure.Exit != cli.ExitChecks || !strings.Contains(failure.Why, "notes: the trigger changes_") {
		t.Errorf("a trigger that is missing: %v", err)
	}
}
