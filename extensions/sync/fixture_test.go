package sync_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/sync"
	"github.com/satchelbase/satchel/extensions/sync/push"
)

// fixture is an application with teams, their members, and notes that their owners and the members of their teams see.
type fixture struct {
	*apptest.App
	t     testing.TB
	log   *changes.Log
	feat  *sync.Sync
	notes *core.Collection
}

type options struct {
	policies  []string
	resolvers map[string]push.Resolver
}

func start(t testing.TB, o options) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: append(changes.Tables(), sync.Tables()...)})
	if err != nil {
		t.Fatal(err)
	}
	cfg := settings.Defaults[sync.Config]()
	cfg.Policies = o.policies
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	log := changes.New(settings.Defaults[changes.Config](), db)
	s := sync.New(cfg, sync.Deps{Log: log, Durable: db.Durable, Resolvers: o.resolvers})
	f := &fixture{t: t, log: log, feat: s}
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), s.Polling(log.Extension()), s.Extension())
	f.world()
	return f
}

const (
	ownerRule = `owner = @request.auth.id`
	teamRule  = `owner = @request.auth.id || team.members_via_team.user ?= @request.auth.id`
)

func (f *fixture) world() {
	users, err := f.FindCollectionByNameOrId("users")
	if err != nil {
		f.t.Fatal(err)
	}
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.TextField{Name: "name"})
	f.save(teams)
	members := core.NewBaseCollection("members")
	members.Fields.Add(
		&core.RelationField{Name: "user", CollectionId: users.Id, MaxSelect: 1, CascadeDelete: true},
		&core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1, CascadeDelete: true},
	)
	members.AddIndex("idx_members", true, "team, user", "")
	f.save(members)
	notes := core.NewBaseCollection("notes")
	notes.Fields.Add(
		&core.TextField{Name: "title", Max: 50}, &core.TextField{Name: "body"}, &core.NumberField{Name: "likes"},
		&core.SelectField{Name: "tags", Values: []string{"a", "b", "c"}, MaxSelect: 3},
		&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1},
		&core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1},
		&core.TextField{Name: "secret", Hidden: true},
	)
	notes.AddIndex("idx_notes_owner", false, "owner", "")
	notes.AddIndex("idx_notes_team", false, "team", "")
	notes.ListRule, notes.ViewRule, notes.CreateRule = new(teamRule), new(teamRule), new(ownerRule)
	notes.UpdateRule, notes.DeleteRule = new(teamRule), new(ownerRule)
	f.save(notes)
	f.notes = notes
}

func (f *fixture) save(m core.Model) {
	f.t.Helper()
	if err := f.Save(m); err != nil {
		f.t.Fatalf("save: %v", err)
	}
}

func (f *fixture) record(collection string, fields map[string]any) *core.Record {
	f.t.Helper()
	c, err := f.FindCollectionByNameOrId(collection)
	if err != nil {
		f.t.Fatal(err)
	}
	r := core.NewRecord(c)
	r.Load(fields)
	f.save(r)
	return r
}

func (f *fixture) edit(r *core.Record, fields map[string]any) {
	f.t.Helper()
	fresh, err := f.FindRecordById(r.Collection(), r.Id)
	if err != nil {
		f.t.Fatal(err)
	}
	fresh.Load(fields)
	f.save(fresh)
}

func (f *fixture) delete(r *core.Record) {
	f.t.Helper()
	if err := f.Delete(r); err != nil {
		f.t.Fatal(err)
	}
}

// device is a client that keeps what it is told.
type device struct {
	*fixture
	token, id string
	cursor    *string
	rows      map[string]map[string]any
	schema    string
	limit     int
}

func (f *fixture) device(token, id string) *device {
	return &device{fixture: f, token: token, id: id + "-0123456789abcdef", rows: map[string]map[string]any{}}
}

type result struct {
	CID, Status, Original string
	V                     int64
	Fields                []string
	Record                map[string]any
	Reason                *struct {
		Code, Detail string
		Errors       []api.FieldError
	}
}

