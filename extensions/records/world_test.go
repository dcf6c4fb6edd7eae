package records

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// addressHeader names the client's address in the differential test.
const addressHeader = "X-Test-Address"

// Size of the random world.
const (
	worldCollections = 24
	worldRecords     = 14
)

func fieldTypes() []string {
	return []string{
		core.FieldTypeText, core.FieldTypeEditor, core.FieldTypeEmail, core.FieldTypeURL, core.FieldTypeNumber, core.FieldTypeBool,
		core.FieldTypeDate, core.FieldTypeAutodate, core.FieldTypeSelect, core.FieldTypeRelation, core.FieldTypeFile, core.FieldTypeJSON,
		core.FieldTypeGeoPoint, core.FieldTypePassword, "select many", "relation many", "file many",
	}
}

// viewer is somebody who asks.
type viewer struct{ name, kind, token, color string }

// world is an application with random collections, and the questions about them.
type world struct {
	t           testing.TB
	app         *apptest.App
	client      *http.Client
	random      *rand.Rand
	requests    int
	viewers     []viewer
	users       []string
	collections []string
	rules       map[string]map[string]bool // the classes of each collection's rule
}

func newWorld(t testing.TB, seed uint64) *world {
	t.Helper()
	w := &world{
		t: t, client: &http.Client{Transport: &http.Transport{}}, random: rand.New(rand.NewPCG(seed, 0)),
		app: apptest.New(t, api.New(settings.Defaults[api.Config]()), New(settings.Defaults[Config](), nil)),
	}
	w.app.Settings().TrustedProxy.Headers = []string{addressHeader}
	w.app.Settings().Logs.MaxDays = 0
	users := collection(t, w.app, "users")
	users.Fields.Add(
		&core.NumberField{Name: "level"}, &core.SelectField{Name: "colors", Values: []string{"red", "green", "blue"}, MaxSelect: 3},
		&core.RelationField{Name: "friends", CollectionId: users.Id, MaxSelect: 9},
	)
	save(t, w.app, users)
	for i, name := range []string{"ann", "bob", "cat"} {
		r, token := w.app.User(t, name+"@example.test")
		w.users = append(w.users, r.Id)
		r.Load(map[string]any{"name": name, "level": i, "colors": []string{"red", "green", "blue"}[:i], "friends": w.users, "emailVisibility": i == 1})
		save(t, w.app, r)
		w.viewers = append(w.viewers, viewer{name: name, kind: "user", token: token})
	}
	_, root := w.app.Superuser(t)
	w.viewers = append(w.viewers, viewer{name: "root", kind: "superuser", token: root}, viewer{name: "guest", kind: "guest"})
	for i := range worldCollections {
		w.addCollection(i)
	}
	for i := range 3 {
		w.addView(i)
	}
	return w
}

// twoViewers are most often two users.
func (w *world) twoViewers() [2]viewer {
	a := w.random.IntN(3)
	b := (a + 1 + w.random.IntN(2)) % 3
	if w.random.IntN(3) == 0 {
		b = 3 + w.random.IntN(2)
	}
	pair := [2]viewer{w.viewers[a], w.viewers[b]}
	for i := range pair {
		pair[i].color = pick(w.random, []string{"red", "blue"})
	}
	return pair
}

func pick[T any](random *rand.Rand, items []T) T { return items[random.IntN(len(items))] }

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

