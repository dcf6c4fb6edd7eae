// Package ownership says which records belong to an account, and what becomes of them when it is deleted: by what the
// schema says, and by what the app says instead. It reads collections and ids, and changes nothing.
package ownership

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// Map says, by the name of a collection, what of it belongs to an account. What it does not name is derived from the
// schema, see [Rule].
type Map map[string]Rule

// Rule says which records of a collection belong to an account and what becomes of them. Without Owner and Filter they are
// those whose relation to the account is required or deletes with it; of a relation that is neither, nothing belongs to the
// account unless the collection has a rule.
type Rule struct {
	// Owner is the way from a record to the account over relations: "owner", "note.owner".
	Owner string

	// Filter selects the records instead, in PocketBase's filter language; {:account} is the id of the account.
	Filter string

	// Private records are not exported; Hidden exports fields that clients do not see, too.
	Private, Hidden bool

	Delete Deletion
}

// Deletion is what becomes of a record when its account is deleted.
type Deletion int

const (
	// Erase deletes the record, and with it what its relations delete.
	Erase Deletion = iota
	// Blank keeps the record and empties its relations to the account.
	Blank
)

// placeholder is the id of the account in filters.
const placeholder = "{:account}"

// Set is the records of a collection that belong to an account.
type Set struct {
	Collection *core.Collection
	Export     bool // the records are part of an export
	Hidden     bool // and so are their hidden fields
	Erase      bool // they are deleted for themselves; others are deleted with what they belong to, or kept

	field  *core.RelationField // the relation to the account, when that alone decides
	paths  []string            // ways to the account, any of which decides
	filter string              // what decides instead
	note   string              // for people
}

// Reference is a relation from one collection to another.
type Reference struct {
	Collection *core.Collection
	Field      *core.RelationField
	Erase      bool // a record is deleted when all that it refers to is; otherwise the relation is emptied
}

// Plan is what the export and the deletion of accounts of a collection do.
type Plan struct {
	Accounts *core.Collection
	Sets     []*Set      // in the order of names
	Direct   []Reference // relations to the account

	undecided []string // for people
}

// New derives the plan for accounts of the collection. An error is a mistake in the map.
func New(app core.App, accounts *core.Collection, rules Map) (*Plan, error) {
	all, err := app.FindAllCollections()
	if err != nil {
		return nil, fmt.Errorf("find collections: %w", err)
	}
	all = slices.DeleteFunc(all, func(c *core.Collection) bool { return c.IsView() || c.System })
	slices.SortFunc(all, func(a, b *core.Collection) int { return cmp.Compare(a.Name, b.Name) })
	b := &planner{plan: &Plan{Accounts: accounts}, rules: rules, byID: map[string]*core.Collection{}, sets: map[string]*Set{}}
	for _, c := range all {
		b.byID[c.Id] = c
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		if !slices.ContainsFunc(all, func(c *core.Collection) bool { return c.Name == name }) {
			return nil, fmt.Errorf("the map of accounts names the collection %s, which does not exist", name)
		}
	}
	for _, c := range all {
		if err := b.directly(c); err != nil {
			return nil, err
		}
	}
	b.transitively(all)
	for _, name := range slices.Sorted(maps.Keys(b.sets)) {
		b.plan.Sets = append(b.plan.Sets, b.sets[name])
	}
	return b.plan, nil
}

type planner struct {
	plan  *Plan
	rules Map
	byID  map[string]*core.Collection
	sets  map[string]*Set // by the name of their collection
}

// relations are the relation fields of a collection.
func relations(c *core.Collection) []*core.RelationField {
	var out []*core.RelationField
	for _, f := range c.Fields {
		if r, ok := f.(*core.RelationField); ok {
			out = append(out, r)
		}
	}
	return out
}

// directly decides on a collection by its rule and by its own relations to the account.
func (b *planner) directly(c *core.Collection) error {
	rule, ruled := b.rules[c.Name]
	s := &Set{Collection: c, Export: !rule.Private, Hidden: rule.Hidden, Erase: rule.Delete == Erase}
	var owners []*core.RelationField
	for _, f := range relations(c) {
		if f.CollectionId != b.plan.Accounts.Id {
			continue
		}
		bound := f.Required || f.CascadeDelete
		blank := ruled && rule.Delete == Blank
		b.plan.Direct = append(b.plan.Direct, Reference{c, f, !blank && (bound || rule.Owner == f.Name)})
		if bound || ruled {
			owners = append(owners, f)
		}
		if !bound && !ruled && c.Id != b.plan.Accounts.Id {
			b.plan.undecided = append(b.plan.undecided, c.Name+"."+f.Name)
		}
	}
	switch {
	case rule.Filter != "" && rule.Owner != "":
		return fmt.Errorf("the map of accounts gives both an owner and a filter for %s", c.Name)
	case rule.Filter != "":
		if !strings.Contains(rule.Filter, placeholder) {
			return fmt.Errorf("the filter for %s in the map of accounts lacks %s", c.Name, placeholder)
		}
		s.filter, s.note = rule.Filter, rule.Filter
		b.sets[c.Name] = s
	case rule.Owner != "":
		leads, err := b.leads(c, rule.Owner)
		if err != nil || !leads {
			return err
		}
		s.paths = []string{rule.Owner}
		if i := slices.IndexFunc(owners, func(f *core.RelationField) bool { return f.Name == rule.Owner }); i >= 0 {
			s.field = owners[i]
			s.Erase = s.Erase && !s.field.IsMultiple()
		}
		b.sets[c.Name] = s
	case len(owners) > 0 && c.Id != b.plan.Accounts.Id: // accounts do not belong to accounts
		for _, f := range owners {
			s.paths = append(s.paths, f.Name)
			s.Erase = s.Erase && !f.IsMultiple() // what is shared is left to those who remain
		}
		if len(owners) == 1 {
			s.field = owners[0]
		} else {
			s.Erase = false // each relation decides for itself
		}
		b.sets[c.Name] = s
	}
	if s.note == "" {
		s.note = strings.Join(s.paths, ", ")
	}
	return nil
}

