package message

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/push/device"
)

// accountsPage is how many accounts are looked up at a time.
const accountsPage = 500

// DefaultAccounts is the auth collection of users that are named without one.
const DefaultAccounts = "users"

// CheckTarget finds what the target names, so that a mistake is told to who makes it and not to a job.
func CheckTarget(app core.App, to To) error {
	switch {
	case len(to.Users) > 0:
		_, err := authCollection(app, to.Collection)
		return err
	case to.Filter != nil:
		_, err := compileFilter(app, to.Filter)
		return err
	}
	return nil
}

func authCollection(app core.App, name string) (*core.Collection, error) {
	if name == "" {
		name = DefaultAccounts
	}
	c, err := app.FindCachedCollectionByNameOrId(name)
	if err != nil || !c.IsAuth() || c.System && c.Name == core.CollectionNameSuperusers {
		return nil, fmt.Errorf("to.collection: %.100q has no accounts of users", name)
	}
	return c, nil
}

// filtered is a filter that fits the schema.
type filtered struct {
	records  *core.Collection
	accounts *core.Collection
	column   string // of the account; empty is the record itself
	multiple bool
	where    dbx.Expression
	resolver *core.RecordFieldResolver
}

func compileFilter(app core.App, f *Filter) (*filtered, error) {
	c, err := app.FindCachedCollectionByNameOrId(f.Collection)
	if err != nil {
		return nil, fmt.Errorf("to.filter.collection: there is no %.100q", f.Collection)
	}
	out := &filtered{records: c, accounts: c}
	if f.Account != "" {
		field, ok := c.Fields.GetByName(f.Account).(*core.RelationField)
		if !ok {
			return nil, fmt.Errorf("to.filter.account: %.100q is no relation of %s", f.Account, c.Name)
		}
		if out.accounts, err = app.FindCachedCollectionByNameOrId(field.CollectionId); err != nil {
			return nil, fmt.Errorf("to.filter.account: %w", err)
		}
		out.column, out.multiple = field.Name, field.IsMultiple()
	}
	if own(c) || own(out.accounts) {
		return nil, fmt.Errorf("to.filter: %s has no accounts of users", c.Name)
	}
	if !out.accounts.IsAuth() {
		return nil, fmt.Errorf("to.filter: %s has no accounts; name a relation to them in account", out.accounts.Name)
	}
	out.resolver = core.NewRecordFieldResolver(app, c, nil, true)
	if f.Where != "" {
		if out.where, err = search.FilterData(f.Where).BuildExpr(discreet{out.resolver, app}, dbx.Params(f.Params)); err != nil {
			return nil, fmt.Errorf("to.filter.where: %w", err)
		}
	}
	return out, nil
}

// own reports whether a collection is one of PocketBase's own, which hold superusers, codes and links to identities.
func own(c *core.Collection) bool { return strings.HasPrefix(c.Name, "_") }

// discreet knows the fields that rules know, the hidden ones too, but for secrets: who may send must not learn them, piece
// by piece, from how many devices a filter finds.
type discreet struct {
	*core.RecordFieldResolver

	app core.App
}

// Resolve implements search.FieldResolver.
func (d discreet) Resolve(field string) (*search.ResolverResult, error) {
	parts := strings.Split(field, ".")
	for i, part := range parts {
		name, _, _ := strings.Cut(part, ":")
		if name == core.FieldNamePassword || name == core.FieldNameTokenKey {
			return nil, fmt.Errorf("%s cannot be asked for", name)
		}
		if i == 1 && parts[0] == "@collection" {
			c, err := d.app.FindCachedCollectionByNameOrId(name)
			if err != nil {
				return nil, fmt.Errorf("there is no collection %.100q", name)
			}
			if own(c) {
				return nil, fmt.Errorf("%s cannot be asked", c.Name)
			}
		}
	}
	return d.RecordFieldResolver.Resolve(field)
}

// page returns the accounts of up to accountsPage records behind one, and the last record; it is empty at the end.
func (f *filtered) page(ctx context.Context, app core.App, after string) (list []device.Account, last string, err error) {
	id := f.records.Name + ".id"
	account := "[[" + id + "]]"
	if f.column != "" {
		account = "[[" + f.records.Name + "." + f.column + "]]"
	}
	var rows []struct {
		ID      string `db:"id"`
		Account string `db:"account"`
	}
	q := app.ConcurrentDB().Select("[["+id+"]] AS id", account+" AS account").From(f.records.Name).
		AndWhere(dbx.NewExp("[["+id+"]] > {:after}", dbx.Params{"after": after})).OrderBy(id).Limit(accountsPage).WithContext(ctx)
	if f.where != nil {
		q.AndWhere(f.where)
	}
	if err := f.resolver.UpdateQuery(q); err != nil {
		return nil, "", fmt.Errorf("join what the filter reads: %w", err)
	}
	if err := q.All(&rows); err != nil {
		return nil, "", fmt.Errorf("find accounts: %w", err)
	}
	for _, r := range rows {
		last = r.ID
		ids := []string{r.Account}
		if f.multiple {
			if err := json.Unmarshal([]byte(r.Account), &ids); err != nil {
				return nil, "", fmt.Errorf("read accounts of record %s: %w", r.ID, err)
			}
		}
		for _, id := range ids {
			if id != "" {
				list = append(list, device.Account{Collection: f.accounts.Id, ID: id})
			}
		}
	}
	if len(rows) < accountsPage {
		last = ""
	}
	return list, last, nil
}

// Some returns the next accounts of a target that names any, and the position behind them; it is empty at the end.
func (t To) Some(ctx context.Context, app core.App, after string) (list []device.Account, next string, err error) {
	if t.Filter != nil {
		f, err := compileFilter(app, t.Filter)
		if err != nil {
			return nil, "", err
		}
		return f.page(ctx, app, after)
	}
	c, err := authCollection(app, t.Collection)
	if err != nil {
		return nil, "", err
	}
	from, _ := slices.BinarySearch(t.Users, after+"\x00")
	users := t.Users[from:min(from+accountsPage, len(t.Users))]
	for _, id := range users {
		list = append(list, device.Account{Collection: c.Id, ID: id})
	}
	if from+len(users) < len(t.Users) {
		next = users[len(users)-1]
	}
	return list, next, nil
}

// Named is the id of the collection of the users that the target names, and their ids as a JSON array.
func (t To) Named(app core.App) (collection, users string, err error) {
	c, err := authCollection(app, t.Collection)
	if err != nil {
		return "", "", err
	}
	raw, err := json.Marshal(t.Users)
	if err != nil {
		return "", "", fmt.Errorf("encode users: %w", err)
	}
	return c.Id, string(raw), nil
}

// ByAccounts reports whether the target names accounts; the others name devices.
func (t To) ByAccounts() bool { return t.Filter != nil || len(t.Users) > 0 }
