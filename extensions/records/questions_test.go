package records

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

func operators() []string {
	return []string{"=", "!=", ">", ">=", "<", "<=", "~", "!~", "?=", "?!=", "?>", "?>=", "?<", "?<=", "?~", "?!~"}
}

// condition is a piece of a rule or a filter, with the classes it belongs to.
type condition struct {
	text    string
	classes map[string]bool
}

func joined(op string, list ...condition) condition {
	out := condition{classes: map[string]bool{}}
	var texts []string
	for _, c := range list {
		texts = append(texts, c.text)
		for name := range c.classes {
			out.classes[name] = true
		}
	}
	out.text = "(" + strings.Join(texts, op) + ")"
	return out
}

func (w *world) rule(collectionName string) string {
	c := w.cached(collectionName)
	if c.ListRule == nil {
		return "nil"
	}
	return *c.ListRule
}

// cached is a collection that nobody will change.
func (w *world) cached(name string) *core.Collection {
	c, err := w.app.FindCachedCollectionByNameOrId(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// newRules gives every third collection a new rule, the same for its list and its view; every one that has none yet.
func (w *world) newRules() {
	if w.rules == nil {
		w.rules = map[string]map[string]bool{}
	}
	for _, name := range w.collections {
		for w.rules[name] == nil || w.chance(33) {
			c := collection(w.t, w.app, name)
			rule := w.newRule(c)
			c.ListRule, c.ViewRule = new(rule.text), new(rule.text)
			if w.chance(3) {
				c.ListRule, c.ViewRule, rule.classes = nil, nil, map[string]bool{}
			}
			// PocketBase refuses rules that go wrong, such as a modifier on a field that lacks it.
			if err := w.app.Save(c); err == nil {
				w.rules[name] = rule.classes
				break
			}
		}
	}
}

// newRule lets different viewers see different rows, most of the time.
func (w *world) newRule(c *core.Collection) condition {
	personal := w.personal()
	switch w.random.IntN(4) {
	case 0:
		return personal
	case 1:
		return joined(" && ", personal, w.atom(c, true))
	case 2:
		return joined(" || ", personal, joined(" && ", w.atom(c, true), w.atom(c, true)))
	}
	return joined(" || ", personal, w.request())
}

// personal is a condition about who asks.
func (w *world) personal() condition {
	any2 := pick(w.random, []string{"=", "?="})
	text := pick(w.random, []string{
		"owner = @request.auth.id", "owner = @request.auth.id", "owner != @request.auth.id && @request.auth.id != ''", "@request.auth.id " + any2 + " owner",
		"members ?= @request.auth.id", "members.id " + any2 + " @request.auth.id", "members " + pick(w.random, []string{"~", "?~", "!~", "?!~"}) + " @request.auth.id",
		"owner.level < @request.auth.level", "members.level ?>= @request.auth.level", "@request.auth.friends.id ?= owner",
		"@request.auth.colors:each ?= 'green' && members:length > 0", "@request.auth.colors:length > 0", "owner.name:lower = @request.auth.name",
		"@request.auth.verified = true && owner = @request.auth.id", "@request.auth.email ~ 'ann' || owner = @request.auth.id",
		"@request.auth.emailVisibility = true || owner = @request.auth.id", "@collection.users.id ?= @request.auth.id && owner = @request.auth.id",
		"@collection.users:x.friends.id ?= owner && @collection.users:x.id ?= @request.auth.id && owner = @request.auth.id", "@request.auth.collectionName = 'users' && members ?= @request.auth.id",
	})
	return w.classified(text)
}

// request is a condition about the request.
func (w *world) request() condition {
	return w.classified(pick(w.random, []string{
		"@request.query.page:isset = true", "@request.headers.x_color = 'red' && owner = @request.auth.id", "@request.headers.x_color = 'blue'", "@request.method = 'POST'", "@request.context = 'expand'",
		"@request.body.owner:isset = true", "@request.body.owner:changed = true", "@request.body.owner:changed = false && owner = @request.auth.id",
		"@request.body.x:isset = false && members ?= @request.auth.id", "@request.query.none = owner", "@now < '2000-01-01 00:00:00.000Z'", "@todayStart > '2000'  && owner = @request.auth.id",
	}))
}

// classified finds the classes of a text by looking at it.
func (w *world) classified(text string) condition {
	c := condition{text: text, classes: map[string]bool{}}
	for word := range strings.FieldsSeq(text) {
		if slices.Contains(operators(), word) {
			c.classes["operator "+word] = true
		}
		if strings.Contains(word, "_via_") {
			c.classes["back-relation"] = true
		}
		for _, multi := range []string{"members", "others", "friends"} {
			if strings.Contains(word, multi) {
				c.classes["multi-relation"] = true
			}
		}
		if _, modifier, ok := strings.Cut(word, ":"); ok {
			c.classes["modifier "+strings.Split(modifier, ".")[0]] = true
		}
	}
	return c
}

// atom compares something of the collection with a constant or with something else of it. Hidden fields are for rules.
func (w *world) atom(c *core.Collection, rule bool) condition {
	left := w.operand(c, rule, 2)
	right := pick(w.random, []string{"''", "'a'", "'b'", "1", "0", "2", "true", "false", "null", "'2024-01-02'", "'%a%'", "1.5", "'" + pick(w.random, w.users) + "'"})
	if w.chance(15) {
		right = w.operand(c, rule, 1)
	}
	return w.classified(left + " " + pick(w.random, operators()) + " " + right)
}

// operand is a path of at most so many relations.
func (w *world) operand(c *core.Collection, rule bool, depth int) string {
	var names []string
	for _, f := range c.Fields {
		if f.Type() == core.FieldTypePassword || (f.GetHidden() && !rule) {
			continue
		}
		names = append(names, f.GetName())
	}
	name := pick(w.random, names)
	if w.chance(25) {
		if via := w.back(c); via != nil {
			return via.name + "." + w.operand(via.to, rule, depth-1)
		}
	}
	field := c.Fields.GetByName(name)
	switch f := field.(type) {
	case *core.RelationField:
		if to, err := w.app.FindCachedCollectionByNameOrId(f.CollectionId); err == nil && depth > 0 && w.chance(60) {
			return name + "." + w.operand(to, rule, depth-1)
		}
	case *core.JSONField:
		return name + pick(w.random, []string{"", ".a", ".b.c", ".0"})
	case *core.GeoPointField:
		return name + pick(w.random, []string{".lon", ".lat"})
	}
	if multi, ok := field.(core.MultiValuer); ok && multi.IsMultiple() {
		return name + pick(w.random, []string{"", ":each", ":length", ":each"})
	}
	if field.Type() == core.FieldTypeText || field.Type() == core.FieldTypeSelect {
		return name + pick(w.random, []string{"", ":lower"})
	}
	return name
}

// step is one relation, forth or back.
type step struct {
	name string
	to   *core.Collection
}

// back is a relation of another collection that points here.
func (w *world) back(c *core.Collection) *step {
	var list []step
	for _, name := range w.collections {
		other := w.cached(name)
		for _, f := range other.Fields {
			if r, ok := f.(*core.RelationField); ok && r.CollectionId == c.Id && !other.IsView() {
				list = append(list, step{name + "_via_" + f.GetName(), other})
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	return &list[w.random.IntN(len(list))]
}

// question makes up what to ask.
func (w *world) question() question {
	name := pick(w.random, w.collections)
	c := w.cached(name)
	q := question{collection: name, classes: map[string]bool{"list": true}}
	if w.chance(25) {
		delete(q.classes, "list")
		q.classes["view"] = true
		q.id = pick(w.random, w.ids(name))
	} else {
		w.listParameters(c, &q)
	}
	if w.chance(35) {
		w.expand(c, &q)
	}
	if w.chance(25) {
		q.classes["fields"] = true
		q.query = append(q.query, "fields", w.fields(c))
	}
	for name := range w.rules[name] {
		q.classes[name] = true
	}
	switch {
	case c.IsView():
		q.classes["view collection"] = true
	case c.IsAuth():
		q.classes["auth collection"] = true
	}
	for _, f := range c.Fields {
		kind := "field " + f.Type()
		if multi, ok := f.(core.MultiValuer); ok && multi.IsMultiple() {
			kind += " many"
		}
		q.classes[kind] = true
		if f.GetHidden() {
			q.classes["hidden field"] = true
		}
	}
	return q
}

func (w *world) listParameters(c *core.Collection, q *question) {
	sort := pick(w.random, []string{"id", "-id"})
	if !c.IsView() && w.chance(50) {
		column := pick(w.random, []string{"Title", "n", "done", "owner", "due"})
		if f := c.Fields.GetByName(column); f != nil && !f.GetHidden() {
			sort = pick(w.random, []string{column + ",id", "-" + column + ",-id"})
		}
	}
	q.query = append(q.query, "sort", sort)
	if w.chance(40) {
		filter := w.atom(c, false)
		if w.chance(30) {
			filter = joined(pick(w.random, []string{" && ", " || "}), filter, w.atom(c, false))
		}
		q.query = append(q.query, "filter", filter.text)
		for name := range filter.classes {
			q.classes[name] = true
		}
	}
	if w.chance(20) {
		q.classes["total"] = true
	}
	if w.chance(50) {
		q.query = append(q.query, "page", "1") // rules may ask for it
	}
}

// expand follows up to three relations, on one or two paths.
func (w *world) expand(c *core.Collection, q *question) {
	var paths []string
	for range 1 + w.random.IntN(2) {
		var steps []string
		at, want := c, 1+w.random.IntN(3)
		for len(steps) < want {
			next := w.step(at)
			if next == nil {
				break
			}
			steps, at = append(steps, next.name), next.to
		}
		if len(steps) > 0 {
			q.classes[fmt.Sprintf("expand %d", len(steps))] = true
			paths = append(paths, strings.Join(steps, "."))
		}
	}
	if len(paths) > 0 {
		q.query = append(q.query, "expand", strings.Join(paths, ","))
	}
}

func (w *world) step(c *core.Collection) *step {
	if w.chance(30) {
		if via := w.back(c); via != nil {
			return via
		}
	}
	var list []step
	for _, f := range c.Fields {
		if r, ok := f.(*core.RelationField); ok {
			if to, err := w.app.FindCachedCollectionByNameOrId(r.CollectionId); err == nil {
				list = append(list, step{f.GetName(), to})
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	return &list[w.random.IntN(len(list))]
}

func (w *world) fields(c *core.Collection) string {
	var names []string
	for range 1 + w.random.IntN(4) {
		names = append(names, pick(w.random, c.Fields.FieldNames()))
	}
	names = append(names, pick(w.random, []string{
		"id", "*", "collectionName", "collectionId,id", "expand", "expand.owner.id", "meta.a", "meta.b.c", "body:excerpt(5)", "Title:excerpt(2,true)", "nothing",
		"n:excerpt(1)", "id, email", "place.lon", "*,body:excerpt(3,true)", "tags:excerpt(1)", "", "expand.*.id", "expand.parent",
	}))
	return strings.Join(names, ",")
}
