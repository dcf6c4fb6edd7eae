package audit

import (
	"encoding/json"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// watchPriority is behind the hooks in which PocketBase opens the transactions of deletes (99), and those of features
// that act in them (100).
const watchPriority = 110

// watch records what PocketBase itself does that is privileged: changes of collections and settings, of superusers, of
// what users sign in with, deletes of accounts, and backups. Each is recorded in the transaction that does it,
// whoever does it: a request, a command, a hook. Changes of users' other fields, and of other records, are not.
func (l *Log) watch(app core.App) {
	l.watchRequests(app)
	app.OnCollectionCreateExecute().Bind(handler("Create", func(e *core.CollectionEvent) error {
		return l.within(&e.App, e.Next, func() Entry {
			return l.by(e.App, e.Collection, "collections.created", map[string]any{
				"name": e.Collection.Name, "collection": e.Collection.Id, "type": e.Collection.Type, "rules": rulesOf(e.Collection),
			})
		})
	}))
	app.OnCollectionUpdateExecute().Bind(handler("Update", func(e *core.CollectionEvent) error {
		before, err := e.App.FindCollectionByNameOrId(e.Collection.Id)
		if err != nil {
			return e.Next()
		}
		return l.within(&e.App, e.Next, func() Entry {
			return l.by(e.App, e.Collection, "collections.updated", changesOf(before, e.Collection))
		})
	}))
	app.OnCollectionDeleteExecute().Bind(handler("Delete", func(e *core.CollectionEvent) error {
		return l.within(&e.App, e.Next, func() Entry {
			return l.by(e.App, e.Collection, "collections.deleted", map[string]any{
				"name": e.Collection.Name, "collection": e.Collection.Id, "type": e.Collection.Type, "rules": rulesOf(e.Collection),
			})
		})
	}))
	app.OnRecordCreateExecute(core.CollectionNameSuperusers).Bind(handler("Create", func(e *core.RecordEvent) error {
		return l.within(&e.App, e.Next, func() Entry { return l.about(e, "superusers.created", nil) })
	}))
	app.OnRecordUpdateExecute().Bind(handler("Update", l.watchUpdate))
	app.OnRecordDeleteExecute().Bind(handler("Delete", func(e *core.RecordEvent) error {
		if !e.Record.Collection().IsAuth() {
			return e.Next()
		}
		action := "accounts.deleted"
		if e.Record.IsSuperuser() {
			action = "superusers.deleted"
		}
		return l.within(&e.App, e.Next, func() Entry { return l.about(e, action, nil) })
	}))
	app.OnModelCreateExecute("_params").Bind(handler("Create", l.watchSettings))
	app.OnModelUpdateExecute("_params").Bind(handler("Update", l.watchSettings))
}

func handler[E hook.Resolver](what string, run func(E) error) *hook.Handler[E] {
	return &hook.Handler[E]{Id: "satchelAudit" + what, Priority: watchPriority, Func: run}
}

// within runs an act and writes its entry in one transaction. app is the event's application, which the act uses.
// The migrations of the program, which run while it opens the database, are not recorded.
func (l *Log) within(app *core.App, act func() error, entry func() Entry) error {
	outer := *app
	if !l.Ready() {
		if !l.opened.Load() {
			return act()
		}
		if err := l.Unlock(); err != nil {
			return err
		}
	}
	defer func() { *app = outer }()
	return outer.RunInTransaction(func(tx core.App) error {
		*app = tx
		if err := act(); err != nil {
			return err
		}
		e := entry()
		if e.Action == "" {
			return nil
		}
		return l.Append(tx, e)
	})
}

// by begins the entry of an act on a model. Who acts is known by the model, or by the transaction, that a request has left.
func (l *Log) by(app core.App, model any, action string, details map[string]any) Entry {
	var entry Entry
	found, ok := l.acting.Load(model)
	if info := pb.TransactionOf(app); !ok && info != nil {
		found, ok = l.acting.Load(info)
	}
	if e, isRequest := found.(*core.RequestEvent); ok && isRequest {
		entry = From(e)
	}
	entry.Action, entry.Details = action, details
	return entry
}

func (l *Log) about(e *core.RecordEvent, action string, details map[string]any) Entry {
	entry := l.by(e.App, e.Record, action, details)
	entry.Subject = PartyOf(e.Record)
	return entry
}

// watchUpdate records changes of what an account signs in with.
func (l *Log) watchUpdate(e *core.RecordEvent) error {
	if !e.Record.Collection().IsAuth() {
		return e.Next()
	}
	before := e.Record.Original()
	var fields []string
	for name, changed := range map[string]bool{
		"email":    e.Record.Email() != before.Email(),
		"verified": e.Record.Verified() != before.Verified(),
		"password": e.Record.GetString("password:hash") != before.GetString("password:hash"),
		"tokenKey": e.Record.TokenKey() != before.TokenKey(),
	} {
		if changed {
			fields = append(fields, name)
		}
	}
	action := "accounts.updated"
	if e.Record.IsSuperuser() {
		action = "superusers.updated"
		for _, f := range e.Record.Collection().Fields {
			if name := f.GetName(); !f.GetSystem() && name != "updated" && !reflect.DeepEqual(e.Record.Get(name), before.Get(name)) {
				fields = append(fields, name)
			}
		}
	}
	if len(fields) == 0 {
		return e.Next()
	}
	slices.Sort(fields)
	return l.within(&e.App, e.Next, func() Entry { return l.about(e, action, map[string]any{"fields": fields}) })
}

// watchSettings records which sections of the settings change. Their values may be secrets.
func (l *Log) watchSettings(e *core.ModelEvent) error {
	after, ok := e.Model.(*core.Settings)
	if !ok {
		return e.Next()
	}
	before, err := e.App.Settings().Clone()
	if err != nil {
		return e.Next()
	}
	sections := changedSections(before, after)
	if len(sections) == 0 {
		return e.Next()
	}
	return l.within(&e.App, e.Next, func() Entry {
		return l.by(e.App, e.Model, "settings.updated", map[string]any{"sections": sections})
	})
}

// changedSections are the names of the sections that differ, as they are called in JSON. The values themselves are
// compared, because JSON leaves secrets out.
func changedSections(before, after *core.Settings) []string {
	var out []string
	var compare func(a, b reflect.Value)
	compare = func(a, b reflect.Value) {
		for i := range a.NumField() {
			f := a.Type().Field(i)
			switch {
			case f.Anonymous && f.Type.Kind() == reflect.Struct:
				compare(a.Field(i), b.Field(i))
			case f.IsExported() && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				out = append(out, name)
			}
		}
	}
	compare(reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem())
	slices.Sort(out)
	return out
}

// rulesOf are the rules that decide who may do what; null lets superusers alone.
func rulesOf(c *core.Collection) map[string]any {
	out := map[string]any{"list": c.ListRule, "view": c.ViewRule, "create": c.CreateRule, "update": c.UpdateRule, "delete": c.DeleteRule}
	if c.IsAuth() {
		out["auth"], out["manage"] = c.AuthRule, c.ManageRule
	}
	return out
}

// changesOf tells which rules a collection had and has, and the names of the fields and options that differ.
func changesOf(before, after *core.Collection) map[string]any {
	out := map[string]any{"name": after.Name, "collection": after.Id}
	if before.Name != after.Name {
		out["nameBefore"] = before.Name
	}
	rules := map[string]any{}
	was := rulesOf(before)
	for name, now := range rulesOf(after) {
		if !reflect.DeepEqual(was[name], now) {
			rules[name] = map[string]any{"before": was[name], "after": now}
		}
	}
	if len(rules) > 0 {
		out["rules"] = rules
	}
	had := map[string]string{}
	for _, f := range before.Fields {
		had[f.GetId()] = asJSON(f)
	}
	var added, changed, removed []string
	for _, f := range after.Fields {
		old, known := had[f.GetId()]
		delete(had, f.GetId())
		if !known {
			added = append(added, f.GetName())
		} else if old != asJSON(f) {
			changed = append(changed, f.GetName())
		}
	}
	for _, f := range before.Fields {
		if _, gone := had[f.GetId()]; gone {
			removed = append(removed, f.GetName())
		}
	}
	for name, list := range map[string][]string{"fieldsAdded": added, "fieldsChanged": changed, "fieldsRemoved": removed, "options": options(before, after)} {
		if len(list) > 0 {
			out[name] = list
		}
	}
	return out
}

// options are the names of the members that differ, beside rules and fields; their values may be secrets.
func options(before, after *core.Collection) []string {
	var a, b map[string]json.RawMessage
	_ = json.Unmarshal([]byte(asJSON(before)), &a)
	_ = json.Unmarshal([]byte(asJSON(after)), &b)
	var out []string
	for _, name := range slices.Sorted(maps.Keys(b)) {
		switch name {
		case "fields", "updated", "created", "name", "listRule", "viewRule", "createRule", "updateRule", "deleteRule", "authRule", "manageRule":
		default:
			if string(a[name]) != string(b[name]) {
				out = append(out, name)
			}
		}
	}
	return out
}

func asJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(raw)
}

