// Package rows reads records as JSON: PocketBase turns the rule and the filter into SQL, and the columns go from the
// database straight into a buffer, without records, maps or reflection between. It is a library for whatever sends
// records to clients; it has no routes, settings or tables, and it knows nothing of HTTP but the stock list and view,
// whose answers [BindStock] writes with the same encoder.
//
// The pieces, from the database to the client:
//
//	Where    adds the conditions of a rule and a filter to a query
//	Compile  freezes a query, so that the same question of another viewer costs no more than binding its values
//	Lasting  says whether that is allowed: the SQL must depend on nothing but the [Viewer] and the schema
//	Plan     knows the columns that a viewer gets and writes a row of them
//	Fields   is the client's choice of fields
//
// What is written equals what PocketBase's API writes, for every value that SQLite can hold: an unusual one takes the
// way through PocketBase's own field. A plan is refused for collections with fields of foreign types, and a plan is not
// enough when hooks want to see the records; the caller then reads records and writes them with [AppendRecord].
//
// Failure modes: a value that PocketBase cannot read or that JSON cannot hold (infinity in a number, broken JSON in a
// geo point) is an error of the whole answer.
package rows

import (
	"fmt"
	"strings"

	"github.com/ganigeorgiev/fexpr"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
)

// Viewer is who reads, as far as the SQL of a lasting condition depends on it: two requests with equal viewers get the
// same SQL, with the id of the account bound as a value. It is comparable, to be part of a cache's key.
type Viewer struct {
	Superuser bool

	collection         *core.Collection // of the account, nil for a guest
	verified, mailOpen bool
}

// ViewerOf describes the account behind a request, nil for a guest. It reports false for accounts that a hook has
// altered in a way that a key cannot express.
func ViewerOf(auth *core.Record) (Viewer, bool) {
	if auth == nil {
		return Viewer{}, true
	}
	v := Viewer{Superuser: auth.IsSuperuser(), collection: auth.Collection()}
	var plain, open bool
	v.verified, plain = auth.GetRaw(core.FieldNameVerified).(bool)
	v.mailOpen, open = auth.GetRaw(core.FieldNameEmailVisibility).(bool)
	return v, plain && open && auth.Id != "" && v.collection != nil
}

// FilterError reports a filter that PocketBase does not accept, as opposed to a broken rule.
type FilterError struct {
	// Relation says that the filter is well formed and follows a relation that the viewer may not search.
	Relation bool
	err      error
}

// Error is PocketBase's message.
func (e *FilterError) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *FilterError) Unwrap() error { return e.err }

// Where restricts a query of [core.App.RecordQuery] to the rows that the rule and the filter let pass. Empty ones let
// everything pass, and the rule does not bind superusers; a nil rule, which shuts out everybody else, is the caller's to
// refuse. When the conditions join other tables the query becomes DISTINCT. A mistake in the filter is a [*FilterError].
func Where(q *dbx.SelectQuery, app core.App, collection *core.Collection, info *core.RequestInfo, rule *string, filter string) error {
	superuser := info.HasSuperuserAuth()
	resolver := core.NewRecordFieldResolver(app, collection, info, true)
	if !superuser && rule != nil && *rule != "" {
		expr, err := search.FilterData(*rule).BuildExpr(resolver)
		if err != nil {
			return fmt.Errorf("build rule of %s: %w", collection.Name, err)
		}
		q.AndWhere(expr)
	}
	resolver.SetAllowHiddenFields(superuser)
	if filter != "" {
		expr, err := search.FilterData(filter).BuildExpr(resolver)
		if err != nil {
			return &FilterError{err: err}
		}
		q.AndWhere(expr)
	}
	if err := resolver.UpdateQuery(q); err != nil {
		err = fmt.Errorf("join relations of %s: %w", collection.Name, err)
		if filter != "" {
			return &FilterError{Relation: true, err: err}
		}
		return err
	}
	return nil
}

// Lasting reports whether the SQL of the conditions depends only on the viewer, the schema and the texts themselves, so
// that it may be kept for other requests. Times, the body, the headers and the query of the request do not last;
// functions may do anything; and a filter that follows a relation brings the list rule of the related collection along.
func Lasting(collection *core.Collection, viewer Viewer, rule *string, filter string) bool {
	if !viewer.Superuser && rule != nil && *rule != "" && !lastingText(*rule, nil) {
		return false
	}
	if filter == "" {
		return true
	}
	if viewer.Superuser {
		return lastingText(filter, nil)
	}
	return lastingText(filter, collection)
}

// lastingText checks every operand. within is the collection that a client's filter must stay in.
func lastingText(condition string, within *core.Collection) bool {
	groups, err := fexpr.Parse(condition)
	return err == nil && lastingGroups(groups, within)
}

func lastingGroups(groups []fexpr.ExprGroup, within *core.Collection) bool {
	for _, g := range groups {
		ok := false
		switch item := g.Item.(type) {
		case fexpr.Expr:
			ok = lastingToken(item.Left, within) && lastingToken(item.Right, within)
		case fexpr.ExprGroup:
			ok = lastingGroups([]fexpr.ExprGroup{item}, within)
		case []fexpr.ExprGroup:
			ok = lastingGroups(item, within)
		}
		if !ok {
			return false
		}
	}
	return true
}

func lastingToken(token fexpr.Token, within *core.Collection) bool {
	switch token.Type {
	case fexpr.TokenText, fexpr.TokenNumber:
		return true
	case fexpr.TokenIdentifier:
		if within != nil {
			return staysWithin(token.Literal, within)
		}
		if !strings.HasPrefix(token.Literal, "@") || strings.HasPrefix(token.Literal, "@collection.") {
			return true
		}
		// The address becomes a value of its own; all else about the account is joined by its id or part of the viewer.
		return strings.HasPrefix(token.Literal, "@request.auth.") && token.Literal != "@request.auth."+core.FieldNameEmail
	default:
		return false
	}
}

// staysWithin reports whether an operand reads the collection's own columns only.
func staysWithin(name string, collection *core.Collection) bool {
	root, _, nested := strings.Cut(name, ".")
	if strings.HasPrefix(name, "@") {
		return false
	}
	if !nested {
		return true
	}
	field := collection.Fields.GetByName(root)
	return field != nil && (field.Type() == core.FieldTypeJSON || field.Type() == core.FieldTypeGeoPoint)
}