// leads reports whether a way over relations ends at accounts of the plan's collection. It may end at those of another.
func (b *planner) leads(c *core.Collection, path string) (bool, error) {
	for name := range strings.SplitSeq(path, ".") {
		f, ok := c.Fields.GetByName(name).(*core.RelationField)
		if !ok {
			return false, fmt.Errorf("the map of accounts goes over %s.%s, which is no relation", c.Name, name)
		}
		if f.CollectionId == b.plan.Accounts.Id {
			c = b.plan.Accounts
			continue
		}
		if c = b.byID[f.CollectionId]; c == nil {
			return false, nil
		}
	}
	if !c.IsAuth() {
		return false, fmt.Errorf("the way %s in the map of accounts ends at %s, which holds no accounts", path, c.Name)
	}
	return c.Id == b.plan.Accounts.Id, nil
}

// transitively adds the collections without accounts of their own whose records are deleted with those of a set: the
// attachments of a note belong to the owner of the note. A comment that names its author does not.
func (b *planner) transitively(all []*core.Collection) {
	for changed := true; changed; {
		changed = false
		for _, c := range all {
			if _, ruled := b.rules[c.Name]; ruled || b.sets[c.Name] != nil || c.IsAuth() || b.namesAccount(c) {
				continue
			}
			if s := b.following(c); s != nil {
				b.sets[c.Name] = s
				changed = true
			}
		}
	}
	for _, c := range all { // what follows a set by a filter cannot be selected
		if b.sets[c.Name] != nil {
			continue
		}
		for _, f := range relations(c) {
			target := b.byID[f.CollectionId]
			if target != nil && f.CascadeDelete && b.sets[target.Name] != nil && b.sets[target.Name].filter != "" && !b.namesAccount(c) {
				b.plan.undecided = append(b.plan.undecided, c.Name+"."+f.Name)
			}
		}
	}
}

func (b *planner) namesAccount(c *core.Collection) bool {
	return slices.ContainsFunc(relations(c), func(f *core.RelationField) bool {
		target := b.byID[f.CollectionId]
		return f.CollectionId == b.plan.Accounts.Id || target == nil || target.IsAuth()
	})
}

func (b *planner) following(c *core.Collection) *Set {
	var s *Set
	for _, f := range relations(c) {
		target := b.byID[f.CollectionId]
		if target == nil || !f.CascadeDelete || f.CollectionId == c.Id || b.sets[target.Name] == nil {
			continue
		}
		for _, path := range b.sets[target.Name].paths {
			if s == nil {
				s = &Set{Collection: c, Export: b.sets[target.Name].Export}
			}
			s.paths = append(s.paths, f.Name+"."+path)
		}
	}
	if s != nil {
		s.note = strings.Join(s.paths, ", ")
	}
	return s
}

// condition is what selects the records of the set, in the filter language.
func (s *Set) condition() string {
	if s.filter != "" {
		return s.filter
	}
	parts := make([]string, len(s.paths))
	for i, p := range s.paths {
		parts[i] = p + " ?= " + placeholder
	}
	return strings.Join(parts, " || ")
}

// FarFirst are the sets to delete by themselves, in an order in which none is needed to find a later one: what is found
// over other collections first. All others are deleted with what they belong to, or kept.
func (p *Plan) FarFirst() []*Set {
	var out []*Set
	for _, s := range p.Sets {
		if s.Erase {
			out = append(out, s)
		}
	}
	far := func(s *Set) int {
		if s.filter != "" {
			return math.MaxInt
		}
		n := 0
		for _, path := range s.paths {
			n = max(n, strings.Count(path, "."))
		}
		return n
	}
	slices.SortStableFunc(out, func(a, b *Set) int { return cmp.Compare(far(b), far(a)) })
	return out
}

// References are the relations that lead to a collection. Those to the accounts themselves are the plan's business.
func (p *Plan) References(app core.App, c *core.Collection) ([]Reference, error) {
	if c.Id == p.Accounts.Id {
		return p.Direct, nil
	}
	found, err := app.FindCachedCollectionReferences(c)
	if err != nil {
		return nil, fmt.Errorf("find relations to %s: %w", c.Name, err)
	}
	var out []Reference
	for from, fields := range found {
		for _, f := range fields {
			if r, ok := f.(*core.RelationField); ok && !from.IsView() {
				out = append(out, Reference{from, r, r.CascadeDelete})
			}
		}
	}
	slices.SortFunc(out, func(a, b Reference) int {
		return cmp.Or(cmp.Compare(a.Collection.Name, b.Collection.Name), cmp.Compare(a.Field.Name, b.Field.Name))
	})
	return out, nil
}