type page struct {
	Results     []result
	Collections map[string]struct {
		Upserts []map[string]any
		Removes []string
	}
	Cursor      *string
	More        bool
	Reset, Gone []string
	Check       map[string][2]uint64
	Epoch       string
}

func (d *device) post(body map[string]any) apptest.Response {
	d.t.Helper()
	return d.Do(d.t, apptest.Request{
		Method: http.MethodPost, Path: "/api/v1/sync", Token: d.token, Body: body, Header: map[string]string{"X-Device-Id": d.id},
	})
}

// ask sends one request and returns the page without taking it in.
func (d *device) ask(cursor *string, collections []string, changes ...map[string]any) page {
	d.t.Helper()
	body := map[string]any{"cursor": cursor, "collections": collections, "changes": changes, "schema": d.schema}
	if d.limit > 0 {
		body["limit"] = d.limit
	}
	resp := d.post(body)
	if resp.Status != http.StatusOK {
		d.t.Fatalf("sync: %d %s", resp.Status, resp.Body)
	}
	var envelope struct{ Data page }
	if err := json.Unmarshal(resp.Body, &envelope); err != nil {
		d.t.Fatalf("%v: %s", err, resp.Body)
	}
	return envelope.Data
}

// sync asks until there is no more and returns all results and what it was told.
func (d *device) sync(changes ...map[string]any) (results []result, upserts, removes []string) {
	d.t.Helper()
	var sweep map[string]bool
	for range 200 {
		p := d.ask(d.cursor, []string{"notes"}, changes...)
		changes = nil
		results = append(results, p.Results...)
		if len(p.Reset) > 0 {
			sweep = map[string]bool{}
		}
		for _, row := range p.Collections["notes"].Upserts {
			id, _ := row["id"].(string)
			d.rows[id] = row
			upserts = append(upserts, id)
			if sweep != nil {
				sweep[id] = true
			}
		}
		for _, id := range p.Collections["notes"].Removes {
			delete(d.rows, id)
			removes = append(removes, id)
		}
		d.cursor = p.Cursor
		if p.More {
			continue
		}
		if sweep != nil {
			for id := range d.rows {
				if !sweep[id] {
					delete(d.rows, id)
				}
			}
		}
		slices.Sort(upserts)
		slices.Sort(removes)
		return results, upserts, removes
	}
	d.t.Fatal("there is always more")
	return nil, nil, nil
}

// listed are the notes that the record API shows.
func (d *device) listed() map[string]string {
	d.t.Helper()
	resp := d.Do(d.t, apptest.Request{Path: "/api/collections/notes/records?perPage=500", Token: d.token})
	var list struct{ Items []map[string]any }
	if err := json.Unmarshal(resp.Body, &list); err != nil {
		d.t.Fatal(err)
	}
	return texts(list.Items)
}

func texts(rows []map[string]any) map[string]string {
	out := map[string]string{}
	for _, row := range rows {
		delete(row, "v")
		raw, _ := json.Marshal(row)
		out[fmt.Sprint(row["id"])] = string(raw)
	}
	return out
}

// equalsList checks that the device holds what the record API shows.
func (d *device) equalsList() {
	d.t.Helper()
	var rows []map[string]any
	for _, row := range d.rows {
		rows = append(rows, maps.Clone(row))
	}
	got, want := texts(rows), d.listed()
	for id, text := range want {
		if got[id] != text {
			d.t.Errorf("device %s has %s, the API %s", d.id, got[id], text)
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			d.t.Errorf("device %s still has %s", d.id, got[id])
		}
	}
}

func id(prefix string) string { return (prefix + strings.Repeat("0", 15))[:15] }

func create(cid, id string, set map[string]any) map[string]any {
	return map[string]any{"cid": cid, "collection": "notes", "op": "create", "id": id, "set": set}
}

func update(cid, id string, set map[string]any) map[string]any {
	return map[string]any{"cid": cid, "collection": "notes", "op": "update", "id": id, "set": set}
}
