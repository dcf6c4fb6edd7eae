package extensions_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// traced is an extension that notes what is done with it.
func traced(name string, trace *[]string) extensions.Extension {
	note := func(what string) { *trace = append(*trace, name+" "+what) }
	return extensions.Extension{
		Name: name,
		Bind: func(*extensions.Host) error { note("bind"); return nil },
		Handler: func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { note("handle"); next.ServeHTTP(w, r) })
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("", func(e *core.RequestEvent) error { return e.String(http.StatusOK, name) })
		},
		Serve: func(*extensions.Host, *core.ServeEvent) error { note("serve"); return nil },
		Start: func(context.Context, *extensions.Host) error { note("start"); return nil },
		Stop: func(ctx context.Context) error {
			note("stop")
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 6*time.Second {
				note("stop without a deadline")
			}
			return nil
		},
	}
}

func TestLifecycle(t *testing.T) {
	var trace []string
	a, b := traced("a", &trace), traced("b", &trace)
	b.Group = "other"
	t.Run("running", func(t *testing.T) {
		app := apptest.New(t, a, b)
		for path, want := range map[string]string{"/api/v1/a": "a", "/api/v1/other": "b"} {
			if r := app.Do(t, apptest.Request{Path: path}); string(r.Body) != want {
				t.Errorf("%s answers %q", path, r.Body)
			}
		}
	})
	// The template application binds once more and never serves, so it starts and stops nothing.
	want := []string{
		"a bind", "b bind", "a bind", "b bind", "a serve", "b serve", "a start", "b start",
		"a handle", "b handle", "a handle", "b handle", "b stop", "a stop",
	}
	if !slices.Equal(trace, want) {
		t.Errorf("trace\n%s\nwant\n%s", strings.Join(trace, ", "), strings.Join(want, ", "))
	}
}

func host() *extensions.Host {
	return &extensions.Host{App: core.NewBaseApp(core.BaseAppConfig{}), Logger: slog.New(slog.DiscardHandler)}
}

func TestInstallRefuses(t *testing.T) {
	broken := errors.New("broken")
	for name, list := range map[string][]extensions.Extension{
		"an empty name":       {{}},
		"more than a word":    {{Name: "two words"}},
		"capitals":            {{Name: "Push"}},
		"a name used twice":   {{Name: "a"}, {Name: "a"}},
		"a failing extension": {{Name: "a", Bind: func(*extensions.Host) error { return broken }}},
	} {
		if err := extensions.Install(host(), list); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestMigrationsRunOnceAndInOrder(t *testing.T) {
	create := func(sql string) func(core.App) error {
		return func(app core.App) error {
			_, err := app.DB().NewQuery(sql).Execute()
			return err
		}
	}
	x := extensions.Extension{Name: "shelf", Tables: []string{"shelf_books"}, Migrations: []extensions.Migration{
		{Unix: 1767225700, What: "title", Up: create("ALTER TABLE shelf_books ADD COLUMN title TEXT")},
		{Unix: 1767225699, What: "books", Up: create("CREATE TABLE shelf_books (id TEXT PRIMARY KEY)")},
	}}
	for range 2 { // the second application of a process finds them registered
		app := apptest.New(t, x)
		var names []string
		if err := app.DB().Select("name").From("pragma_table_info('shelf_books')").Column(&names); err != nil || !slices.Equal(names, []string{"id", "title"}) {
			t.Fatalf("columns %v, %v", names, err)
		}
	}
	count := 0
	for _, m := range core.SystemMigrations.Items() {
		if strings.Contains(m.File, "_shelf_") {
			count++
		}
	}
	if count != 2 || x.MigrationFile(x.Migrations[0]) != "1767225700_shelf_title.go" {
		t.Errorf("%d migrations are registered, the first as %s", count, x.MigrationFile(x.Migrations[0]))
	}
}

func TestLoggerCarriesTheName(t *testing.T) {
	var out strings.Builder
	h := &extensions.Host{Logger: slog.New(slog.NewTextHandler(io.Writer(&out), nil))}
	h.For(extensions.Extension{Name: "push"}).Logger.Info("sent")
	if !strings.Contains(out.String(), "extension=push") {
		t.Errorf("log line %q", out.String())
	}
}
