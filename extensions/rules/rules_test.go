package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations" // PocketBase's own collections
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

// openApp is a program with a collection of diaries and a hook, as main.go would make it.
func openApp(dir string) (core.App, error) {
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir})
	app.OnBootstrap().BindFunc(func(e *core.BootstrapEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		_, err := e.App.FindCollectionByNameOrId("diaries")
		if err == nil {
			return nil
		}
		users, err := e.App.FindCollectionByNameOrId("users")
		if err != nil {
			return err
		}
		c := core.NewBaseCollection("diaries")
		own := new("@request.auth.id != '' && owner = @request.auth.id")
		c.ListRule, c.ViewRule, c.CreateRule, c.UpdateRule = own, new(""), own, own
		c.Fields.Add(
			&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1, Required: true, CascadeDelete: true},
			&core.TextField{Name: "text", Max: 20}, &core.NumberField{Name: "items"}, &core.JSONField{Name: "extra"},
		)
		return e.App.Save(c)
	})
	app.OnRecordUpdateRequest("diaries").BindFunc(func(e *core.RecordRequestEvent) error {
		if e.Record.GetString("text") == "lies" {
			return e.ForbiddenError("diaries do not lie", nil)
		}
		return e.Next()
	})
	return app, nil
}

const everybody = `
as ada users/ada@example.com
as bob users/bob@example.com {"name":"Bob"}
given diaries/monday {"owner":"@ada","text":"rain","items":2}
given diaries/sunday {"owner":"@bob","text":"sun"}
`

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "table.rules")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// inTemp makes the copies go to a folder of the test, and checks that they are gone after it.
func inTemp(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in the temporary folder: %v (%v)", left, err)
		}
	})
}

// noData is a data folder that is not there.
func noData(t *testing.T) string { return filepath.Join(t.TempDir(), "none") }

func TestChecks(t *testing.T) {
	inTemp(t)
	cases := []struct{ check, reason string }{ // an empty reason: the check holds
		{`ada can list diaries`, ""},
		{`ada can list diaries only monday`, ""},
		{`ada can list diaries {"filter":"text ~ 'ra'","sort":"-items","page":1} only monday`, ""},
		{`ada can list diaries only sunday`, "sees monday, too; does not see sunday"},
		{`ada can list diaries only monday sunday`, "does not see sunday"},
		{`ada cannot list diaries`, "sees 1 records, such as monday"},
		{`ada can list diaries {"filter":"text = 'snow'"}`, "sees none of the records"},
		{`ada cannot list diaries {"filter":"tekst = 'snow'"}`, "answered 400"},
		{`guest can list diaries`, "sees none of the records"},
		{`guest cannot list diaries`, ""},
		{`guest cannot list _superusers`, ""},
		{`guest can list _superusers`, "answered 403"},

		{`guest can view diaries/monday`, ""},
		{`guest cannot view diaries/monday`, "answered 200: it was allowed"},
		{`bob cannot view users/ada`, ""},
		{`ada can view users/ada`, ""},
		{`ada cannot view users/ada`, "answered 200: it was allowed"},

		{`ada can create diaries {"owner":"@ada","text":"@@home","extra":{"who":["@bob"]}}`, ""},
		{`ada can create diaries {"owner":"@bob"}`, "answered 400"},
		{`bob cannot create diaries {"owner":"@ada"}`, ""},
		{`ada cannot create diaries {"owner":"@ada"}`, "answered 200: it was allowed"},
		{`ada cannot create diaries {"owner":"@ada","text":"longer than twenty letters"}`, "the data is bad"},

		{`ada can update diaries/monday {"text":"hail"}`, ""},
		{`bob can update diaries/monday {"text":"hail"}`, "answered 404"},
		{`bob cannot update diaries/monday {"text":"hail"}`, ""},
		{`ada cannot update diaries/monday {"text":"hail"}`, "answered 200: it was allowed"},
		{`ada cannot update diaries/monday {"text":"lies"}`, ""},
		{`ada can update diaries/monday {"text":"lies"}`, "answered 403: Diaries do not lie."},
		{`ada cannot update diaries/monday {"text":"longer than twenty letters"}`, "the data is bad"},

		{`ada cannot delete diaries/monday`, ""},
		{`ada can delete diaries/monday`, "answered 403"},
		{`ada can delete users/ada`, ""},
	}
	text, hold := everybody, 0
	for _, c := range cases {
		text += c.check + "\n"
		if c.reason == "" {
			hold++
		}
	}
	report, err := Test(t.Context(), noData(t), write(t, text), openApp)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Checks) != len(cases) {
		t.Fatalf("%d results for %d checks", len(report.Checks), len(cases))
	}
	for i, c := range cases {
		got := report.Checks[i]
		if got.Check != c.check || got.Line != i+6 || got.OK != (c.reason == "") || !strings.Contains(got.Reason, c.reason) || got.OK != (got.Reason == "") {
			t.Errorf("%s\ngot %+v, want reason %q", c.check, got, c.reason)
		}
	}
	if report.Passed != hold || report.Failed != len(cases)-hold {
		t.Errorf("%d passed and %d failed, want %d of %d to pass", report.Passed, report.Failed, hold, len(cases))
	}
}

