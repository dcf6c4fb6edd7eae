package account

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/filesystem"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/presence"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// fixture is an application with collections of every kind of tie to an account.
type fixture struct {
	*apptest.App
	accounts *Accounts
	jobs     *jobs.Jobs
	ada, bob *core.Record
}

// start returns the application; change may be nil.
func start(t testing.TB, change func(c *Config, d *Deps)) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vault := secret.Fixed([]byte("root key of the tests"))
	log := audit.NewLog(vault)
	sess := sessions.New(settings.Defaults[sessions.Config](), sessions.Deps{Vault: vault, Audit: log.Append, Version: db.TableVersion})
	cache := settings.Defaults[authcache.Config]()
	cfg := settings.Defaults[Config]()
	deps := Deps{
		Jobs: jobs.New(settings.Defaults[jobs.Config]()), Key: vault.Key, Recent: sess.Recent, EndSessions: sess.EndAll,
		Audit: log.Note, Forget: log.Forget, Version: db.TableVersion,
	}
	if change != nil {
		change(&cfg, &deps)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	a := New(cfg, deps)
	ops := operations.New()
	ops.Add(a.Operations())
	f := &fixture{accounts: a, jobs: deps.Jobs}
	conventions := settings.Defaults[api.Config]()
	if err := conventions.MinVersion.UnmarshalText([]byte("9.0")); err != nil { // for requests that name their version
		t.Fatal(err)
	}
	f.App = apptest.Open(t, db.Connect, api.New(conventions), store.New(db), audit.New(audit.Config{}, log, nil),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, sess.Verify)), sess.Extension(),
		deps.Jobs.Extension(jobs.Deps{}), a.Extension(), ops.Extension(operations.Deps{Recent: sess.Recent, Audit: log.Append}))
	f.schema(t)
	f.ada, _ = f.User(t, "ada@example.test")
	f.bob, _ = f.User(t, "bob@example.test")
	return f
}

