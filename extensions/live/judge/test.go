// Package judge decides which viewers may see which records of a collection, for many viewers at once: by looking at the
// record where the form of the rule allows it ([Match]), and otherwise by one question to the database ([Question]).
//
// Both say what PocketBase would say if it evaluated the rule for one viewer and one record. The package knows nothing of
// connections.
package judge

import (
	"strconv"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
)

// Test is a condition on a record in which all that is fixed for the viewer has been put in, so that equal keys mean equal
// answers.
type Test struct {
	Key    string
	always bool
	match  func(r *core.Record) bool
}

// Always reports that every record passes.
func (t *Test) Always() bool { return t.always }

// Match reports whether the record passes.
func (t *Test) Match(r *core.Record) bool { return t.match(r) }

// InMemory turns a rule and a filter into a test. It reports false for conditions that need the database: those with
// relations, numbers, dates, lists, or other operators than = and !=. Empty conditions let everything pass; a rule does
// not bind superusers.
func InMemory(collection *core.Collection, rule *string, filter string, auth *core.Record) (*Test, bool) {
	whole := node{constant: true, value: true}
	if rule != nil && *rule != "" && (auth == nil || !auth.IsSuperuser()) {
		n, ok := parse(collection, auth, *rule, true)
		if !ok {
			return nil, false
		}
		whole = join(whole, n, true)
	}
	if filter != "" {
		if strings.Contains(filter, "@") {
			return nil, false
		}
		n, ok := parse(collection, auth, filter, auth != nil && auth.IsSuperuser())
		if !ok {
			return nil, false
		}
		whole = join(whole, n, true)
	}
	if whole.constant {
		value := whole.value
		return &Test{Key: strconv.FormatBool(value), always: value, match: func(*core.Record) bool { return value }}, true
	}
	return &Test{Key: whole.key, match: whole.match}, true
}

// node is a condition: a constant, or a function of the record with a text that stands for it.
type node struct {
	constant, value bool
	key             string
	match           func(r *core.Record) bool
}

// join is a AND b, or a OR b.
func join(a, b node, and bool) node {
	if b.constant {
		a, b = b, a
	}
	if a.constant {
		if a.value == and { // true and b, false or b
			return b
		}
		return a
	}
	if and {
		return node{key: "(" + a.key + "&" + b.key + ")", match: func(r *core.Record) bool { return a.match(r) && b.match(r) }}
	}
	return node{key: "(" + a.key + "|" + b.key + ")", match: func(r *core.Record) bool { return a.match(r) || b.match(r) }}
}

func parse(collection *core.Collection, auth *core.Record, text string, hidden bool) (node, bool) {
	groups, err := fexpr.Parse(text)
	if err != nil {
		return node{}, false
	}
	return parser{collection, auth, hidden}.groups(groups)
}

type parser struct {
	collection *core.Collection
	auth       *core.Record
	hidden     bool // hidden fields may be read
}

// groups joins the parts as SQL does, to which PocketBase passes them one after another: AND before OR.
func (p parser) groups(list []fexpr.ExprGroup) (node, bool) {
	any := node{constant: true, value: false}
	all := node{constant: true, value: true}
	for i, g := range list {
		n, ok := p.group(g)
		if !ok {
			return node{}, false
		}
		if i > 0 && g.Join == fexpr.JoinOr {
			any, all = join(any, all, false), n
			continue
		}
		all = join(all, n, true)
	}
	return join(any, all, false), len(list) > 0
}

func (p parser) group(g fexpr.ExprGroup) (node, bool) {
	switch item := g.Item.(type) {
	case fexpr.Expr:
		return p.expression(item)
	case fexpr.ExprGroup:
		return p.groups([]fexpr.ExprGroup{item})
	case []fexpr.ExprGroup:
		return p.groups(item)
	}
	return node{}, false
}

func (p parser) expression(e fexpr.Expr) (node, bool) {
	equal, sign := true, "="
	switch e.Op {
	case fexpr.SignEq, fexpr.SignAnyEq:
	case fexpr.SignNeq, fexpr.SignAnyNeq:
		equal, sign = false, "!="
	default:
		return node{}, false
	}
	left, ok := p.operand(e.Left)
	if !ok {
		return node{}, false
	}
	right, ok := p.operand(e.Right)
	if !ok || left.kind != right.kind {
		return node{}, false
	}
	if left.field == "" && right.field == "" {
		return node{constant: true, value: (left.literal == right.literal) == equal}, true
	}
	return node{
		key:   left.key() + sign + right.key(),
		match: func(r *core.Record) bool { return (left.of(r) == right.of(r)) == equal },
	}, true
}

type kind uint8

const (
	textKind kind = iota
	boolKind
)

// operand is a field of the record or a literal; that of a bool is "true" or "false".
type operand struct {
	kind    kind
	field   string
	literal string
}

func (o operand) key() string {
	if o.field != "" {
		return o.field
	}
	return strconv.Quote(o.literal)
}

func (o operand) of(r *core.Record) string {
	switch {
	case o.field == "":
		return o.literal
	case o.kind == boolKind:
		return strconv.FormatBool(r.GetBool(o.field))
	}
	return r.GetString(o.field)
}

func (p parser) operand(token fexpr.Token) (operand, bool) {
	switch token.Type {
	case fexpr.TokenText:
		return operand{literal: token.Literal}, true
	case fexpr.TokenIdentifier:
	default:
		return operand{}, false
	}
	if text, ok := p.identity(token.Literal); ok {
		return operand{literal: text}, true
	}
	if field := p.collection.Fields.GetByName(token.Literal); field != nil {
		address := p.collection.IsAuth() && field.GetName() == core.FieldNameEmail // of some accounts it is hidden
		if (field.GetHidden() || address) && !p.hidden {
			return operand{}, false
		}
		kind, ok := kindOf(field)
		return operand{kind: kind, field: token.Literal}, ok
	}
	switch strings.ToLower(token.Literal) {
	case "true", "false":
		return operand{kind: boolKind, literal: strings.ToLower(token.Literal)}, true
	}
	return operand{}, false
}

// identity is what PocketBase takes from the account without asking the database. A guest has none, which it compares as
// the empty text.
func (p parser) identity(name string) (string, bool) {
	var id, collectionID, collectionName string
	if p.auth != nil {
		id, collectionID, collectionName = p.auth.Id, p.auth.Collection().Id, p.auth.Collection().Name
	}
	switch name {
	case "@request.auth.id":
		return id, true
	case "@request.auth.collectionId":
		return collectionID, true
	case "@request.auth.collectionName":
		return collectionName, true
	}
	return "", false
}

// kindOf reports whether a value of the field is one text or one bool, which SQLite compares as Go does.
func kindOf(field core.Field) (kind, bool) {
	switch f := field.(type) {
	case *core.TextField, *core.EmailField, *core.URLField, *core.EditorField:
		return textKind, true
	case *core.SelectField:
		return textKind, !f.IsMultiple()
	case *core.RelationField:
		return textKind, !f.IsMultiple()
	case *core.BoolField:
		return boolKind, true
	}
	return textKind, false
}