// What one check writes must be gone for the next.
func TestEveryCheckStartsAfresh(t *testing.T) {
	inTemp(t)
	report, err := Test(t.Context(), noData(t), write(t, everybody+`
		ada can create diaries {"owner":"@ada"}
		ada can list diaries only monday
		ada can delete users/ada
		ada can list diaries only monday
		ada can update diaries/monday {"text":"snow"}
		ada can list diaries {"filter":"text = 'rain'"} only monday
		ada can delete users/ada
		ada can delete users/ada
	`), openApp)
	if err != nil || report.Failed > 0 {
		t.Fatalf("%v %+v", err, report)
	}
}

func TestMistakes(t *testing.T) {
	inTemp(t)
	long := strings.Repeat("x", 21)
	cases := []struct {
		text string
		line int
		says string
	}{
		{"", 1, "no check"},
		{"# nothing\nas ada users/ada@example.com", 1, "no check"},
		{`{"a":1}`, 1, "starts with"},
		{"hello", 1, "write: WHO"},
		{"guest may list users", 1, "write: WHO"},
		{"guest can list", 1, "write: WHO"},
		{"\nguest can eat users", 2, "not a verb"},
		{"ada can list users", 1, "nobody is called"},
		{"given users/ada {}\nada can list users", 2, "nobody is called"},
		{"as ada", 1, "write: as"},
		{"as ada users", 1, "COLLECTION/EMAIL"},
		{"as ada users/ada", 1, "COLLECTION/EMAIL"},
		{"as Ada users/ada@example.com", 1, "cannot be a name"},
		{"as guest users/ada@example.com", 1, "a word of the table"},
		{"as ada us-ers/ada@example.com", 1, "name of a collection"},
		{`as ada users/ada@example.com {"name":"Ada"} more`, 1, "unexpected"},
		{"as ada users/ada@example.com\nas ada users/other@example.com", 2, "from line 1"},
		{"given diaries", 1, "COLLECTION/NAME"},
		{"given diaries/a b", 1, "write: given"},
		{"guest can view users", 1, "view needs COLLECTION/ID"},
		{"guest can view users/", 1, "view needs COLLECTION/ID"},
		{"guest can list users/x", 1, "list needs a collection alone"},
		{`guest can view users/x {"a":1}`, 1, "takes no JSON"},
		{"guest can create users", 1, "needs a JSON object"},
		{"guest can update users/x", 1, "needs a JSON object"},
		{`guest can create users {"a":`, 1, "does not end on this line"},
		{`guest can create users {a:1}`, 1, "the JSON is not an object"},
		{`guest can create users {"a":1} x`, 1, `unexpected "x"`},
		{`guest can create users {"a":["@nobody"]}`, 1, `"@nobody"`},
		{"guest can list users only", 1, "only belongs"},
		{"guest cannot list users only x", 1, "only belongs"},
		{"guest can view users/../x", 1, "id of a record"},
		{everybody + "ada can view users/monday", 6, "a record of diaries, not of users"},

		// Found out with the data.
		{"guest can list planets", 1, "there is no collection planets"},
		{"as ada planets/ada@example.com\nada can list users", 1, "there is no collection planets"},
		{everybody + "as eve diaries/eve@example.com\nada can list users", 6, "not an auth collection"},
		{everybody + `given diaries/x {"owner":"@ada","text":"` + long + "\"}\nada can list users", 6, "x cannot be saved"},
		{"guest cannot view users/abcdefghijklmno", 1, "has no record abcdefghijklmno"},
		{everybody + "guest cannot delete diaries/tuesday", 6, "has no record tuesday"},
	}
	for _, c := range cases {
		t.Run(c.says+"/"+c.text, func(t *testing.T) {
			file := write(t, c.text)
			_, err := Test(t.Context(), noData(t), file, openApp)
			var m *Mistake
			if !errors.As(err, &m) || m.Line != c.line || !strings.Contains(m.Reason, c.says) {
				t.Fatalf("got %v, want line %d with %q", err, c.line, c.says)
			}
			if want := fmt.Sprintf("%s:%d: ", file, c.line); !strings.HasPrefix(m.Error(), want) {
				t.Errorf("%q does not start with %q", m.Error(), want)
			}
		})
	}
}

