package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// start runs PocketBase on a store, with a public collection "notes", behind a real server.
func start(t *testing.T, options Options) (*apptest.App, *Store) {
	t.Helper()
	s, err := Open(full(), options)
	if err != nil {
		t.Fatal(err)
	}
	base := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir(), DBConnect: s.Connect})
	host := &extensions.Host{App: base, Version: "test", Logger: slog.New(slog.DiscardHandler)}
	if err := extensions.Install(host, []extensions.Extension{api.New(settings.Defaults[api.Config]()), New(s)}); err != nil {
		t.Fatal(err)
	}
	if err := base.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := base.ClearBootstrap(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := base.RunAllMigrations(); err != nil {
		t.Fatal(err)
	}
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(&core.TextField{Name: "title"}, &core.AutodateField{Name: "created", OnCreate: true})
	for _, rule := range []**string{&notes.ListRule, &notes.ViewRule, &notes.CreateRule, &notes.UpdateRule, &notes.DeleteRule} {
		*rule = new("")
	}
	if err := base.Save(notes); err != nil {
		t.Fatal(err)
	}
	base.Settings().Batch.Enabled, base.Settings().Batch.MaxRequests, base.Settings().Batch.Timeout = true, 50, 30
	if err := base.Save(base.Settings()); err != nil {
		t.Fatal(err)
	}
	app := &apptest.App{App: base, Host: host}
	app.URL = apptest.Serve(t, base)
	return app, s
}

func create(path, title string) apptest.Request {
	return apptest.Request{Method: http.MethodPost, Path: path + "/collections/notes/records", Body: map[string]string{"title": title}}
}

func titles(t *testing.T, app core.App) []string {
	t.Helper()
	var list []string
	if err := app.DB().Select("title").From("notes").Column(&list); err != nil {
		t.Fatal(err)
	}
	sort.Strings(list)
	return list
}

func TestWritePoolIsWidened(t *testing.T) {
	app, _ := start(t, Options{})
	for name, c := range map[string]struct {
		db   dbx.Builder
		want int
	}{"write": {app.NonconcurrentDB(), writers}, "auxiliary write": {app.AuxNonconcurrentDB(), 1}} {
		db, ok := c.db.(*dbx.DB)
		if !ok || db.DB().Stats().MaxOpenConnections != c.want {
			t.Errorf("%s pool is not %d wide", name, c.want)
		}
	}
}

// Of ten records created at the same time three fail after their row was inserted: seven rows, seven events, and each
// event comes after the sync that covers its row.
func TestLateFailures(t *testing.T) {
	counted := newSyncs()
	app, _ := start(t, Options{Sync: counted.sync})
	var succeeded, failed atomic.Int64
	app.OnRecordCreateExecute("notes").BindFunc(func(e *core.RecordEvent) error {
		outer := e.App
		defer func() { e.App = outer }()
		return e.App.RunInTransaction(func(tx core.App) error {
			e.App = tx
			if err := e.Next(); err != nil {
				return err
			}
			if strings.HasPrefix(e.Record.GetString("title"), "fail") {
				return errors.New("too late")
			}
			return nil
		})
	})
	app.OnRecordAfterCreateSuccess("notes").BindFunc(func(e *core.RecordEvent) error {
		succeeded.Add(1)
		return e.Next()
	})
	app.OnRecordAfterCreateError("notes").BindFunc(func(e *core.RecordErrorEvent) error {
		failed.Add(1)
		return e.Next()
	})
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	counted.before = func() error { <-hold; return nil }
	counted.take()
	var all sync.WaitGroup
	statuses := make(chan int, 10)
	for i := range 10 {
		all.Go(func() {
			title := fmt.Sprintf("note %d", i)
			if i%3 == 1 {
				title = fmt.Sprintf("fail %d", i)
			}
			statuses <- app.Do(t, create("/api", title)).Status
		})
	}
	waitFor(t, "seven rows and three failures", func() bool { return len(titles(t, app)) == 7 && failed.Load() == 3 })
	if n := succeeded.Load(); n != 0 {
		t.Errorf("%d after-success events before the disk has answered", n)
	}
	release()
	all.Wait()
	close(statuses)
	count := map[int]int{}
	for status := range statuses {
		count[status]++
	}
	if count[http.StatusOK] != 7 || count[http.StatusBadRequest] != 3 {
		t.Errorf("answers %v", count)
	}
	if succeeded.Load() != 7 || failed.Load() != 3 || len(titles(t, app)) != 7 {
		t.Errorf("%d success events, %d error events, rows %v", succeeded.Load(), failed.Load(), titles(t, app))
	}
	if n := counted.take(); n == 0 || n > 4 {
		t.Errorf("%d syncs", n)
	}
}

