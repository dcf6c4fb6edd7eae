package authcache

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// fixture is an application with the cache and a route that says who asks.
type fixture struct {
	*apptest.App
	cache *Cache

	// handle, if set, runs in the route before it answers.
	handle func(e *core.RequestEvent) error

	// verified, if set, runs between the verification of a token and its way into the cache.
	verified func()
}

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	f := &fixture{}
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.cache = NewCache(cfg, db.TableVersion, func(e *core.RequestEvent, token string, watch func(table string)) (Verified, error) {
		v, err := Stock(e, token, watch)
		if err != nil {
			return v, err
		}
		if f.verified != nil {
			f.verified()
		}
		v.Key = v.Record.Id
		return v, nil
	})
	who := extensions.Extension{Name: "who", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.GET("", func(e *core.RequestEvent) error {
			if e.Auth == nil {
				return e.NoContent(http.StatusNoContent)
			}
			// The answer is made before the handler of the test gets its hands on the record.
			data := e.Auth.FieldsData()
			data["export"] = e.Auth.PublicExport()
			out, err := json.Marshal(data)
			if err != nil {
				return err
			}
			if f.handle != nil {
				if err := f.handle(e); err != nil {
					return err
				}
			}
			return api.Write(e, http.StatusOK, json.RawMessage(out))
		})
	}}
	f.App = apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), New(cfg, f.cache), who)
	return f
}

// found is find without HTTP.
func (c *Cache) found(app core.App, token string) (*core.Record, error) {
	e := &core.RequestEvent{App: app}
	err := c.find(e, token)
	return e.Auth, err
}

// who asks the route and returns the fields of the user, nil for a guest.
func (f *fixture) who(t testing.TB, token string) map[string]any {
	t.Helper()
	r := f.Do(t, apptest.Request{Path: "/api/v1/who", Token: token})
	switch r.Status {
	case http.StatusNoContent:
		return nil
	case http.StatusOK:
		data, _ := r.JSON(t)["data"].(map[string]any)
		return data
	}
	t.Fatalf("status %d: %s", r.Status, r.Body)
	return nil
}

// remembered makes sure that the token is in the cache and used from there.
func (f *fixture) remembered(t testing.TB, token string) {
	t.Helper()
	f.who(t, token)
	before := f.cache.hits.Load()
	if f.who(t, token) == nil || f.cache.hits.Load() != before+1 {
		t.Fatal("the token is not remembered")
	}
}

// exec runs SQL beside PocketBase's records and hooks.
func (f *fixture) exec(t testing.TB, query string) {
	t.Helper()
	if _, err := f.NonconcurrentDB().NewQuery(query).Execute(); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) save(t testing.TB, m core.Model) {
	t.Helper()
	if err := f.Save(m); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) users(t testing.TB) *core.Collection {
	t.Helper()
	c, err := f.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fresh reads the record again.
func (f *fixture) fresh(t testing.TB, r *core.Record) *core.Record {
	t.Helper()
	r, err := f.FindRecordById(r.Collection().Id, r.Id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// addFields gives users a field of every type that has values which can change in place, and some that have not.
func (f *fixture) addFields(t testing.TB) {
	t.Helper()
	users := f.users(t)
	users.Fields.Add(
		&core.SelectField{Name: "tags", Values: []string{"a", "b", "c"}, MaxSelect: 3},
		&core.JSONField{Name: "notes"}, &core.GeoPointField{Name: "home"}, &core.DateField{Name: "born"},
		&core.NumberField{Name: "points"}, &core.RelationField{Name: "friends", CollectionId: users.Id, MaxSelect: 5},
		&core.BoolField{Name: "paid"}, &core.TextField{Name: "plan"}, &core.FileField{Name: "scans", MaxSelect: 4},
	)
	f.save(t, users)
}

func (f *fixture) richUser(t testing.TB) (*core.Record, string) {
	t.Helper()
	f.addFields(t)
	friend, _ := f.User(t, "ben@example.test")
	user, _ := f.User(t, "ann@example.test")
	user.Set("tags", []string{"c", "a"})
	user.Set("notes", map[string]any{"k": []int{1, 2}})
	user.Set("home", types.GeoPoint{Lat: 1.5, Lon: -2})
	user.Set("born", "2001-02-03 04:05:06.789Z")
	user.Set("points", 12.5)
	user.Set("friends", []string{friend.Id})
	user.Set("paid", true)
	user.Set("plan", "pro")
	f.save(t, user)
	token, err := user.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	return user, token
}