// An empty answer from an empty collection must not pass for a rule that hides records.
func TestEmptyCollectionProvesNothing(t *testing.T) {
	report, err := Test(t.Context(), noData(t), write(t, "guest cannot list diaries"), openApp)
	if err != nil || report.Failed != 1 || !strings.Contains(report.Checks[0].Reason, "proves nothing") {
		t.Fatalf("%v %+v", err, report)
	}
}

// execute runs `rules` with the arguments as the program would.
func execute(t *testing.T, dataDir string, args ...string) (string, error) {
	t.Helper()
	h := &extensions.Host{App: core.NewBaseApp(core.BaseAppConfig{DataDir: dataDir}), Logger: slog.New(slog.DiscardHandler)}
	root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(New(openApp).Commands(h)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"rules"}, args...))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestCommand(t *testing.T) {
	inTemp(t)
	dir := noData(t)
	good := write(t, everybody+"ada can list diaries only monday\n")
	bad := write(t, everybody+"ada can list diaries\nguest can list diaries\n")
	mistaken := write(t, "guest can eat users")
	cases := []struct {
		name string
		args []string
		exit int
		out  []string
		says string
	}{
		{"holds", []string{"test", good}, cli.ExitOK, []string{"  ok      6  ada can list diaries only monday\n", "1 checks: 1 ok, 0 FAIL\n"}, ""},
		{"does not hold", []string{"test", bad}, cli.ExitChecks, []string{"  FAIL    7  guest can list diaries\n             sees none", "2 checks: 1 ok, 1 FAIL\n"}, "1 of 2 checks"},
		{"mistake", []string{"test", mistaken}, cli.ExitUsage, nil, mistaken + ":1: "},
		{"no file", []string{"test", good + ".not"}, cli.ExitUsage, nil, "no such file"},
		{"folder", []string{"test", t.TempDir()}, cli.ExitUsage, nil, "is a directory"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			out, err := execute(t, dir, c.args...)
			exit := cli.ExitOK
			if f, ok := errors.AsType[*cli.Failure](err); ok {
				exit = f.Exit
			} else if err != nil {
				t.Fatal(err)
			}
			if exit != c.exit || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("exit %d with %v, want %d with %q", exit, err, c.exit, c.says)
			}
			for _, want := range c.out {
				if !strings.Contains(out, want) {
					t.Errorf("output lacks %q:\n%s", want, out)
				}
			}
		})
	}
	out, err := execute(t, dir, "test", bad, "--json")
	var report Report
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil || err == nil {
		t.Fatalf("%v %v %s", jsonErr, err, out)
	}
	if report.File != bad || report.Passed != 1 || report.Failed != 1 || report.Checks[1].Line != 7 || report.Checks[1].Status != 200 {
		t.Errorf("%+v", report)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the command made the data folder (%v)", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(everybody + "ada can list diaries {\"filter\":\"a\"} only monday\n")
	f.Add("guest cannot create x {\"a\":[1,{\"b\":\"@@c\"}]}")
	f.Add("given a/b {\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parse("f", text)
		var m *Mistake
		if err != nil && !errors.As(err, &m) || err == nil && len(table.checks) == 0 {
			t.Errorf("%v %v", table, err)
		}
	})
}
