package account

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
)

// table is the plan as the command shows it.
func (f *fixture) table(t testing.TB) string {
	t.Helper()
	lines, err := f.accounts.describe(f.App)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := printMap(&out, lines); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func lineOf(table, collection, by string) string {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == collection && strings.Contains(line, "  "+by) {
			return strings.Join(f[2:], " ")
		}
	}
	return ""
}

func TestPlanFromSchema(t *testing.T) {
	f := start(t, nil)
	table := f.table(t)
	for _, want := range [][3]string{
		{"notes", "owner", "owner yes deleted"},
		{"attachments", "note.owner", "note.owner yes deleted with what it belongs to"},
		{"labels", "attachment.note.owner", "attachment.note.owner yes deleted with what it belongs to"},
		{"comments", "author", "author yes deleted"},
		{"rooms", "members", "members yes deleted when nobody else is in members"},
		{"posts", "author", "author no kept, author emptied undecided: neither required nor deleted with the account, and not in the map"},
		{"pins", "", ""},
	} {
		if got := lineOf(table, want[0], want[1]); got != want[2] {
			t.Errorf("%s: %q, want %q\n%s", want[0], got, want[2], table)
		}
	}
	r := f.accounts.checkMap(t.Context(), &extensions.Host{App: f.App})
	if r.Level != extensions.Warn || !strings.Contains(r.Message, "posts.author (undecided") || strings.Contains(r.Message, "notes") {
		t.Errorf("%+v", r)
	}
	notes := f.collection(t, "notes")
	notes.RemoveIndex("idx_notes")
	if err := f.Save(notes); err != nil {
		t.Fatal(err)
	}
	if r := f.accounts.checkMap(t.Context(), &extensions.Host{App: f.App}); !strings.Contains(r.Message, "notes.owner (no index begins with owner") {
		t.Errorf("%+v", r)
	}
}

func TestMap(t *testing.T) {
	f := start(t, func(c *Config, d *Deps) {
		c.Grace = 0
		d.Map = Map{
			"posts":    {Owner: "author"},
			"comments": {Delete: Blank, Private: true},
			"pins":     {Filter: "note.owner = {:account} && title != 'keep'", Hidden: true},
			"labels":   {Owner: "attachment.note.owner", Private: true},
		}
	})
	f.world(t)
	table := f.table(t)
	for _, want := range [][3]string{
		{"posts", "author", "author yes deleted"},
		{"comments", "author", "author no kept, author emptied"},
		{"pins", "note.owner", "note.owner = {:account} && title != 'keep' yes deleted"},
		{"labels", "attachment", "attachment.note.owner no deleted"},
	} {
		if got := lineOf(table, want[0], want[1]); got != want[2] {
			t.Errorf("%s: %q, want %q\n%s", want[0], got, want[2], table)
		}
	}
	if r := f.accounts.checkMap(t.Context(), &extensions.Host{App: f.App}); r.Level != extensions.OK {
		t.Errorf("%+v", r)
	}
	token := f.signIn(t, "ada@example.test")
	files := contents(t, f.download(t, token, f.export(t, token), nil).Body)
	if _, private := files["data/comments.json"]; private || files["data/labels.json"] != "" || strings.Count(files["data/pins.json"], "pin-of-ada") != 3 {
		t.Errorf("%v", files["data/pins.json"])
	}
	keep := f.add(t, "pins", "keep", map[string]any{"note": f.add(t, "notes", "more", map[string]any{"owner": f.ada.Id})})
	f.deleteNow(t)
	for collection, want := range map[string]string{
		"posts": "bob-post",
		// What Ada has said about Bob's notes stays without her name; the comments on her notes went with these.
		"comments": "bob-own-comment bob-own-comment bob-own-comment guest-on-bob guest-on-bob guest-on-bob",
		"pins":     "keep pin-of-bob pin-of-bob pin-of-bob",
		"labels":   "bob-label bob-label bob-label",
	} {
		if got := f.titles(t, collection); got != want {
			t.Errorf("%s: %s, want %s", collection, got, want)
		}
	}
	if n := f.count(t, "comments WHERE author = ''"); n != 3 {
		t.Errorf("%d comments without an author", n)
	}
	if n := f.count(t, "pins WHERE note = '' AND id = '"+keep+"'"); n != 1 {
		t.Error("the pin that is kept refers to a note still")
	}
}

func TestWrongMaps(t *testing.T) {
	f := start(t, nil)
	for name, m := range map[string]Map{
		"does not exist": {"nothing": {}}, "is no relation": {"notes": {Owner: "title"}}, "holds no accounts": {"labels": {Owner: "attachment"}},
		"both an owner": {"notes": {Owner: "owner", Filter: "owner = {:account}"}}, "lacks {:account}": {"notes": {Filter: "title = 'x'"}},
	} {
		f.accounts.deps.Map = m
		r := f.accounts.checkMap(t.Context(), &extensions.Host{App: f.App})
		if r.Level != extensions.Fail || !strings.Contains(r.Message, name) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"GRACE": {Grace: longestGrace + 1, ExportLife: longestGrace, ExportsPerDay: 1, ExportSize: 1 << 20},
		"LIFE":  {ExportsPerDay: 1, ExportSize: 1 << 20}, "PER_DAY": {ExportLife: longestGrace, ExportSize: 1 << 20},
		"SIZE": {ExportLife: longestGrace, ExportsPerDay: 1},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommands(t *testing.T) {
	f := start(t, nil)
	f.world(t)
	run := func(args ...string) (string, error) {
		var out strings.Builder
		root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
		root.PersistentFlags().Bool("json", false, "")
		root.AddCommand(f.accounts.command(f.Host))
		root.SetArgs(args)
		root.SetOut(&out)
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	file := filepath.Join(t.TempDir(), "ada.zip")
	if out, err := run("account", "export", f.ada.Id, "--output", file); err != nil || !strings.Contains(out, "are in "+file) {
		t.Fatalf("%s %v", out, err)
	}
	archive, err := os.ReadFile(file)
	if err != nil || len(contents(t, archive)) < 5 {
		t.Errorf("%v", err)
	}
	if _, err := run("account", "export", f.ada.Id, "--output", file); err == nil {
		t.Error("a file is written over")
	}
	if _, err := run("account", "delete", "nobody", "--yes"); err == nil {
		t.Error("nobody is deleted")
	}
	if out, err := run("account", "map"); err != nil || !strings.Contains(out, "attachment.note.owner") {
		t.Errorf("%s %v", out, err)
	}
	if _, err := run("account", "delete", f.ada.Id); err == nil || f.count(t, "users") != 2 {
		t.Errorf("without --yes: %v", err)
	}
	out, err := run("account", "delete", f.ada.Id, "--yes", "--json")
	if err != nil || out != `{"deleted":"`+f.ada.Id+`"}`+"\n" {
		t.Fatalf("%s %v", out, err)
	}
	f.remains(t)
}
