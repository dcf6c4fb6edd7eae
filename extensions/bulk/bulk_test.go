package bulk_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/filesystem"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/bulk"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// start runs an application with the collections lists(name*, unique) and items(list, text*, doc).
func start(t testing.TB) *apptest.App {
	t.Helper()
	app := apptest.New(t)
	lists := core.NewBaseCollection("lists")
	lists.Fields.Add(&core.TextField{Name: "name", Required: true, Max: 20})
	lists.AddIndex("idx_lists_name", true, "name", "")
	save(t, app, lists)
	items := core.NewBaseCollection("items")
	items.Fields.Add(
		&core.RelationField{Name: "list", CollectionId: lists.Id, MaxSelect: 1, Required: true, CascadeDelete: true},
		&core.TextField{Name: "text", Required: true}, &core.FileField{Name: "doc"},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	save(t, app, items)
	return app
}

func save(t testing.TB, app core.App, m core.Model) {
	t.Helper()
	if err := app.Save(m); err != nil {
		t.Fatal(err)
	}
}

func record(t testing.TB, app core.App, collection string, data map[string]any) *core.Record {
	t.Helper()
	c, err := app.FindCachedCollectionByNameOrId(collection)
	if err != nil {
		t.Fatal(err)
	}
	r := core.NewRecord(c)
	r.Load(data)
	return r
}

func list(t testing.TB, app core.App, name string) bulk.Change {
	return bulk.Change{Record: record(t, app, "lists", map[string]any{"name": name})}
}

func count(t testing.TB, app core.App, collection string) int64 {
	t.Helper()
	n, err := app.CountRecords(collection)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// written tells the outcomes apart: w(ritten), r(efused), and - for neither.
func written(results []bulk.Result) string {
	var out []byte
	for _, r := range results {
		switch {
		case r.Written && r.Err == nil:
			out = append(out, 'w')
		case !r.Written && r.Err != nil:
			out = append(out, 'r')
		case !r.Written:
			out = append(out, '-')
		default:
			out = append(out, '?')
		}
	}
	return string(out)
}

func TestModes(t *testing.T) {
	cases := []struct {
		name     string
		mode     bulk.Mode
		names    []string
		want     string
		err      error
		rows     int64
		refusing string // a name that a hook refuses inside the transaction
	}{
		{name: "all good", names: []string{"a", "b", "c"}, want: "www", rows: 3},
		{name: "none", want: "", rows: 0},
		{name: "one not valid, together", names: []string{"a", "", "c"}, want: "-r-", err: bulk.ErrRefused},
		{name: "one not valid, apart", mode: bulk.Apart, names: []string{"a", "", "c"}, want: "wrw", rows: 2},
		{name: "two alike, together", names: []string{"a", "b", "a"}, want: "--r", err: bulk.ErrRefused},
		{name: "two alike, apart", mode: bulk.Apart, names: []string{"a", "b", "a", "c"}, want: "wwrw", rows: 3},
		{name: "refused by a hook, together", names: []string{"a", "no", "c"}, refusing: "no", want: "-r-", err: bulk.ErrRefused},
		{name: "refused by a hook, apart", mode: bulk.Apart, names: []string{"a", "no", "c"}, refusing: "no", want: "wrw", rows: 2},
		{name: "all not valid, apart", mode: bulk.Apart, names: []string{"", ""}, want: "rr"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			app := start(t)
			var created []string
			app.OnRecordCreateExecute("lists").BindFunc(func(e *core.RecordEvent) error {
				if name := e.Record.GetString("name"); name == c.refusing {
					return errors.New("refused")
				}
				return e.Next()
			})
			app.OnRecordAfterCreateSuccess("lists").BindFunc(func(e *core.RecordEvent) error {
				if e.App.IsTransactional() {
					t.Error("success inside the transaction")
				}
				created = append(created, e.Record.GetString("name"))
				return e.Next()
			})
			var changes []bulk.Change
			for _, name := range c.names {
				changes = append(changes, list(t, app, name))
			}
			results, err := bulk.Write(t.Context(), app, changes, c.mode)
			if !errors.Is(err, c.err) || written(results) != c.want {
				t.Fatalf("%s, %v; want %s, %v: %v", written(results), err, c.want, c.err, results)
			}
			if n := count(t, app, "lists"); n != c.rows || int64(len(created)) != n {
				t.Errorf("%d rows, %v created, want %d", n, created, c.rows)
			}
			for i, r := range results {
				if r.Written == changes[i].Record.IsNew() {
					t.Errorf("change %d: written %v, new %v", i, r.Written, changes[i].Record.IsNew())
				}
			}
		})
	}
}

func TestUpdateAndDelete(t *testing.T) {
	app := start(t)
	changes := []bulk.Change{list(t, app, "a"), list(t, app, "b")}
	if _, err := bulk.Write(t.Context(), app, changes, bulk.Together); err != nil {
		t.Fatal(err)
	}
	item := record(t, app, "items", map[string]any{"list": changes[1].Record.Id, "text": "x"})
	save(t, app, item)
	var deleted []string
	app.OnRecordAfterDeleteSuccess().BindFunc(func(e *core.RecordEvent) error {
		deleted = append(deleted, e.Record.Collection().Name)
		return e.Next()
	})
	changes[0].Record.Set("name", "renamed")
	changes[1].Delete = true
	results, err := bulk.Write(t.Context(), app, changes, bulk.Together)
	if err != nil || written(results) != "ww" {
		t.Fatalf("%v %v", results, err)
	}
	slices.Sort(deleted)
	if !slices.Equal(deleted, []string{"items", "lists"}) || count(t, app, "items") != 0 {
		t.Errorf("deleted %v", deleted)
	}
	if r, err := app.FindRecordById("lists", changes[0].Record.Id); err != nil || r.GetString("name") != "renamed" {
		t.Errorf("%v %v", r, err)
	}
}

// A new record may refer to another one of the same call, before it, and to nothing else that is not there.
func TestReferencesWithinTheCall(t *testing.T) {
	for _, c := range []struct {
		name, list, text string
		first            bool
		want             string
		field            string
	}{
		{name: "to an earlier one", text: "x", first: true, want: "ww"},
		{name: "to a later one", text: "x", want: "rw", field: "list"},
		{name: "to nothing", list: "nobodynobody000", text: "x", first: true, want: "wr", field: "list"},
		{name: "and otherwise not valid", first: true, want: "wr", field: "text"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := start(t)
			l := list(t, app, "a")
			l.Record.Id = "list00000000001"
			to := c.list
			if to == "" {
				to = l.Record.Id
			}
			item := bulk.Change{Record: record(t, app, "items", map[string]any{"list": to, "text": c.text})}
			changes := []bulk.Change{item, l}
			at := 0
			if c.first {
				changes, at = []bulk.Change{l, item}, 1
			}
			results, err := bulk.Write(t.Context(), app, changes, bulk.Apart)
			if err != nil || written(results) != c.want {
				t.Fatalf("%s %v %v", written(results), results, err)
			}
			if wrong, ok := errors.AsType[validation.Errors](results[at].Err); c.field != "" && (!ok || wrong[c.field] == nil) {
				t.Errorf("%v", results[at].Err)
			}
		})
	}
}

