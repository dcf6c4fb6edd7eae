package audit_test

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

type page struct {
	Data       []audit.View
	Pagination struct {
		HasNext    bool
		NextCursor string
	}
}

func (w *world) list(t testing.TB, query string) page {
	t.Helper()
	var p page
	r := w.must(t, "GET", "/api/v1/admin/audit"+query, nil, 200)
	if err := json.Unmarshal(r.Body, &p); err != nil {
		t.Fatal(err)
	}
	if r.Header.Get("Cache-Control") != "no-store" {
		t.Error("may be cached")
	}
	return p
}

func (w *world) fill(t testing.TB, n int) {
	t.Helper()
	err := w.RunInTransaction(func(tx core.App) error {
		for i := range n {
			err := w.log.Append(tx, audit.Entry{
				Action: []string{"one.done", "one.undone", "two.deep.done"}[i%3], Outcome: []string{"success", "denied"}[i%2],
				Actor:   audit.Party{Kind: audit.User, Collection: "users", ID: fmt.Sprintf("u%d", i%4)},
				Subject: audit.Party{Kind: audit.Record, Collection: "notes", ID: fmt.Sprintf("n%d", i%5)},
				Session: fmt.Sprintf("s%d", i%6), Request: fmt.Sprintf("request-%d", i), Details: map[string]any{"n": i},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilters(t *testing.T) {
	w := start(t)
	w.fill(t, 60)
	for query, want := range map[string]int{
		"action=one.done": 20, "action=one.": 40, "action=one": 40, "action=two.deep.": 20, "action=two.deep.done": 20, "action=three.": 0,
		"action=one.&outcome=denied": 20, "action=one.&outcome=success": 20, "actor=u1": 15, "actor=users/u1": 15, "actor=notes/u1": 0, "actor=nobody": 0,
		"subject=notes/n2": 12, "actor=u1&subject=n1": 3, "session=s3": 10, "request=request-7": 1, "request=nothing": 0, "outcome=denied&actor=u1": 15,
		"from=2000-01-01T00:00:00Z&action=one.": 40, "to=2000-01-01T00:00:00Z": 0, "from=2100-01-01T00:00:00Z": 0,
	} {
		if got := w.list(t, "?limit=100&"+query); len(got.Data) != want || got.Pagination.HasNext {
			t.Errorf("%s: %d entries, want %d", query, len(got.Data), want)
		}
	}
	first := w.list(t, "?limit=1").Data[0]
	if first.Action != "two.deep.done" || first.Subject.Kind != audit.Record || string(first.Details) != `{"n":59}` || first.ID == "" || time.Since(first.At) > time.Hour {
		t.Errorf("%+v", first)
	}
	for _, bad := range []string{
		"limit=0", "limit=101", "limit=x", "cursor=x", "nonsense=1", "from=yesterday", "action=A.b", "action=a%25", "outcome=Very+bad", "actor=" + strings.Repeat("x", 300), "actor=a&actor=b",
	} {
		r := w.must(t, "GET", "/api/v1/admin/audit?"+bad, nil, 400)
		if code := r.Code(); code != audit.ErrFilter.Name && code != audit.ErrCursor.Name {
			t.Errorf("%s: %s", bad, r.Body)
		}
	}
	c := w.list(t, "?limit=5&action=one.done").Pagination.NextCursor
	if r := w.must(t, "GET", "/api/v1/admin/audit?cursor="+c+"&action=one.undone", nil, 400); r.Code() != audit.ErrCursor.Name {
		t.Errorf("the cursor of another list: %s", r.Body)
	}
}

// Pages neither lose nor repeat entries while others are written.
func TestPagesUnderInserts(t *testing.T) {
	w := start(t)
	w.fill(t, 95)
	var want []string
	if err := w.DB().NewQuery("SELECT id FROM audit_chain ORDER BY at DESC, id DESC").Column(&want); err != nil {
		t.Fatal(err)
	}
	var got []string
	cursor := ""
	for {
		p := w.list(t, "?limit=10&cursor="+cursor)
		for _, v := range p.Data {
			got = append(got, v.ID)
		}
		w.fill(t, 7)
		if cursor = p.Pagination.NextCursor; cursor == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Every filter walks an index in the order of the answer: nothing is sorted but what one page holds.
func TestPlans(t *testing.T) {
	w := start(t)
	w.fill(t, 50)
	for _, f := range []audit.Filter{
		{},
		{Action: "one.done"},
		{Action: "one."},
		{Outcome: "denied"},
		{Outcome: "success"},
		{Actor: "u1"},
		{Subject: "n1"},
		{Session: "s1"},
		{Request: "request-1"},
		{From: time.Unix(1, 0), To: time.Now()},
		{Actor: "u1", Action: "one.", From: time.Unix(1, 0)},
	} {
		inner := w.log.Plan(t, w.App, f)
		if strings.Contains(inner, "SCAN c\n") || strings.Contains(inner, "TEMP B-TREE") {
			t.Errorf("%+v:\n%s", f, inner)
		}
	}
}

func TestWhoMay(t *testing.T) {
	w := start(t)
	for _, c := range []struct{ method, path string }{{"GET", ""}, {"GET", "/export"}, {"POST", "/verify"}} {
		for token, status := range map[string]int{"": 401, w.user: 403} {
			if r := w.Do(t, apptest.Request{Method: c.method, Path: "/api/v1/admin/audit" + c.path, Token: token}); r.Status != status {
				t.Errorf("%s: %d", c.path, r.Status)
			}
		}
	}
	var asked []string
	may := func(_ *core.RequestEvent, role string) error { asked = append(asked, role); return api.ErrForbidden }
	app := apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{CheckpointFile: "off"}, log(), may))
	for _, c := range []struct{ method, path string }{{"GET", ""}, {"GET", "/export"}, {"POST", "/verify"}} {
		if r := app.Do(t, apptest.Request{Method: c.method, Path: "/api/v1/admin/audit" + c.path}); r.Status != 403 {
			t.Errorf("%d", r.Status)
		}
	}
	if !slices.Equal(asked, []string{"viewer", "operator", "operator"}) {
		t.Errorf("%v", asked)
	}
}

func TestExport(t *testing.T) {
	w := start(t)
	w.fill(t, 1234)
	r := w.must(t, "GET", "/api/v1/admin/audit/export?action=one.", nil, 200)
	lines := bytes.Split(bytes.TrimSpace(r.Body), []byte("\n"))
	var first audit.View
	if err := json.Unmarshal(lines[0], &first); err != nil || len(lines) != 823 || string(first.Details) != `{"n":0}` || r.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%d lines, %s, %v", len(lines), lines[0], err)
	}
	if v := w.byRoot(t, "audit.exported", audit.Success); !strings.Contains(string(v.Details), `"filter":"action=one."`) {
		t.Errorf("%s", v.Details)
	}
	err := w.log.Append(w.App, audit.Entry{Action: "bad.cell", Session: `=HYPERLINK("https://example.test")`})
	if err != nil {
		t.Fatal(err)
	}
	r = w.must(t, "GET", "/api/v1/admin/audit/export?format=csv", nil, 200)
	table, err := csv.NewReader(bytes.NewReader(r.Body)).ReadAll()
	if err != nil || len(table) < 1236 || table[0][0] != "id" || !strings.Contains(r.Header.Get("Content-Disposition"), "audit.csv") {
		t.Fatalf("%d lines, %v", len(table), err)
	}
	if i := slices.IndexFunc(table, func(row []string) bool { return row[2] == "bad.cell" }); i < 0 || !strings.HasPrefix(table[i][12], "'=") {
		t.Errorf("row %d: %v", i, table[max(i, 0)])
	}
	if r := w.must(t, "GET", "/api/v1/admin/audit/export?format=xml", nil, 400); r.Code() != audit.ErrFilter.Name {
		t.Errorf("%s", r.Body)
	}
}

func TestVerifyRoute(t *testing.T) {
	w := start(t)
	w.fill(t, 10)
	data := w.must(t, "POST", "/api/v1/admin/audit/verify", nil, 200).JSON(t)["data"].(map[string]any)
	if data["ok"] != true || data["entries"].(float64) < 10 {
		t.Errorf("%v", data)
	}
	w.force(t, "UPDATE audit_chain SET details = '{}' WHERE id = (SELECT min(id) FROM audit_chain WHERE action = 'one.done')")
	data = w.must(t, "POST", "/api/v1/admin/audit/verify", nil, 200).JSON(t)["data"].(map[string]any)
	if data["ok"] != false {
		t.Errorf("%v", data)
	}
	w.byRoot(t, "audit.verified", audit.Failure)
}

// force changes the chain past its triggers.
func (w *world) force(t testing.TB, statement string) {
	t.Helper()
	var triggers []struct{ Name, SQL string }
	rows, err := w.DB().NewQuery("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit_%'").Rows()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			t.Fatal(err)
		}
		triggers = append(triggers, struct{ Name, SQL string }{name, text})
	}
	_ = rows.Close()
	run := func(s string) {
		if _, err := w.NonconcurrentDB().NewQuery(s).Execute(); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	for _, trigger := range triggers {
		run("DROP TRIGGER " + trigger.Name)
	}
	run(statement)
	for _, trigger := range triggers {
		run(trigger.SQL)
	}
}

// A backup that was restored ends as an entry, and the file follows.
func TestAfterRestore(t *testing.T) {
	w := start(t)
	w.fill(t, 20)
	if err := w.log.WriteMarks(func(ledger.Mark) bool { return false }, &ledger.Restore{Name: "one.zip", By: audit.Party{Kind: audit.Superuser, Collection: "_superusers", ID: w.rootID}}); err != nil {
		t.Fatal(err)
	}
	w.force(t, "DELETE FROM audit_chain WHERE id > 10")
	if err := w.log.AfterRestore(); err != nil {
		t.Fatal(err)
	}
	v := w.last(t, "backups.restored")
	if d := w.details(t, v); v.Outcome != audit.Success || d["name"] != "one.zip" || d["entriesRestored"] != float64(10) || v.Actor.ID != w.rootID {
		t.Errorf("%+v %v", v, d)
	}
	w.intact(t)
	text, err := os.ReadFile(w.file)
	if err != nil || strings.Count(string(text), "\n") != 1 || strings.Contains(string(text), "one.zip") {
		t.Errorf("%s, %v", text, err)
	}
}

// run executes the command as the program does.
func (w *world) run(args ...string) (string, error) {
	root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(w.made.Commands(w.Host)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"audit"}, args...))
	err := root.Execute()
	return out.String(), err
}

func exit(err error) int {
	if f, ok := errors.AsType[*cli.Failure](err); ok {
		return f.Exit
	}
	return map[bool]int{true: 0, false: 1}[err == nil]
}

func TestCommands(t *testing.T) {
	w := start(t)
	w.fill(t, 30)
	if err := w.log.Flush(); err != nil {
		t.Fatal(err)
	}
	if out, err := w.run("verify"); err != nil || !strings.Contains(out, "the checkpoint file agrees") {
		t.Errorf("%s %v", out, err)
	}
	out, err := w.run("verify", "--json")
	var r ledger.Report
	if jsonErr := json.Unmarshal([]byte(out), &r); err != nil || jsonErr != nil || !r.OK || r.File != "checked" {
		t.Errorf("%s %v %v", out, err, jsonErr)
	}
	if out, err := w.run("list", "--action", "one.", "--limit", "3"); err != nil || strings.Count(out, "\n") != 4 || !strings.Contains(out, "users/u") {
		t.Errorf("%s %v", out, err)
	}
	if out, err := w.run("list", "--json", "--outcome", "denied"); err != nil || !strings.Contains(out, `"entries":[{`) {
		t.Errorf("%s %v", out, err)
	}
	file := filepath.Join(t.TempDir(), "audit.ndjson")
	if out, err := w.run("export", "--out", file); err != nil || out != "" {
		t.Errorf("%s %v", out, err)
	}
	if text, err := os.ReadFile(file); err != nil || bytes.Count(text, []byte("\n")) < 30 {
		t.Errorf("%v", err)
	}
	if _, err := w.run("export", "--out", file); exit(err) != cli.ExitError {
		t.Errorf("a file was replaced: %v", err)
	}
	for _, bad := range [][]string{{"list", "--limit", "0"}, {"list", "--from", "x"}, {"export", "--format", "xml"}, {"accept"}} {
		if _, err := w.run(bad...); exit(err) != cli.ExitUsage {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if out, err := w.run("accept", "--reason", "none"); err != nil || !strings.Contains(out, "nothing to accept") {
		t.Errorf("%s %v", out, err)
	}
	w.force(t, "DELETE FROM audit_chain WHERE id > 20")
	if out, err := w.run("verify"); exit(err) != cli.ExitChecks || !strings.Contains(out, "NOT INTACT") || !strings.Contains(err.Error(), "entry 21") {
		t.Errorf("%s %v", out, err)
	}
	if out, err := w.run("accept", "--reason", "restored by hand"); err != nil || !strings.Contains(out, "Accepted") {
		t.Errorf("%s %v", out, err)
	}
	w.intact(t)
	if v := w.last(t, "audit.accepted"); !strings.Contains(string(v.Details), "restored by hand") || !strings.Contains(string(v.Details), "truncated") {
		t.Errorf("%s", v.Details)
	}
	w.force(t, "UPDATE audit_chain SET action = 'a.b' WHERE id = 5")
	if _, err := w.run("accept", "--reason", "please"); exit(err) != cli.ExitChecks {
		t.Errorf("a changed entry was accepted: %v", err)
	}
}

// The check compares with the file, and needs no key for it.
func TestCheck(t *testing.T) {
	w := start(t)
	check := w.made.Checks[0].Run
	w.fill(t, 3)
	if err := w.log.Flush(); err != nil {
		t.Fatal(err)
	}
	if r := check(t.Context(), w.Host); r.Level.String() != "ok" {
		t.Errorf("%+v", r)
	}
	w.force(t, "DELETE FROM audit_chain WHERE id > 2")
	if r := check(t.Context(), w.Host); r.Level.String() != "fail" || !strings.Contains(r.Next, "satchel audit verify") {
		t.Errorf("%+v", r)
	}
	if err := os.Remove(w.file); err != nil {
		t.Fatal(err)
	}
	if r := check(t.Context(), w.Host); r.Level.String() != "warn" {
		t.Errorf("%+v", r)
	}
}

// The file must not lie where a backup, or whoever replaces the database, would take it along.
func TestFileOutside(t *testing.T) {
	app := apptest.New(t)
	l := log()
	x := audit.New(audit.Config{CheckpointFile: filepath.Join(app.DataDir(), "head")}, l, nil)
	if err := x.Bind(app.Host); err != nil {
		t.Fatal(err)
	}
	if err := x.Serve(app.Host, nil); exit(err) != cli.ExitChecks {
		t.Errorf("%v", err)
	}
	if err := l.Flush(); exit(err) != cli.ExitChecks {
		t.Errorf("%v", err)
	}
}

// An API key that acts by itself is the actor, without anybody who is signed in.
func TestKeyActs(t *testing.T) {
	w := start(t)
	e := &core.RequestEvent{App: w.App}
	e.Request, _ = http.NewRequest(http.MethodGet, "/", nil)
	key := audit.Party{Kind: audit.Key, ID: "gateway"}
	e.Set(audit.ActorKey, key)
	if got := audit.From(e); got.Actor != key || got.ActAs != (audit.Party{}) {
		t.Errorf("%+v", got)
	}
	e.Auth, _ = w.FindRecordById("users", w.userID)
	if got := audit.From(e); got.Actor != key || got.ActAs.ID != w.userID || got.ActAs.Kind != audit.User {
		t.Errorf("%+v", got)
	}
	if p := audit.PartyOf(core.NewRecord(core.NewBaseCollection("notes"))); p.Kind != audit.Record || p.Collection != "notes" {
		t.Errorf("%+v", p)
	}
}

func TestConfig(t *testing.T) {
	cfg := settings.Defaults[audit.Config]()
	if err := cfg.Validate(); err != nil || cfg.Retention != 400*24*time.Hour {
		t.Errorf("%+v, %v", cfg, err)
	}
	for _, d := range []time.Duration{-1, time.Hour} {
		if err := (audit.Config{Retention: d}).Validate(); err == nil {
			t.Errorf("%s is valid", d)
		}
	}
	if err := (audit.Config{}).Validate(); err != nil {
		t.Error(err)
	}
	if s := cfg.Sandbox(); s.Retention != 0 || s.CheckpointFile != "off" {
		t.Errorf("%+v", s)
	}
}