// watchRequests leaves, for the hooks that run in transactions, who makes the request.
func (l *Log) watchRequests(app core.App) {
	collection := func(e *core.CollectionRequestEvent) error {
		l.acting.Store(e.Collection, e.RequestEvent)
		defer l.acting.Delete(e.Collection)
		return e.Next()
	}
	app.OnCollectionCreateRequest().BindFunc(collection)
	app.OnCollectionUpdateRequest().BindFunc(collection)
	app.OnCollectionDeleteRequest().BindFunc(collection)
	// An import makes its models itself, so its transaction is what is known of it. PocketBase opens one anyway.
	app.OnCollectionsImportRequest().BindFunc(func(e *core.CollectionsImportRequestEvent) error {
		outer := e.App
		defer func() { e.App = outer }()
		return outer.RunInTransaction(func(tx core.App) error {
			e.App = tx
			l.acting.Store(pb.TransactionOf(tx), e.RequestEvent)
			defer l.acting.Delete(pb.TransactionOf(tx))
			return e.Next()
		})
	})
	app.OnSettingsUpdateRequest().BindFunc(func(e *core.SettingsUpdateRequestEvent) error {
		l.acting.Store(e.NewSettings, e.RequestEvent)
		defer l.acting.Delete(e.NewSettings)
		return e.Next()
	})
	record := func(e *core.RecordRequestEvent) error {
		if !e.Record.Collection().IsAuth() {
			return e.Next()
		}
		record := e.Record
		l.acting.Store(record, e.RequestEvent)
		defer l.acting.Delete(record)
		return e.Next()
	}
	app.OnRecordCreateRequest(core.CollectionNameSuperusers).BindFunc(record)
	app.OnRecordUpdateRequest().BindFunc(record)
	app.OnRecordDeleteRequest().BindFunc(record)
	// Within the sessions (999), so that the session is known.
	app.OnRecordAuthRequest().Bind(&hook.Handler[*core.RecordAuthRequestEvent]{Id: "satchelAuditSignIn", Priority: 1100, Func: l.watchSignIn})
	app.OnRecordAuthWithOAuth2Request().BindFunc(func(e *core.RecordAuthWithOAuth2RequestEvent) error {
		err := e.Next()
		if err != nil && !e.Written() {
			l.logged(l.NoteFailure(e.App, e.RequestEvent, "accounts.sign_in", Failure, e.Record, map[string]any{"method": "oauth2", "provider": e.ProviderName}))
		}
		return err
	})
	app.OnBackupCreate().BindFunc(l.watchBackup)
	app.OnBackupRestore().BindFunc(l.watchRestore)
}

// watchSignIn lets the entry of a sign-in, which the guard writes, name the session that it began.
func (l *Log) watchSignIn(e *core.RecordAuthRequestEvent) error {
	err := e.Next()
	if meta, ok := e.Meta.(map[string]any); ok && err == nil && e.Get(sessionKey) == nil {
		e.Set(sessionKey, sessionOf(meta["session"]))
	}
	return err
}

// sessionOf is the id in the tokens that the sessions put into an answer.
func sessionOf(tokens any) string {
	var grant struct {
		ID string `json:"sessionId"`
	}
	_ = json.Unmarshal([]byte(asJSON(tokens)), &grant)
	return grant.ID
}

// logged is for entries whose act has been answered already.
func (l *Log) logged(err error) {
	if err != nil {
		l.logger.Error("an audit entry was not stored", slog.Any("error", err))
	}
}