func TestHooksInOrder(t *testing.T) {
	app := start(t)
	var events []string
	note := func(name string) func(*core.RecordEvent) error {
		return func(e *core.RecordEvent) error {
			events = append(events, fmt.Sprintf("%s %s tx=%v", name, e.Record.GetString("name"), e.App.IsTransactional()))
			return e.Next()
		}
	}
	app.OnRecordValidate("lists").BindFunc(note("validate"))
	app.OnRecordCreate("lists").BindFunc(note("create"))
	app.OnRecordCreateExecute("lists").BindFunc(note("execute"))
	app.OnRecordAfterCreateSuccess("lists").BindFunc(note("success"))
	if _, err := bulk.Write(t.Context(), app, []bulk.Change{list(t, app, "a"), list(t, app, "b")}, bulk.Together); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"validate a tx=false", "validate b tx=false", "create a tx=true", "execute a tx=true", "create b tx=true", "execute b tx=true",
		"success a tx=false", "success b tx=false",
	}
	if !slices.Equal(events, want) {
		t.Errorf("%q", events)
	}
}

// A hook that fails after the commit changes nothing about it.
func TestFailureAfterSuccess(t *testing.T) {
	app := start(t)
	app.OnRecordAfterCreateSuccess("lists").BindFunc(func(*core.RecordEvent) error { return errors.New("too late") })
	results, err := bulk.Write(t.Context(), app, []bulk.Change{list(t, app, "a")}, bulk.Together)
	if err != nil || written(results) != "w" || count(t, app, "lists") != 1 {
		t.Errorf("%v %v", results, err)
	}
}

