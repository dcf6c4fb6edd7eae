package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"image"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/teams"
)

// open starts an application that has what the demo needs.
func open(t testing.TB) *apptest.App {
	t.Helper()
	groups := teams.New(settings.Defaults[teams.Config](), teams.Deps{})
	return apptest.New(t, groups.Extension(), New())
}

// execute runs `demo` with the arguments as the program would and returns what it prints.
func execute(h *extensions.Host, args ...string) (string, error) {
	root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(New().Commands(h)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"demo"}, args...))
	err := root.Execute()
	return out.String(), err
}

func mustRun(t *testing.T, h *extensions.Host, args ...string) outcome {
	t.Helper()
	out, err := execute(h, append(args, "--json")...)
	if err != nil {
		t.Fatal(err)
	}
	var o outcome
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return o
}

// state is everything that the demo may touch: collections, rows of every table, and files.
type state struct {
	collections, files []string
	rows               map[string]int
}

func stateOf(t *testing.T, app core.App) state {
	t.Helper()
	s := state{rows: map[string]int{}}
	var tables []struct{ Name string }
	if err := app.DB().NewQuery("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").All(&tables); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		var n int
		if err := app.DB().NewQuery("SELECT count(*) FROM [[" + table.Name + "]]").Row(&n); err != nil {
			t.Fatal(err)
		}
		s.rows[table.Name] = n
	}
	all, err := app.FindAllCollections()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		s.collections = append(s.collections, c.Name)
	}
	slices.Sort(s.collections)
	s.files = filesIn(t, app)
	return s
}

