package doors

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/sync"
)

// fixture is an application with teams, their members, and notes that their owners and the members of their teams see.
type fixture struct {
	*apptest.App
	t     testing.TB
	log   *changes.Log
	doors *doors
	notes *core.Collection
}

const (
	ownerRule = `owner = @request.auth.id`
	teamRule  = `owner = @request.auth.id || team.members_via_team.user ?= @request.auth.id`
)

func start(t testing.TB, policies ...string) *fixture {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: append(changes.Tables(), sync.Tables()...)})
	if err != nil {
		t.Fatal(err)
	}
	cfg := settings.Defaults[sync.Config]()
	cfg.Policies = policies
	log := changes.New(settings.Defaults[changes.Config](), db)
	s := sync.New(cfg, sync.Deps{Log: log, Durable: db.Durable})
	f := &fixture{t: t, log: log, doors: open(s)}
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), s.Polling(log.Extension()), f.doors.extend(s.Extension()))
	f.world()
	return f
}

func (f *fixture) world() {
	users, err := f.FindCollectionByNameOrId("users")
	if err != nil {
		f.t.Fatal(err)
	}
	teams := core.NewBaseCollection("teams")
	teams.Fields.Add(&core.TextField{Name: "name"}, &core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1})
	teams.ListRule, teams.CreateRule, teams.DeleteRule = new(""), new(ownerRule), new(ownerRule)
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
		&core.BoolField{Name: "done"}, &core.DateField{Name: "due"}, &core.JSONField{Name: "extra"}, &core.GeoPointField{Name: "place"},
		&core.SelectField{Name: "tags", Values: []string{"a", "b", "c"}, MaxSelect: 3},
		&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1},
		&core.RelationField{Name: "team", CollectionId: teams.Id, MaxSelect: 1},
		&core.TextField{Name: "secret", Hidden: true},
		&core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
	)
	f.save(notes)
	notes.Fields.Add(&core.RelationField{Name: "parent", CollectionId: notes.Id, MaxSelect: 1})
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

func (f *fixture) edit(collection, id string, fields map[string]any) {
	f.t.Helper()
	r, err := f.FindRecordById(collection, id)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Load(fields)
	f.save(r)
}

func (f *fixture) delete(collection, id string) {
	f.t.Helper()
	r, err := f.FindRecordById(collection, id)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.Delete(r); err != nil {
		f.t.Fatal(err)
	}
}

func id(prefix string) string { return (prefix + strings.Repeat("0", 15))[:15] }

// phone is a device with its user.
type phone struct {
	*fixture
	user   *core.Record
	token  string
	device string
}

func (f *fixture) phone(user *core.Record, token, device string) phone {
	return phone{fixture: f, user: user, token: token, device: device + "-0123456789abcdef"}
}

func (f *fixture) call(p phone, method, path string, body any) apptest.Response {
	f.t.Helper()
	return f.Do(f.t, apptest.Request{Method: method, Path: "/api/v1/sync/" + path, Token: p.token, Body: body, Header: map[string]string{"X-Device-Id": p.device}})
}