func TestUploadsAreRefused(t *testing.T) {
	app := start(t)
	l := list(t, app, "a")
	save(t, app, l.Record)
	file, err := filesystem.NewFileFromBytes([]byte("x"), "x.txt")
	if err != nil {
		t.Fatal(err)
	}
	item := record(t, app, "items", map[string]any{"list": l.Record.Id, "text": "x", "doc": file})
	results, err := bulk.Write(t.Context(), app, []bulk.Change{{Record: item}}, bulk.Together)
	if !errors.Is(err, bulk.ErrRefused) || !errors.Is(results[0].Err, bulk.ErrUpload) || count(t, app, "items") != 0 {
		t.Errorf("%v %v", results, err)
	}
}

func TestTransactionIsRefused(t *testing.T) {
	app := start(t)
	err := app.RunInTransaction(func(tx core.App) error {
		_, err := bulk.Write(t.Context(), tx, []bulk.Change{list(t, tx, "a")}, bulk.Together)
		return err
	})
	if !errors.Is(err, bulk.ErrTransaction) {
		t.Error(err)
	}
}

// What is wrong with the database or the request is no reason to try the changes one by one.
func TestOutageEndsTheCall(t *testing.T) {
	unavailable := &extensions.Code{Name: "test.unavailable", Status: 503}
	for _, mode := range []bulk.Mode{bulk.Together, bulk.Apart} {
		app := start(t)
		tries := 0
		app.OnRecordCreateExecute("lists").BindFunc(func(*core.RecordEvent) error { tries++; return unavailable })
		results, err := bulk.Write(t.Context(), app, []bulk.Change{list(t, app, "a"), list(t, app, "b")}, mode)
		if !errors.Is(err, unavailable) || tries != 1 || written(results) != "--" {
			t.Errorf("mode %d: %d tries, %v %v", mode, tries, results, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := bulk.Write(ctx, app, []bulk.Change{list(t, app, "a")}, mode); err == nil {
			t.Errorf("mode %d: written after the end of the request", mode)
		}
	}
}

// benchmarkSize is what a phone pushes after a while offline.
const benchmarkSize = 50

func BenchmarkWrite(b *testing.B) {
	run(b, func(app core.App, changes []bulk.Change) error {
		_, err := bulk.Write(b.Context(), app, changes, bulk.Together)
		return err
	})
}

func BenchmarkSaveEach(b *testing.B) {
	run(b, func(app core.App, changes []bulk.Change) error {
		for _, c := range changes {
			if err := app.Save(c.Record); err != nil {
				return err
			}
		}
		return nil
	})
}

func run(b *testing.B, write func(core.App, []bulk.Change) error) {
	app := start(b)
	l := list(b, app, "a")
	save(b, app, l.Record)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		changes := make([]bulk.Change, benchmarkSize)
		for i := range changes {
			n++
			changes[i].Record = record(b, app, "items", map[string]any{"list": l.Record.Id, "text": fmt.Sprint("text ", n)})
		}
		if err := write(app, changes); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/record")
}
