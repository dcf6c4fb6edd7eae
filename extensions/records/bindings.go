package records

import (
	"strconv"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/dbutils"
)

// bindings are the columns that the rule and the filter fix to one value, with the values: for
// `owner = @request.auth.id && (a = 1 || b = 2)` that is owner. They make an index on (owner, created, id) serve a list
// that is sorted by created. They are worked out when first asked for, because most sorts do not need them.
type bindings struct {
	collection *core.Collection
	resolver   *core.RecordFieldResolver // of its own: resolving may register joins
	conditions []string
	values     map[string]any
}

// column reports whether an index column is bound, and the name of its field.
func (b *bindings) column(column dbutils.IndexColumn) (string, bool) {
	if collate, ok := collation(column.Collate); !ok || collate != "" {
		return "", false
	}
	for name := range b.load() {
		if strings.EqualFold(name, column.Name) {
			return name, true
		}
	}
	return "", false
}

func (b *bindings) load() map[string]any {
	if b.values != nil {
		return b.values
	}
	b.values = map[string]any{}
	for _, condition := range b.conditions {
		// What cannot be parsed was reported when the condition was built.
		if groups, err := fexpr.Parse(condition); err == nil {
			b.collect(groups)
		}
	}
	return b.values
}

// collect takes the equalities of a conjunction. AND binds closer than OR in SQL, so one OR spoils the whole level.
func (b *bindings) collect(groups []fexpr.ExprGroup) {
	for i, g := range groups {
		if i > 0 && g.Join != fexpr.JoinAnd {
			return
		}
	}
	for _, g := range groups {
		switch item := g.Item.(type) {
		case []fexpr.ExprGroup:
			b.collect(item)
		case fexpr.Expr:
			if item.Op == fexpr.SignEq || item.Op == fexpr.SignAnyEq {
				b.bind(item.Left, item.Right)
				b.bind(item.Right, item.Left)
			}
		}
	}
}

func (b *bindings) bind(column, value fexpr.Token) {
	if column.Type != fexpr.TokenIdentifier {
		return
	}
	field := b.collection.Fields.GetByName(column.Literal)
	if field == nil || !keyColumn(field) {
		return
	}
	if v, ok := b.value(value); ok {
		b.values[field.GetName()] = v
	}
}

// value is the constant that PocketBase compares a column with; for what is missing it is the empty string.
func (b *bindings) value(token fexpr.Token) (any, bool) {
	if token.Type == fexpr.TokenText {
		return token.Literal, true
	}
	if token.Type == fexpr.TokenNumber {
		v, err := strconv.ParseFloat(token.Literal, 64)
		return v, err == nil
	}
	if token.Type != fexpr.TokenIdentifier || b.collection.Fields.GetByName(token.Literal) != nil {
		return nil, false
	}
	if strings.HasPrefix(token.Literal, "@request.") {
		return b.requestValue(token.Literal)
	}
	switch strings.ToLower(token.Literal) {
	case "true":
		return 1, true
	case "false":
		return 0, true
	case "null":
		return "", true
	}
	return nil, false
}

func (b *bindings) requestValue(name string) (any, bool) {
	result, err := b.resolver.Resolve(name)
	if err != nil || result.MultiMatchSubQuery != nil {
		return nil, false
	}
	if result.Identifier == "NULL" {
		return "", true
	}
	for key, value := range result.Params {
		if len(result.Params) == 1 && result.Identifier == "{:"+key+"}" {
			return value, true
		}
	}
	return nil, false
}