// into decodes an answer that must be good.
func into[T any](t testing.TB, r apptest.Response) (out T) {
	t.Helper()
	if r.Status != http.StatusOK {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	if err := json.Unmarshal(r.Body, &out); err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	return out
}

// row is a record as a client has it.
type row = map[string]any

// listed are the notes that the record API shows.
func (p phone) listed() map[string]json.RawMessage {
	p.t.Helper()
	resp := p.Do(p.t, apptest.Request{Path: "/api/collections/notes/records?perPage=500", Token: p.token})
	out := map[string]json.RawMessage{}
	for _, item := range into[struct{ Items []json.RawMessage }](p.t, resp).Items {
		var key struct{ ID string }
		if err := json.Unmarshal(item, &key); err != nil {
			p.t.Fatal(err)
		}
		out[key.ID] = item
	}
	return out
}

// localRow is a row of WatermelonDB: what it knows of it, and what of it was not pushed.
type localRow struct {
	fields           row
	changed          map[string]bool
	created, deleted bool
}

func (r *localRow) dirty() bool { return r.created || r.deleted || len(r.changed) > 0 }

// melon is a client like WatermelonDB's synchronize().
type melon struct {
	phone
	rows map[string]*localRow
	last int64
	lost func(do func() apptest.Response) (apptest.Response, bool) // the network
	dies func() bool                                               // between rows and timestamp

	resets   int
	rejected []rejection
}

func (f *fixture) melon(user *core.Record, token, device string) *melon {
	return &melon{
		phone: f.phone(user, token, device), rows: map[string]*localRow{}, dies: func() bool { return false },
		lost: func(do func() apptest.Response) (apptest.Response, bool) { return do(), true },
	}
}

type pulled struct {
	Changes map[string]struct {
		Created, Updated []row
		Deleted          []string
	}
	Timestamp int64
	Strategy  *strategy `json:"experimentalStrategy"`
	More      bool
}

func (m *melon) path(extra string) string {
	last := "null"
	if m.last > 0 {
		last = strconv.FormatInt(m.last, 10)
	}
	return "watermelon?collections=notes&lastPulledAt=" + last + extra
}

// pull is the first half of synchronize().
func (m *melon) pull(extra string) (more, ok bool) {
	m.t.Helper()
	path := m.path(extra)
	resp, ok := m.lost(func() apptest.Response { return m.call(m.phone, http.MethodGet, path, nil) })
	if !ok {
		return false, false
	}
	got := into[pulled](m.t, resp)
	if got.Strategy != nil && got.Strategy.Override["notes"] == "replacement" {
		m.resets++
		for id, r := range m.rows {
			if !r.created && !slices.ContainsFunc(got.Changes["notes"].Updated, func(x row) bool { return x["id"] == id }) {
				delete(m.rows, id)
			}
		}
	}
	for _, in := range got.Changes["notes"].Updated {
		m.take(in)
	}
	for _, id := range got.Changes["notes"].Deleted {
		delete(m.rows, id)
	}
	if m.dies() {
		return false, false
	}
	m.last = got.Timestamp
	return got.More, true
}

func (m *melon) take(in row) {
	id, _ := in["id"].(string)
	switch r := m.rows[id]; {
	case r == nil:
		m.rows[id] = &localRow{fields: in, changed: map[string]bool{}}
	case r.deleted:
	default:
		out := maps.Clone(r.fields)
		maps.Copy(out, in)
		for name := range r.changed {
			out[name] = r.fields[name]
		}
		r.fields = out
	}
}

// push is the second half.
func (m *melon) push() (resp apptest.Response, ok bool) {
	m.t.Helper()
	created, updated, deleted := []row{}, []row{}, []string{}
	sent := map[string]row{}
	for _, id := range slices.Sorted(maps.Keys(m.rows)) {
		r := m.rows[id]
		raw := maps.Clone(r.fields)
		raw["_status"], raw["_changed"] = "updated", strings.Join(slices.Sorted(maps.Keys(r.changed)), ",")
		switch {
		case r.deleted:
			deleted = append(deleted, id)
		case r.created:
			raw["_status"] = "created"
			created = append(created, raw)
		case r.dirty():
			updated = append(updated, raw)
		default:
			continue
		}
		sent[id] = raw
	}
	if len(sent) == 0 {
		return apptest.Response{Status: http.StatusOK}, true
	}
	body := map[string]any{"lastPulledAt": m.last, "changes": map[string]any{
		"notes": map[string]any{"created": created, "updated": updated, "deleted": deleted},
	}}
	resp, ok = m.lost(func() apptest.Response { return m.call(m.phone, http.MethodPost, "watermelon", body) })
	if !ok || resp.Status != http.StatusOK {
		return resp, ok
	}
	m.rejected = into[struct{ Rejected []rejection }](m.t, resp).Rejected
	for id := range sent {
		if r := m.rows[id]; r.deleted {
			delete(m.rows, id)
		} else {
			r.created, r.changed = false, map[string]bool{}
		}
	}
	return resp, true
}

// sync is synchronize(), repeated once if it does not succeed, and as long as there is more.
func (m *melon) sync() bool {
	m.t.Helper()
	for try := 0; try < 2; {
		more, ok := m.pull("")
		if ok {
			var resp apptest.Response
			resp, ok = m.push()
			ok = ok && resp.Status == http.StatusOK
		}
		switch {
		case !ok:
			try++
		case !more:
			return true
		}
	}
	return false
}

func (m *melon) create(id string, fields row) {
	fields["id"] = id
	m.rows[id] = &localRow{fields: fields, created: true, changed: map[string]bool{}}
}

func (m *melon) set(id, name string, value any) {
	r := m.rows[id]
	r.fields = maps.Clone(r.fields)
	r.fields[name], r.changed[name] = value, true
}

func (m *melon) remove(id string) {
	if m.rows[id].created {
		delete(m.rows, id)
		return
	}
	m.rows[id].deleted = true
}

func (m *melon) all() map[string]row {
	out := map[string]row{}
	for id, r := range m.rows {
		if !r.deleted {
			out[id] = r.fields
		}
	}
	return out
}

// docs is a client like RxDB's replicateRxCollection().
type docs struct {
	phone
	rows       map[string]*localDoc
	checkpoint string
	lost       func(do func() apptest.Response) (apptest.Response, bool)
	dies       func() bool
	resets     int
	conflicts  int
}

type localDoc struct {
	now, master row // master is nil for a document that was never pushed or pulled
	before      row // what was pulled before now
	dirty       bool
}

func (f *fixture) docs(user *core.Record, token, device string) *docs {
	return &docs{
		phone: f.phone(user, token, device), rows: map[string]*localDoc{}, dies: func() bool { return false },
		lost: func(do func() apptest.Response) (apptest.Response, bool) { return do(), true },
	}
}

const docsPage = 4

type rxPulled struct {
	Documents  []row
	Checkpoint struct{ C string }
}

func (d *docs) pull() bool {
	d.t.Helper()
	for {
		path := "rxdb/notes?limit=" + strconv.Itoa(docsPage)
		if d.checkpoint != "" {
			path += "&checkpoint=" + url.QueryEscape(`{"c":"`+d.checkpoint+`"}`)
		}
		resp, ok := d.lost(func() apptest.Response { return d.call(d.phone, http.MethodGet, path, nil) })
		if !ok {
			return false
		}
		if resp.Status == http.StatusGone {
			d.resets++
			d.rows, d.checkpoint = map[string]*localDoc{}, ""
			continue
		}
		got := into[rxPulled](d.t, resp)
		for _, in := range got.Documents {
			d.take(in)
		}
		if d.checkpoint != "" && d.dies() {
			return false
		}
		if len(got.Documents) > 0 {
			d.checkpoint = got.Checkpoint.C
		}
		if len(got.Documents) < docsPage {
			return true
		}
	}
}

func isGone(doc row) bool { return doc["_deleted"] == true }

func (d *docs) take(in row) {
	id, _ := in["id"].(string)
	switch r := d.rows[id]; {
	case r == nil && isGone(in):
	case r == nil:
		d.rows[id] = &localDoc{now: in, master: in}
	case !r.dirty && isGone(in):
		delete(d.rows, id)
	case !r.dirty:
		r.before, r.now, r.master = r.now, in, in
	}
}

// haunt makes the client push an older state that it has pulled, against its newer base, as RxDB does now and then.
func (d *docs) haunt(id string) {
	if r := d.rows[id]; r != nil && r.before != nil && !r.dirty {
		r.now, r.dirty = r.before, true
	}
}

func (d *docs) push() bool {
	d.t.Helper()
	var dirty []string
	for _, id := range slices.Sorted(maps.Keys(d.rows)) {
		if d.rows[id].dirty {
			dirty = append(dirty, id)
		}
	}
	for batch := range slices.Chunk(dirty, docsPage) {
		rows := make([]map[string]any, len(batch))
		for i, id := range batch {
			rows[i] = map[string]any{"newDocumentState": d.rows[id].now}
			if d.rows[id].master != nil {
				rows[i]["assumedMasterState"] = d.rows[id].master
			}
		}
		raw, err := json.Marshal(rows)
		if err != nil {
			d.t.Fatal(err)
		}
		resp, ok := d.lost(func() apptest.Response { return d.call(d.phone, http.MethodPost, "rxdb/notes", raw) })
		if !ok || resp.Status == http.StatusServiceUnavailable {
			return false
		}
		for _, id := range batch {
			r := d.rows[id]
			if r.dirty, r.master = false, r.now; isGone(r.now) {
				delete(d.rows, id)
			}
		}
		for _, c := range into[[]row](d.t, resp) { // the default handler: the server's state wins
			d.conflicts++
			id, _ := c["id"].(string)
			delete(d.rows, id)
			d.take(c)
		}
	}
	return true
}

func (d *docs) sync() bool { d.t.Helper(); return d.pull() && d.push() }

func (d *docs) create(id string, fields row) {
	fields["id"], fields["_deleted"] = id, false
	d.rows[id] = &localDoc{now: fields, dirty: true}
}

func (d *docs) set(id, name string, value any) {
	r := d.rows[id]
	r.now = maps.Clone(r.now)
	r.now[name], r.dirty = value, true
}

func (d *docs) remove(id string) { d.set(id, "_deleted", true) }

func (d *docs) all() map[string]row {
	out := map[string]row{}
	for id, r := range d.rows {
		if !isGone(r.now) {
			out[id] = r.now
		}
	}
	return out
}