// addCollection makes a collection with most types of fields, and records in it.
func (w *world) addCollection(i int) {
	name := fmt.Sprintf("c%d", i)
	c := core.NewBaseCollection(name)
	if i%4 == 3 {
		c = core.NewAuthCollection(name)
		if w.chance(50) {
			c.ManageRule = new("@request.auth.level > 0 && owner = @request.auth.id")
		}
	}
	c.Fields.Add(
		&core.RelationField{Name: "owner", CollectionId: collection(w.t, w.app, "users").Id, MaxSelect: 1},
		&core.RelationField{Name: "members", CollectionId: collection(w.t, w.app, "users").Id, MaxSelect: 5},
	)
	if i > 0 {
		to := func() string { return collection(w.t, w.app, pick(w.random, w.collections)).Id }
		c.Fields.Add(
			&core.RelationField{Name: "parent", CollectionId: to(), MaxSelect: 1}, &core.RelationField{Name: "others", CollectionId: to(), MaxSelect: 4},
		)
	}
	values := []string{"a", "b", "ç", "d\"e"}
	optional := []core.Field{
		&core.TextField{Name: "Title"}, &core.TextField{Name: "zz_9"}, &core.EditorField{Name: "body"}, &core.EmailField{Name: "mail"}, &core.URLField{Name: "link"},
		&core.NumberField{Name: "n"}, &core.NumberField{Name: "m2"}, &core.BoolField{Name: "done"}, &core.DateField{Name: "due"},
		&core.AutodateField{Name: "created", OnCreate: true}, &core.SelectField{Name: "kind", Values: values, MaxSelect: 1},
		&core.SelectField{Name: "tags", Values: values, MaxSelect: 4}, &core.FileField{Name: "doc", MaxSelect: 1}, &core.FileField{Name: "docs", MaxSelect: 3},
		&core.JSONField{Name: "meta"}, &core.GeoPointField{Name: "place"}, &core.PasswordField{Name: "pin"},
	}
	for _, f := range optional {
		if w.chance(85) {
			f.SetHidden(w.chance(12))
			c.Fields.Add(f)
		}
	}
	for _, column := range []string{"Title", "n", "done", "owner", "due"} {
		if c.Fields.GetByName(column) != nil {
			c.AddIndex("idx_"+name+"_"+column, false, "`"+column+"`, id", "")
		}
	}
	save(w.t, w.app, c)
	w.collections = append(w.collections, name)
	for range worldRecords {
		w.addRecord(c)
	}
}

func (w *world) addView(i int) {
	from := collection(w.t, w.app, pick(w.random, w.collections[:worldCollections]))
	columns := []string{"id", "owner", "members"}
	for _, f := range from.Fields {
		if !slices.Contains(columns, f.GetName()) && f.Type() != core.FieldTypePassword && w.chance(70) && !f.GetSystem() {
			columns = append(columns, f.GetName())
		}
	}
	c := core.NewViewCollection(fmt.Sprintf("v%d", i))
	c.ViewQuery = "SELECT " + strings.Join(columns, ", ") + ", lower(id) AS low, CAST(length(id) AS int) AS size, CAST(id AS text) AS same FROM " + from.Name
	save(w.t, w.app, c)
	w.collections = append(w.collections, c.Name)
}

func (w *world) ids(table string) []string {
	var ids []string
	if err := w.app.DB().Select("id").From(table).OrderBy("id").Limit(100).Column(&ids); err != nil {
		w.t.Fatal(err)
	}
	return append(ids, "nobodynobody000")
}

// addRecord writes a row past PocketBase's checks, with values that come from elsewhere and long ago.
func (w *world) addRecord(c *core.Collection) {
	row := dbx.Params{}
	for _, f := range c.Fields {
		name := f.GetName()
		switch {
		case name == "id":
			row[name] = fmt.Sprintf("%s%013d", "id", w.random.Uint64N(1e13))
		case name == "tokenKey":
			row[name] = fmt.Sprint(w.random.Uint64())
		case name == "email" && c.IsAuth():
			row[name] = fmt.Sprintf("m%d@example.test", w.random.Uint64())
		case name == "owner":
			row[name] = pick(w.random, append(w.users, ""))
		case name == "members":
			row[name] = listOf(w.random, w.users)
		default:
			if value, ok := w.value(f); ok {
				row[name] = dbx.NewExp(value)
			}
		}
	}
	if c.IsAuth() && w.chance(10) {
		row["id"] = pick(w.random, w.users) // an account of another collection with the id of a viewer
	}
	if _, err := w.app.NonconcurrentDB().Insert(c.Name, row).Execute(); err != nil && !strings.Contains(err.Error(), "UNIQUE") {
		w.t.Fatal(err)
	}
}

func listOf(random *rand.Rand, items []string) string {
	var out []string
	for _, item := range items {
		if random.IntN(2) == 0 {
			out = append(out, `"`+item+`"`)
		}
	}
	return "[" + strings.Join(out, ",") + "]"
}

