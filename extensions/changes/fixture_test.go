package changes

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// fixture is an application with the log and a public collection "notes".
type fixture struct {
	*apptest.App
	*Log
	t     testing.TB
	db    *store.Store
	notes *core.Collection
}

func defaults() Config { return settings.Defaults[Config]() }

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: Tables()})
	if err != nil {
		t.Fatal(err)
	}
	l := New(cfg, db)
	f := &fixture{App: apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), l.Extension()), Log: l, t: t, db: db}
	f.notes = f.collection("notes")
	return f
}

// collection makes a collection with a title, a unique code and a select field that anybody may use.
func (f *fixture) collection(name string) *core.Collection {
	f.t.Helper()
	c := core.NewBaseCollection(name)
	c.Fields.Add(
		&core.TextField{Name: "title"}, &core.TextField{Name: "code"},
		&core.SelectField{Name: "tag", MaxSelect: 1, Values: []string{"a", "b"}},
	)
	c.AddIndex("idx_"+name+"_code", true, "code", "code != ''")
	for _, rule := range []**string{&c.ListRule, &c.ViewRule, &c.CreateRule, &c.UpdateRule, &c.DeleteRule} {
		*rule = new("")
	}
	f.save(c)
	return c
}

func (f *fixture) save(m core.Model) {
	f.t.Helper()
	if err := f.Save(m); err != nil {
		f.t.Fatalf("save: %v", err)
	}
}

func hostOf(app core.App) *extensions.Host {
	return &extensions.Host{App: app, Version: "test", Logger: slog.New(slog.DiscardHandler)}
}

// note makes a record and returns it.
func (f *fixture) note(title, code string) *core.Record {
	f.t.Helper()
	r := core.NewRecord(f.notes)
	r.Set("title", title)
	r.Set("code", code)
	r.Set("tag", "a")
	f.save(r)
	return r
}

func (f *fixture) exec(texts ...string) {
	f.t.Helper()
	for _, text := range texts {
		if _, err := f.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
			f.t.Fatalf("%s: %v", text, err)
		}
	}
}

func (f *fixture) at() Position {
	f.t.Helper()
	p, err := f.Horizon(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// since lists the changes after a position as "update ...15" for record and action, names for collections.
func (f *fixture) since(from Position) []string {
	f.t.Helper()
	list, _, err := f.Since(f.t.Context(), from, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for i, c := range list {
		if i > 0 && c.Seq != list[i-1].Seq+1 {
			f.t.Errorf("a gap between %d and %d", list[i-1].Seq, c.Seq)
		}
		out = append(out, strings.TrimSpace(fmt.Sprint(c.Action, " ", c.Record)))
	}
	return out
}

// during lists the changes that do makes.
func (f *fixture) during(do func()) []string {
	f.t.Helper()
	from := f.at()
	do()
	return f.since(from)
}

func (f *fixture) heads(collection string) map[string]Head {
	f.t.Helper()
	list, err := f.HeadsAfter(f.t.Context(), collection, 0, maxLimit)
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]Head{}
	for _, h := range list {
		out[h.Record] = h
	}
	return out
}

// sound compares the heads of a collection with its records, id by id.
func (f *fixture) sound(collection string) {
	f.t.Helper()
	c, err := f.FindCollectionByNameOrId(collection)
	if err != nil {
		f.t.Fatal(err)
	}
	e, err := f.compare(f.t.Context(), c, true)
	if err != nil || len(e.Problems) > 0 {
		f.t.Errorf("heads of %s: %v %v", collection, e.Problems, err)
	}
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func equal(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