func TestFailedSyncOverHTTP(t *testing.T) {
	counted := newSyncs()
	app, s := start(t, Options{Sync: counted.sync})
	record := app.Do(t, create("/api", "before")).JSON(t)["id"].(string)
	var succeeded atomic.Int64
	app.OnRecordAfterCreateSuccess("notes").BindFunc(func(e *core.RecordEvent) error {
		succeeded.Add(1)
		return e.Next()
	})
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	counted.before = func() error { <-hold; return errors.New("input/output error") }
	ready := New(s).Checks[0]
	if got := ready.Run(t.Context(), app.Host); got.Level != extensions.OK {
		t.Fatalf("%+v", got)
	}
	check := func(what string, got apptest.Response, versioned bool) {
		t.Helper()
		if got.Status != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d, Retry-After %q: %s", what, got.Status, got.Header.Get("Retry-After"), got.Body)
		}
		if versioned && got.Code() != "store.unavailable" {
			t.Errorf("%s: code %q", what, got.Code())
		}
		if strings.Contains(string(got.Body), "input/output") {
			t.Errorf("%s tells the cause: %s", what, got.Body)
		}
	}
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			path := [...]string{"/api", "/api/v1"}[i%2]
			check("waiting create "+path, app.Do(t, create(path, fmt.Sprint(i))), i%2 == 1)
		})
	}
	waitFor(t, "all commits", func() bool { return len(titles(t, app)) == 7 })
	release()
	all.Wait()
	if succeeded.Load() != 0 {
		t.Errorf("%d after-success events", succeeded.Load())
	}
	for name, r := range map[string]apptest.Request{
		"create": {Method: http.MethodPost, Path: "/collections/notes/records", Body: map[string]string{"title": "later"}},
		"update": {Method: http.MethodPatch, Path: "/collections/notes/records/" + record, Body: map[string]string{"title": "later"}},
		"delete": {Method: http.MethodDelete, Path: "/collections/notes/records/" + record},
		"batch": {Method: http.MethodPost, Path: "/batch", Body: map[string]any{"requests": []any{
			map[string]any{"method": "POST", "url": "/api/collections/notes/records", "body": map[string]string{"title": "later"}},
		}}},
	} {
		for _, prefix := range []string{"/api", "/api/v1"} {
			r := r
			r.Path = prefix + r.Path
			check(name+" "+prefix, app.Do(t, r), prefix == "/api/v1")
		}
	}
	got := app.Do(t, apptest.Request{Path: "/api/collections/notes/records/" + record})
	if got.Status != http.StatusOK || got.JSON(t)["title"] != "before" {
		t.Errorf("reads do not go on: %d %s", got.Status, got.Body)
	}
	if len(titles(t, app)) != 7 {
		t.Error("a refused write was executed")
	}
	if got := ready.Run(t.Context(), app.Host); got.Level != extensions.Fail || got.Next == "" {
		t.Errorf("%+v", got)
	}
}

// The stock body keeps its members: SDKs read them.
func TestUnavailableHasTheStockShape(t *testing.T) {
	app, s := start(t, Options{})
	s.list()[0].wal.failed = errors.New("test")
	got := app.Do(t, create("/api", "a"))
	body := got.JSON(t)
	if got.Status != 503 || len(body) != 3 || body["status"] != float64(503) || body["message"] == "" || body["data"] == nil {
		t.Errorf("%d %s", got.Status, got.Body)
	}
}

