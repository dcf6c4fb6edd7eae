package account

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

// set is the records of a collection that belong to an account.
type set struct {
	collection *core.Collection
	field      *core.RelationField // the relation to the account, when that alone decides
	paths      []string            // ways to the account, any of which decides
	filter     string              // what decides instead
	export     bool
	hidden     bool
	erase      bool
	note       string // for people
}

// reference is a relation from one collection to another.
type reference struct {
	collection *core.Collection
	field      *core.RelationField
	erase      bool // a record is deleted when all that it refers to is; otherwise the relation is emptied
}

// plan is what the export and the deletion of accounts of a collection do.
type plan struct {
	accounts  *core.Collection
	sets      []*set      // in the order of names
	direct    []reference // relations to the account
	undecided []string    // for people
}

// newPlan derives the plan for accounts of the collection. An error is a mistake in the map.
func newPlan(app core.App, accounts *core.Collection, rules Map) (*plan, error) {
	all, err := app.FindAllCollections()
	if err != nil {
		return nil, fmt.Errorf("find collections: %w", err)
	}
	all = slices.DeleteFunc(all, func(c *core.Collection) bool { return c.IsView() || c.System })
	slices.SortFunc(all, func(a, b *core.Collection) int { return cmp.Compare(a.Name, b.Name) })
	b := &planner{plan: &plan{accounts: accounts}, rules: rules, byID: map[string]*core.Collection{}, sets: map[string]*set{}}
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
		b.plan.sets = append(b.plan.sets, b.sets[name])
	}
	return b.plan, nil
}

type planner struct {
	plan  *plan
	rules Map
	byID  map[string]*core.Collection
	sets  map[string]*set // by the name of their collection
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
	s := &set{collection: c, export: !rule.Private, hidden: rule.Hidden, erase: rule.Delete == Erase}
	var owners []*core.RelationField
	for _, f := range relations(c) {
		if f.CollectionId != b.plan.accounts.Id {
			continue
		}
		bound := f.Required || f.CascadeDelete
		blank := ruled && rule.Delete == Blank
		b.plan.direct = append(b.plan.direct, reference{c, f, !blank && (bound || rule.Owner == f.Name)})
		if bound || ruled {
			owners = append(owners, f)
		}
		if !bound && !ruled && c.Id != b.plan.accounts.Id {
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
			s.erase = s.erase && !s.field.IsMultiple()
		}
		b.sets[c.Name] = s
	case len(owners) > 0 && c.Id != b.plan.accounts.Id: // accounts do not belong to accounts
		for _, f := range owners {
			s.paths = append(s.paths, f.Name)
			s.erase = s.erase && !f.IsMultiple() // what is shared is left to those who remain
		}
		if len(owners) == 1 {
			s.field = owners[0]
		} else {
			s.erase = false // each relation decides for itself
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
		if f.CollectionId == b.plan.accounts.Id {
			c = b.plan.accounts
			continue
		}
		if c = b.byID[f.CollectionId]; c == nil {
			return false, nil
		}
	}
	if !c.IsAuth() {
		return false, fmt.Errorf("the way %s in the map of accounts ends at %s, which holds no accounts", path, c.Name)
	}
	return c.Id == b.plan.accounts.Id, nil
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
		return f.CollectionId == b.plan.accounts.Id || target == nil || target.IsAuth()
	})
}

func (b *planner) following(c *core.Collection) *set {
	var s *set
	for _, f := range relations(c) {
		target := b.byID[f.CollectionId]
		if target == nil || !f.CascadeDelete || f.CollectionId == c.Id || b.sets[target.Name] == nil {
			continue
		}
		for _, path := range b.sets[target.Name].paths {
			if s == nil {
				s = &set{collection: c, export: b.sets[target.Name].export}
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
func (s *set) condition() string {
	if s.filter != "" {
		return s.filter
	}
	parts := make([]string, len(s.paths))
	for i, p := range s.paths {
		parts[i] = p + " ?= " + placeholder
	}
	return strings.Join(parts, " || ")
}

// farFirst are the sets to delete by themselves, in an order in which none is needed to find a later one: what is found
// over other collections first. All others are deleted with what they belong to, or kept.
func (p *plan) farFirst() []*set {
	var out []*set
	for _, s := range p.sets {
		if s.erase {
			out = append(out, s)
		}
	}
	far := func(s *set) int {
		if s.filter != "" {
			return math.MaxInt
		}
		n := 0
		for _, path := range s.paths {
			n = max(n, strings.Count(path, "."))
		}
		return n
	}
	slices.SortStableFunc(out, func(a, b *set) int { return cmp.Compare(far(b), far(a)) })
	return out
}

// references are the relations that lead to a collection. Those to the accounts themselves are the plan's business.
func (p *plan) references(app core.App, c *core.Collection) ([]reference, error) {
	if c.Id == p.accounts.Id {
		return p.direct, nil
	}
	found, err := app.FindCachedCollectionReferences(c)
	if err != nil {
		return nil, fmt.Errorf("find relations to %s: %w", c.Name, err)
	}
	var out []reference
	for from, fields := range found {
		for _, f := range fields {
			if r, ok := f.(*core.RelationField); ok && !from.IsView() {
				out = append(out, reference{from, r, r.CascadeDelete})
			}
		}
	}
	slices.SortFunc(out, func(a, b reference) int {
		return cmp.Or(cmp.Compare(a.collection.Name, b.collection.Name), cmp.Compare(a.field.Name, b.field.Name))
	})
	return out, nil
}