// filesIn lists the stored files and the folders that hold one.
func filesIn(t *testing.T, app core.App) []string {
	t.Helper()
	var files []string
	root := filepath.Join(app.DataDir(), core.LocalStorageDirName)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if path != root {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func mustEqual(t *testing.T, got, want state) {
	t.Helper()
	if !slices.Equal(got.collections, want.collections) {
		t.Errorf("collections: %v, want %v", got.collections, want.collections)
	}
	if !maps.Equal(got.rows, want.rows) {
		t.Errorf("rows: %v, want %v", got.rows, want.rows)
	}
	if !slices.Equal(got.files, want.files) {
		t.Errorf("files: %v, want %v", got.files, want.files)
	}
}

func TestLoad(t *testing.T) {
	app := open(t)
	o := mustRun(t, app.Host)
	want := []collection{{Teams, 2}, {Members, 5}, {Profiles, 3}, {Rooms, 7}, {Messages, 149}, {Tasks, 42}}
	if o.Status != "loaded" || !slices.Equal(o.Collections, want) {
		t.Fatalf("%+v, want %v", o, want)
	}
	for _, u := range o.Users {
		if u.Password != DevelopmentPassword {
			t.Errorf("%s has password %q", u.Email, u.Password)
		}
		got := app.Do(t, apptest.Request{
			Method: http.MethodPost, Path: "/api/collections/users/auth-with-password",
			Body: map[string]string{"identity": u.Email, "password": u.Password},
		})
		if got.Status != http.StatusOK {
			t.Errorf("log in as %s: %d %s", u.Email, got.Status, got.Body)
		}
	}

	before := stateOf(t, app)
	if again := mustRun(t, app.Host); again.Status != "present" || !slices.Equal(again.Collections, want) || again.Users[0].Password != "" {
		t.Errorf("second load: %+v", again)
	}
	mustEqual(t, stateOf(t, app), before)

	text, err := execute(app.Host)
	if err != nil || !strings.Contains(text, "demo_messages         149 records") || !strings.Contains(text, "Next: ") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestContent(t *testing.T) {
	app := open(t)
	mustRun(t, app.Host)
	records, err := app.FindAllRecords(Messages)
	if err != nil {
		t.Fatal(err)
	}
	images := 0
	for _, r := range records {
		at := r.GetDateTime("created").Time()
		if at.After(time.Now()) || time.Since(at) > 7*24*time.Hour {
			t.Errorf("message %s was written at %s", r.Id, at)
		}
		if r.GetString("image") == "" {
			continue
		}
		images++
		for _, variant := range []string{"", "?thumb=320x0"} {
			got := app.Do(t, apptest.Request{Path: "/api/files/" + r.BaseFilesPath() + "/" + r.GetString("image") + variant})
			picture, kind, err := image.Decode(bytes.NewReader(got.Body))
			if err != nil || kind != "jpeg" {
				t.Fatalf("image of %s: %d %v", r.Id, got.Status, err)
			}
			if width := picture.Bounds().Dx(); width != 640 && variant == "" || width != 320 && variant != "" {
				t.Errorf("image of %s%s is %d pixels wide", r.Id, variant, width)
			}
		}
	}
	if images != 15 {
		t.Errorf("%d images, want 15", images)
	}
	tasks, err := app.FindAllRecords(Tasks)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range tasks {
		if done := r.GetString("status") == "done"; done != r.GetBool("done") {
			t.Errorf("task %q: status %s, done %t", r.GetString("title"), r.GetString("status"), r.GetBool("done"))
		}
	}
}

// Two loads hold the same records, so that examples may name them.
func TestSameIDs(t *testing.T) {
	var ids [2][]string
	for i := range ids {
		app := open(t)
		mustRun(t, app.Host)
		for _, name := range CollectionNames() {
			records, err := app.FindAllRecords(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range records {
				ids[i] = append(ids[i], r.Id)
			}
		}
		slices.Sort(ids[i])
	}
	if !slices.Equal(ids[0], ids[1]) {
		t.Error("two loads made different ids")
	}
}

func TestRemove(t *testing.T) {
	app := open(t)
	bystander, _ := app.User(t, "somebody@example.test")
	bystander.Set("name", "Somebody")
	face, err := avatar("somebody")
	if err != nil {
		t.Fatal(err)
	}
	bystander.Set("avatar", face)
	if err := app.Save(bystander); err != nil {
		t.Fatal(err)
	}
	before := stateOf(t, app)

	mustRun(t, app.Host)
	ada, err := app.FindAuthRecordByEmail("users", "ada@demo.example")
	if err != nil {
		t.Fatal(err)
	}
	own, err := avatar("ada")
	if err != nil {
		t.Fatal(err)
	}
	ada.Set("avatar", own) // somebody played with the demo
	if err := app.Save(ada); err != nil {
		t.Fatal(err)
	}

	removed := mustRun(t, app.Host, "--remove")
	if removed.Status != "removed" || len(removed.Collections) != 6 || len(removed.Users) != 3 {
		t.Errorf("%+v", removed)
	}
	mustEqual(t, stateOf(t, app), before)
	if again := mustRun(t, app.Host, "--remove"); again.Status != "absent" || len(again.Users) != 0 {
		t.Errorf("second removal: %+v", again)
	}
	if o := mustRun(t, app.Host); o.Status != "loaded" {
		t.Errorf("load after removal: %+v", o)
	}
}

// A load that fails near its end must leave neither records nor files.
func TestFailureLeavesNothing(t *testing.T) {
	app := open(t)
	before := stateOf(t, app)
	broken := errors.New("disk full")
	id := app.OnRecordCreateExecute(Tasks).BindFunc(func(e *core.RecordEvent) error {
		if len(filesIn(t, app)) == 0 {
			t.Error("no file was written before the failure: the test shows nothing")
		}
		return broken
	})
	if _, err := execute(app.Host); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	mustEqual(t, stateOf(t, app), before)

	app.OnRecordCreateExecute(Tasks).Unbind(id)
	if o := mustRun(t, app.Host); o.Status != "loaded" {
		t.Errorf("load after a failure: %+v", o)
	}
}

// A killed load leaves files without records. The next load sweeps them, but not those of a renamed collection.
func TestSweepsOrphans(t *testing.T) {
	app := open(t)
	orphan := filepath.Join(app.DataDir(), core.LocalStorageDirName, core.NewBaseCollection(Messages).Id, "abc", "old.jpg")
	if err := os.MkdirAll(filepath.Dir(orphan), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(orphan, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app.Host)
	if _, err := os.Stat(orphan); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the orphan is still there (%v)", err)
	}

	mustRun(t, app.Host, "--remove")
	kept := core.NewBaseCollection("my_messages", core.NewBaseCollection(Messages).Id) // as after a renaming
	if err := app.Save(kept); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(orphan), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(orphan, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, app.Host)
	mustRun(t, app.Host, "--remove")
	if _, err := os.Stat(orphan); err != nil {
		t.Errorf("a file of another collection is gone: %v", err)
	}
}

func TestProduction(t *testing.T) {
	app := open(t)
	app.Host.Production = true
	before := stateOf(t, app)
	for _, args := range [][]string{nil, {"--remove"}} {
		_, err := execute(app.Host, args...)
		var f *cli.Failure
		if !errors.As(err, &f) || f.Exit != cli.ExitUsage || !strings.Contains(f.Next, "--yes") {
			t.Errorf("demo %v: %v", args, err)
		}
	}
	mustEqual(t, stateOf(t, app), before)

	o := mustRun(t, app.Host, "--yes")
	password := o.Users[0].Password
	if len(password) < 20 || password == DevelopmentPassword {
		t.Errorf("password %q can be guessed", password)
	}
	ada, err := app.FindAuthRecordByEmail("users", o.Users[0].Email)
	if err != nil || !ada.ValidatePassword(password) || ada.ValidatePassword(DevelopmentPassword) {
		t.Errorf("the printed password is not the one that works (%v)", err)
	}
}

func TestRefusals(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(t *testing.T, app *apptest.App)
		args  []string
		says  string
	}{
		{"e-mail taken", func(t *testing.T, app *apptest.App) { app.User(t, "grace@demo.example") }, nil, "grace@demo.example exists"},
		{"loaded in part", func(t *testing.T, app *apptest.App) {
			mustRun(t, app.Host)
			tasks, err := app.FindCollectionByNameOrId(Tasks)
			if err != nil {
				t.Fatal(err)
			}
			if err := app.Delete(tasks); err != nil {
				t.Fatal(err)
			}
		}, nil, "in part"},
		{"own collection refers to the demo", func(t *testing.T, app *apptest.App) {
			mustRun(t, app.Host)
			rooms, err := app.FindCollectionByNameOrId(Rooms)
			if err != nil {
				t.Fatal(err)
			}
			c := core.NewBaseCollection("my_plans")
			c.Fields.Add(&core.RelationField{Name: "room", CollectionId: rooms.Id, MaxSelect: 1})
			if err := app.Save(c); err != nil {
				t.Fatal(err)
			}
		}, []string{"--remove"}, "my_plans"},
		{"no collection users", func(t *testing.T, app *apptest.App) {
			users, err := app.FindCollectionByNameOrId("users")
			if err != nil {
				t.Fatal(err)
			}
			users.Name = "people"
			if err := app.Save(users); err != nil {
				t.Fatal(err)
			}
		}, nil, "users"},
		{"no collection teams", func(t *testing.T, app *apptest.App) {
			for _, m := range slices.Backward(teams.New(settings.Defaults[teams.Config](), teams.Deps{}).Extension().Migrations) {
				if err := app.RunInTransaction(m.Down); err != nil {
					t.Fatal(err)
				}
			}
			if err := app.Save(core.NewBaseCollection(Teams)); err != nil { // the app's own
				t.Fatal(err)
			}
			if err := app.Save(core.NewBaseCollection(Members)); err != nil {
				t.Fatal(err)
			}
		}, nil, "SATCHEL_TEAMS_ENABLED"},
		{"teams left", func(t *testing.T, app *apptest.App) {
			c, err := app.FindCollectionByNameOrId(Teams)
			if err != nil {
				t.Fatal(err)
			}
			team := core.NewRecord(c)
			team.Id = leaflet()
			team.Set("name", "Leaflet")
			if err := app.Save(team); err != nil {
				t.Fatal(err)
			}
		}, nil, "teams exist"},
		{"unknown argument", func(*testing.T, *apptest.App) {}, []string{"more"}, "unknown command"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			app := open(t)
			c.spoil(t, app)
			before := stateOf(t, app)
			if _, err := execute(app.Host, c.args...); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a refusal with %q", err, c.says)
			}
			mustEqual(t, stateOf(t, app), before)
		})
	}
}

// The command is another process than the server; here it is another application on the same folder.
func TestRunningServerSeesDemo(t *testing.T) {
	app := open(t)
	other := core.NewBaseApp(core.BaseAppConfig{DataDir: app.DataDir()})
	if err := other.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.ClearBootstrap() })
	mustRun(t, &extensions.Host{App: other})

	waitFor := func(want int, path string) {
		t.Helper()
		deadline := time.Now().Add(5 * time.Second)
		for {
			got := app.Do(t, apptest.Request{Path: path})
			if got.Status == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: still %d, want %d", path, got.Status, want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	waitFor(http.StatusOK, "/api/collections/demo_messages/records")
	mustRun(t, &extensions.Host{App: other}, "--remove")
	waitFor(http.StatusNotFound, "/api/collections/demo_messages/records")
}

// Removal relies on the id of PocketBase's handler: without it, nothing deletes the files of a deleted record.
func TestBackgroundDeleteSeam(t *testing.T) {
	app := open(t)
	mustRun(t, app.Host)
	records, err := app.FindAllRecords(Profiles)
	if err != nil || len(records) < 2 {
		t.Fatalf("%d profiles (%v)", len(records), err)
	}
	fileOf := func(r *core.Record) string {
		return filepath.Join(app.DataDir(), core.LocalStorageDirName, r.BaseFilesPath(), r.GetString("avatar"))
	}
	app.OnModelAfterDeleteSuccess().Unbind(backgroundDelete)
	if err := app.Delete(records[0]); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if _, err := os.Stat(fileOf(records[0])); err != nil {
		t.Errorf("the file was deleted in the background: %v", err)
	}
}