func TestBusyOverHTTP(t *testing.T) {
	app, s := start(t, Options{})
	other := openAt(t, filepath.Join(app.DataDir(), dataFile), full(), Options{}).write
	if _, err := app.NonconcurrentDB().NewQuery("PRAGMA busy_timeout = 30").Execute(); err != nil {
		t.Fatal(err)
	}
	tx, err := other.BeginTx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	batch := apptest.Request{Method: http.MethodPost, Path: "/api/batch", Body: map[string]any{"requests": []any{
		map[string]any{"method": "POST", "url": "/api/collections/notes/records", "body": map[string]string{"title": "b"}},
	}}}
	for name, r := range map[string]apptest.Request{"create": create("/api", "a"), "batch": batch} {
		if got := app.Do(t, r); got.Status != 503 || got.Header.Get("Retry-After") != "1" {
			t.Errorf("%s: %d, Retry-After %q: %s", name, got.Status, got.Header.Get("Retry-After"), got.Body)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if got := app.Do(t, create("/api", "a")); got.Status != http.StatusOK {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	if err := s.Healthy(); err != nil {
		t.Errorf("a busy database is not a broken one: %v", err)
	}
}

// What fails inside one item of a batch is found too, and a client's own mistake stays 400.
func TestFailureInsideABatch(t *testing.T) {
	app, _ := start(t, Options{})
	var fail error
	app.OnRecordCreateExecute("notes").BindFunc(func(e *core.RecordEvent) error {
		if fail != nil {
			return fmt.Errorf("insert: %w", fail)
		}
		return e.Next()
	})
	send := func(body any) apptest.Response {
		return app.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/batch", Body: map[string]any{"requests": []any{
			map[string]any{"method": "POST", "url": "/api/collections/notes/records", "body": body},
		}}})
	}
	fail = &Failure{Reason: ErrStorage, RetryAfter: retryStorage}
	if got := send(map[string]string{"title": "a"}); got.Status != 503 || got.Code() != "store.unavailable" {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	fail = nil
	if got := send(map[string]string{"id": "no"}); got.Status != http.StatusBadRequest {
		t.Errorf("%d %s", got.Status, got.Body)
	}
}

func TestChecksAndMetrics(t *testing.T) {
	app, s := start(t, Options{})
	app.Do(t, create("/api", "a"))
	values := map[string]float64{}
	for _, m := range New(s).Metrics {
		values[m.Name] = m.Read()
	}
	want := []string{"commits_total", "syncs_total"}
	if !driverCaches {
		want = append(want, "statement_hits_total", "statement_misses_total")
	}
	for _, name := range want {
		if values["satchel_store_"+name] == 0 {
			t.Errorf("%s is 0 of %v", name, values)
		}
	}
	normal, err := Open(Config{Durability: Normal}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	host := &extensions.Host{Production: true}
	if got := New(normal).Checks[1].Run(t.Context(), host); got.Level != extensions.Warn || got.Next == "" {
		t.Errorf("%+v", got)
	}
	if got := New(s).Checks[1].Run(t.Context(), host); got.Level != extensions.OK {
		t.Errorf("%+v", got)
	}
	if _, err := Open(Config{Durability: "ful"}, Options{}); err == nil {
		t.Error("a typing mistake was accepted")
	}
}

// The query of a create rule is kept prepared, and its values still meet their columns. PocketBase's text for it is a
// promise of nobody, so an upgrade may break this.
func TestCreateRuleIsKept(t *testing.T) {
	app, s := start(t, Options{})
	notes, err := app.FindCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	notes.CreateRule = new("title = 'right' && rank = 7 && flag = true")
	notes.Fields.Add(&core.NumberField{Name: "rank"}, &core.BoolField{Name: "flag"}, &core.TextField{Name: "more"})
	if err := app.Save(notes); err != nil {
		t.Fatal(err)
	}
	create := func(body string) int {
		return app.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/notes/records", Body: body}).Status
	}
	for range 20 { // the order of a map
		if got := create(`{"title":"right","rank":7,"flag":true,"more":"wrong"}`); got != http.StatusOK {
			t.Fatalf("a good record: status %d", got)
		}
		if got := create(`{"title":"wrong","rank":7,"flag":true,"more":"right"}`); got != http.StatusBadRequest {
			t.Fatalf("a bad record: status %d", got)
		}
	}
	before := s.statistics()
	create(`{"title":"right","rank":7,"flag":true}`)
	if after := s.statistics(); after.misses != before.misses {
		t.Errorf("%d statements were prepared for one more record", after.misses-before.misses)
	}
}