// value is a SQL literal for the field; false leaves the default.
func (w *world) value(f core.Field) (string, bool) {
	quoted := func(list ...string) (string, bool) {
		return "'" + strings.ReplaceAll(pick(w.random, list), "'", "''") + "'", true
	}
	raw := func(list ...string) (string, bool) { return pick(w.random, list), true }
	multi, _ := f.(core.MultiValuer)
	many := multi != nil && multi.IsMultiple()
	odd := w.chance(15)
	switch f := f.(type) {
	case *core.TextField, *core.EditorField, *core.EmailField, *core.URLField:
		if odd {
			return raw("char(0,1,31,127,8232,8233)", "cast(x'ff41fe' as text)", "char(128512) || '</script>&'", "'[\"a\"]'", "x'41'", "'\\u00e9'", "cast(x'eda080' as text)")
		}
		return quoted("", "a", "b", "ab", "A b", `q"u\o`, "é", "10", "line\nbreak\ttab", strings.Repeat("long ", 60))
	case *core.NumberField:
		if odd {
			return raw("1e21", "1e-7", "5e-324", "1.7976931348623157e308", "9007199254740993", "-9223372036854775808", "'text'", "'0x10'", "-0.0", "123456789.123456789", "x'31'")
		}
		return raw("0", "1", "2", "-1", "1.5", "0.1", "1e6", "100")
	case *core.BoolField:
		return raw("0", "1", "1", "TRUE", "FALSE", map[bool]string{true: "2", false: "0"}[odd])
	case *core.DateField, *core.AutodateField:
		if odd {
			return quoted("2024-01-02", "2024-01-02T03:04:05Z", "x", "0001-01-01 00:00:00.000Z", "2023-02-29 00:00:00.000Z", "2024-02-29 00:00:00.000Z", "2024-01-02 03:04:05.1Z", "2024-01-02 24:00:00.000Z", "1700000000")
		}
		return quoted("", "2024-01-02 03:04:05.678Z", "2030-12-31 23:59:59.999Z", "1999-01-01 00:00:00.000Z")
	case *core.SelectField, *core.FileField:
		if many && odd {
			return quoted("", "a", `["a","a",""]`, `["é","b"]`, `[1,2]`, `["a" , "b"]`, `["a]`, `["d\"e"]`, "null", "{}", `["a",null]`)
		}
		if many {
			return quoted("[]", `["a"]`, `["a","b"]`, `["b","a"]`)
		}
		if odd {
			return quoted(`["a"]`, "[]", "[", `["a","b"]`, "5")
		}
		return quoted("", "a", "b", "ç")
	case *core.RelationField:
		ids := w.ids(collection(w.t, w.app, f.CollectionId).Name)
		if many {
			return quoted("[]", `["`+pick(w.random, ids)+`"]`, `["`+pick(w.random, ids)+`","`+pick(w.random, ids)+`"]`)
		}
		return quoted("", pick(w.random, ids), pick(w.random, ids))
	case *core.JSONField:
		if odd {
			return raw("NULL", "''", "'null'", "'{\"b\": 1,\"a\":[1, 2 ]}'", "'12345678901234567890'", "'1.50'", "'plain text'", "'{\"a\":1,\"a\":2}'", "'[1,2'",
				"'\"\\u00e9\\u2028\\/\"'", "' {\"a\":1}'", "cast(x'22ff22' as text)", "1e21", "'TRUE'", "'\"'")
		}
		return quoted(`{"a":1}`, `{"a":2,"b":{"c":"x"}}`, `[1,2,3]`, `"text"`, "1", "true", "{}")
	case *core.GeoPointField:
		if odd {
			return quoted(`{"lat":1.5,"lon":2}`, `{"lon": 1 ,"lat": 2}`, "{}", `{"lon":1}`, `{"lon":1e2,"lat":1e-7,"x":1}`, `{"lon":01.0,"lat":2}`[0:0]+`{"lon":1.0,"lat":2}`, "null")
		}
		return quoted(`{"lon":0,"lat":0}`, `{"lon":12.5,"lat":-7}`, `{"lon":-180,"lat":90}`)
	case *core.PasswordField:
		return quoted("", "hash")
	}
	return "", false
}