// schema makes the collections. Notes have three levels below them.
func (f *fixture) schema(t testing.TB) {
	t.Helper()
	users := f.collection(t, "users")
	to := func(name, target string, change func(r *core.RelationField)) *core.RelationField {
		r := &core.RelationField{Name: name, CollectionId: f.collection(t, target).Id, MaxSelect: 1}
		if change != nil {
			change(r)
		}
		return r
	}
	cascade := func(r *core.RelationField) { r.CascadeDelete = true }
	required := func(r *core.RelationField) { r.Required = true }
	both := func(r *core.RelationField) { r.CascadeDelete, r.Required = true, true }
	many := func(r *core.RelationField) { r.MaxSelect = 99 }
	file := func() *core.FileField { return &core.FileField{Name: "file", MaxSelect: 3, MaxSize: 1 << 20} }
	secret := &core.TextField{Name: "secret", Hidden: true}
	_ = users
	for _, c := range []struct {
		name   string
		fields func() []core.Field
		index  string
	}{
		{"notes", func() []core.Field { return []core.Field{to("owner", "users", both), file(), secret} }, "owner"},
		{"attachments", func() []core.Field { return []core.Field{to("note", "notes", cascade), file()} }, "note"},
		{"labels", func() []core.Field { return []core.Field{to("attachment", "attachments", cascade)} }, "attachment"},
		{"comments", func() []core.Field {
			return []core.Field{to("note", "notes", cascade), to("author", "users", required)}
		}, "author"},
		{"pins", func() []core.Field { return []core.Field{to("note", "notes", required)} }, "note"},
		{"posts", func() []core.Field { return []core.Field{to("author", "users", nil)} }, "author"},
		{"rooms", func() []core.Field {
			return []core.Field{to("members", "users", func(r *core.RelationField) { many(r); cascade(r) })}
		}, "id"},
	} {
		collection := core.NewBaseCollection(c.name)
		collection.Fields.Add(&core.TextField{Name: "title"})
		collection.Fields.Add(c.fields()...)
		collection.AddIndex("idx_"+c.name, false, c.index, "")
		if c.name == "notes" {
			rule := "owner = @request.auth.id"
			collection.ListRule, collection.CreateRule = &rule, &rule
		}
		if err := f.Save(collection); err != nil {
			t.Fatal(err)
		}
	}
	notes := f.collection(t, "notes")
	notes.Fields.Add(&core.RelationField{Name: "parent", CollectionId: notes.Id, MaxSelect: 1, CascadeDelete: true})
	notes.AddIndex("idx_parent", false, "parent", "")
	if err := f.Save(notes); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) collection(t testing.TB, name string) *core.Collection {
	t.Helper()
	c, err := f.FindCollectionByNameOrId(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// add makes a record. Every record has a title, which tests look for.
func (f *fixture) add(t testing.TB, collection, title string, data map[string]any, files ...string) string {
	t.Helper()
	record := core.NewRecord(f.collection(t, collection))
	record.Load(data)
	record.Set("title", title)
	var uploads []*filesystem.File
	for _, content := range files {
		file, err := filesystem.NewFileFromBytes([]byte(content), "file.txt")
		if err != nil {
			t.Fatal(err)
		}
		uploads = append(uploads, file)
	}
	if len(uploads) > 0 {
		record.Set("file", uploads)
	}
	if err := f.Save(record); err != nil {
		t.Fatal(err)
	}
	return record.Id
}

// world is data of both users with every tie between them.
func (f *fixture) world(t testing.TB) {
	t.Helper()
	for _, owner := range []*core.Record{f.ada, f.bob} {
		name, other := "ada", f.bob
		if owner == f.bob {
			name, other = "bob", f.ada
		}
		parent := ""
		for i := range 3 {
			note := f.add(t, "notes", fmt.Sprintf("%s-note-%d", name, i), map[string]any{"owner": owner.Id, "parent": parent, "secret": name + "-secret"}, name+"-content")
			parent = note
			attachment := f.add(t, "attachments", name+"-attachment", map[string]any{"note": note}, name+"-first", name+"-second")
			f.add(t, "labels", name+"-label", map[string]any{"attachment": attachment})
			f.add(t, "comments", name+"-own-comment", map[string]any{"note": note, "author": owner.Id})
			f.add(t, "comments", "guest-on-"+name, map[string]any{"note": note, "author": other.Id})
			f.add(t, "pins", "pin-of-"+name, map[string]any{"note": note})
		}
		f.add(t, "posts", name+"-post", map[string]any{"author": owner.Id})
		f.add(t, "rooms", name+"-alone", map[string]any{"members": []string{owner.Id}})
	}
	f.add(t, "rooms", "shared", map[string]any{"members": []string{f.ada.Id, f.bob.Id}})
}

// titles is what a collection holds, sorted.
func (f *fixture) titles(t testing.TB, collection string) string {
	t.Helper()
	var out []string
	if err := f.ConcurrentDB().Select("title").From(collection).OrderBy("title").Column(&out); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func (f *fixture) count(t testing.TB, from string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM " + from).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// stored lists the files of a collection.
func (f *fixture) stored(t testing.TB, collection string) (n int) {
	t.Helper()
	system, err := f.NewFilesystem()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = system.Close() }()
	list, err := system.List(f.collection(t, collection).Id + "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list {
		if !strings.HasSuffix(o.Key, ".attrs") && path.Ext(o.Key) != "" {
			n++
		}
	}
	return n
}

// signIn returns a fresh access token.
func (f *fixture) signIn(t testing.TB, email string) string {
	t.Helper()
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-password", Body: map[string]string{"identity": email, "password": apptest.Password}})
	var body struct {
		Meta struct {
			Session struct{ AccessToken string }
		}
	}
	if err := json.Unmarshal(r.Body, &body); err != nil || body.Meta.Session.AccessToken == "" {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	return body.Meta.Session.AccessToken
}

// call calls an operation.
func (f *fixture) call(t testing.TB, token, name string) apptest.Response {
	t.Helper()
	method := http.MethodPost
	if name == "account.status" {
		method = http.MethodGet
	}
	return f.Do(t, apptest.Request{Method: method, Path: "/api/v1/operations/" + name, Token: token})
}

// answer reads the data of an answer.
func answer[T any](t testing.TB, r apptest.Response) T {
	t.Helper()
	var body struct{ Data T }
	if err := json.Unmarshal(r.Body, &body); err != nil || r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	return body.Data
}

// await waits for a condition.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// gone waits for an account to be deleted.
func (f *fixture) gone(t testing.TB, account *core.Record) {
	t.Helper()
	await(t, "the deletion of the account", func() bool {
		return f.count(t, "users WHERE id = '"+account.Id+"'") == 0 && f.count(t, "jobs_queue WHERE state = 1") == 0
	})
}

// insert puts many records into a collection in SQL, as fast as it goes.
func (f *fixture) insert(t testing.TB, collection string, n int, row func(i int) dbx.Params) {
	t.Helper()
	err := f.RunInTransaction(func(tx core.App) error {
		for i := range n {
			if _, err := tx.NonconcurrentDB().Insert(collection, row(i)).Execute(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func readAll(t testing.TB, r io.Reader) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := io.Copy(&out, r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var errNo = errors.New("no")

// hurry makes the jobs due that wait for their time, and tells whoever works on them.
func (f *fixture) hurry(t testing.TB) {
	t.Helper()
	if _, err := f.NonconcurrentDB().Update("jobs_queue", dbx.Params{"run_at": 0}, dbx.HashExp{"state": 2}).Execute(); err != nil {
		t.Fatal(err)
	}
	if err := presence.Ring(filepath.Join(f.DataDir(), "jobs")); err != nil {
		t.Fatal(err)
	}
}
